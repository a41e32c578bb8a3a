"""The mini world through lmms-eval's own task code: its definitions, its columns, and three scripted answerers."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest

from eval_suites import suites, tasks
from eval_suites.runner import preflight
from eval_suites.score import results
from small_data.mini import benchmarks, build, cider, conversations, families, question_styles
from small_data.mini.knobs import DEFAULT

sys.path.append(str(Path(__file__).parent))  # pytest's import mode does not look for helpers beside a test

MINI = suites.get("mini14")
java = pytest.mark.skipif(not shutil.which("java"), reason="CIDEr's tokenizer is a Java program")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp("mini")
    build.make(build.World(0, 400, 40), out, workers=1)
    return out


@pytest.mark.parametrize("task", tasks.MINI)
def test_a_mini_definition_is_the_packaged_one_but_for_data_metric_list_and_gqas_pictures(task, root):
    mini, hub = tasks.resolved(tasks.locate(task, root)), tasks.resolved(tasks.Data(tasks.packaged(task), "split", (), (), 1, None, ""))
    assert mini["include"] == hub["include"] and mini["task"] == f"{task}_local"
    assert mini["dataset_kwargs"]["data_files"].keys() == {tasks.definition(task)["test_split"]}
    for resolved in (mini, hub):
        for key in ("task", "dataset_kwargs"):
            del resolved[key]
        resolved.get("lmms_eval_specific_kwargs", {"default": {}})["default"].pop("images", None)
    assert mini == hub
    assert set(mini) <= {
        "include",
        "dataset_path",
        "dataset_name",
        "process_docs",
        "metric_list",
        "doc_to_visual",
        "lmms_eval_specific_kwargs",
    }
    assert ("metric_list" in mini) == (task in tasks.CIDER) and ("doc_to_visual" in mini) == (task == "mini_gqa")


def test_the_suite_has_the_fourteen_columns_and_leaves_n_to_the_manifest(root):
    assert [c.name for c in MINI.columns] == [c.name for c in suites.get("genlip14").columns]
    assert all(c.n is None for c in MINI.columns)
    for task in MINI.tasks:
        data = tasks.locate(task, root)
        assert data.rows == data.declared == 40


def test_a_packaged_tasks_columns_are_still_found_by_its_name():
    assert [c.n for c in results._columns("chartqa_local")] == [2500] and [c.task for c in results._columns("mini_chartqa_local")] == [
        "mini_chartqa"
    ]


def test_missing_mini_data_say_how_to_make_them(tmp_path):
    with pytest.raises(ValueError, match=r"python -m small_data\.mini --out"):
        tasks.locate("mini_chartqa", tmp_path)


def test_mme_keeps_its_pairs_under_a_limit(root, tmp_path):
    from types import SimpleNamespace

    arguments = SimpleNamespace(data_root=root, limit=3, allow_partial=True)
    with pytest.raises(ValueError, match="pairs"):
        preflight.plan_job(MINI, "mini_mme", arguments, None, tmp_path)


def test_a_world_that_is_not_its_manifests_is_refused_before_anything_runs(root, place, capsys):
    shutil.copytree(root / "genlip-eval", "data/genlip-eval")
    place.export("a", "genlip-tiny")
    ask = ("--encoder", "genlip-tiny", "--suite", "mini14", "--tasks", "ai2d,mini_gqa", "--dry-run")
    assert place.run(*ask) == 0
    for name, split in (("gqa_images", "testdev"), ("mme", "test")):
        file = Path("data/genlip-eval/mini", name, f"{split}-00000-of-00001.parquet")
        data = bytearray(file.read_bytes())
        data[500] ^= 1  # in a picture: the footer, by which data are told apart, is as it was
        file.write_bytes(data)
        capsys.readouterr()
        assert place.run(*ask) == 2, "MME was not asked for: its file alone is no reason"
        error = capsys.readouterr().err
        assert "of gqa_images is missing or not as it was made" in error and "mme" not in error and place.loads == 0
    told = Path("data/genlip-eval/mini/manifest.json")
    told.write_text(told.read_text().replace('"maximum": 1.0', '"maximum": 0.5', 1))
    assert place.run("--encoder", "genlip-tiny", "--suite", "mini14", "--tasks", "ai2d") == 2
    assert "was edited" in capsys.readouterr().err


def test_datasets_reads_every_set_with_its_pictures(root, monkeypatch):
    import datasets

    told = json.loads((root / "genlip-eval/mini/manifest.json").read_text())["sets"]
    for name, entry in told.items():
        rows = datasets.Dataset.from_parquet(str(root / "genlip-eval/mini" / entry["file"]), cache_dir=str(root / "cache"))
        assert len(rows) == entry["n"]
        if name != "gqa":
            assert isinstance(rows.features["image"], datasets.Image)
            shown = [row["image"] for row in rows.select(range(4))]
            assert all(picture is None or min(picture.size) >= 64 for picture in shown) and any(shown)


# First of the tests that read the sets: its worker processes must not inherit locks that datasets took in this one.
def test_the_main_job_fills_a_complete_row_from_the_mini_world(root, place):
    place.export("a", "genlip-tiny", reply=lambda prompt: "yes")
    assert place.run("--encoder", "genlip-tiny", "--suite", "mini14", "--data-root", str(root)) == 0
    with open("tables/mini14_cells.csv", newline="") as stream:
        cells = {cell["benchmark"]: cell for cell in csv.DictReader(stream)}
    assert list(cells) == [column.name for column in MINI.columns]
    assert all(cell["n"] == cell["n_expected"] == "40" and not cell["refused"] for cell in cells.values())
    assert float(cells["mme_p"]["value"]) == 500.0  # always yes: half of the points for single answers, none for pairs
    assert float(cells["chartqa"]["value"]) < 50 and float(cells["ai2d"]["value"]) == 0.0
    # Each column counts as its share of the maximum that the manifest states.
    told = json.loads((root / "genlip-eval/mini/manifest.json").read_text())["sets"]
    most = {c.name: told[tasks.packaged(c.task)]["maximum"] for c in MINI.columns} | {"mme_p": told["mme"]["maximum"]["mme_p"]}
    shares = [100 * float(cells[c.name]["value"]) / (most[c.name] * c.scale) for c in MINI.columns]
    with open("tables/mini14.csv", newline="") as stream:
        assert float(next(csv.DictReader(stream))["all_avg"]) == pytest.approx(sum(shares) / 14, abs=1e-3)
    assert f"MME-P 2000, NoCaps {100 * most['nocaps']:.4g}" in Path("tables/mini14.md").read_text()


@java
def test_the_three_answerers_score_the_maximum_nothing_and_near_the_majority(root, tmp_path, monkeypatch):
    import mini_answerers as answerers

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    most = answerers.maxima(root)
    full, model = answerers.evaluate(root, answerers.oracle)
    assert full == pytest.approx(most, abs=1e-3)
    assert model.pictures and all(model.pictures[tasks.local_name(task)] == 40 for task in MINI.tasks), "one picture a question"
    nothing, _ = answerers.evaluate(root, answerers.empty)
    assert set(nothing.values()) == {0.0}
    guessed, _ = answerers.evaluate(root, answerers.blind)
    for name, score in guessed.items():
        # Two answers to choose from: MME, and a part of VQAv2 and GQA. Nowhere does text alone come near the picture.
        assert score <= (0.75 if name in ("vqav2", "gqa") else 0.6) * most[name], (name, score)


@java
@pytest.mark.slow
def test_the_plain_command_runs_all_fourteen_with_the_same_answers(root):
    """`lmms-eval --include_path` in a process of its own, nothing of our run.py."""
    import mini_answerers as answerers

    assert answerers.by_command(root, "oracle") == pytest.approx(answerers.maxima(root), abs=1e-3)
    assert set(answerers.by_command(root, "empty").values()) == {0.0}


@java
def test_training_prompts_are_those_of_the_evaluation(root):
    """What lmms-eval puts around each benchmark's question is met, letter by letter, in the conversations."""
    suffix = {task: tasks.definition(task).get("lmms_eval_specific_kwargs", {}).get("default", {}) for task in tasks.DEFINITIONS}
    assert suffix["chartqa"]["post_prompt"] == question_styles.CHART
    one_word = ("vqav2_val", "gqa", "mme", "docvqa_val", "infovqa_val", "textvqa_val")
    assert {suffix[task]["post_prompt"] for task in one_word} == {question_styles.WORD}
    assert {suffix[t]["post_prompt"] for t in ("ai2d", "scienceqa_img")} == {question_styles.LETTER}
    assert suffix["seedbench_2_plus"]["post_prompt"] == question_styles.LETTER.removeprefix("\n"), "its code adds the line break"
    assert {suffix[t]["prompt"] for t in ("nocaps_val", "textcaps_val")} == {question_styles.CAPTION}
    human = [
        turn["value"].removeprefix("<image>\n")
        for record in json.loads((root / "mini/sft/conversations.json").read_text())
        for turn in record["conversations"][::2]
    ]
    for ending in (question_styles.CHART, question_styles.WORD, question_styles.LETTER, question_styles.DIRECT, question_styles.CAPTION):
        assert sum(prompt.endswith(ending) for prompt in human) > 10, ending
    assert any("\nA. " in prompt and "\nD. " in prompt and prompt.endswith(question_styles.LETTER) for prompt in human)


def test_every_style_of_conversation_answers_rightly():
    """A lettered turn names the option that holds the answer, a claim's yes is the picture's."""
    import mini_questions
    import mini_reader as reader

    letters = claims = 0
    for i in range(1500):
        rng = families.stream("turns", i)
        scene = families.draw(rng)
        view = reader.View(scene)
        for question, reply in conversations.turns(scene, rng, DEFAULT):
            body = question.removesuffix(question_styles.WORD).removesuffix(question_styles.LETTER)
            if question.endswith(question_styles.LETTER):
                text, *choices = body.split("\n")
                assert choices["ABCD".index(reply)] == f"{reply}. {mini_questions.answer(view, text)}"
                letters += 1
            elif reply in ("yes", "no") and question.endswith(question_styles.WORD):
                try:
                    assert mini_questions.holds(view, body) == (reply == "yes")
                except LookupError:  # asked openly: is it night?
                    assert mini_questions.answer(view, body) == reply
                claims += 1
    assert letters > 200 and claims > 200


@java
def test_our_cider_is_pycocoevalcaps():
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    for name, column in (("textcaps_val", "caption_str"), ("nocaps_val", "annotations_captions")):
        references = [row[column] for row in benchmarks.rows(name, 60, 0, DEFAULT)]
        chosen, score = cider.best(references)
        cut = PTBTokenizer()
        gts = cut.tokenize({i: [{"caption": c} for c in five] for i, five in enumerate(references)})
        res = cut.tokenize({i: [{"caption": c}] for i, c in enumerate(chosen)})
        assert Cider().compute_score(gts, res)[0] == pytest.approx(score, abs=1e-6)
