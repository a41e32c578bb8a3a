"""A label is shown, never acted upon: by a table, a spreadsheet, a terminal, a file system."""

import csv
import io
from pathlib import Path

import pytest

from eval_suites.report.formatting import csv_text, markdown_text
from genlip.common.labels import folder_name, markdown_cell, one_line

LABELS = [
    "a|b",
    "two\nlines",
    "=cmd|'/C calc'!A0",
    "+1",
    "-x",
    "@SUM(A1)",
    "\x1b[2Jgone",
    "../../etc",
    "..",
    ".",
    "a/b\\c",
    "\u202egnp",
    "",
]


@pytest.mark.parametrize("label", LABELS)
def test_a_label_stays_in_its_cell_its_line_and_its_folder(label, tmp_path):
    head, rule, row = markdown_text(("encoder", "value"), [(label, "1.0")]).splitlines()
    assert row.replace("\\|", "").count("|") == head.count("|") == rule.count("|") == 3 and row.isprintable()
    ((shown, number),) = csv.reader(io.StringIO(csv_text([[label, -1.5]])))
    assert not shown.startswith(("=", "+", "-", "@", "\t", "\r")) and shown.isprintable() and number == "-1.5"
    assert one_line(label).isprintable() and markdown_cell(label).isprintable()
    inside = (tmp_path / folder_name(label) / "x").resolve()
    assert inside.parent.parent == tmp_path.resolve() and Path(folder_name(label)).name == folder_name(label)


def test_names_as_they_are_stay_so():
    for name in ("genlip-g16", "Qwen2.5-7B-Instruct", "siglip2 (384)", "a=b", "modèle"):
        assert folder_name(name) == one_line(name) == markdown_cell(name) == name
    assert folder_name("google/siglip2") == "google--siglip2"
