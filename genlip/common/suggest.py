"""Did you mean ...? One sentence for every name that does not exist."""

import difflib
from collections.abc import Iterable


def unknown(what: str, name: str, known: Iterable[str], more: str = "") -> str:
    """`unknown encoder 'x'. Did you mean 'y' or 'z'? There are: ...`, with `more` at its end."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"unknown {what} {name!r}.{hint} There are: {', '.join(known)}{more}"


def choose(name: str, known: Iterable[str], what: str) -> str:
    """`name` if it is one of `known`, else a ValueError as `unknown` words it."""
    if name in (known := list(known)):
        return name
    raise ValueError(unknown(what, name, known))
