"""Benchmark data brought by name: what is there, what is missing, and that only the scored split is asked for."""

import pytest

pytest.importorskip("lmms_eval")
from eval_suites import fetch, suites, tasks
from eval_suites.tasks import hub_columns


def chartqa(folder, rows):
    folder.mkdir(parents=True)
    blank = {"type": "human", "question": "q", "answer": "a", "image": {"bytes": b"x", "path": None}}
    hub_columns.write_rows(folder / "test-00000-of-00001.parquet", "chartqa", [blank] * rows)


def test_a_dry_run_says_what_is_there_and_what_is_missing(tmp_path, capsys):
    chartqa(tmp_path / "lmms-lab-encoder/ChartQA/data", 2500)
    assert fetch.main(["genlip14", "--data-root", str(tmp_path), "--dry-run", "--tasks", "chartqa,gqa"]) == 0
    there, missing = capsys.readouterr().out.splitlines()
    assert there.startswith("there    chartqa: 2,500 rows") and missing.startswith("missing  gqa: ")
    assert "--include 'testdev_balanced_*/*'" in missing


def test_only_what_lacks_is_brought_and_then_counted(tmp_path, capsys, monkeypatch):
    import huggingface_hub

    chartqa(tmp_path / "lmms-lab-encoder/ChartQA/data", 2500)
    asked = []

    def snapshot_download(repository, repo_type, allow_patterns, local_dir):
        asked.append((repository, repo_type, allow_patterns))
        hub_columns.write_rows(local_dir / "test-00000-of-00001.parquet", "mme", [{"question_id": "a"}] * 4)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    (tmp_path / "lmms-lab-encoder/MME").mkdir(parents=True)
    assert fetch.main(["genlip14", "--data-root", str(tmp_path), "--tasks", "chartqa,mme"]) == 1  # 4 rows are not MME
    assert asked == [("lmms-lab-encoder/MME", "dataset", "*test-*")]
    assert "partial  mme: 4 of 2,374 rows" in capsys.readouterr().out


def test_what_cannot_be_brought_is_a_sentence(tmp_path, capsys, monkeypatch):
    assert fetch.main(["genlip14", "--data-root", str(tmp_path), "--tasks", "gqa"]) == 2
    assert "HF_HUB_OFFLINE is set and gqa comes from the hub" in capsys.readouterr().err
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert fetch.main(["mini14", "--data-root", str(tmp_path), "--tasks", "gqa"]) == 2
    assert f"made here: python -m small_data.mini --out {tmp_path}" in capsys.readouterr().err


def test_the_command_shown_and_the_download_ask_for_the_same(tmp_path):
    for task in suites.get("genlip14").tasks:
        repository, pattern = tasks.hub_source(task)
        assert repository in tasks.fetch_command(task, tmp_path) and f"'{pattern}'" in tasks.fetch_command(task, tmp_path)
