"""What silently gives a wrong score in lmms-eval: the guards that no other file's tests hold.

The others: line breaks in a caption, a picture id that comes twice (test_captions); CIDEr of one picture, a limit's file, disagreeing
files (test_results); pictures mixed up in a batch, text alone (test_lmms_model); old answers for new weights, too few answers, an answer
of None, a fractional limit, a failed task (test_run); samples paired by document (test_stats).
"""

import csv
import importlib.metadata
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from eval_suites import suites, tasks
from tests.eval_suites.helpers.small_data import png, write_parquet
from tests.eval_suites.test_tasks import reply, write_hub

pytest.importorskip("lmms_eval")


def cells(suite: str = "genlip15") -> dict[str, dict]:
    with open(f"tables/{suite}_cells.csv", newline="") as stream:
        return {(cell["encoder"], cell["benchmark"]): cell for cell in csv.DictReader(stream)}


def test_points_that_a_task_keeps_in_its_module_do_not_reach_the_next_model(place):
    """OCRBench adds up in a dictionary of its module: two models that share a process and a task object share its points, and the second
    gets 0.4. A process for each task, a task object for each job, and the samples' own sum each stand in the way.
    """
    write_hub(Path("data"))
    for encoder in ("genlip-tiny", "random-tiny"):
        place.export(encoder, encoder, reply=reply)
        assert place.run("--encoder", encoder, "--suite", "genlip15", "--tasks", "ocrbench", "--allow-partial") == 3
    values = [cells()[encoder, "ocrbench"]["value"] for encoder in ("genlip-tiny", "random-tiny")]
    assert [float(value) for value in values] == pytest.approx([0.2, 0.2])  # two of four right, of 1000


def mme_rows() -> list[dict]:
    """Two pairs of `color`, two of `code_reasoning`; each pair's questions are about one picture, "Yes" and "No" right in turn."""
    return [
        {"image": png((40 * (i // 2), 0, 0)), "question_id": f"{i // 2}.png", "question": f"Is it red? {i}",
         "answer": ("Yes", "No")[i % 2], "category": "color" if i < 4 else "code_reasoning"}
        for i in range(8)
    ]  # fmt: skip


def test_a_picture_of_mme_that_cannot_be_read_takes_its_pair_along(place, capsys):
    """MME counts pairs and asserts that both questions are there: half a pair may neither stop the task nor count as one."""
    rows = mme_rows()
    rows[3] = {**rows[3], "image": {"bytes": b"no picture", "path": None}}
    write_parquet(Path("data/lmms-lab/MME/data/test-00000-of-00001.parquet"), rows)
    # Right but for question 4, half of the third pair.
    place.export("a", "genlip-tiny", reply=lambda prompt: "No" if any(f"red? {i}" in prompt for i in (1, 4, 5, 7)) else "Yes")
    assert place.run("--encoder", "genlip-tiny", "--suite", "genlip15", "--tasks", "mme", "--allow-partial") == 3
    assert "mme: 2 questions left out" in capsys.readouterr().err
    result = json.loads(next(Path("results").rglob("mme/result.json")).read_text())
    assert result["n"] == 6 and set(result["left_out"]) == {"2", "3"} and "the other question of its pair" in result["left_out"]["2"]
    samples = [json.loads(line) for line in next(Path("results").rglob("mme/samples.jsonl")).open()]
    assert [sample["doc_id"] for sample in samples] == [0, 1, 4, 5, 6, 7]
    # The pair that is left is wholly right: 100 for its questions and 100 for the pair. Of code's two pairs three answers, one pair.
    values = {name: float(cells()["genlip-tiny", name]["value"]) for name in ("mme_p", "mme_c")}
    assert values == {"mme_p": 200.0, "mme_c": 75.0 + 50.0}
    assert cells()["genlip-tiny", "mme_p"]["refused"].startswith("6 of 2374")


def test_a_pair_left_out_is_averaged_only_where_allowed(place, monkeypatch):
    rows = mme_rows()
    rows[3] = {**rows[3], "image": {"bytes": b"no picture", "path": None}}
    write_parquet(Path("data/lmms-lab/MME/data/test-00000-of-00001.parquet"), rows)
    column = next(column for column in suites.get("genlip15").columns if column.name == "mme_p")
    monkeypatch.setitem(suites.SUITES, "pairs", suites.Suite("pairs", (replace(column, n=8),)))
    place.export("a", "genlip-tiny", reply=lambda prompt: "Yes")
    arguments = ("--encoder", "genlip-tiny", "--suite", "pairs")
    for more, average in (((), ""), (("--allow-partial",), "2.5")):  # one answer of two, no pair: 50 points of 2000
        assert place.run(*arguments, *more) == 3
        with open("tables/pairs.csv", newline="") as stream:
            (row,) = csv.DictReader(stream)
        assert (row["all_avg"], row["complete"]) == (average, "0/1")


def test_the_version_of_lmms_eval_is_recorded_and_another_one_evaluates_anew(place, monkeypatch):
    write_hub(Path("data"))
    place.export("a", "genlip-tiny", reply=reply)
    arguments = ("--encoder", "genlip-tiny", "--suite", "genlip15", "--tasks", "chartqa", "--allow-partial")
    assert place.run(*arguments) == 3
    (path,) = Path("results").rglob("result.json")
    assert json.loads(path.read_text())["key"]["lmms_eval"] == importlib.metadata.version("lmms-eval")
    asked = len(place.asked("a"))
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.8.0" if name == "lmms-eval" else version(name))
    assert place.run(*arguments) == 3 and len(place.asked("a")) == 2 * asked == 8
    assert json.loads(path.read_text())["key"]["lmms_eval"] == "0.8.0"


# --- prompts as declared ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", tasks.DEFINITIONS)
def test_declared_prompts_are_those_of_the_installed_lmms_eval(task):
    """With another lmms-eval this fails, and says that the columns have to be declared anew."""
    declared = {
        column.prompt for suite in ("genlip15", "mini14") for column in suites.get(suite).columns if tasks.packaged(column.task) == task
    }
    assert declared == {tasks.prompt_digest(task)}


def test_a_definition_that_was_changed_is_refused_before_anything_runs(place, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "tasks"
    shutil.copytree(tasks.lmms_eval_tasks() / "chartqa", folder / "chartqa")
    yaml = folder / "chartqa" / "chartqa.yaml"
    yaml.write_text(yaml.read_text().replace("with a single word", "in one word"))
    assert "in one word" in yaml.read_text()
    write_hub(Path("data"))
    place.export("a", "genlip-tiny", reply=reply)
    monkeypatch.setattr(tasks, "lmms_eval_tasks", lambda: folder)
    tasks.definition.cache_clear()
    try:
        assert place.run("--encoder", "genlip-tiny", "--tasks", "chartqa", "--allow-partial") == 2
    finally:
        tasks.definition.cache_clear()
    err = capsys.readouterr().err
    assert (
        "chartqa: the installed lmms-eval" in err and "otherwise than suite genlip14 declares" in err and "requirements-nodeps.txt" in err
    )
    assert place.loads == 0
