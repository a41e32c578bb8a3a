"""Files that lmms-eval 0.7.3 wrote itself (helpers/lmms_written.py, four questions a task): what they state decides, not their numbers."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval_suites import suites, tasks
from eval_suites.compare import main as compare_main
from eval_suites.report import tables
from eval_suites.results import main as results_main
from eval_suites.score import averages, comparison, lmms_files, results, seeds, stats
from eval_suites.tables import main as tables_main
from tests.eval_suites.helpers.small_data import provenance

DATA = Path(__file__).parent / "data" / "lmms_eval"
FOUR = suites.Suite("four", tuple(replace(column, n=4) for column in suites.get("genlip15").columns))
WHOLE = ("chartqa", "ocrbench", "docvqa", "textvqa", "seed2plus", "mme_p", "mme_c")
SOME = replace(FOUR, name="some", columns=tuple(column for column in FOUR.columns if column.name in WHOLE))


@pytest.fixture(autouse=True)
def four(monkeypatch):
    """Columns as declared, but for n: the files are of four questions."""
    monkeypatch.setitem(suites.SUITES, "four", FOUR)
    monkeypatch.setitem(suites.SUITES, "some", SOME)


def results_of(folder: Path) -> Path:
    (path,) = (path for path in folder.glob("*/*_results.json") if path.parent.name != "submissions")
    return path


def cell_of(name: str, *paths: Path) -> results.Cell:
    (cell,) = [cell for cell in lmms_files.read_cells(list(paths)) if cell.benchmark == name]
    return cell


def copied(case: str, folder: Path, **changes) -> Path:
    """The case's folder elsewhere, its result file changed: `changes` are merged into it."""
    shutil.copytree(DATA / case, folder)
    path = results_of(folder)
    path.write_text(json.dumps(merged(json.loads(path.read_text()), changes)))
    return folder


def merged(one: dict, other: dict) -> dict:
    both = {name: merged(one.get(name) or {}, value) if isinstance(value, dict) else value for name, value in other.items()}
    return {**one, **both}


def edit_samples(folder: Path, task: str, change) -> None:
    (path,) = folder.glob(f"*/*_samples_{task}.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in change(rows)))


# --- what a file states ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "name", "why"),
    [
        ("offset", "chartqa", "offset 3: the questions before it were not asked, though the file says n = 4"),
        ("shots", "chartqa", "2 worked examples before each question"),
        ("sampling", "chartqa", "answers were sampled (do_sample); answers were sampled (temperature 0.7)"),
        ("beams", "chartqa", "answers by beam search (4 beams)"),
        ("prompt", "chartqa", r'another prompt: post_prompt "\nExplain." where the column has "\nAnswer the question with a single word."'),
        ("ocr", "textvqa", "TextVQA with OCR tokens in the prompt"),
        ("split", "docvqa", "split 'test' where the column is of 'validation'"),
        ("data", "docvqa", "subset 'InfographicVQA' where the column is of 'DocVQA'"),
    ],
)
def test_a_file_that_says_itself_that_it_is_not_the_benchmark_gives_no_number(case, name, why):
    cell = cell_of(name, DATA / case)
    assert cell.value is None and why in cell.refused


def test_a_limit_is_partial_and_shown_with_its_n():
    cell = cell_of("chartqa", DATA / "limit")
    assert cell.refused == "2 of 4" and cell.value == 100.0


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"config": {"limit": 2}}, "its limit is 2: not every question was asked"),  # beside the full n that a leaked limit leaves
        ({"config": {"limit": 0.5}}, "its limit is 0.5"),
        ({"config": {"limit": 1.0}}, "its limit is 1"),
        ({"n-samples": {"chartqa": {"original": 9}}}, "its data have 9 questions where 4 are declared"),
        ({"n-shot": {"chartqa": 5}}, "5 worked examples"),
        ({"configs": {"chartqa": {"repeats": 4}}}, "each question was asked 4 times"),
        ({"configs": {"chartqa": {"metadata": [{"version": 1.0}]}}}, "version 1.0 of the task where the column is of 0.0"),
        ({"configs": {"chartqa": {"generation_kwargs": {"max_new_tokens": 1024}}}}, "answers of up to 1024 tokens where the column has 16"),
        ({"configs": {"chartqa": {"generation_kwargs": {"until": ["."]}}}}, 'answers end at ["."]'),
        ({"configs": {"chartqa": {"dataset_path": "someone/ChartQA"}}}, "data set 'someone/ChartQA' where the column is of"),
        ({"config": {"gen_kwargs": "temperature=0.2,do_sample=true"}}, "answers were sampled (do_sample); answers were sampled"),
        ({"config": {"model": "qwen_vl"}}, 'post_prompt " Answer:" where'),  # the definition's own prompt for that model
        ({"system_instruction": "Think."}, 'a system instruction, "Think.", where the column has none'),
    ],
)
def test_each_statement_alone_refuses_the_cell(tmp_path, changes, why):
    folder = copied("whole", tmp_path / "logs", **changes)
    cell = cell_of("chartqa", folder)
    assert cell.value is None and why in cell.refused
    assert cell_of("docvqa", folder).value == (None if why.startswith(("its limit", "a system", "answers were", "post")) else 50.0)


@pytest.mark.parametrize("changes", [
    {"config": {"limit": 4}}, {"config": {"limit": -1}}, {"config": {"offset": None}}, {"config": {"gen_kwargs": "temperature=0"}},
    {"configs": {"chartqa": {"dataset_path": "lmms-lab/ChartQA"}}},  # its name up to 0.7.2
    {"configs": {"chartqa": {"dataset_path": "/data/hub/lmms-lab-encoder/ChartQA/"}}}, {"versions": {"chartqa": 0.0}},
])  # fmt: skip
def test_what_only_looks_otherwise_is_taken(tmp_path, changes):
    assert cell_of("chartqa", copied("whole", tmp_path / "logs", **changes)).complete


def test_what_a_file_does_not_state_is_said_and_not_refused(tmp_path):
    folder = copied("whole", tmp_path / "logs", configs={"chartqa": None, "docvqa_val": {"lmms_eval_specific_kwargs": None}})
    assert cell_of("chartqa", folder).complete and "does not state its prompt, data set, split, decoding" in cell_of("chartqa", folder).note
    assert cell_of("docvqa", folder).complete and "does not state its prompt;" in cell_of("docvqa", folder).note
    assert "does not state" not in cell_of("mme_p", folder).note


def test_the_declarations_are_those_of_the_installed_lmms_eval():
    pytest.importorskip("lmms_eval")
    assert set(lmms_files.DECLARED) == set(tasks.DEFINITIONS)
    for task, declared in lmms_files.DECLARED.items():
        definition = tasks.definition(task)
        generation = definition["generation_kwargs"]
        assert (declared.data, declared.subset) == (definition["dataset_path"], definition.get("dataset_name")), task
        assert declared.prompt == (definition.get("lmms_eval_specific_kwargs") or {}).get("default", {}), task
        assert declared.new_tokens == generation.get("max_new_tokens") and list(declared.until) == generation.get("until", ["\n\n"]), task


# --- folders and layouts -----------------------------------------------------------------------------------------------------


def test_a_folder_with_captions_submissions_is_read(tmp_path):
    folder = copied("captions", tmp_path / "logs")
    submission = folder / "submissions" / "coco_captions_val2014_alg_results.json"
    assert isinstance(json.loads(submission.read_text()), list)  # named like a result, and none
    (folder / "submissions" / "cut_results.json").write_text('{"results": {"chart')
    for name, text in (
        ("a.json", ""),
        ("b.json", "{"),
        ("c.json", "[1]"),
        ("d.json", '{"results": 3}'),
        ("e.json", '{"results": {"x": 1}}'),
    ):
        (folder / name).write_text(text)
    (folder / "f.json").write_bytes(b"{\xff\xfe")
    (folder / "g.json").mkdir()
    cell = cell_of("coco", folder)
    assert cell.complete and cell.value > 0 and cell.stderr is None
    row = lmms_files.read_elsewhere("mine", folder, FOUR)
    assert row.cells["coco"].complete and "coco" not in row.scores and "no score of each" in row.cells["coco"].note


def test_a_damaged_result_file_is_named(tmp_path):
    folder = copied("whole", tmp_path / "logs")
    path = results_of(folder)
    path.write_text(path.read_text()[:900])
    with pytest.raises(ValueError, match=r"_results\.json is not JSON: .* Delete it and evaluate again"):
        lmms_files.read_elsewhere("mine", folder, SOME)


def test_of_several_runs_of_one_model_the_whole_one_counts_with_its_own_samples(tmp_path):
    folder = copied("whole", tmp_path / "logs")
    shutil.copytree(DATA / "limit", folder, dirs_exist_ok=True)  # the later one, of two questions
    row = lmms_files.read_elsewhere("mine", folder, SOME)
    assert row.cells["chartqa"].complete and len(row.scores["chartqa"].ids) == 4
    chartqa = results_of(DATA / "whole")
    later = folder / "tiny" / "20990101_000000_results.json"
    later.write_text(json.dumps(merged(json.loads(chartqa.read_text()), {"results": {"chartqa": {"relaxed_overall,none": 0.25}}})))
    assert lmms_files.read_elsewhere("mine", folder, SOME).cells["chartqa"].refused == "files disagree: 25 and 100"


def test_the_layout_of_0_2_0(tmp_path):
    """results.json with `model_configs`, no n, prompts under their old name; samples in <task>.json, documents among them."""
    source = results_of(DATA / "whole")
    content = json.loads(source.read_text())
    definition = content["configs"]["mme"]
    definition["model_specific_prompt_kwargs"] = definition.pop("lmms_eval_specific_kwargs")
    definition["dataset_path"] = "lmms-lab/MME"
    metrics = content["results"]["mme"]
    metrics["mme_percetion_score,none"] = metrics.pop("mme_perception_score,none")
    old = {"results": {"mme": metrics}, "configs": {"mme": definition}, "versions": {"mme": "Yaml"}, "n-shot": {"mme": 0},
           "model_configs": {"model": "llava", "model_args": "", "limit": None, "gen_kwargs": ""}, "git_hash": "x"}  # fmt: skip
    rows = [
        json.loads(line) for line in source.with_name(source.name.replace("results.json", "samples_mme.jsonl")).read_text().splitlines()
    ]
    for row in rows:
        row["arguments"] = [[row.pop("input"), {"until": ["\n\n"]}]]
        if "mme_perception_score" in row:
            row["mme_percetion_score"] = row.pop("mme_perception_score")
    (tmp_path / "results.json").write_text(json.dumps(old))
    (tmp_path / "mme.json").write_text(json.dumps({"args": {}, "model_configs": definition, "logs": rows, "time": "x"}))
    now, then = cell_of("mme_p", DATA / "whole"), cell_of("mme_p", tmp_path)
    assert then.complete and (then.value, then.low, then.high) == (now.value, now.low, now.high) and then.n is None
    definition["model_specific_prompt_kwargs"]["post_prompt"] = "\nYes?"
    (tmp_path / "results.json").write_text(json.dumps(old))
    assert "another prompt" in cell_of("mme_p", tmp_path).refused


# --- samples -----------------------------------------------------------------------------------------------------------------


def test_samples_give_the_intervals_that_ours_give(tmp_path):
    """Of each kind of score: a mean, ANLS, a comparison left to the aggregation, OCRBench's points, MME's pairs."""
    row = lmms_files.read_elsewhere("mine", DATA / "whole", SOME)
    content = json.loads(results_of(DATA / "whole").read_text())["results"]
    for column in SOME.columns:
        cell, scores = row.cells[column.name], row.scores[column.name]
        assert cell.complete and scores.value == pytest.approx(content[column.task][column.metric]), column.name
        assert cell.value == pytest.approx(column.scale * scores.value)
    assert row.cells["docvqa"].stderr == pytest.approx(100 * np.std([1, 0, 1, 0]) / np.sqrt(3))
    assert len(row.scores["mme_c"].ids) == 1 and row.scores["mme_c"].pictures[0] == "mme code_reasoning/1.png"
    assert row.cells["seed2plus"].low is not None and row.cells["ocrbench"].low is not None


def test_where_no_picture_is_named_a_note_says_what_the_interval_ignores():
    row = lmms_files.read_elsewhere("mine", DATA / "whole", SOME)
    assert "ignores shared ones" in row.cells["docvqa"].note and "ignores shared ones" not in row.cells["mme_p"].note
    text = tables.markdown(SOME, [row], [], [])
    assert "mine: its samples name no pictures" in text and "(chartqa, ocrbench, docvqa, textvqa, seed2plus)" in text


def test_a_document_that_names_its_picture_makes_clusters(tmp_path):
    """0.2.1 to 0.3 keep the document in each sample."""
    folder = copied("whole", tmp_path / "logs")
    edit_samples(folder, "docvqa_val", lambda rows: [{**row, "doc": {"image_id": row["doc_id"] // 2}} for row in rows])
    row = lmms_files.read_elsewhere("mine", folder, SOME)
    assert row.scores["docvqa"].pictures.tolist() == [f"docvqa_val {i}" for i in (0, 0, 1, 1)] and "shared" not in row.cells["docvqa"].note


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda rows: rows[:3], "3 samples lie beside it, and it says n = 4"),
        (lambda rows: [*rows[:3], rows[0]], "holds doc 0 twice"),
        (lambda rows: [{**row, "anls": 1.0} for row in rows], "the samples give 1, the result says 0.5"),
        (lambda rows: [{**row, "input": "Why?"} for row in rows], "4 of its samples were asked without the column's prompt"),
        (lambda rows: [{**row, "anls": "N/A"} for row in rows], "doc 0 has no score of anls"),
        (lambda rows: [{"doc_id": row["doc_id"]} for row in rows], "holds no sample with anls"),
        (lambda rows: [{**row, "doc_id": None} for row in rows], "is not of samples with a doc_id each"),
    ],
)
def test_samples_that_are_not_the_numbers_own_refuse_the_cell(tmp_path, change, why):
    folder = copied("whole", tmp_path / "logs")
    edit_samples(folder, "docvqa_val", change)
    cell = cell_of("docvqa", folder)
    assert cell.value is None and why in cell.refused and cell_of("chartqa", folder).complete


def test_a_cut_sample_line_refuses_the_cell(tmp_path):
    folder = copied("whole", tmp_path / "logs")
    (path,) = folder.glob("*/*_samples_docvqa_val.jsonl")
    path.write_text(path.read_text()[:-20])
    assert "line 4, is no sample" in cell_of("docvqa", folder).refused


def test_points_that_ocrbench_kept_from_a_run_before_are_found(tmp_path):
    """lmms-eval adds the points up in the task's module: those of a second model in one process are too many."""
    folder = copied("whole", tmp_path / "logs", results={"ocrbench": {"ocrbench_accuracy,none": 0.007}})
    assert "the samples give 0.004, the result says 0.007" in cell_of("ocrbench", folder).refused


# --- comparisons and ranks ---------------------------------------------------------------------------------------------------


def rows_of(*cases: str | Path) -> list[results.EncoderResult]:
    return [lmms_files.read_elsewhere(Path(case).name, DATA / case, SOME) for case in cases]


def lines_of(a, b) -> dict[str, comparison.ComparisonLine]:
    return {line.title: line for line in comparison.compare(SOME, a, b)}


def test_two_rows_are_paired_question_by_question():
    a, b = rows_of("whole", "other")
    line = lines_of(a, b)["DocVQA"]
    assert line.verdict is not None and line.verdict.difference == pytest.approx(a.cells["docvqa"].value - b.cells["docvqa"].value)
    assert "nothing states: weights, language model" in " ".join(comparison.differences(a, b))


def test_number_seven_of_one_data_set_is_no_picture_of_another():
    a, b = rows_of("whole", "other")
    parts = [stats.difference(a.scores[name], b.scores[name]) for name in ("chartqa", "docvqa", "textvqa")]
    assert len(stats.pictures_of(parts)[0]) == sum(len(np.unique(part.pictures)) for part in parts)


def test_clusters_are_the_same_whichever_row_comes_first(tmp_path):
    """Of two rows of lmms-eval's files the one whose documents name their pictures knows more."""
    folder = copied("other", tmp_path / "named")
    edit_samples(folder, "docvqa_val", lambda rows: [{**row, "doc": {"image_id": row["doc_id"] // 2}} for row in rows])
    a, b = rows_of("whole", tmp_path / "named")
    assert [lines_of(*rows)["DocVQA"].verdict.pictures for rows in ((a, b), (b, a))] == [2, 2]


def test_no_seeds_are_joined_and_no_noise_is_believed_where_no_recipe_is_stated(tmp_path):
    a, b = rows_of("whole", "other")
    assert [row.seeds for row in seeds.join(SOME, [a, replace(b, encoder=a.encoder)])] == [1, 1]
    seeds.write_noise(seeds.NoiseFile("some", "mine", 3, {}, {}), tmp_path / "noise.json")
    with pytest.raises(ValueError, match="nothing states the recipe of whole"):
        seeds.read_noise(tmp_path / "noise.json", SOME, (a,))


def test_shuffled_questions_do_not_pair(tmp_path):
    folder = copied("other", tmp_path / "shuffled")
    edit_samples(folder, "docvqa_val", lambda rows: [{**row, "doc_id": 3 - row["doc_id"]} for row in rows])
    a, b = rows_of("whole", tmp_path / "shuffled")
    assert b.cells["docvqa"].complete, "the same four answers, so the same mean"
    line = lines_of(a, b)["DocVQA"]
    assert line.verdict is None and "not asked the same questions" in line.reason
    assert lines_of(a, b)["ChartQA"].verdict is not None
    assert "in docvqa_val" in " ".join(comparison.asked_otherwise(a, b))


def test_the_order_of_lines_is_no_matter(tmp_path):
    """Several processes write their questions one after the other's."""
    folder = copied("whole", tmp_path / "turned")
    edit_samples(folder, "docvqa_val", lambda rows: rows[::2] + rows[1::2])
    a, b = rows_of("whole", tmp_path / "turned")
    line = lines_of(a, b)["DocVQA"]
    assert line.verdict is not None and line.verdict.difference == 0 and np.all(b.scores["docvqa"].values == a.scores["docvqa"].values)


def test_without_samples_nothing_is_paired(tmp_path):
    folder = copied("other", tmp_path / "bare")
    for path in folder.rglob("*.jsonl"):
        path.unlink()
    a, b = rows_of("whole", tmp_path / "bare")
    line = lines_of(a, b)["DocVQA"]
    assert line.verdict is None and "no samples beside it" in line.reason
    assert b.cells["docvqa"].complete and averages.average_bounds(SOME, SOME.columns[2:3], b) == (None, None)
    assert comparison.ranks(SOME, [a, b], SOME.columns[2:3]) == {}


def ours(root: Path, encoder: str, change=lambda row: row) -> results.EncoderResult:
    """A row of ours that answered DocVQA's four questions of the same files."""
    (path,) = (DATA / "whole").glob("*/*_samples_docvqa_val.jsonl")
    folder = root / "some" / encoder / "llm@aaaaaaaa" / "docvqa_val"
    folder.mkdir(parents=True)
    with (folder / "samples.jsonl").open("w") as stream:
        for row in map(json.loads, path.read_text().splitlines()):
            row = change(row)
            sample = {
                "doc_id": row["doc_id"],
                "image": f"{row['doc_id'] // 2:016x}",
                "prompt": row["input"],
                "scores": {"anls": row["anls"]},
            }
            target = row["target"]
            stream.write(json.dumps({**sample, "target": json.loads(target.replace("'", '"'))}) + "\n")
    key = {"weights": "a" * 64, "task": "t", "data": "d", "limit": None}
    column = next(column for column in SOME.columns if column.name == "docvqa")
    value = results.read_samples(folder / "samples.jsonl", [column]).scores[column.name].value
    result = {"suite": "some", "task": "docvqa_val", "encoder": encoder, "llm": "llm", "n": 4, "n_expected": 4, "left_out": {},
              "results": {column.metric: value}, "key": key, "provenance": provenance(encoder)}  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    return results.read_row(folder.parent, SOME)


def test_a_row_of_ours_is_paired_with_one_of_theirs_where_both_were_asked_the_same(tmp_path):
    (theirs,) = rows_of("other")
    mine = ours(tmp_path / "a", "mine")
    line = lines_of(mine, theirs)["DocVQA"]
    assert line.verdict is not None and line.verdict.difference == pytest.approx(mine.cells["docvqa"].value - theirs.cells["docvqa"].value)
    back = lines_of(theirs, mine)["DocVQA"]
    assert back.verdict.difference == pytest.approx(-line.verdict.difference) and back.verdict.pictures == line.verdict.pictures == 2
    other = ours(tmp_path / "b", "mine", lambda row: {**row, "input": f"Hm? {row['input']}"})
    assert "not asked the same questions in the same words" in lines_of(other, theirs)["DocVQA"].reason


def test_rows_of_lmms_eval_are_ranked_among_themselves_alone(tmp_path):
    a, b = rows_of("whole", "other")
    mine = ours(tmp_path, "mine")
    column = next(column for column in SOME.columns if column.name == "docvqa")
    better = 0 if a.cells["docvqa"].value > b.cells["docvqa"].value else 1
    assert comparison.ranks(SOME, [a, b, mine], (column,)) == {better: 1}


def test_the_command_compares_them(tmp_path, capsys):
    arguments = ["some", "--lmms-eval", f"a={DATA / 'whole'}", "--lmms-eval", f"b={DATA / 'other'}", "--out", str(tmp_path)]
    assert tables_main([*arguments, "--compare", "a,b"]) == 0
    out = capsys.readouterr().out
    assert "## a () against b ()" not in out and "## a (lmms-eval's files) against b (lmms-eval's files)" in out
    assert "of a nothing states: weights" in out and "name no weights: no digest" in out
    with (tmp_path / "tables" / "some.csv").open(newline="") as stream:
        assert [row["digest"] for row in csv.DictReader(stream)] == ["", ""]
    paths = ["--lmms-eval", f"a={DATA / 'whole'}", "--lmms-eval", f"b={DATA / 'other'}", "--results", str(tmp_path / "none")]
    assert compare_main(["a", "b", "--suite", "some", *paths]) == 3, "what cannot be known may differ"
    said = capsys.readouterr().out
    assert said.startswith("Besides the encoder, these differ, or are not known:\n- of a nothing states: weights")
    assert "p: the two models' answers exchanged by picture" in said and "not training seeds (not recorded against not recorded)" in said
    assert results_main([str(DATA / "whole"), "--json"]) == 0
    assert any("ignores shared" in json.loads(line)["note"] for line in capsys.readouterr().out.splitlines())
