"""The main job on small data with a stand-in MLLM: lmms-eval's real engine, prompts and metrics; our plan, resume and exit codes."""

import csv
import io
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from PIL import Image

from eval_suites import suites
from eval_suites.runner import preflight
from eval_suites.score import comparison, results
from genlip.common import digests
from genlip.common.schema import Result, json_schema
from tests.eval_suites.helpers.small_data import chart_rows, make_easyvqa, write_parquet
from tests.eval_suites.test_tasks import write_hub, write_plainly
from tests.json_schema import complaints


@pytest.fixture
def small_easyvqa(place, monkeypatch):
    """The suite easyvqa over 40 pictures, declared so."""
    make_easyvqa(Path("data"))
    full = suites.SUITES["easyvqa"]
    monkeypatch.setitem(suites.SUITES, "easyvqa", replace(full, columns=tuple(replace(column, n=40) for column in full.columns)))
    return place


def truth() -> dict[str, str]:
    """Prompt -> right answer, over the small easy-VQA."""
    import pyarrow.parquet as pq

    rows = [row for file in Path("data").rglob("*.parquet") for row in pq.read_table(file, columns=["question", "answer"]).to_pylist()]
    return {row["question"] + "\nAnswer the question using a single word or phrase.": row["answer"] for row in rows}


def table(path="tables/easyvqa.csv") -> list[dict]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_three_columns_over_pictures_end_in_a_table(small_easyvqa, capsys):
    right = truth()
    small_easyvqa.export("a", "genlip-tiny", reply=lambda prompt: right[prompt].upper() + " ")  # exact match is lower-cased
    assert small_easyvqa.run("--encoder", "genlip-tiny", "--suite", "easyvqa") == 0
    (row,) = table()
    header = "encoder,arch,llm,frozen,resolution,tokens,source,shape,colour,yes_no,all_avg,overall,complete,digest"
    assert ",".join(row) == header
    assert [float(row[name]) for name in ("shape", "colour", "yes_no", "all_avg", "overall")] == [100.0] * 5
    assert (row["encoder"], row["source"], row["complete"], row["frozen"]) == ("genlip-tiny", "measured", "3/3", "true")
    assert "[91.2, 100.0]" in capsys.readouterr().out  # Wilson at 40 of 40 pictures: 100 % right is not certainty


def test_samples_keep_prompt_answer_and_picture(small_easyvqa):
    small_easyvqa.export("a", "genlip-tiny")
    small_easyvqa.run("--encoder", "genlip-tiny", "--suite", "easyvqa")
    (folder,) = Path("results/easyvqa/genlip-tiny").glob("llm-tiny@*")
    assert complaints(json.loads((folder / "easyvqa_shape" / "result.json").read_text()), json_schema(Result)) == []
    samples = [json.loads(line) for line in (folder / "easyvqa_shape" / "samples.jsonl").open()]
    assert [sample["doc_id"] for sample in samples] == list(range(40))
    assert samples[3]["prompt"] == "which shape, 3?\nAnswer the question using a single word or phrase."
    assert samples[3]["answer"] == "yes" and samples[3]["doc"]["image_id"] == 3
    other = [json.loads(line)["image"] for line in (folder / "easyvqa_yes_no" / "samples.jsonl").open()]
    assert [sample["image"] for sample in samples] == other and len(set(other)) == 40  # one picture, one cluster, in every column


def test_done_tasks_are_skipped_until_the_weights_change(small_easyvqa):
    small_easyvqa.export("a", "genlip-tiny")
    arguments = ("--encoder", "genlip-tiny", "--suite", "easyvqa")
    assert small_easyvqa.run(*arguments) == 0
    before = Path("tables/easyvqa.csv").read_bytes()
    assert small_easyvqa.run(*arguments) == 0
    assert small_easyvqa.loads == 4 and Path("tables/easyvqa.csv").read_bytes() == before  # one check, three workers; then none
    # One result lost: only that task runs again, and its answers are in the journal.
    (done,) = Path("results").rglob("easyvqa_colour/result.json")
    done.unlink()
    assert small_easyvqa.run(*arguments) == 0 and small_easyvqa.loads == 5
    assert len(small_easyvqa.asked("a")) == 120 and Path("tables/easyvqa.csv").read_bytes() == before
    # The same folder, other weights: nothing old is taken for theirs.
    changed = json.loads(Path("runs/a/export/provenance.json").read_text()) | {"weights_digest": "f" * 64}
    Path("runs/a/export/provenance.json").write_text(json.dumps(changed))
    small_easyvqa.models[Path("runs/a/export")].reply = lambda prompt: "no"
    assert small_easyvqa.run(*arguments) == 0
    assert len(small_easyvqa.asked("a")) == 240
    export = preflight.read_export(Path("runs/a/export"))
    assert {row["digest"] for row in table()} == {export.digest, before.decode().splitlines()[1].split(",")[-1]}


def test_an_edited_file_of_the_export_is_another_mllm_in_a_folder_of_its_own(small_easyvqa, capsys):
    export = small_easyvqa.export("a", "genlip-tiny")
    arguments = ("--encoder", "genlip-tiny", "--suite", "easyvqa", "--tasks", "shape")
    assert small_easyvqa.run(*arguments) == 0
    for file, content in (
        ("chat_template.jinja", "another"),
        ("config.json", '{"dtype": "float32", "vision_config": {"spec": {"mean": [0]}}}'),
    ):
        (export / file).write_text(content)
        assert small_easyvqa.run(*arguments) == 0
    assert len(small_easyvqa.asked("a")) == 120 and len(list(Path("results/easyvqa/genlip-tiny").iterdir())) == len(table()) == 3
    (export / "generation_config.json").write_text('{"repetition_penalty": 1.1}')  # which decides nothing
    assert small_easyvqa.run(*arguments) == 0 and len(small_easyvqa.asked("a")) == 120
    rows = results.read_rows(Path("results"), suites.get("easyvqa"))
    said = {name.split(":")[0] for a in rows for b in rows for name in comparison.differences(a, b)}
    assert said == {"answers.chat_template", "answers.preprocessing"}
    one = rows[0].results["easyvqa_shape"]
    assert one.weights_digest == rows[0].weights_digest != one.digest and one.environment["batch_size"] == 16


def test_an_export_that_is_replaced_while_it_is_evaluated_fails_the_task_in_words(small_easyvqa, capsys):
    def reply(prompt):
        file = Path("runs/a/export/provenance.json").absolute()  # the second worker finds another model
        file.write_text(json.dumps(json.loads(file.read_text()) | {"weights_digest": "f" * 64}))
        return "yes"

    small_easyvqa.export("a", "genlip-tiny", reply=reply)
    assert small_easyvqa.run("--encoder", "genlip-tiny", "--suite", "easyvqa") == 1
    said = capsys.readouterr().err
    assert said.count("runs/a/export was replaced while it was evaluated (weights): run the same command again") == 2
    assert len(list(Path("results").rglob("result.json"))) == 1 and len(list(Path("results/easyvqa/genlip-tiny").iterdir())) == 1


def test_weights_that_a_load_has_found_right_are_not_checked_again_until_their_file_is_touched(small_easyvqa):
    weights = small_easyvqa.export("a", "genlip-tiny") / "model.safetensors"
    arguments = ("--encoder", "genlip-tiny", "--suite", "easyvqa", "--tasks", "shape")
    assert small_easyvqa.run(*arguments) == 0 and small_easyvqa.loads == 2  # the check, and the task
    assert small_easyvqa.run(*arguments) == 0 and small_easyvqa.loads == 2
    assert small_easyvqa.run(*arguments, "--out", "elsewhere") == 0 and small_easyvqa.loads == 3  # the task alone
    before = weights.stat()
    weights.write_bytes(weights.read_bytes().swapcase())
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert small_easyvqa.run(*arguments) == 0 and small_easyvqa.loads == 4
    assert small_easyvqa.run(*arguments, "--rehash") == 0 and small_easyvqa.loads == 5


def test_an_encoders_folder_is_held_against_the_mllm(small_easyvqa, monkeypatch, capsys):
    looked = []

    def digests_as_trained(name, resolution, layer):
        looked.append(name)
        return ["b" * 64, Path("mine/model.safetensors").read_text()]

    monkeypatch.setattr("llava_plugin.tower.digests_as_trained", digests_as_trained)
    monkeypatch.setattr("eval_suites.runner.worker._checked_apart", lambda folder, check, *arguments: check(*arguments))
    small_easyvqa.export("a", "mine", encoder_digest_before="a" * 64)
    arguments = ("--encoder", "mine=mine", "--suite", "easyvqa", "--tasks", "shape")
    assert small_easyvqa.run(*arguments) == 2 and "mine is no folder with a config.json" in capsys.readouterr().err
    Path("mine").mkdir()
    Path("mine/config.json").write_text("{}")
    Path("mine/model.safetensors").write_text("c" * 64)
    assert small_easyvqa.run(*arguments) == 2 and not list(Path("results").rglob("result.json"))
    assert "runs/a/export was not trained from the encoder in mine: its provenance says digest aaaaaaaa" in capsys.readouterr().err
    Path("mine/model.safetensors").write_text("a" * 64)
    assert small_easyvqa.run(*arguments) == 0 and small_easyvqa.run(*arguments) == 0 and looked == ["mine=mine"] * 2  # then it is known
    assert small_easyvqa.run("--encoder", "mine", *arguments[2:]) == 0  # a folder's own name is a folder, too
    said = json.loads(Path("runs/a/export/provenance.json").read_text()) | {"encoder_digest_before": None, "frozen": None}
    Path("runs/a/export/provenance.json").write_text(json.dumps(said))
    shutil.rmtree("results")
    assert small_easyvqa.run(*arguments) == 0
    assert "note: runs/a/export does not record which encoder it began with" in capsys.readouterr().err


def test_a_provenance_that_contradicts_the_results_of_its_weights_is_refused(small_easyvqa, capsys):
    """provenance.json is no part of the fingerprint: what tables read of it is held against what the results were written under."""
    file = small_easyvqa.export("a", "genlip-tiny") / "provenance.json"
    arguments = ("--encoder", "genlip-tiny", "--suite", "easyvqa", "--tasks", "shape")
    assert small_easyvqa.run(*arguments) == 0
    said = json.loads(file.read_text())
    file.write_text(json.dumps(said | {"frozen": False, "data_digest": "0" * 64, "git_commit": "0" * 40}))
    assert small_easyvqa.run(*arguments) == 2
    text = capsys.readouterr().err
    assert "says otherwise of these weights than the result does (frozen, data_digest): bring that file back, or remove results/" in text
    asked = len(small_easyvqa.asked("a"))
    next(Path("results").rglob("result.json")).unlink()
    assert small_easyvqa.run(*arguments) == 0 and len(small_easyvqa.asked("a")) == asked, "the answers are in the journal"
    assert table()[0]["frozen"] == "false"


def test_an_mllm_decoded_as_its_authors_do_is_a_row_of_its_own_that_says_so(small_easyvqa, capsys):
    settings = small_easyvqa.export("a", "genlip-tiny") / "generation_config.json"
    arguments = ("--encoder", "genlip-tiny", "--suite", "easyvqa", "--tasks", "shape")
    assert small_easyvqa.run(*arguments, "--generation", "authors") == 2  # nothing there to go by
    settings.write_text('{"do_sample": true}')
    assert small_easyvqa.run(*arguments, "--generation", "authors") == 2
    assert "generation_config.json samples (do_sample)" in capsys.readouterr().err and not Path("results").exists()
    settings.write_text('{"repetition_penalty": 1.1}')
    assert small_easyvqa.run(*arguments) == 0 and small_easyvqa.run(*arguments, "--generation", "authors") == 0
    assert len(small_easyvqa.asked("a")) == 80 and len(table()) == 2
    text = Path("tables/easyvqa.md").read_text()
    assert "genlip-tiny (authors' generation): decoded as the MLLM's generation_config.json says" in text
    a, b = results.read_rows(Path("results"), suites.get("easyvqa"))
    (difference,) = comparison.differences(a, b)
    assert difference.startswith("answers.generation: ") and "greedy" in difference and "authors " in difference
    assert "**" not in text  # not ranked together


def test_a_result_copied_from_another_row_is_not_taken_for_done(small_easyvqa, capsys):
    for name, encoder in (("a", "genlip-tiny"), ("b", "clip-tiny")):
        small_easyvqa.export(name, encoder)
        assert small_easyvqa.run("--encoder", encoder, "--suite", "easyvqa") == 0
    mine, theirs = (next(Path("results/easyvqa", encoder).glob("*/easyvqa_shape")) for encoder in ("genlip-tiny", "clip-tiny"))
    for file in ("result.json", "samples.jsonl"):
        (mine / file).write_bytes((theirs / file).read_bytes())
    assert small_easyvqa.run("--encoder", "clip-tiny", "--suite", "easyvqa") == 0  # the table names the copy and goes on
    assert "its result says encoder clip-tiny, its folder genlip-tiny" in capsys.readouterr().out
    assert small_easyvqa.run("--encoder", "genlip-tiny", "--suite", "easyvqa") == 0
    assert results.read_result(mine).encoder == "genlip-tiny" and len(small_easyvqa.asked("a")) == 120  # answers are in the journal


def test_results_of_schema_1_stay_readable_under_their_old_digest(small_easyvqa):
    small_easyvqa.export("a", "genlip-tiny")
    arguments = ("--encoder", "genlip-tiny", "--suite", "easyvqa", "--tasks", "shape")
    assert small_easyvqa.run(*arguments) == 0
    (file,) = Path("results").rglob("result.json")
    new = json.loads(file.read_text())
    key = {"weights": "a" * 64, **{name: value for name, value in new["key"].items() if name != "model"}}
    said = {name: value for name, value in new["provenance"].items() if name not in ("schema", "protocol", "seed")}
    lacking = ("schema", "fingerprint", "environment", "seal")
    file.write_text(json.dumps({name: value for name, value in new.items() if name not in lacking} | {"key": key, "provenance": said}))
    Path(file.parents[1]).rename(file.parents[2] / "llm-tiny@aaaaaaaa")
    assert small_easyvqa.run(*arguments) == 0
    assert sorted(row["digest"] for row in table()) == sorted(["a" * 64, preflight.read_export(Path("runs/a/export")).digest])
    text = Path("tables/easyvqa.md").read_text()
    assert "genlip-tiny (schema 1)" in text and "is not ranked with genlip-tiny" in text


def test_other_data_or_a_changed_definition_is_evaluated_anew(small_easyvqa, monkeypatch):
    small_easyvqa.export("a", "genlip-tiny")
    arguments = ("--encoder", "genlip-tiny", "--suite", "easyvqa", "--tasks", "shape")
    assert small_easyvqa.run(*arguments) == 0 and len(small_easyvqa.asked("a")) == 40
    make_easyvqa(Path("data"), seed=1)
    assert small_easyvqa.run(*arguments) == 0 and len(small_easyvqa.asked("a")) == 80
    monkeypatch.setattr("eval_suites.tasks.definition_digest", lambda task: "another")
    assert small_easyvqa.run(*arguments) == 0 and len(small_easyvqa.asked("a")) == 120


def test_corrected_labels_are_scored_although_size_footer_and_date_are_those_of_before(small_easyvqa, capsys):
    """`datasets` too keeps rows by path and date: its old ones would be scored under the new digest."""
    file = Path("data/genlip-eval/easy-vqa/shape/test-00000-of-00001.parquet")
    rows = pq.read_table(file).to_pylist()
    write_plainly(file, rows)
    right, said = truth(), file.stat()
    small_easyvqa.export("a", "genlip-tiny", reply=lambda prompt: right[prompt])
    arguments = ("--encoder", "genlip-tiny", "--suite", "easyvqa", "--tasks", "shape")
    assert small_easyvqa.run(*arguments) == 0 and float(table()[0]["shape"]) == 100.0
    places = [i for kind in ("circle", "triangle") for i in [i for i, row in enumerate(rows) if row["answer"] == kind][:4]]
    for i, answer in zip(places, [rows[i]["answer"] for i in places[::-1]]):
        rows[i]["answer"] = answer
    write_plainly(file, rows)
    os.utime(file, ns=(said.st_mtime_ns, said.st_mtime_ns))
    assert file.stat().st_size == said.st_size
    capsys.readouterr()
    assert small_easyvqa.run(*arguments) == 0 and float(table()[0]["shape"]) == 80.0
    assert "tasks are done" not in capsys.readouterr().err


def test_data_are_read_once_and_again_where_that_is_asked(small_easyvqa, monkeypatch):
    read, real = [], digests._hash
    monkeypatch.setattr(digests, "SETTLED_NS", -1)
    monkeypatch.setattr(digests, "_hash", lambda file, *more: read.append(file.parent.name) or real(file, *more))
    small_easyvqa.export("a", "genlip-tiny")
    arguments = ("--encoder", "genlip-tiny", "--suite", "easyvqa", "--dry-run")
    assert small_easyvqa.run(*arguments) == 0 and sorted(read) == ["colour", "shape", "yes_no"]
    assert small_easyvqa.run(*arguments) == 0 and len(read) == 3
    assert small_easyvqa.run(*arguments, "--rehash") == 0 and len(read) == 6


def test_a_limit_is_partial_and_never_costs_a_full_result(small_easyvqa, capsys):
    small_easyvqa.export("a", "genlip-tiny")
    arguments = ("--encoder", "genlip-tiny", "--suite", "easyvqa", "--tasks", "shape")
    assert small_easyvqa.run(*arguments, "--limit", "7") == 3
    assert "(7 of 40)" in capsys.readouterr().out
    (row,) = table()
    assert (row["shape"], row["all_avg"], row["overall"], row["complete"]) == ("", "", "", "0/3")
    assert small_easyvqa.run(*arguments) == 0
    assert table()[0]["shape"] != "" and table()[0]["complete"] == "1/3" and table()[0]["all_avg"] == ""
    assert len(small_easyvqa.asked("a")) == 40  # the seven of the quick look were not asked again
    assert small_easyvqa.run(*arguments, "--limit", "7") == 0 and small_easyvqa.loads == 3
    assert table()[0]["complete"] == "1/3"


def test_a_failing_task_leaves_the_other_columns_and_exit_code_1(small_easyvqa, capsys):
    def reply(prompt):
        if "which colour" in prompt:
            raise RuntimeError("out of everything")
        return "yes"

    small_easyvqa.export("a", "genlip-tiny", reply=reply)
    assert small_easyvqa.run("--encoder", "genlip-tiny", "--suite", "easyvqa") == 1
    assert "easyvqa_colour failed: out of everything" in capsys.readouterr().err
    (row,) = table()
    assert row["colour"] == "" and row["yes_no"] != "" and row["complete"] == "2/3" and row["all_avg"] == ""
    assert "out of everything" in next(Path("results").rglob("failed.txt")).read_text()


def test_a_failing_task_is_a_failure_also_where_an_older_result_of_it_stands(small_easyvqa):
    def reply(prompt):
        if Path("fail").exists():
            raise RuntimeError("out of everything")
        return "yes"

    small_easyvqa.export("a", "genlip-tiny", reply=reply)
    arguments = ("--encoder", "genlip-tiny", "--suite", "easyvqa", "--tasks", "shape")
    assert small_easyvqa.run(*arguments) == 0
    make_easyvqa(Path("data"), seed=1)  # other data: what is done does not answer for them
    Path("fail").touch()
    assert small_easyvqa.run(*arguments) == 1


def test_a_failure_that_is_heard_before_the_process_ends_is_said_once(tmp_path):
    from multiprocessing import Pipe

    from eval_suites.runner import worker

    here, there = Pipe(duplex=False)
    lines, board = [], SimpleNamespace(say=lambda line: lines.append(line))
    process = SimpleNamespace(join=lambda: None, exitcode=0)
    running = worker._Running(SimpleNamespace(task="chartqa", folder=tmp_path, key={}), process, here, 0, 0.0)
    there.send("error: chartqa failed: out of everything")
    worker._listen(running, board)
    worker._listen(running, board)  # the turn in which its end is seen: nothing new in the pipe
    assert not worker._succeeded(running, board)
    assert [line for line in lines if line.startswith("error: ")] == ["error: chartqa failed: out of everything"]


def test_fewer_answers_than_questions_is_a_failure_not_an_empty_answer(small_easyvqa, capsys):
    small_easyvqa.export("a", "genlip-tiny")
    model = small_easyvqa.models[Path("runs/a/export")]
    whole = model.answer
    model.answer = lambda *args, **kwargs: whole(*args, **kwargs)[:-1]
    assert small_easyvqa.run("--encoder", "genlip-tiny", "--suite", "easyvqa", "--tasks", "shape") == 1
    assert "16 questions were answered by 15 texts" in capsys.readouterr().err
    model.answer = lambda *args, **kwargs: [None for _ in whole(*args, **kwargs)]  # lmms-eval would score the word "None"
    assert small_easyvqa.run("--encoder", "genlip-tiny", "--suite", "easyvqa", "--tasks", "shape") == 1
    assert "something that is no text" in capsys.readouterr().err


def test_stopped_between_samples_and_result_the_task_is_not_done(small_easyvqa, monkeypatch, capsys):
    from eval_suites.runner import worker

    small_easyvqa.export("a", "genlip-tiny")
    arguments = ("--encoder", "genlip-tiny", "--suite", "easyvqa", "--tasks", "shape")
    assert small_easyvqa.run(*arguments) == 0
    make_easyvqa(Path("data"), seed=1)  # the old result is of other data, and about to be replaced
    write = worker.write_file

    def stop(path, text):
        write(path, text)
        os.kill(os.getpid(), signal.SIGKILL) if path.name == "samples.jsonl" else None

    with monkeypatch.context() as patch:
        patch.setattr(worker, "write_file", stop)
        assert small_easyvqa.run(*arguments) == 1
    assert "easyvqa_shape failed: its process was killed by signal 9" in capsys.readouterr().err
    assert list(Path("results").rglob("samples.jsonl")) and not list(Path("results").rglob("result.json"))
    assert small_easyvqa.run(*arguments) == 0 and len(small_easyvqa.asked("a")) == 80


def test_a_worker_killed_in_a_batch_loses_that_batch_alone(small_easyvqa, capsys):
    stop = Path("stop").absolute()
    stop.touch()

    def reply(prompt):
        if prompt.startswith("which colour, 37?") and stop.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return "yes"

    small_easyvqa.export("a", "genlip-tiny", reply=reply)
    arguments = ("--encoder", "genlip-tiny", "--suite", "easyvqa", "--batch-size", "8")
    assert small_easyvqa.run(*arguments) == 1
    assert sorted(path.parent.name for path in Path("results").rglob("result.json")) == ["easyvqa_shape", "easyvqa_yes_no"]
    before = small_easyvqa.asked("a")
    stop.unlink()
    assert small_easyvqa.run(*arguments) == 0
    again = small_easyvqa.asked("a")[len(before) :]
    assert 0 < len(again) <= 8 and len(before) + len(again) == len(set(before + again)) == 120  # each once: the log has whole batches only


def test_real_charts_through_the_packaged_definition(place, capsys):
    rows = chart_rows()
    assert len(rows) == 3
    write_parquet(Path("hub/lmms-lab/ChartQA/data/test-00000-of-00001.parquet"), rows)  # under the set's former name
    place.export("a", "dinov2-s14", reply=lambda prompt: "Yes")
    arguments = ("--encoder", "dinov2-s14", "--tasks", "chartqa", "--data-root", "hub")
    assert place.run(*arguments) == 2 and place.loads == 0
    assert "3 rows where 2500 are declared" in capsys.readouterr().err
    assert place.run(*arguments, "--allow-partial") == 3
    out = capsys.readouterr().out
    assert "33.3" in out and "(3 of 2500)" in out
    measured = next(row for row in table("tables/genlip14.csv") if row["source"] == "measured")
    assert (measured["chartqa"], measured["all_avg"], measured["complete"]) == ("", "", "0/14")
    cell = next(row for row in table("tables/genlip14_cells.csv") if row["benchmark"] == "chartqa")
    assert (cell["n"], cell["n_expected"], cell["refused"]) == ("3", "2500", "3 of 2500")
    samples = [json.loads(line) for line in next(Path("results").rglob("samples.jsonl")).open()]
    assert [sample["prompt"] for sample in samples] == [f"{row['question']}\nAnswer the question with a single word." for row in rows]
    assert [sample["scores"]["relaxed_overall"] for sample in samples] == [1.0, 0.0, 0.0]
    ((_, pictures, new_tokens, stop),) = place.models[Path("runs/a/export")].batches
    assert (new_tokens, stop) == (16, ("\n\n",)) and len({picture[0].size for picture in pictures}) == 2


# --- what goes wrong while it runs ------------------------------------------------------------------------------------------


def break_picture(doc_id: int, content: bytes, kind="shape") -> None:
    import pyarrow.parquet as pq

    path = Path(f"data/genlip-eval/easy-vqa/{kind}/test-00000-of-00001.parquet")
    rows = pq.read_table(path).to_pylist()
    rows[doc_id]["image"]["bytes"] = content
    write_parquet(path, rows)


def half_a_picture() -> bytes:
    out = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(out, "PNG")
    return out.getvalue()[: len(out.getvalue()) // 2]


@pytest.mark.parametrize("content", [b"no picture at all", half_a_picture()], ids=["other bytes", "cut"])
def test_a_picture_that_cannot_be_read_is_named_and_costs_one_sample(small_easyvqa, capsys, content):
    right = truth()
    break_picture(17, content)
    small_easyvqa.export("a", "genlip-tiny", reply=lambda prompt: right[prompt])
    arguments = ("--encoder", "genlip-tiny", "--suite", "easyvqa")
    assert small_easyvqa.run(*arguments) == 3
    out, err = capsys.readouterr()
    assert "easyvqa_shape: 1 questions left out, which cannot be asked: doc 17 (" in err
    assert "39 of 40, 1 left out whose pictures cannot be read" in out
    assert (table()[0]["shape"], table()[0]["all_avg"], table()[0]["complete"]) == ("", "", "2/3")
    assert "which shape, 17?" not in "".join(small_easyvqa.asked("a"))
    # Allowed: averaged and marked; nothing is asked again.
    before = small_easyvqa.asked("a")
    assert small_easyvqa.run(*arguments, "--allow-partial") == 3 and small_easyvqa.asked("a") == before
    assert (table()[0]["shape"], table()[0]["all_avg"], table()[0]["complete"]) == ("100.0", "100.0", "2/3")
    assert "100.0\u2020" in capsys.readouterr().out


def test_digests_that_do_not_match_are_refused_before_a_task_runs(small_easyvqa, capsys, monkeypatch):
    small_easyvqa.export("a", "genlip-tiny")
    weights = Path("runs/a/export/model.safetensors")
    weights.write_bytes(b"one")
    arguments = ("--encoder", "genlip-tiny", "--suite", "easyvqa", "--tasks", "shape")
    assert small_easyvqa.run(*arguments) == 0
    weights.write_bytes(b"another")  # in the same folder, under the same provenance

    def mismatch(export, device=None, dtype=None, generation="ours"):
        raise ValueError(f"{export}: its weights have digest x, its provenance says y")

    monkeypatch.setattr("llava_plugin.mllm.load", mismatch)
    before = Path("tables/easyvqa.csv").read_bytes()
    Path("tables/easyvqa.csv").unlink()
    assert small_easyvqa.run(*arguments) == 2  # although the task is done for the digest that the provenance names
    assert "its weights have digest x" in capsys.readouterr().err and not Path("tables/easyvqa.csv").exists()
    assert b"genlip-tiny" in before


def test_another_suite_does_not_ask_the_same_model_again(small_easyvqa):
    small_easyvqa.export("a", "genlip-tiny")
    assert small_easyvqa.run("--encoder", "genlip-tiny", "--suite", "easyvqa", "--tasks", "shape") == 0
    Path("mine.yaml").write_text("columns: [easyvqa/shape, easyvqa/colour]")
    assert small_easyvqa.run("--encoder", "genlip-tiny", "--suite", "mine.yaml") == 0
    assert len(small_easyvqa.asked("a")) == 80 and table("tables/mine.csv")[0]["complete"] == "2/2"


def test_an_empty_answer_is_an_answer_and_counted(small_easyvqa):
    small_easyvqa.export("a", "genlip-tiny", reply=lambda prompt: "" if "1?" in prompt else "a\u2028b")
    assert small_easyvqa.run("--encoder", "genlip-tiny", "--suite", "easyvqa", "--tasks", "shape") == 0
    result = json.loads(next(Path("results").rglob("result.json")).read_text())
    assert result["n"] == 40 and result["empty"] == 4 and table()[0]["shape"] == "0.0"
    samples = [json.loads(line) for line in next(Path("results").rglob("samples.jsonl")).open(encoding="utf-8")]
    assert {sample["answer"] for sample in samples} == {"", "a\u2028b"}


def test_a_full_disk_fails_the_task_in_a_sentence_and_the_rest_goes_on(small_easyvqa, capsys, monkeypatch):
    from eval_suites.runner.journal import Journal

    add = Journal.add

    def full(self, settings, answers):
        if "colour" in str(self.path):
            raise OSError(28, "No space left on device")
        add(self, settings, answers)

    small_easyvqa.export("a", "genlip-tiny")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", full)
        assert small_easyvqa.run("--encoder", "genlip-tiny", "--suite", "easyvqa") == 1
    assert "easyvqa_colour failed: [Errno 28] No space left on device" in capsys.readouterr().err
    assert table()[0]["complete"] == "2/3"
    assert small_easyvqa.run("--encoder", "genlip-tiny", "--suite", "easyvqa") == 0 and table()[0]["complete"] == "3/3"


def test_more_gpus_than_there_are(small_easyvqa, capsys):
    small_easyvqa.export("a", "genlip-tiny")
    assert small_easyvqa.run("--encoder", "genlip-tiny", "--suite", "easyvqa", "--gpus", "64") == 2
    assert "--gpus 64, and there are" in capsys.readouterr().err and not list(Path().rglob("result.json"))


def test_tasks_spread_over_devices_end_in_the_same_table(small_easyvqa, monkeypatch):
    from eval_suites.runner import worker

    right = truth()
    small_easyvqa.export("a", "genlip-tiny", reply=lambda prompt: right[prompt] if "3" in prompt else os.environ["CUDA_VISIBLE_DEVICES"])
    monkeypatch.setattr(worker, "prepare", lambda gpus: ["5", "7"][:gpus])
    assert small_easyvqa.run("--encoder", "genlip-tiny", "--suite", "easyvqa", "--gpus", "2") == 0
    assert table()[0]["complete"] == "3/3"
    answers = {json.loads(line)["answer"] for path in Path("results").rglob("samples.jsonl") for line in path.open()}
    assert {"5", "7"} <= answers


# --- refused before anything runs -------------------------------------------------------------------------------------------


def refusal(place, capsys, *arguments: str) -> str:
    assert place.run(*arguments) == 2
    assert place.loads == 0 and not list(Path().rglob("result.json"))
    return capsys.readouterr().err


def test_unknown_names_say_did_you_mean(place, capsys):
    assert "Did you mean 'genlip-g16'" in refusal(place, capsys, "--encoder", "genlip-g61")
    assert "Did you mean 'easyvqa'" in refusal(place, capsys, "--encoder", "genlip-tiny", "--suite", "easy-vqa")
    assert "Did you mean 'chartqa'" in refusal(place, capsys, "--encoder", "genlip-tiny", "--tasks", "chartaq")


def test_the_literal_command_without_weights_says_what_is_missing(place, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = refusal(place, capsys, "--encoder", "genlip-g16")
    assert "ENCODER=genlip-g16 bash train_mllm/sft_qwen1.5b_frozen.sh" in text
    assert "python -m llava_plugin.fetch genlip-g16" in text
    assert text.count("hf download --repo-type dataset") == 14


def test_an_encoder_to_compare_with_that_has_no_results_is_said_with_all_the_rest(place, capsys):
    text = refusal(place, capsys, "--encoder", "genlip-g16", "--compare", "siglip2-g16-384,clip-l14-336")
    assert "no fine-tuned MLLM of genlip-g16" in text and text.count("hf download --repo-type dataset") == 14
    assert "Evaluate it: python eval_suites/run.py --encoder siglip2-g16-384" in text and "no results of clip-l14-336" in text


def test_a_projector_stage_does_not_count_unless_named(small_easyvqa, capsys):
    small_easyvqa.export("a", "genlip-tiny", stage="projector")
    assert "does not count" in refusal(small_easyvqa, capsys, "--encoder", "genlip-tiny", "--suite", "easyvqa")
    assert small_easyvqa.run("--encoder", "genlip-tiny", "--suite", "easyvqa", "--mllm", "runs/a/export") == 0
    assert "not fine-tuned" in capsys.readouterr().err


def test_several_mllms_are_named(small_easyvqa, capsys):
    for name, llm in (("a", "llm-tiny"), ("b", "llm-large")):
        small_easyvqa.export(name, "genlip-tiny", llm=llm)
    text = refusal(small_easyvqa, capsys, "--encoder", "genlip-tiny", "--suite", "easyvqa")
    assert "--mllm runs/a/export" in text and "--mllm runs/b/export" in text
    assert small_easyvqa.run("--encoder", "genlip-tiny", "--suite", "easyvqa", "--llm", "llm-large") == 0
    assert table()[0]["llm"] == "llm-large"


def test_exports_that_cannot_be_trusted(small_easyvqa, capsys):
    export = small_easyvqa.export("a", "genlip-tiny")
    arguments = ("--suite", "easyvqa", "--mllm", str(export))
    assert "holds encoder genlip-tiny, not dinov2-s14" in refusal(small_easyvqa, capsys, "--encoder", "dinov2-s14", *arguments)
    (export / "provenance.json").write_text('{"stage": "sft"}')
    assert "does not say encoder" in refusal(small_easyvqa, capsys, "--encoder", "genlip-tiny", *arguments)
    (export / "provenance.json").unlink()
    assert "no provenance.json" in refusal(small_easyvqa, capsys, "--encoder", "genlip-tiny", *arguments)


def test_data_that_are_not_what_was_declared(small_easyvqa, capsys, monkeypatch):
    small_easyvqa.export("a", "genlip-tiny")
    arguments = ("--encoder", "genlip-tiny", "--suite", "easyvqa", "--tasks", "shape")
    make_easyvqa(Path("data"), pictures=39)
    assert "40 samples by suite easyvqa, 39 by the data's manifest" in refusal(small_easyvqa, capsys, *arguments)
    make_easyvqa(Path("data"))
    shard = Path("data/genlip-eval/easy-vqa/shape/test-00000-of-00001.parquet")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-20])
    assert "not a whole parquet file" in refusal(small_easyvqa, capsys, *arguments)
    shard.unlink()
    assert "python -m small_data.easyvqa --out data" in refusal(small_easyvqa, capsys, *arguments)
    make_easyvqa(Path("data"), pictures=41)
    Path("data/genlip-eval/easy-vqa/manifest.json").unlink()
    assert "41 rows where 40 are declared" in refusal(small_easyvqa, capsys, *arguments, "--allow-partial")


def test_four_rows_where_thousands_are_declared_are_refused(place, capsys):
    """What a stale card of the hub once gave of GQA."""
    place.export("a", "genlip-tiny")
    write_hub(Path("data"))
    text = refusal(place, capsys, "--encoder", "genlip-tiny", "--tasks", "gqa")
    assert "gqa: 4 rows where 12578 are declared" in text and "hf download --repo-type dataset lmms-lab-encoder/GQA" in text


def test_java_is_asked_for_before_a_caption_task(place, capsys, monkeypatch):
    place.export("a", "genlip-tiny")
    rows = [{"image": None, "question_id": f"{i}.jpg", "answer": ["a"], "id": i, "question": ""} for i in range(5000)]
    write_parquet(Path("data/lmms-lab-encoder/COCO-Caption2017/data/val-00000-of-00001.parquet"), rows)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "needs Java" in refusal(place, capsys, "--encoder", "genlip-tiny", "--tasks", "coco")


def test_mme_wants_pairs_and_limits_are_whole(place, capsys):
    place.export("a", "genlip-tiny")
    write_parquet(Path("data/lmms-lab-encoder/MME/data/test-00000-of-00001.parquet"), [{"question_id": "1"}] * 2374)
    assert "--limit 7 is odd" in refusal(place, capsys, "--encoder", "genlip-tiny", "--tasks", "mme_p", "--limit", "7")
    for limit in ("0.5", "0"):
        with pytest.raises(SystemExit) as exit:
            place.run("--encoder", "genlip-tiny", "--limit", limit)
        assert exit.value.code == 2


def test_comparing_with_what_was_never_evaluated_says_the_command(small_easyvqa, capsys):
    small_easyvqa.export("a", "genlip-tiny")
    text = refusal(small_easyvqa, capsys, "--encoder", "genlip-tiny", "--suite", "easyvqa", "--compare", "random-tiny")
    assert "python eval_suites/run.py --encoder random-tiny --suite easyvqa" in text


def test_frozen_encoders_of_another_token_budget_are_not_compared(small_easyvqa, capsys):
    from eval_suites.runner import preflight

    small_easyvqa.export("b", "random-tiny", tokens=36, resolution=96)
    small_easyvqa.run("--encoder", "random-tiny", "--suite", "easyvqa")
    small_easyvqa.export("a", "genlip-tiny")
    loads = small_easyvqa.loads
    assert small_easyvqa.run("--encoder", "genlip-tiny", "--suite", "easyvqa", "--compare", "random-tiny") == 2
    assert small_easyvqa.loads == loads
    text = capsys.readouterr().err
    assert "genlip-tiny gives 16 tokens per picture (4 x 4), random-tiny 36 (6 x 6): not comparable" in text
    assert "Train random-tiny at --resolution 64" in text
    export = preflight.read_export(Path("runs/a/export"))
    (other,) = results.read_rows(Path("results"), suites.get("easyvqa"))
    assert len(preflight.budget_problem(export, [other])) == 1
    unfrozen = replace(export, provenance=replace(export.provenance, frozen=False))
    assert not preflight.budget_problem(unfrozen, [other])  # encoders that were trained too may differ: the table says so
    assert not preflight.budget_problem(export, [replace(other, frozen=False)])

    def of(view):
        return replace(export, provenance=replace(export.provenance, view=view, tokens=36, resolution=96))

    assert not preflight.budget_problem(of("crop"), [other]) and "view crop" in preflight.size_in_words(of("crop"))
    (problem,) = preflight.budget_problem(of("anyres (1x2),(2x1)"), [other])
    assert problem.startswith("genlip-tiny was trained with --view anyres (1x2),(2x1), random-tiny with square: not comparable")


def test_two_runs_into_one_folder(small_easyvqa, capsys, monkeypatch):
    from genlip.common import locks

    small_easyvqa.export("a", "genlip-tiny")
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    folder = Path("results/easyvqa/genlip-tiny") / f"llm-tiny@{preflight.read_export(Path('runs/a/export')).digest[:8]}"
    with locks.locked(folder):
        assert "another run is writing" in refusal(small_easyvqa, capsys, "--encoder", "genlip-tiny", "--suite", "easyvqa")


def test_dry_run_runs_nothing(small_easyvqa, capsys):
    small_easyvqa.export("a", "genlip-tiny")
    assert small_easyvqa.run("--encoder", "genlip-tiny", "--suite", "easyvqa", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "easyvqa_shape" in out and "40 of 40 samples  to run" in out
    assert small_easyvqa.loads == 0 and not Path("results").exists() and not Path("tables").exists()


def test_compare_pairs_the_rows(small_easyvqa, capsys):
    right = truth()
    small_easyvqa.export("a", "genlip-tiny", reply=lambda prompt: right[prompt])
    wrong_shapes = lambda prompt: "none" if "which shape" in prompt else right[prompt]  # noqa: E731
    small_easyvqa.export("b", "random-tiny", reply=wrong_shapes, recipe={"lr": 0.1, "encoder": "random-tiny"})
    small_easyvqa.run("--encoder", "random-tiny", "--suite", "easyvqa")
    capsys.readouterr()
    assert small_easyvqa.run("--encoder", "genlip-tiny", "--suite", "easyvqa", "--compare", "random-tiny") == 0
    lines = [line for line in capsys.readouterr().out.split("##")[1].splitlines() if line.startswith("|")]
    said = {line.split("|")[1].strip(): line.split("|")[-2].strip() for line in lines}
    assert said["shape"] == said["ALL AVG"] == "better" and said["overall"] == "exploratory"
    assert said["colour"] == said["yes/no"] == "not told apart"
    text = Path("tables/easyvqa.md").read_text()
    assert "random-tiny (untrained)" in text and "recipe.lr: 0.001 against 0.1" in text and "recipe.encoder" not in text
    assert len(table()) == 2


def test_rows_read_back_are_those_written(small_easyvqa):
    small_easyvqa.export("a", "genlip-tiny")
    small_easyvqa.run("--encoder", "genlip-tiny", "--suite", "easyvqa")
    (row,) = results.read_rows(Path("results"), suites.get("easyvqa"))
    assert row.cells["yes_no"].complete and row.cells["yes_no"].n == 40 and row.cells["shape"].value == 0.0
    assert row.results["easyvqa_shape"]["generation"]["max_new_tokens"] == 16


def test_a_pretraining_run_among_the_runs_is_an_encoder_and_stops_nobody(small_easyvqa, capsys):
    """A pretraining's export has provenance of its own form: `runs/` holds both kinds."""
    small_easyvqa.export("a", "genlip-tiny")
    encoder = Path("runs/tiny-s1/export")
    encoder.mkdir(parents=True)
    (encoder / "provenance.json").write_text('{"stage": "pretrain", "weights_digest": "0"}')
    assert small_easyvqa.run("--encoder", "genlip-tiny", "--suite", "easyvqa", "--dry-run") == 0
    assert small_easyvqa.run() == 2 and "genlip-tiny, llm-tiny, runs/a/export" in capsys.readouterr().err
    message = refusal(small_easyvqa, capsys, "--encoder", "genlip-tiny", "--suite", "easyvqa", "--mllm", str(encoder))
    assert "holds an encoder, not an MLLM: fine-tune one around it" in message


def test_every_kind_of_question_that_cannot_be_asked_costs_itself_alone(small_easyvqa, capsys):
    """Bytes that are no picture, rows without any, a marker in a question's own words; and a 16-bit ramp, which is a picture."""
    import numpy as np

    from tests.genlip.test_image_decoding import encoded, no_pictures

    path = Path("data/genlip-eval/easy-vqa/shape/test-00000-of-00001.parquet")
    rows = pq.read_table(path).to_pylist()
    kinds = no_pictures()
    for row, (data, _) in zip(rows, kinds.values()):
        row["image"]["bytes"] = data
    n = len(kinds)
    rows[n]["image"] = {"bytes": None, "path": None}
    rows[n + 1]["image"] = {"bytes": None, "path": "gone.png"}
    rows[n + 2]["image"] = None
    rows[n + 3]["question"] = f"which <image> shape, {n + 3}?"
    ramp = Image.fromarray(np.full((8, 8), 32_768, dtype=np.uint16))
    rows[-1]["image"]["bytes"] = encoded(ramp)
    write_parquet(path, rows)
    right = truth()
    small_easyvqa.export("a", "genlip-tiny", reply=lambda prompt: right[prompt])
    assert small_easyvqa.run("--encoder", "genlip-tiny", "--suite", "easyvqa", "--allow-partial") == 3
    err = capsys.readouterr().err
    assert f"easyvqa_shape: {n + 4} questions left out, which cannot be asked: doc 0 (undecodable picture" in err
    assert "note: easyvqa_shape: 1 times a picture of mode I;16" in err
    result = json.loads(next(Path("results").rglob("easyvqa_shape/result.json")).read_text())
    assert list(map(int, result["left_out"])) == list(range(n + 4)) and result["n"] == 40 - n - 4 and n >= 15
    whys = list(result["left_out"].values())
    assert all(why.startswith(expected) for why, (_, expected) in zip(whys, kinds.values()))
    assert whys[n:] == [
        "no picture: neither bytes nor path",
        "no bytes, but the name of a file: gone.png",
        "no picture: image is empty",
        "its words hold <image>, which stands for a picture",
    ]
    assert result["noted"] == {"picture of mode I;16": 1}
    seen = [(prompt, some[0].pixel) for prompts, images, *_ in small_easyvqa.models[Path("runs/a/export")].batches
            for prompt, some in zip(prompts, images) if "shape, 39?" in prompt]  # fmt: skip
    assert [pixel for _, pixel in seen] == [(128, 128, 128)]  # the task's own code was handed our RGB, not white
    assert (table()[0]["shape"], table()[0]["complete"]) == ("100.0", "2/3")
