"""Worker processes that do not outlive the command that started them."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator


def running(pid: int) -> bool:
    """Whether this machine has such a process."""
    if pid < 1:  # a group, or all of them
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # no process has a number that large
        return False
    except PermissionError:  # another user's
        return True
    return True


def ranks(single: int = 1) -> int:
    """How many processes torchrun started, by WORLD_SIZE; `single` where it started none. ValueError where that is no number of them."""
    said = os.environ.get("WORLD_SIZE", str(single))
    if not said.isascii() or not said.isdecimal() or len(said) > 9 or int(said) < 1:
        raise ValueError(f"WORLD_SIZE is {said!r}, and takes the number of processes, 1 or more: unset it, or start by torchrun")
    return int(said)


def die_with(parent: int) -> None:
    """Have the system kill this process when its parent is gone, however it went: an orphan would hold a GPU and the folder's lock.

    Ctrl-C, which a terminal sends to both, is the parent's to answer.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):  # the boundary's handlers, which a fork inherits, are the parent's too
        signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def finished(work: Callable, jobs: list, workers: int | None = None) -> Iterator[tuple]:
    """(job, work(job)) of every job as it gets done: in this process, or in several `workers` (default: one per core).

    ValueError where the system has killed one of them.
    """
    # A pool takes 40 ms to import, and most commands have none.
    from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
    from multiprocessing import active_children, get_context

    workers = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    if workers <= 1:
        yield from ((job, work(job)) for job in jobs)
        return
    # Fresh processes, not forks: a fork of a process with threads (a progress bar has one) may hang.
    others = active_children()
    with ProcessPoolExecutor(workers, get_context("spawn"), die_with, (os.getpid(),)) as pool:
        futures = {pool.submit(work, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenExecutor as error:
            again = "run the same command again with --workers 1, and it goes on where it stopped"
            raise ValueError(f"a process was killed, most likely for want of memory: {again}") from error
        finally:
            if not all(future.done() for future in futures):  # stopped: what is under way would be waited for
                for child in active_children():
                    if child not in others:
                        child.terminate()
            pool.shutdown(cancel_futures=True)
