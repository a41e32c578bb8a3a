"""Names that others chose (an encoder's label, a language model's folder) as text for a terminal, a table, a file's name.

A label comes from a command line, or with a result folder from elsewhere. It may hold what a table, a spreadsheet, a terminal or a file
system would act upon instead of showing it.
"""

import re

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet computes a cell that begins with one of these


def one_line(text: str) -> str:
    """The text without line breaks and control characters (ESC commands a terminal, right-to-left marks turn what follows round)."""
    return "".join(letter if letter.isprintable() else " " if letter in "\n\r\t" else "\N{REPLACEMENT CHARACTER}" for letter in text)


def markdown_cell(text: str) -> str:
    """As a cell of a table, markup in it kept."""
    return one_line(text).replace("|", "\\|")


def csv_cell(value: object) -> object:
    """Text as a spreadsheet shows it and never computes it: one that begins as a formula does has an apostrophe before it."""
    if not isinstance(value, str):
        return value
    return f"'{one_line(value)}" if value.startswith(FORMULA) else one_line(value)


def folder_name(text: str) -> str:
    """As one folder inside another: `org/name` is `org--name`; what may not stand in a name everywhere is a low line, never the way out."""
    name = re.sub(r"[^\w.+@=, ()-]", "_", text.replace("/", "--"))
    return name if name.strip(". ") else "_" * max(1, len(name))
