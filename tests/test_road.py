"""The pages' commands, taken from them: the full-size road on a machine with nothing, the paths of a new user with tiny stand-ins."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import pages
from tests.pages import ROOT

pytest.importorskip("lmms_eval")
ROAD_PAGE, OWN_ENCODER, OWN_BENCHMARK = (pages.text_of(f"docs/{name}.md") for name in ("road", "own-encoder", "own-benchmark"))


def commands(page: str, *titles: str) -> list[str]:
    return [command for title in titles for command in pages.commands(pages.section(page, title))]


def shell(folder: Path, command: str, **environment: str) -> subprocess.CompletedProcess:
    """A command as typed into the root of a checkout in `folder`: nobody's home, no hub, no weights but those the test names."""
    for name in ("genlip", "llava_plugin", "train_mllm", "eval_suites"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    home = folder / "home"
    home.mkdir(exist_ok=True)
    kept = {name: os.environ[name] for name in ("LANG", "TMPDIR", "GENLIP_WEIGHTS") if name in os.environ and name in environment}
    env = kept | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(home), "VIRTUAL_ENV": sys.prefix,
        "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **environment,
    }  # fmt: skip
    return subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=600)


SECTIONS = ("Fetch", "Train and evaluate", "Pretraining GenLIP")
# What each command of these sections has to say of a machine with nothing, in order; and its exit code.
ROAD = [
    (0, "weights/genlip-g16: from the hub, YanFang/GenLIP-g16-NaViT"),
    (0, "liuhaotian/LLaVA-Pretrain: 2 parts"),
    (0, "lmms-lab/LLaVA-OneVision-Data: 83 parts"),
    (0, "missing  textcaps_val: no val-*.parquet under data/lmms-lab-encoder/TextCaps"),
    (0, "no conversations at 'data/llava-pretrain-558k.yaml'"),
    (0, "no projector export in runs/projector-genlip-g16/export"),
    (0, "no language model Qwen/Qwen2.5-1.5B-Instruct"),
    (0, "no weights of siglip2-g16-384: weights/siglip2-g16-384 does not exist. Bring them: python -m llava_plugin.fetch siglip2-g16-384"),
    (2, "no fine-tuned MLLM of siglip2-g16-384 under runs/"),
    (2, "no results of siglip2-g16-384 in suite genlip14"),
    (0, "steps        "),
    (0, "steps        "),
]


@pytest.fixture(scope="module")
def road(tmp_path_factory) -> list[tuple[str, subprocess.CompletedProcess]]:
    """Every command of the sections with --dry-run, and what came of it. A plan needs one process, not eight."""
    folder = tmp_path_factory.mktemp("nothing")
    one = [command.replace("torchrun --nproc-per-node 8 -m", "python -m") for command in commands(ROAD_PAGE, *SECTIONS)]
    return [(command, shell(folder, f"{command} --dry-run")) for command in one]


def test_every_command_of_the_road_plans_and_says_what_is_missing(road):
    assert len(road) == len(ROAD), [command for command, _ in road]
    for (command, done), (code, said) in zip(road, ROAD):
        out = done.stdout + done.stderr
        assert done.returncode == code and said in out, f"$ {command}\n{out[-3000:]}"
        assert "Traceback" not in out or command.startswith("hf "), command


def test_the_roads_costs_are_those_of_the_dry_runs(road):
    out = "\n".join(done.stdout for _, done in road)
    plans = re.findall(
        r"^steps +([\d,]+) of .*\ntime +([\d.]+) hours on 8 GPUs at 40% .*\n(?:.*\n)*?"
        r"memory per GPU +([\d.]+) GB.*\n(?:.*\n)*?disk +([\d.]+) GB",
        out, re.M,
    )  # fmt: skip
    table = re.findall(
        r"^\| \w+, [^|]*\| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", pages.section(ROAD_PAGE, "What it takes"), re.M
    )
    assert len(table) == 4 and table == plans[:4]


def test_the_downloads_are_those_that_the_dry_runs_ask_for(road):
    asked = " ".join(done.stdout + done.stderr for _, done in road)
    hubs = [command for command, _ in road if command.startswith("python -m train_mllm.fetch ")]
    assert len(hubs) == 2 and all(command in asked for command in hubs)
    fetched = road[0][0].split()[3:]
    assert fetched == ["genlip-g16", "siglip2-g16-384", "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct"]
    assert "python -m eval_suites.fetch genlip14 --data-root data" in [command for command, _ in road]


@pytest.fixture(scope="module")
def own_encoder(tmp_path_factory) -> Path:
    """A small SigLIP as its trainer left it, called what says nothing of its family."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    folder = tmp_path_factory.mktemp("models") / "my-encoder"
    config = SiglipVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=16
    )
    SiglipVisionModel(config).save_pretrained(folder)
    return folder


def test_my_own_encoder_gets_a_row(tmp_path, llama_tiny, own_encoder):
    from small_data.mini import build

    build.make(build.World(0, 8, 4), tmp_path / "data", workers=1)
    typed = commands(OWN_ENCODER, "A folder on disk, a row in the table")
    show, train, evaluate = (command.replace("/models/my-encoder", str(own_encoder)) for command in typed)
    shown = shell(tmp_path, show)
    assert shown.returncode == 0 and re.search(r"mine +siglip_vision_model .*4 x 4 +16 +64", shown.stdout), shown.stdout + shown.stderr
    few = "--max-steps 1 --batch 2 --global-batch 2 --workers 0 --no-gradient-checkpointing"
    conversations = tmp_path / "data" / "mini" / "sft" / "conversations.json"
    stand_in = {"PROJECTOR_DATA": str(conversations), "PROJECTOR_IMAGES": str(conversations.parent / "images"), "PROJECTOR_FLAGS": few}
    stand_in |= {"SFT_DATA": str(conversations), "SFT_IMAGES": str(conversations.parent / "images"), "LLM": str(llama_tiny)}
    trained = shell(tmp_path, f"{train} {few}", **stand_in)
    assert trained.returncode == 0, trained.stdout[-2000:] + trained.stderr[-4000:]
    done = shell(tmp_path, f"{evaluate} --suite mini14 --tasks chartqa,gqa")
    assert done.returncode == 0, done.stderr[-4000:]
    with (tmp_path / "tables" / "mini14.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["encoder"], row["arch"], row["frozen"], row["tokens"]) == ("mine", "siglip_vision_model", "true", "16")
    assert row["complete"] == "2/14" and row["chartqa"] != "" and row["gqa"] != "" and row["all_avg"] == ""


def test_my_lmms_eval_results_get_a_table(tmp_path):
    from tests.eval_suites.test_elsewhere import lmms_logs

    for logs in ("logs", "logs2"):
        lmms_logs(tmp_path / logs / "my__model")
    cells, table, compared = (shell(tmp_path, command) for command in commands(OWN_ENCODER, "Results of plain lmms-eval"))
    told = re.search(r"^chartqa .* 50 %.* n=2500/2500  note: the file does not state", cells.stdout, re.M)
    assert cells.returncode == 0 and told, cells.stdout + cells.stderr
    assert table.returncode == 0 and "| mine " in table.stdout and "SigLIP2 (paper)" in table.stdout, table.stderr
    assert compared.returncode == 2 and "no results of genlip-g16 in suite genlip14 (there are: mine)" in compared.stderr
    with (tmp_path / "tables" / "genlip14.csv").open(newline="") as stream:
        rows = {row["encoder"]: row for row in csv.DictReader(stream)}
    assert float(rows["mine"]["all_avg"]) == 50.0 and rows["mine"]["complete"] == "14/14"


def test_the_readmes_road_is_the_roads():
    """Its commands stand on the road's page too, or are one of them with fewer arguments."""
    road = commands(ROAD_PAGE, "Fetch", "Train and evaluate")
    for command in commands(pages.text_of("README.md"), "The road in short"):
        assert any(set(command.split()) <= set(longer.split()) for longer in road), command


def test_a_selection_of_columns_is_a_suite(tmp_path):
    """The page's file is taken for a suite, and the evaluation then says what lacks of it."""
    write, evaluate = commands(OWN_BENCHMARK, "A selection of columns")
    done = shell(tmp_path, f"{write} && {evaluate} --dry-run")
    assert done.returncode == 2 and "suite documents: columns of documents.yaml: chartqa, docvqa" in done.stdout
    assert "no fine-tuned MLLM of genlip-g16" in done.stderr and "Traceback" not in done.stderr
