"""What was read of the data: used, used yet noted, and skipped, for which reason, with the first offenders' names."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

MAX_NAMES_PER_REASON = 10


@dataclass
class Ledger:
    """`noted` counts samples that were used and are worth a word (cut, say)."""

    used: int = 0
    noted: Counter = field(default_factory=Counter)
    skipped: Counter = field(default_factory=Counter)
    names: dict = field(default_factory=dict)

    def count(self, counter: Counter, reason: str, name: str) -> None:
        counter[reason] += 1
        if len(self.names.setdefault(reason, [])) < MAX_NAMES_PER_REASON:
            self.names[reason].append(name)

    @property
    def read(self) -> int:
        return self.used + self.skipped.total()

    def as_dict(self) -> dict:
        names = {reason: list(named) for reason, named in self.names.items()}
        return {"read": self.read, "used": self.used, "noted": dict(self.noted), "skipped": dict(self.skipped), "names": names}

    @classmethod
    def from_dict(cls, d: dict) -> "Ledger":
        return cls(d["used"], Counter(d.get("noted", {})), Counter(d["skipped"]), {k: list(v) for k, v in d["names"].items()})

    @classmethod
    def merged(cls, ledgers: Iterable[dict]) -> "Ledger":
        """Their sum; of the names under a reason the first ones."""
        total = cls()
        for ledger in map(cls.from_dict, ledgers):
            total.used += ledger.used
            total.noted += ledger.noted
            total.skipped += ledger.skipped
            for reason, named in ledger.names.items():
                total.names[reason] = (total.names.get(reason, []) + named)[:MAX_NAMES_PER_REASON]
        return total
