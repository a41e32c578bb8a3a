"""The wheel, away from the checkout: an environment with it, what its extras [eval] and [mini] (fonts) need, lmms-eval as its --no-deps
list names it, and nothing else evaluates the fourteen tasks of the mini world. No index is asked: packages are linked from where the
tests run.
"""

import csv
import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytest.importorskip("lmms_eval")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("java"), reason="CIDEr's tokenizer is a Java program")]
ROOT = Path(__file__).parents[1]
PACKAGES = ("genlip", "llava_plugin", "train_mllm", "eval_suites", "small_data")
EXPORT = """
from pathlib import Path
from llava_plugin import mllm
from llava_plugin.tower import VisionTower
model, tokenizer = mllm.build(VisionTower.from_encoder("genlip-tiny"), "weights/llama-tiny")
said = {"stage": "sft", "encoder": "genlip-tiny", "encoder_key": "genlip-tiny", "llm": "llama-tiny"}
mllm.save(model, tokenizer, Path("runs/tiny/export"), said)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of what is installed: a build leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in (*PACKAGES, "benchmarks", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "genlip_eval.py"):
        shutil.copy(ROOT / name, source)
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(source)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    (file,) = folder.glob("*.whl")
    return file


def needed(requirements: list[str], extras: tuple[str, ...] = ()) -> set[str]:
    """Names of the distributions that requirements lead to, by the metadata of what is installed here."""
    found, open_ = set(), [(each, extras) for each in requirements]
    while open_:
        text, asked = open_.pop()
        requirement = Requirement(text)
        applies = requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *asked))
        if applies and (requirement.name, *requirement.extras) not in found:
            found.add((requirement.name, *requirement.extras))
            beyond = importlib.metadata.requires(requirement.name) or []
            open_ += [(each, tuple(requirement.extras)) for each in beyond]
    return {name for name, *_ in found}


def link(distribution: str, site: Path) -> None:
    """A distribution's files into another environment, by its top folders."""
    of = importlib.metadata.distribution(distribution)
    for top in {file.parts[0] for file in of.files} - {"..", "__pycache__"}:
        if not (site / top).exists():
            (site / top).symlink_to(of.locate_file(top))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """The folder of programs of an environment with the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    install = ["--python", str(folder / "bin" / "python"), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (own,) = importlib.metadata.distributions(name="genlip-eval", path=[str(site)])
    listed = (site / "eval_suites" / "requirements-nodeps.txt").read_text().splitlines()
    no_deps = {line.split("==")[0] for line in listed if line.startswith("lmms-eval")}
    for name in needed(own.requires, ("eval", "mini")) | no_deps:
        link(name, site)
    return folder / "bin"


def run(environment: Path, folder: Path, *command: str) -> subprocess.CompletedProcess:
    env = {"PATH": f"{environment}:{os.environ['PATH']}", "HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel):
    tracked = subprocess.run(["git", "ls-files", *PACKAGES, "genlip_eval.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == set(tracked.stdout.split())


def test_the_fourteen_tasks_run_from_the_wheel_alone(environment, tmp_path):
    def step(*command: str, code: int = 0) -> str:
        done = run(environment, tmp_path, *command)
        assert done.returncode == code, f"{command}: {done.stdout[-2000:]}{done.stderr[-6000:]}"
        return done.stdout + done.stderr

    where = step("python", "-c", f"import genlip_eval, {', '.join(PACKAGES)}, sys; print(*(sys.modules[m].__file__ for m in {PACKAGES}))")
    assert all(Path(file).is_relative_to(environment.parent) for file in where.split())
    assert "Did you mean 'tables'?" in step("genlip-eval", "tabels", code=2)
    step("python", "-m", "small_data.mini", "--out", "data", "--train", "8", "--eval", "4", "--workers", "1")
    (tmp_path / "text.txt").write_text("what is in the picture\na red circle\nyes\nno\nDescribe the image in detail.\n" * 20)
    step("genlip-eval", "fetch", "llama-tiny", "--text", "text.txt")
    step("python", "-c", EXPORT)
    step("genlip-eval", "run", "--encoder", "genlip-tiny", "--suite", "mini14")
    with (tmp_path / "tables" / "mini14.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row["complete"] == "14/14" and row["all_avg"] != ""
    assert step("python", "-c", "import eval_suites; print(*eval_suites.table('results', 'mini14').complete)").strip() == "14/14"
