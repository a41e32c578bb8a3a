"""Worker processes that do not outlive the command that started them."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from multiprocessing import get_context


def die_with(parent: int) -> None:
    """Have the system kill this process when its parent is gone, however it went: an orphan would hold a GPU and the folder's lock."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def finished(work: Callable, jobs: list, workers: int | None = None) -> Iterator[tuple]:
    """(job, work(job)) of every job as it gets done: in this process, or in several `workers` (default: one per core).

    ValueError where the system has killed one of them.
    """
    workers = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    if workers <= 1:
        yield from ((job, work(job)) for job in jobs)
        return
    # Fresh processes, not forks: a fork of a process with threads (a progress bar has one) may hang.
    with ProcessPoolExecutor(workers, get_context("spawn"), die_with, (os.getpid(),)) as pool:
        running = {pool.submit(work, job): job for job in jobs}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BrokenExecutor as error:
            again = "run the same command again with --workers 1, and it goes on where it stopped"
            raise ValueError(f"a process was killed, most likely for want of memory: {again}") from error
        finally:
            pool.shutdown(cancel_futures=True)
