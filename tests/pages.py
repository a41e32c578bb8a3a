"""The Markdown pages as tests read them: commands, sections, tables, links. Nothing of ours is imported here."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tests/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.M | re.S)


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def section(text: str, title: str) -> str:
    """From a heading to the next heading of any level. KeyError where there is none, or two."""
    found = re.findall(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", text, re.M | re.S)
    if len(found) != 1:
        raise KeyError(f"{len(found)} headings {title!r}")
    return found[0]


def commands(text: str) -> list[str]:
    """The indented lines, and those fenced as bash, that are typed into a shell; comments are taken off."""
    fenced = [line for language, block in FENCE.findall(text) if language in ("bash", "sh") for line in block.splitlines()]
    indented = re.findall(r"^    (\S.*)$", FENCE.sub("", text), re.M)
    typed = (re.sub(r"\s+# .*", "", line).strip() for line in [*indented, *fenced])
    return [line for line in typed if re.match(r"([A-Z_]+=\S+ )*[a-z.][\w./-]* \S", line) and not line.split()[0].endswith(":")]


def tables(text: str) -> list[list[list[str]]]:
    """Every table as rows of cells, the header first."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, re.M)
    lines = [[line for line in block.splitlines() if set(line) - set("|- ")] for block in blocks]
    return [[[cell.strip() for cell in line.strip("|").split(" | ")] for line in block] for block in lines]


def fields(text: str, title: str, table: int = 0) -> list[str]:
    """Names in the first column of a section's table of fields; a cell may hold several."""
    found = [rows for rows in tables(section(text, title)) if rows[0][0].strip("| ") == "field"][table]
    return [name for row in found[1:] for name in re.findall(r"`([^`]+)`", row[0])]


def prose(text: str) -> str:
    """Without code blocks and code spans, where nothing is a link."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^    .*$", "", FENCE.sub("", text), flags=re.M))


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(text))


def anchors(text: str) -> set[str]:
    """Of all headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
