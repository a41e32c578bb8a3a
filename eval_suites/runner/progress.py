"""How far the tasks are: a table with the time left on a terminal, a line now and then elsewhere."""

import time

from genlip.common.progress import bars


class ProgressBoard:
    """A row for each task and one for all questions; `totals`: task -> questions. A context manager."""

    def __init__(self, totals: dict[str, int], say_every: float):
        self.bars = bars()
        self.console = self.bars.console
        self.all = self.bars.add_task("all tasks", total=sum(totals.values()))
        self.rows = {task: self.bars.add_task(task, total=total, start=False) for task, total in totals.items()}
        self.totals, self.counts, self.say_every = totals, dict.fromkeys(totals, 0), say_every
        self.before: dict[str, int] = {}  # task -> answers that an earlier run has left: they say nothing about this one's speed
        self.start = self.said = time.monotonic()

    def __enter__(self) -> "ProgressBoard":
        self.bars.start()
        return self

    def __exit__(self, *_) -> None:
        self.bars.stop()

    def update(self, task: str, done: int, total: int) -> None:
        if task not in self.before:
            self.before[task] = done
            self.bars.start_task(self.rows[task])
        self.counts[task] = done
        self.bars.update(self.rows[task], completed=done, total=total)
        self.bars.update(self.all, completed=sum(self.counts.values()))

    def done(self, task: str) -> None:
        self.update(task, self.totals[task], self.totals[task])

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def tick(self) -> None:
        """A line of progress where there is no terminal, at most every `say_every` seconds."""
        now = time.monotonic()
        if self.console.is_terminal or now - self.said < self.say_every:
            return
        self.said = now
        done, total = sum(self.counts.values()), sum(self.totals.values())
        now_answered = done - sum(self.before.values())
        left = f", {(now - self.start) / now_answered * (total - done) / 60:.0f} min left" if now_answered else ""
        running = [f"{task} {self.counts[task]} of {self.totals[task]}" for task in self.before if self.counts[task] < self.totals[task]]
        self.say(f"{done} of {total} questions{left} ({'; '.join(running) or 'starting'})")
