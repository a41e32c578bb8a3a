"""The declarations: the paper's columns, the averages' rule, our own data's counts."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from eval_suites import suites


def test_genlip14_is_the_papers_row():
    suite = suites.get("genlip14")
    names = [column.name for column in suite.columns]
    assert " ".join(names) == "chartqa ocrbench docvqa textvqa ai2d infovqa seed2plus vqav2 gqa scienceqa mme_p nocaps coco textcaps"
    groups = {group: [column.name for column in suite.columns if column.group == group] for group in suite.groups}
    assert groups["doc_ocr"] == names[:7] and groups["general_vqa"] == names[7:11] and groups["caption"] == names[11:]
    assert {column.name: column.full_mark for column in suite.columns if column.full_mark != 100} == {"mme_p": 2000}
    assert {column.name: column.n for column in suite.columns} == {
        "chartqa": 2500, "ocrbench": 1000, "docvqa": 5349, "textvqa": 5000, "ai2d": 3088, "infovqa": 2801, "seed2plus": 2277,
        "vqav2": 214354, "gqa": 12578, "scienceqa": 2017, "mme_p": 2374, "nocaps": 4500, "coco": 5000, "textcaps": 3166,
    }  # fmt: skip


def test_genlip15_adds_mme_cognition_and_says_that_it_is_ours():
    more = [column for column in suites.get("genlip15").columns if column not in suites.get("genlip14").columns]
    assert [(column.name, column.full_mark, column.scale) for column in more] == [("mme_c", 800, 1)]
    assert "ours" in suites.get("genlip15").note
    assert suites.get("genlip15").tasks == suites.get("genlip14").tasks  # MME is asked once


def test_every_paper_column_is_a_column_of_genlip14():
    tables = json.loads((Path(suites.__file__).parent / "report" / "paper_tables.json").read_text())
    for number in ("3", "4"):
        for row in tables[number]["rows"]:
            assert set(row["scores"]) == {column.name for column in suites.get("genlip14").columns}


def test_easyvqa_counts_are_those_of_the_package():
    spec = find_spec("easy_vqa")
    if spec is None:
        pytest.skip("the package easy-vqa is not installed")
    questions = json.loads((Path(spec.submodule_search_locations[0]) / "data" / "test" / "questions.json").read_text())
    counts = {"shape": 0, "colour": 0, "yes_no": 0}
    for _, answer, _ in questions:
        kind = "yes_no" if answer in ("yes", "no") else "shape" if answer in ("circle", "rectangle", "triangle") else "colour"
        counts[kind] += 1
    suite = suites.get("easyvqa")
    assert {column.name: column.n for column in suite.columns} == counts and suite.n == 9673
    assert suite.overall and not suite.groups


def test_unknown_names_say_what_exists():
    with pytest.raises(ValueError, match=r"did you mean 'genlip14'.*genlip15, easyvqa|Did you mean 'genlip14'"):
        suites.get("genlip-14")
    with pytest.raises(ValueError, match="Did you mean 'docvqa'"):
        suites.select(suites.get("genlip14"), "chartqa,docvq")


def test_tasks_are_picked_by_column_or_task_in_the_suites_order():
    assert suites.select(suites.get("genlip14"), "mme_p, docvqa,chartqa") == ("chartqa", "docvqa_val", "mme")
    assert suites.select(suites.get("genlip14"), "docvqa_val,docvqa") == ("docvqa_val",)


def test_single_groups_are_suites_of_their_own():
    assert [column.name for column in suites.get("caption").columns] == ["nocaps", "coco", "textcaps"]
    assert suites.get("doc_ocr").columns == suites.get("genlip14").columns[:7]
    assert next(column.task for column in suites.get("mini14_caption").columns) == "mini_nocaps_val"


def test_a_suite_from_a_file(tmp_path):
    path = tmp_path / "charts.yaml"
    path.write_text("note: what charts say\ncolumns: [chartqa, mme_c, mini14/gqa]\n")
    suite = suites.get(str(path))
    assert (suite.name, suite.note) == ("charts", "what charts say")
    assert [(column.name, column.task) for column in suite.columns] == [("chartqa", "chartqa"), ("mme_c", "mme"), ("gqa", "mini_gqa")]
    path.write_text("columns: [vqav2]")
    assert suites.get(str(path)).columns[0].n == 214354 and "vqav2" in suites.get(str(path)).note


@pytest.mark.parametrize(
    ("content", "why"),
    [("columns: [chartaq]", "Did you mean 'chartqa'"), ("columns: []", "needs a list"), ("[", "no YAML"), ("a", "needs a list"),
     ("columns: [gqa]\ncolums: 3", "unknown colums"), ("columns: [gqa, mini14/gqa]", "twice")],
)  # fmt: skip
def test_what_is_wrong_with_a_suite_file_is_said(tmp_path, content, why):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=why):
        suites.get(str(path))


def test_a_suite_file_may_not_take_the_name_of_ours(tmp_path):
    (tmp_path / "genlip14.yaml").write_text("columns: [gqa]")
    with pytest.raises(ValueError, match="rename the file"):
        suites.get(str(tmp_path / "genlip14.yaml"))
    with pytest.raises(ValueError, match="no suite file"):
        suites.get("nothing.yaml")
