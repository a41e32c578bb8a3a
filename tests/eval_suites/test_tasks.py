"""lmms-eval's packaged definitions on local data: what is changed of them, and all 14 through the real engine on a few rows."""

import csv
import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval_suites import suites, tasks
from tests.eval_suites.helpers.small_data import png, write_parquet

SUITE = suites.get("genlip15")


def hub_rows() -> dict[str, tuple[str, list[dict]]]:
    """Task -> (path under the data root, rows in the hub's columns): four pictures, the reply "red" right for half of the questions."""
    answers = ["red", "blue", "red", "green"]
    pictures = [png(colour) for colour in ("red", "blue", (250, 0, 0), "green")]
    each = list(enumerate(zip(pictures, answers)))
    caption = "a red picture of nothing at all"
    other = "some green field with two dogs"
    vqa = lambda answer: [{"answer": answer, "answer_confidence": "yes", "answer_id": k} for k in range(10)]  # noqa: E731
    return {
        "chartqa": ("lmms-lab-encoder/ChartQA/data/test-00000-of-00001", [
            {"image": p, "question": f"colour {i}?", "answer": a, "type": "human_test"} for i, (p, a) in each]),
        "ocrbench": ("echo840/OCRBench/data/test-00000-of-00001", [
            {"image": p, "question": f"read {i}", "answer": [a], "dataset": "IIIT5K", "question_type": "Regular Text Recognition"}
            for i, (p, a) in each]),
        "docvqa_val": ("lmms-lab/DocVQA/DocVQA/validation-00000-of-00001", [
            {"image": p, "questionId": str(i), "question": f"colour {i}?", "answers": [a, a.upper()]} for i, (p, a) in each]),
        "infovqa_val": ("lmms-lab/DocVQA/InfographicVQA/validation-00000-of-00001", [
            {"image": p, "questionId": str(i), "question": f"colour {i}?", "answers": [a]} for i, (p, a) in each]),
        "textvqa_val": ("lmms-lab/textvqa/data/validation-00000-of-00001", [
            {"image": p, "image_id": str(i), "question_id": i, "question": f"colour {i}?", "answers": [a] * 10, "ocr_tokens": []}
            for i, (p, a) in each]),
        "ai2d": ("lmms-lab/ai2d/data/test-00000-of-00001", [
            {"image": p, "question": f"which {i}?", "options": ["red", "blue", "green"], "answer": str(i % 2)} for i, (p, _) in each]),
        "seedbench_2_plus": ("doolayer/SEED-Bench-2-Plus/data/test-00000-of-00001", [
            {"image": p, "question": f"which {i}?", "choice_A": "a", "choice_B": "b", "choice_C": "c", "choice_D": "d",
             "answer": "AB"[i % 2], "question_id": str(i), "question_image_type": "chart"} for i, (p, _) in each]),
        "vqav2_val": ("lmms-lab/VQAv2/data/validation-00000-of-00001", [
            {"image": p, "question": f"colour {i}?", "question_id": i, "image_id": i, "answers": vqa(a), "multiple_choice_answer": a}
            for i, (p, a) in each]),
        "gqa": ("lmms-lab/GQA/testdev_balanced_instructions/testdev-00000-of-00001", [
            {"id": str(i), "imageId": f"n{3 - i}", "question": f"colour {i}?", "answer": a, "fullAnswer": a} for i, (_, a) in each]),
        "scienceqa_img": ("lmms-lab/ScienceQA/ScienceQA-IMG/test-00000-of-00001", [
            {"image": p, "question": f"which {i}?", "choices": ["x", "y"], "answer": i % 2, "hint": ""} for i, (p, _) in each]),
        "mme": ("lmms-lab/MME/data/test-00000-of-00001", [
            {"image": pictures[i // 2], "question_id": f"{i // 2}.png", "question": f"Is it red? {i} Please answer yes or no.",
             "answer": "Yes", "category": ("color", "color", "code_reasoning", "code_reasoning")[i]} for i in range(4)]),
        "nocaps_val": ("lmms-lab/NoCaps/data/validation-00000-of-00001", [
            {"image": p, "image_id": i, "annotations_captions": [caption if a == "red" else other] * 2} for i, (p, a) in each]),
        "coco2017_cap_val": ("lmms-lab/COCO-Caption2017/data/val-00000-of-00001", [
            {"image": p, "question_id": f"{i:012d}.jpg", "id": i, "question": "", "answer": [caption if a == "red" else other] * 2}
            for i, (p, a) in each]),
        "textcaps_val": ("lmms-lab/TextCaps/data/val-00000-of-00001", [
            {"image": p, "image_id": f"t{i}", "question_id": str(i), "caption_str": [caption if a == "red" else other] * 2}
            for i, (p, a) in each]),
    }  # fmt: skip


def write_hub(root: Path) -> None:
    for path, rows in hub_rows().values():
        write_parquet(root / f"{path}.parquet", rows)
    gqa = [{"id": f"n{i}", "image": png(colour)} for i, colour in enumerate(("green", (250, 0, 0), "blue", "red"))]
    write_parquet(root / "lmms-lab/GQA/testdev_balanced_images/testdev-00000-of-00001.parquet", gqa)


def reply(prompt: str) -> str:
    """The letter, the caption, yes, or the colour: whatever the prompt asks for."""
    if "option's letter" in prompt:
        return "A"
    if "caption" in prompt:
        return "a red picture of nothing at all"
    return "Yes" if "Is it red" in prompt else "red"


# Half of the rows are answered right. MME: one pair a category, both right; OCRBench: points of 1000 even on a subset.
EXPECTED = {"ocrbench": 0.2, "mme_p": 200.0, "mme_c": 200.0}


@pytest.mark.skipif(not shutil.which("java"), reason="caption columns need Java")
def test_all_fourteen_tasks_through_lmms_evals_engine(place, capsys):
    write_hub(Path("data"))
    place.export("a", "genlip-tiny", reply=reply)
    assert place.run("--encoder", "genlip-tiny", "--suite", "genlip15", "--allow-partial") == 3
    with open("tables/genlip15_cells.csv", newline="") as stream:
        cells = {cell["benchmark"]: cell for cell in csv.DictReader(stream)}
    assert len(cells) == 15
    for column in SUITE.columns:
        cell = cells[column.name]
        assert cell["refused"] == f"4 of {column.n}", cell
        if column.unit == "CIDEr":  # half the pictures captioned word for word, CIDEr 10 each; the others share no word
            assert float(cell["value"]) == pytest.approx(500, abs=1)
        else:
            assert float(cell["value"]) == pytest.approx(EXPECTED.get(column.name, 50)), cell
    assert not list(Path().rglob("failed.txt")) and not list(Path().rglob("submissions"))
    # GQA's pictures are looked up by id: question 0 asks about picture n3.
    prompts = {prompt: picture for batch in place.models[Path("runs/a/export")].batches for prompt, picture in zip(batch[0], batch[1])}
    samples = [json.loads(line) for line in next(Path("results").rglob("gqa/samples.jsonl")).open()]
    assert prompts[samples[0]["prompt"]][0].pixel in ((255, 0, 0), (250, 0, 0))
    # MME's questions about one picture are one cluster.
    mme = [json.loads(line) for line in next(Path("results").rglob("mme/samples.jsonl")).open()]
    assert mme[0]["image"] == mme[1]["image"] != mme[2]["image"]


def test_prompts_are_the_packaged_ones(place):
    """Prompts are part of a score: those of lmms-eval 0.7.3, frozen."""
    write_hub(Path("data"))
    place.export("a", "genlip-tiny", reply=reply)
    asked = ("chartqa", "ocrbench", "docvqa", "textvqa", "ai2d", "infovqa", "seed2plus", "vqav2", "gqa", "scienceqa", "mme")
    place.run("--encoder", "genlip-tiny", "--suite", "genlip15", "--allow-partial", "--tasks", ",".join(asked))
    first = {path.parent.name: json.loads(path.open().readline())["prompt"] for path in Path("results").rglob("samples.jsonl")}
    phrase, letter = (
        "\nAnswer the question using a single word or phrase.",
        "Answer with the option's letter from the given choices directly.",
    )
    assert first == {
        "chartqa": "colour 0?\nAnswer the question with a single word.",
        "ocrbench": "read 0",
        "docvqa_val": f"colour 0?{phrase}",
        "infovqa_val": f"colour 0?{phrase}",
        "textvqa_val": f"Colour 0?{phrase}",
        "ai2d": f"which 0?\nA. red\nB. blue\nC. green\n{letter}",
        "seedbench_2_plus": f"which 0?\nA. a\nB. b\nC. c\nD. d\n{letter}",
        "vqav2_val": f"colour 0?{phrase}",
        "gqa": f"colour 0?{phrase}",
        "scienceqa_img": f"which 0?\nA. x\nB. y\n{letter}",
        "mme": f"Is it red? 0{phrase}",
    }
    # Four questions a task are one batch, in the suite's order.
    asked = [task for task in SUITE.tasks if task in first]
    settings = {task: batch[2:] for task, batch in zip(asked, place.models[Path("runs/a/export")].batches, strict=True)}
    short, until = {"chartqa", "ai2d", "vqav2_val", "gqa", "scienceqa_img", "mme"}, ("\n\n",)
    assert settings == {
        **dict.fromkeys(short, (16, until)), "ocrbench": (128, until), "docvqa_val": (32, until), "infovqa_val": (32, until),
        "textvqa_val": (lmms_model_default(), ("ASSISTANT:",)), "seedbench_2_plus": (16, ("ASSISTANT:",)),
    }  # fmt: skip


@pytest.mark.skipif(not shutil.which("java"), reason="caption columns need Java")
def test_caption_prompts_are_the_packaged_ones(place):
    """The same three words for word, as lmms-eval's task code makes them; COCO's stands in its code, the other two in their YAML."""
    write_hub(Path("data"))
    place.export("a", "genlip-tiny", reply=reply)
    place.run("--encoder", "genlip-tiny", "--suite", "genlip15", "--allow-partial", "--tasks", "nocaps,coco,textcaps")
    asked = {path.parent.name: {json.loads(line)["prompt"] for line in path.open()} for path in Path("results").rglob("samples.jsonl")}
    prompt = "Provide a one-sentence caption for the provided image."
    assert asked == {"nocaps_val": {prompt}, "coco2017_cap_val": {prompt}, "textcaps_val": {prompt}}
    assert [batch[2:] for batch in place.models[Path("runs/a/export")].batches] == [(64, ("\n\n",))] * 3


def lmms_model_default() -> int:
    """TextVQA names no limit, and takes what lmms-eval's own models take."""
    from eval_suites.runner.lmms_model import DEFAULT_NEW_TOKENS

    return DEFAULT_NEW_TOKENS


@pytest.mark.parametrize("task", tasks.DEFINITIONS)
def test_a_resolved_definition_changes_only_what_it_may(task, tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    data = tasks.Data(task, "split", (tmp_path / "a",), (tmp_path / "b",), 1, None)
    allowed = {"include", "task", "dataset_path", "dataset_name", "dataset_kwargs", "process_docs"}
    allowed |= {"metric_list"} if task in tasks.CIDER else set()
    allowed |= {"doc_to_visual", "lmms_eval_specific_kwargs"} if task == "gqa" else set()
    resolved = tasks.resolved(data)
    assert set(resolved) == allowed and resolved["task"] != task
    if task == "gqa":
        packaged = tasks.definition("gqa")["lmms_eval_specific_kwargs"]["default"]
        assert {**packaged, "images": [str(tmp_path / "b")], "digest": data.digest} == resolved["lmms_eval_specific_kwargs"]["default"]


def test_declared_tasks_agree_with_their_packaged_definitions():
    for column in SUITE.columns:
        definition = tasks.definition(column.task)
        assert definition["test_split"] == column.split
        metric, name = column.metric.split(",")
        assert metric in [entry["metric"].strip() for entry in definition["metric_list"]]
        filters = [entry["name"] for entry in definition.get("filter_list", [])]
        assert name in (filters or ["none"])


def test_written_definitions_serve_the_plain_command(tmp_path, capsys):
    from eval_suites.tasks.__main__ import main

    write_hub(tmp_path / "data")
    assert main([str(tmp_path / "out"), "--data-root", str(tmp_path / "data"), "--tasks", "chartqa,nocaps,gqa"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["chartqa_local.yaml", "gqa_local.yaml", "nocaps_val_local.yaml"]
    text = (tmp_path / "out" / "nocaps_val_local.yaml").read_text()
    assert "aggregation: !function 'eval_suites.tasks.captions.nocaps_cider'" in text and "METEOR" not in text
    assert main([str(tmp_path / "none"), "--data-root", str(tmp_path / "nothing"), "--tasks", "chartqa"]) == 2
    assert "hf download --repo-type dataset lmms-lab-encoder/ChartQA" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_data_are_found_under_either_name_and_in_the_hubs_cache(tmp_path, monkeypatch):
    rows = hub_rows()["chartqa"][1]
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "datasets--lmms-lab--ChartQA"
    write_parquet(snapshot / "snapshots" / "abc" / "data" / "test-00000-of-00001.parquet", rows)
    (snapshot / "refs").mkdir()
    (snapshot / "refs" / "main").write_text("abc")
    assert tasks.locate("chartqa", tmp_path).rows == 4
    write_parquet(tmp_path / "lmms-lab-encoder/ChartQA/data/test-00000-of-00002.parquet", rows)
    write_parquet(tmp_path / "lmms-lab-encoder/ChartQA/data/test-00001-of-00002.parquet", rows[:1])
    found = tasks.locate("chartqa", tmp_path)
    assert found.rows == 5 and len(found.files) == 2  # the folder that was given comes before the cache


def test_gqa_without_its_pictures_is_refused(tmp_path):
    path, rows = hub_rows()["gqa"]
    write_parquet(tmp_path / f"{path}.parquet", rows)
    with pytest.raises(ValueError, match=r"questions without pictures.*testdev_balanced_images"):
        tasks.locate("gqa", tmp_path)


def test_data_digest_sees_other_answers_of_the_same_size(tmp_path):
    path, rows = hub_rows()["chartqa"]
    file = tmp_path / f"{path}.parquet"
    write_parquet(file, rows)
    one = tasks.locate("chartqa", tmp_path).digest
    assert tasks.locate("chartqa", tmp_path).digest == one
    write_parquet(file, [{**row, "answer": row["answer"][::-1]} for row in rows])
    assert tasks.locate("chartqa", tmp_path).digest != one


def write_plainly(path, rows):
    """Where values keep their lengths, the file keeps its size and its footer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, compression="none", use_dictionary=False)


def test_data_digest_sees_corrected_labels_and_a_byte_of_a_picture(tmp_path):
    """Neither size nor footer nor date of the file says so."""
    path, rows = hub_rows()["chartqa"]
    rows = [{**rows[0], "answer": f"{i % 7}"} for i in range(500)]
    file = tmp_path / f"{path}.parquet"
    write_plainly(file, rows)
    said, date = tasks.locate("chartqa", tmp_path).digest, file.stat().st_mtime_ns
    shutil.copytree(tmp_path / "lmms-lab-encoder", tmp_path / "moved/lmms-lab-encoder")
    (moved,) = (tmp_path / "moved").rglob("*.parquet")
    moved.rename(moved.with_name("test-00000-of-00009.parquet"))
    os.utime(moved.with_name("test-00000-of-00009.parquet"), (1, 1))
    assert tasks.locate("chartqa", tmp_path / "moved").digest == said

    size = file.stat().st_size
    write_plainly(file, [{**row, "answer": f"{(i + 1) % 7}"} if i < 120 else row for i, row in enumerate(rows)])
    os.utime(file, ns=(date, date))
    assert file.stat().st_size == size and tasks.locate("chartqa", tmp_path).digest != said

    write_plainly(file, rows)
    data = bytearray(file.read_bytes())
    data[data.index(b"IDAT") + 9] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(date, date))
    assert tasks.locate("chartqa", tmp_path).digest != said


def test_data_digest_sees_gqas_pictures(tmp_path):
    write_hub(tmp_path)
    said = tasks.locate("gqa", tmp_path).digest
    (file,) = tmp_path.rglob("testdev_balanced_images/*.parquet")
    data = bytearray(file.read_bytes())
    data[data.index(b"IDAT") + 9] ^= 1
    file.write_bytes(data)
    assert tasks.locate("gqa", tmp_path).digest != said


def test_every_file_a_score_depends_on_is_in_the_definitions_digest():
    names = [file.name for file in tasks._files_of(tasks.definition_path("docvqa_val"))]
    assert names == ["docvqa_val.yaml", "_default_template_docvqa_yaml", "utils.py"]
    assert {file.name for file in tasks._files_of(tasks.definition_path("easyvqa_shape"))} == {"easyvqa.yaml", "easyvqa.py"}
    named = (*tasks.DEFINITIONS, *tasks.OURS)
    assert len({tasks.definition_digest(task) for task in named}) == len(named) > 15, "no two tasks are one"
