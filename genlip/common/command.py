"""The one boundary of every command: what a user can mend becomes one sentence and an exit code, never a traceback.

    @command
    def main(argv: list[str] | None = None) -> int: ...

Exit codes: 0 done; 1 it had begun and failed (`Failed`); 2 refused (ValueError, OSError and the like); stopped by Ctrl-C 130, by SIGTERM
143, by a terminal that was closed 129: 128 and the signal's number, as a shell counts. A command may return others of its own. A stopped
command lets go of its locks, removes what it was writing aside and ends its workers. GENLIP_DEBUG=1 shows the traceback before the
sentence. Any other exception is a fault of ours: it stays one.
"""

import argparse
import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import NoReturn

STOPPED = "stopped; the same command goes on from here"


class Failed(RuntimeError):
    """What was asked for had begun, and did not come to its end."""


class Stopped(BaseException):
    """A signal that ends a process has come: raised where it stands, as Ctrl-C is."""

    def __init__(self, number: int):
        self.number = number


def command(main: Callable[..., int]) -> Callable[..., int]:
    """`main(argv)` inside the boundary."""

    @functools.wraps(main)
    def bounded(argv: list[str] | None = None) -> int:
        try:
            with _signals_raised():
                return main(argv)
        except BrokenPipeError:  # whoever read our output has read enough: `... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141  # as the shell counts SIGPIPE
        except Failed as error:
            return _said(f"error: {error}", 1)
        except _refusals() as error:
            return _said(f"error: {sentence(error)}", 2)
        except KeyboardInterrupt:
            return _said(STOPPED, 130)
        except Stopped as stop:
            return _said(STOPPED, 128 + stop.number)

    return bounded


@contextmanager
def _signals_raised() -> Iterator[None]:
    """SIGTERM and SIGHUP as exceptions, so that what is under way is cleared away. One that is ignored (nohup) stays so.

    Not for one rank of several: it may wait inside a collective, where no exception reaches it, for a rank that is gone.
    """
    owner, before = os.getpid(), {}

    def stop(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)  # the second one ends it at once
        if os.getpid() != owner:  # a fork's, which inherited this
            os.kill(os.getpid(), number)
        raise Stopped(number)

    if threading.current_thread() is threading.main_thread() and os.environ.get("WORLD_SIZE", "1") == "1":
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refusals() -> tuple[type[BaseException], ...]:
    """What a user can mend. safetensors' own error counts where safetensors has been loaded: nothing else can have raised it."""
    loaded = sys.modules.get("safetensors")
    return (ValueError, OSError, FloatingPointError, *((loaded.SafetensorError,) if loaded else ()))


def _said(text: str, code: int) -> int:
    if os.environ.get("GENLIP_DEBUG") == "1":
        traceback.print_exc()
    print(text, file=sys.stderr)
    return code


def sentence(error: BaseException) -> str:
    """An exception in words: the system's errors by file and reason, without their number."""
    if not isinstance(error, OSError) or error.filename is None or not error.strerror:
        return str(error)
    return ": ".join(str(name) for name in (error.filename, error.filename2, error.strerror) if name is not None)


@contextmanager
def begun() -> Iterator[None]:
    """From here on what stops a command is no refusal but a failure: exit code 1."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise Failed(sentence(error)) from error


class Parser(argparse.ArgumentParser):
    """Names the nearest flag where one is not known."""

    def error(self, message: str) -> NoReturn:
        word = message.removeprefix("unrecognized arguments: ").split(" ")[0].split("=")[0]
        known = [option for action in self._actions for option in action.option_strings]
        near = get_close_matches(word, known, n=1, cutoff=0.7) if message.startswith("unrecognized") else []
        super().error(message + (f". Did you mean {near[0]}?" if near else ""))


def new_parser(prog: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """A parser whose `epilog`, the examples, is shown line by line as it is written."""
    return Parser(prog, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
