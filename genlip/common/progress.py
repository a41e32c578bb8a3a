"""How far a long job is: a bar with the time left on a terminal, a line now and then elsewhere. On stderr: what a command prints stays."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

REPORT_EVERY = 10.0  # seconds between lines where there is no terminal


def bars(*more: str) -> "Progress":
    """rich's Progress: a row per task, with `more` columns behind it; it shows nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), *map(TextColumn, more))
    return Progress(TextColumn("{task.description}", markup=False), *columns, console=console, disable=not console.is_terminal)


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """Yield a function to call with the number of units that are done more; `done` of them were there before."""
    began = last = time.monotonic()
    made = 0
    with bars() as shown:
        task = shown.add_task(title, total=total, completed=done)

        def advance(units: int = 1) -> None:
            nonlocal made, last
            made += units
            shown.advance(task, units)
            now = time.monotonic()
            if not shown.console.is_terminal and now - last > REPORT_EVERY:
                last = now
                left = (now - began) / max(made, 1) * (total - done - made)
                shown.console.print(f"{title}: {done + made} of {total}, about {left:.0f} s left", markup=False, highlight=False)

        yield advance


def tracked(items: Sequence[Any], title: str) -> Iterator[Any]:
    """The items, one by one, with their progress shown; they must know their number."""
    with progress(title, len(items)) as advance:
        for item in items:
            yield item
            advance()
