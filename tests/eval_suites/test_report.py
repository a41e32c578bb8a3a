"""The report's file: the table's own numbers, texts that stay texts, the right picture beside each question, sentences for bad input."""

import base64
import csv
import io
import json
import subprocess
import sys
import tracemalloc
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eval_suites.report import runs, samples, svg, tables
from eval_suites.report.__main__ import main as report_main
from eval_suites.report.page import write_page
from eval_suites.score import comparison, results
from tests.eval_suites.helpers.handmade_results import SUITE, make, right_share, write_results
from tests.eval_suites.helpers.small_data import make_easyvqa, png, provenance, write_parquet

ROOT = Path(__file__).parents[2]


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make(tmp_path, monkeypatch)


class Page(HTMLParser):
    """What a browser's parser makes of the file: its elements, and the JSON in it."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.data, self._open = [], {}, None
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._open = dict(attrs).get("id") if tag == "script" and dict(attrs).get("type") == "application/json" else None

    def handle_data(self, text):
        if self._open:
            self.data[self._open] = json.loads(text)
            self._open = None

    def samples(self, task: str) -> dict:
        return next(part for name, part in self.data.items() if name != "data" and part["task"] == task)


def made(*arguments: str) -> Page:
    assert report_main([*arguments, "--out", "report.html"]) == 0
    return Page(Path("report.html"))


def said(capsys, *arguments: str) -> str:
    assert report_main([*map(str, arguments)]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    return text


# --- numbers ----------------------------------------------------------------------------------------------------------------


def test_every_number_is_the_tables_own(world, tmp_path):
    page = made("results").data["data"]
    rows = results.read_rows(world[0], SUITE)
    tables.write_tables(SUITE, rows, tmp_path / "tables")
    with (tmp_path / "tables" / "easyvqa.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert [row["encoder"] for row in page["rows"]] == [line["encoder"] for line in lines] == ["good", "poor"]
    for row, line in zip(page["rows"], lines):
        for name, cell in row["cells"].items():
            assert cell["value"] == pytest.approx(float(line[name]), abs=1e-4)
    cell = page["rows"][0]["cells"]["shape"]
    own = rows[0].cells["shape"]
    assert (cell["low"], cell["high"], cell["stderr"], cell["n"], cell["n_expected"]) == (own.low, own.high, own.stderr, 40, 40)
    (pair,) = page["compared"]
    for shown, line in zip(pair["lines"], comparison.compare(SUITE, *rows)):
        assert (shown["title"], shown["difference"], shown["low"], shown["word"]) == (
            line.title, line.verdict.difference, line.verdict.low, line.verdict.word,
        )  # fmt: skip
    assert pair["lines"][0]["word"] == "better" and page["prompts"]["easyvqa_shape"] == "which shape, 0?"


def test_the_papers_rows_are_marked_as_printed(tmp_path, monkeypatch):
    from tests.eval_suites.test_tables import SUITE as FULL
    from tests.eval_suites.test_tables import measured

    row = measured()
    monkeypatch.setattr(samples, "benchmark", lambda *_: None)  # there are no samples of these numbers
    write_page(FULL, [row], [tmp_path], tmp_path / "r.html")
    rows = Page(tmp_path / "r.html").data["data"]["rows"]
    assert [line["source"] for line in rows] == ["measured"] + ["printed"] * 19
    assert rows[1]["cells"]["chartqa"]["text"] == "24.8" and "mean is 52.99" in rows[1]["cells"]["all_avg"]["why"]


def test_two_rows_of_one_name_are_told_apart(world):
    write_results(world[0], world[1], "good", right_share(3, 0.5), resolution=128)
    names = [row["name"] for row in made("results").data["data"]["rows"]]
    assert len(set(names)) == 3 and sum(name.startswith("good") for name in names) == 2 and all("@" in name for name in names[:2])


# --- texts ------------------------------------------------------------------------------------------------------------------

HOSTILE = {
    0: "<script>document.title='owned'</script>",
    1: "</script><img src=x onerror=alert(1)><!-- <script>",
    2: "x" * 50_000,
    3: "\u05e9\u05dc\u05d5\u05dd \u202e txt",
    4: "a cat \U0001f408 and a half \ud83d",
    5: "",
    6: "%%SCRIPT%% \u2028 line \x00 nul",
}


def test_what_a_model_said_is_text_whatever_it_is(world):
    elements = set(made("results").tags)
    write_results(world[0], world[1], "hostile", lambda kind, i: (HOSTILE.get(i, "no"), 0.0))
    page = made("results", "--samples", "40")
    assert set(page.tags) == elements and page.tags.count("img") == 1
    assert page.tags.count("script") == 5  # data, three benchmarks, the page's own
    items = page.samples("easyvqa_shape")["items"]
    place = [row["encoder"] for row in page.data["data"]["rows"]].index("hostile")
    for doc, text in HOSTILE.items():
        assert items[doc]["answers"][place]["text"] == text
    assert "<script>document" not in page.text and "onerror=alert(1)>" in page.text


def test_a_hostile_name_is_text_in_the_charts_too(world):
    write_results(world[0], world[1], "<b onload=x>&", right_share(4, 0.5))
    page = made("results", "--figures", "figures")
    assert "b" not in page.tags and "&lt;b onload=x&gt;&amp;" in page.text
    for file in Path("figures").iterdir():
        ET.parse(file)


def test_the_page_lets_no_other_script_run_and_fetches_nothing(world):
    text = made("results").text
    assert "default-src 'none'; img-src data:; style-src 'sha256-" in text and "unsafe" not in text
    script = (ROOT / "eval_suites/report/assets/page.js").read_text()
    for name in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function(", "DOMParser", "fetch(", "import("):
        assert name not in script
    assert text.replace("http://www.w3.org/2000/svg", "").count("http://") == text.count("https://") == 0


def test_many_long_texts_are_cut_and_say_so_a_single_one_is_not(monkeypatch):
    assert samples._limit([10, 20, 50_000], 100_000) == 50_000
    longest = samples._limit([10] * 5 + [9_000] * 10, 10_000)
    assert 5 * 10 + 10 * longest <= 10_000 and longest > 900
    assert samples._cut("x" * 1000, 300).endswith("[\u2026 700 more of 1,000 characters are in samples.jsonl]")


# --- samples and pictures ---------------------------------------------------------------------------------------------------


def test_each_question_has_the_picture_that_was_asked_about(world):
    shown = made("results", "--data-root", "data", "--samples", "11").samples("easyvqa_colour")
    assert len(shown["items"]) == 11 and shown["total"] == 40
    for item in shown["items"]:
        kind, _, content = shown["pictures"][item["picture"]].partition(";base64,")
        picture = Image.open(io.BytesIO(base64.b64decode(content)))
        assert kind == "jpeg" and picture.size == (8, 8)
        wanted = (item["id"] % 256, 7 * item["id"] % 256, 3)
        assert np.abs(np.array(picture.getpixel((4, 4)), int) - wanted).max() < 4  # the next picture's colour is 7 away


def test_gqas_pictures_are_found_by_name(tmp_path):
    questions, pictures = tmp_path / "q.parquet", tmp_path / "p.parquet"
    write_parquet(questions, [{"imageId": name} for name in ("n2", "n0", "n2", "gone")])
    write_parquet(pictures, [{"id": f"n{i}", "image": png((60 * i, 0, 0))} for i in range(3)])
    data = samples.tasks.Data("gqa", "testdev", (questions,), (pictures,), 4, None, "")
    found = {doc: content for part in samples._rows(data, [0, 1, 2, 3]) for doc, content in part.items()}
    assert set(found) == {0, 1, 2} and found[0] == found[2] == png((120, 0, 0))["bytes"] and found[1] == png((0, 0, 0))["bytes"]


def test_a_missing_picture_a_broken_one_and_other_data_are_each_said(world):
    file = world[1] / "genlip-eval/easy-vqa/shape/test-00000-of-00001.parquet"
    rows = pq.read_table(file).to_pylist()
    rows[0]["image"], rows[1]["image"] = {"bytes": None, "path": "gone.png"}, {"bytes": b"\x89PNG no", "path": None}
    write_parquet(file, rows)
    shown = made("results", "--data-root", "data").samples("easyvqa_shape")
    assert not shown["pictures"] and "not those that were evaluated" in shown["said"][0]
    for row in world[0].glob("easyvqa/*/*/easyvqa_shape/result.json"):  # as if these very data had been evaluated
        result = json.loads(row.read_text())
        result["key"]["data"] = samples.tasks.locate("easyvqa_shape", world[1]).digest
        row.write_text(json.dumps(result))
    shown = made("results", "--data-root", "data").samples("easyvqa_shape")
    assert shown["items"][0]["why"] == "the data have no picture for it" and "cannot be read" in shown["items"][1]["why"]
    assert shown["pictures"][shown["items"][2]["picture"]].startswith("jpeg;base64,")
    shown = made("results", "--data-root", "elsewhere").samples("easyvqa_shape")
    assert "no shape/test-*.parquet under elsewhere" in shown["said"][0] and shown["items"][5]["why"] == "picture not at hand"


def test_half_of_the_places_go_to_disagreements_and_the_counts_are_of_all():
    docs = np.arange(1000) * 3
    right = np.stack([np.arange(1000) < 500, np.arange(1000) < 600])
    chosen, counts = samples.choose(docs, right, np.zeros_like(right), 60)
    assert counts == {"all right": 500, "none right": 400, "they differ": 100, "not answered by all": 0}
    differ = {3 * i for i in range(500, 600)}
    assert len(chosen) == 60 and len(differ & set(chosen.tolist())) == 30 and list(chosen) == sorted(chosen)
    assert list(chosen) == list(samples.choose(docs, right, np.zeros_like(right), 60)[0])
    few = right.copy()
    few[1] = few[0]
    few[1, 0] = False
    assert len(samples.choose(docs, few, np.zeros_like(right), 60)[0]) == 60
    missing = np.zeros_like(right)
    missing[1, :10] = True
    assert samples.choose(docs, right, missing, 60)[1]["not answered by all"] == 10


def test_samples_on_disk_are_not_in_memory(tmp_path):
    path = tmp_path / "samples.jsonl"
    with path.open("w") as stream:
        for i in range(4000):
            stream.write(json.dumps({"doc_id": i, "prompt": "p", "answer": "x" * 5000, "target": "x", "image": None, "doc": {}}) + "\n")
    tracemalloc.start()
    found, prompt = samples.take(path, {7, 3999})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sorted(found) == [7, 3999] and prompt == "p"
    assert peak < path.stat().st_size / 50


def test_pictures_share_a_budget():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8))
    out = io.BytesIO()
    noise.save(out, "PNG")
    for size in (60_000, 6_000):
        shown, why = samples._shrunk(out.getvalue(), size)
        assert not why and len(base64.b64decode(shown.partition(",")[2])) <= size


# --- half-done, missing, in the way ------------------------------------------------------------------------------------------


def test_a_task_half_done_says_how_far_it_came(world):
    row = write_results(world[0], world[1], "half", right_share(5, 0.5), kinds=("shape",))
    (row / "easyvqa_colour").mkdir()
    (row / "easyvqa_colour" / "answers-0.jsonl").write_text('{"key": 0}\n{"doc_id": 0}\n{"doc_id": 1}\n')
    (row / "easyvqa_colour" / "failed.txt").write_text("Traceback\nRuntimeError: out of everything\n")
    page = made("results", "--allow-partial")
    (half,) = [line for line in page.data["data"]["rows"] if line["encoder"] == "half"]
    cells = half["cells"]
    assert cells["colour"]["value"] is None and "half done: 2 answers" in cells["colour"]["why"]
    assert "out of everything" in cells["colour"]["why"] and cells["yes_no"]["why"] == "not evaluated"
    assert cells["shape"]["value"] is not None and cells["all_avg"]["value"] is None and cells["all_avg"]["why"].endswith("colour, yes/no")
    assert page.samples("easyvqa_colour")["rows"] == [0, 2]  # by number, of those that answered


def test_bad_input_is_a_sentence(world, capsys):
    root, _ = world
    assert "does not exist" in said(capsys, "nowhere")
    Path("empty").mkdir()
    assert "evaluate an encoder first" in said(capsys, "empty")
    assert "did you mean" in said(capsys, "results", "--suite", "easyvq").lower()
    assert "no results of suite mini14" in said(capsys, "results", "--suite", "mini14")
    with pytest.raises(SystemExit):
        report_main(["results", "--samples", "-1"])
    assert "0 or more" in capsys.readouterr().err
    assert "two encoders" in said(capsys, "results", "--compare", "good")
    other = next(root.rglob("easyvqa_shape"))
    copy = root / "mini14" / "e" / "l@0" / "mini_chartqa"
    copy.mkdir(parents=True)
    result = json.loads((other / "result.json").read_text()) | {"suite": "mini14"}
    (copy / "result.json").write_text(json.dumps(result))
    assert "different suites: easyvqa, mini14" in said(capsys, "results")
    assert made("results", "--suite", "easyvqa").data["data"]["suite"]["name"] == "easyvqa"
    (Path("elsewhere") / "easyvqa" / "e" / "l@0" / "other_task").mkdir(parents=True)
    (Path("elsewhere") / "easyvqa" / "e" / "l@0" / "other_task" / "result.json").write_text(json.dumps(result | {"suite": "easyvqa"}))
    assert "none of the tasks of suite easyvqa is done" in said(capsys, "elsewhere")
    (other / "samples.jsonl").unlink()
    assert "is gone, and a result without its samples is no result" in str(made("results/easyvqa").data["data"]["notes"])


def test_an_old_report_is_replaced_and_nothing_else_is(world, capsys):
    made("results")
    made("results", "--samples", "1")
    Path("notes.html").write_text("<!doctype html> my notes")
    assert "is no report" in said(capsys, "results", "--out", "notes.html")
    assert Path("notes.html").read_text() == "<!doctype html> my notes"
    Path("folder.html").mkdir()
    assert "is no report" in said(capsys, "results", "--out", "folder.html")


@pytest.mark.parametrize("record", ["[1]", '{"step": "x", "loss": 1}', '{"step": 1, "loss": null}', "no JSON", "\\xff"])
@pytest.mark.parametrize("name", ["metrics.jsonl", "captions.jsonl"])
def test_a_line_that_is_no_record_of_a_run_is_named(name, record, world, capsys):
    make_runs(results.read_rows(world[0], SUITE)[0])
    if name == "captions.jsonl" and record[0] == "{":
        record = "{"
    file = Path("runs/own run") / name
    file.write_bytes(b'{"step": 1, "loss": 1}\n' + record.replace("\\xff", "\xff").encode("latin-1") + b"\n")
    assert f"{file}, line 2" in said(capsys, "results")


@pytest.mark.parametrize("name", ["recipe.json", "ledger.json"])
def test_a_run_folders_file_that_holds_no_object_is_named(name, world, capsys):
    make_runs(results.read_rows(world[0], SUITE)[0])
    Path("runs/own run", name).write_text("[]")
    assert f"runs/own run/{name} is [], and takes an object" in said(capsys, "results")


@pytest.mark.parametrize("field", ["prompt", "answer", "target", "doc"])
def test_a_sample_that_lacks_what_is_shown_is_named(field, world, capsys):
    file = next(world[0].rglob("easyvqa_shape/samples.jsonl"))
    first, *others = file.read_text().splitlines(keepends=True)
    sample = {key: value for key, value in json.loads(first).items() if key != field}
    file.write_text(json.dumps(sample) + "\n" + "".join(others))
    assert f"{file.relative_to(Path.cwd())}, line 1 does not say {field}" in said(capsys, "results")


def test_a_sample_of_no_document_refuses_its_cell(world):
    file = next(world[0].rglob("easyvqa_shape/samples.jsonl"))
    file.write_text(file.read_text().replace('{"doc_id": 0,', '{"doc_id": "x",', 1))
    assert "samples.jsonl, line 1: not a sample of easyvqa_shape" in str(made("results").data["data"]["notes"])


def test_the_command_answers_without_torch_and_pandas(tmp_path):
    code = (
        "import sys\nfor name in ('torch', 'transformers', 'pandas', 'lmms_eval', 'datasets'):\n    sys.modules[name] = None\n"
        "from eval_suites.report.__main__ import main\nsys.exit(main(['--help']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "examples:" in done.stdout, done.stderr


# --- what was run, charts ----------------------------------------------------------------------------------------------------


def make_runs(row: results.EncoderResult) -> None:
    """The row's own run, the stage before it, and its encoder's pretraining, as train_mllm and genlip leave them."""
    recipe = {"preset": "tiny-sft", "llm": "llm-tiny", "encoder": "good=runs/pre/export", "init": "runs/first/export",
              "out": "runs/own run", "train_encoder": False, "images": "", "max_steps": 3}  # fmt: skip
    for name, said_by in (
        ("own run", replace(runs.provenance(row), weights_digest=row.digest).as_json()),
        ("first", provenance("good", stage="projector", weights_digest="0")),
        ("pre", {"stage": "pretrain"}),
    ):
        export = Path("runs", name, "export")
        export.mkdir(parents=True)
        (export / "provenance.json").write_text(json.dumps(said_by))
        lines = [{"step": i, "loss": 2.0 / (i + 1), "samples": 8} for i in range(1000)] + [{"train_runtime": 1.0}]
        (export.parent / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 10')
    Path("runs/own run/recipe.json").write_text(json.dumps(recipe))
    Path("runs/pre/recipe.json").write_text(
        json.dumps({"preset": "tiny-s1", "mixture": [0.5, 2.0], "model": {"width": 3}, "out": "runs/pre"})
    )
    Path("runs/own run/ledger.json").write_text(json.dumps({"read": 99}))
    said = {"step": 9, "name": "a.jpg", "said": "a red <b>circle</b>", "true": "a red circle"}
    Path("runs/pre/captions.jsonl").write_text(json.dumps(said) + "\n")
    (Path("runs/pre/speak")).mkdir()
    Image.new("RGB", (4, 4)).save("runs/pre/speak/attention.png")


def test_what_was_run_with_ledger_curves_captions_and_the_commands(world):
    make_runs(results.read_rows(world[0], SUITE)[0])
    page = made("results")
    good, poor = page.data["data"]["behind"]
    assert [run["what"] for run in good["runs"]] == ["sft stage", "projector stage", "pretraining of the encoder"]
    assert good["runs"][0]["ledger"] == {"read": 99} and poor["runs"] == []
    assert good["commands"][0] == "python -m genlip.train tiny-s1 --mixture 0.5 2 --out runs/pre"
    assert good["commands"][1].endswith("--init runs/first/export --out 'runs/own run' --no-train-encoder --max-steps 3")
    assert good["commands"][-1] == "python eval_suites/run.py --encoder good --suite easyvqa --mllm 'runs/own run/export'"
    assert good["spoken"][0]["lines"][0] == {"step": 9, "name": "a.jpg", "said": "a red <b>circle</b>", "true": "a red circle"}
    assert good["drawings"][0]["name"] == "pre/speak/attention.png"
    assert page.tags.count("figure") == 2 + 3  # ALL AVG and the benchmarks; three curves
    points = runs.losses(runs.find(Path("runs"))[2])
    assert len(points) <= runs.POINTS and sum(y for _, y in points) / len(points) == pytest.approx(
        sum(2.0 / (i + 1) for i in range(1000)) / 1000
    )


def test_checkpoints_of_one_run_and_resolutions_of_one_encoder_become_curves(world):
    for i, (step, share) in enumerate(((100, 0.4), (1000, 0.7))):
        path = f"runs/pre/checkpoints/step-{step}/export"
        write_results(world[0], world[1], f"s{step}", right_share(i, share), recipe={"encoder": f"s{step}={path}"})
        write_results(world[0], world[1], "wide", right_share(i, share), resolution=64 * (i + 1))
    folder = Path("runs/pre/export")
    folder.mkdir(parents=True)
    (folder.parent / "metrics.jsonl").write_text("".join(json.dumps({"step": i, "loss": 1, "samples": 8}) + "\n" for i in range(1000)))
    assert report_main(["results", "--figures", "figures", "--runs", "runs"]) == 0
    names = {file.name for file in Path("figures").iterdir()}
    assert {"easyvqa_scaling_pre_llm-tiny.svg", "easyvqa_resolution_wide_llm-tiny.svg", "easyvqa_all_avg.svg"} <= names
    texts = [element.text for element in ET.parse("figures/easyvqa_scaling_pre_llm-tiny.svg").iter() if element.tag.endswith("text")]
    assert "800" in texts and "8000" in texts and "samples seen in pretraining" in texts
    assert any(name.startswith("easyvqa_compare_s100_good") or name.startswith("easyvqa_compare_") for name in names)


def test_a_broken_run_folder_is_a_sentence(world, capsys):
    make_runs(results.read_rows(world[0], SUITE)[0])
    Path("runs/own run/metrics.jsonl").write_text("no record\n{}\n")
    assert "line 1: not a record" in said(capsys, "results")


def test_bars_are_as_long_as_their_numbers():
    chart = svg.bars("t", [("", [svg.Bar("a", 50.0, 40.0, 60.0, "50", 0), svg.Bar("b", 25.0, None, None, "25", 1)])])
    widths = [float(rect.get("width")) for rect in chart.iter("rect")]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.02)
    gap = svg.bars("t", [("", [svg.Bar("a", None, None, None, "-", 0, "half done")])])
    assert not list(gap.iter("rect")) and "half done" in [text.text for text in gap.iter("text")]


def test_what_is_not_told_apart_is_grey():
    gaps = [
        svg.DifferenceBar("x", 1.0, -1.0, 3.0, "+1", False),
        svg.DifferenceBar("y", 2.0, 1.0, 3.0, "+2", True),
        svg.DifferenceBar("z", None, None, None, "why", False),
    ]
    chart = svg.forest("t", gaps, "b better", "a better")
    assert [dot.get("class") for dot in chart.iter("circle")] == ["grey", "c0"]


# --- at the end of the main job ----------------------------------------------------------------------------------------------


def test_the_main_job_writes_the_report_and_never_fails_over_it(place, monkeypatch, capsys):
    from eval_suites import suites

    make_easyvqa(Path("data"))
    monkeypatch.setitem(suites.SUITES, "easyvqa", SUITE)
    place.export("a", "genlip-tiny")
    arguments = ("--encoder", "genlip-tiny", "--suite", "easyvqa", "--tasks", "shape")
    assert place.run(*arguments) == 0
    assert "report: tables/easyvqa.html" in capsys.readouterr().err
    page = Page(Path("tables/easyvqa.html"))
    shown = page.samples("easyvqa_shape")
    assert len(shown["items"]) == len({item["picture"] for item in shown["items"]}) == 40
    assert page.data["data"]["behind"][0]["runs"][0]["name"] == "a"
    Path("runs/a/recipe.json").write_text("{")
    assert place.run(*arguments) == 0
    assert "note: no report: runs/a/recipe.json cannot be read" in capsys.readouterr().err
