"""lmms-eval's own task definitions, pointed at local data: the prompts, filters and metrics of a packaged task, the files of a folder.

Why: lmms-eval fetches data by name and believes whatever its cache gives back; a stale card once gave 4 rows of 12,578. Here the files
are found first, counted, and named one by one in a resolved definition. What such a definition may change of the packaged one: the name
(an included folder cannot shadow a packaged name), where the data lie, their digest (`datasets` keeps rows by path and date, so it would
answer for corrected files with the old ones) and that their picture columns are pictures, for captions the list of metrics (CIDEr alone:
the others take Java minutes), for GQA the look-up of pictures (the packaged one copies them all). Nothing else.

    python -m eval_suites.tasks my_tasks --data-root /data/hub --tasks chartqa,gqa
    lmms-eval --include_path my_tasks --tasks chartqa_local --model genlip_eval --model_args export=runs/NAME/export

Nothing here imports lmms_eval, torch or datasets at import; a count reads parquet footers only, and a digest each file once.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from genlip.common import digests
from genlip.common.files import read_json, write_file

HERE = Path(__file__).parent
# Task -> its definition inside lmms_eval/tasks, or inside this folder for ours.
DEFINITIONS = {
    "chartqa": "chartqa/chartqa.yaml",
    "ocrbench": "ocrbench/ocrbench.yaml",
    "docvqa_val": "docvqa/docvqa_val.yaml",
    "textvqa_val": "textvqa/textvqa_val.yaml",
    "ai2d": "ai2d/ai2d.yaml",
    "infovqa_val": "infovqa/infovqa_val.yaml",
    "seedbench_2_plus": "seedbench_2_plus/seedbench_2_plus.yaml",
    "vqav2_val": "vqav2/vqav2_val.yaml",
    "gqa": "gqa/gqa.yaml",
    "scienceqa_img": "scienceqa/scienceqa_img.yaml",
    "mme": "mme/mme.yaml",
    "nocaps_val": "nocaps/nocaps_val.yaml",
    "coco2017_cap_val": "coco_cap/coco2017_cap_val.yaml",
    "textcaps_val": "textcaps/textcaps_val.yaml",
}
# Task -> subset of the data set of ours; their one definition is easyvqa.yaml.
OURS = {"easyvqa_shape": "shape", "easyvqa_colour": "colour", "easyvqa_yes_no": "yes_no"}
CIDER = {"nocaps_val": "nocaps", "coco2017_cap_val": "coco", "textcaps_val": "textcaps"}
GQA_IMAGES = "testdev_balanced_images"
# Task on the mini world's data -> the packaged task whose definition it takes; the data's subset has the packaged name.
MINI = {f"mini_{task}": task for task in DEFINITIONS}
MINI_DATA = "genlip-eval/mini"
CIDER |= {mini: CIDER[task] for mini, task in MINI.items() if task in CIDER}


def local_name(task: str) -> str:
    """Name of the resolved definition; the packaged name cannot be shadowed."""
    return f"{task}_local"


@dataclass(frozen=True)
class Data:
    """The files of one task's split, found and counted."""

    task: str
    split: str
    files: tuple[Path, ...]
    images: tuple[Path, ...]  # GQA only: the files that hold its pictures
    rows: int
    declared: int | None  # n by the data set's own manifest.json, where it has one
    maximum: float | dict | None = None  # by that manifest, lmms-eval's number (by column where a task fills several) for full marks

    @cached_property
    def digest(self) -> str:
        """Of the bytes of all files in their order, questions before pictures: texts, answers and pictures. Where they lie, their names and
        their dates are no part of it; equal rows written by another parquet writer are other bytes."""
        return digests.of_all([*self.files, *self.images])


INSTALL = f"pip install --no-deps -r {Path(__file__).parents[1] / 'requirements-nodeps.txt'}"


@lru_cache(maxsize=1)
def lmms_eval_tasks() -> Path:
    """Folder of the packaged definitions, found without importing lmms_eval (5-8 s)."""
    spec = importlib.util.find_spec("lmms_eval")
    if spec is None:
        raise ValueError(f"lmms-eval is not installed: {INSTALL} (make setup does it)")
    return Path(spec.submodule_search_locations[0]) / "tasks"


def packaged(task: str) -> str:
    """The packaged task whose prompts and metrics a task has; its own name unless its data are the mini world's."""
    return MINI.get(task, task)


def definition_path(task: str) -> Path:
    return HERE / "easyvqa.yaml" if task in OURS else lmms_eval_tasks() / DEFINITIONS[packaged(task)]


@lru_cache(maxsize=64)
def definition(task: str) -> dict:
    """The task's definition with its includes merged, `!function` entries as text."""
    return _merged(definition_path(task))


def _merged(path: Path) -> dict:
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: f"!function {loader.construct_scalar(node)}")
    config = yaml.load(path.read_text(encoding="utf-8"), Loader)  # a SafeLoader with one more tag, read as text
    included = config.pop("include", None)
    return {**(_merged(path.parent / included) if included else {}), **config}


def _files_of(path: Path) -> list[Path]:
    """A definition's file, those it includes, and the Python files beside it that it may name: what a score depends on."""
    text = path.read_text(encoding="utf-8")
    names = set(re.findall(r"!function\s+(\w+)\.\w+", text))
    included = re.findall(r"^include:\s*(\S+)", text, re.M)
    python = [path.parent / f"{name}.py" for name in sorted(names)]
    return [path, *(file for file in python if file.exists()), *(file for name in included for file in _files_of(path.parent / name))]


def prompt_digest(task: str) -> str:
    """16 hex digits of the packaged definition: all files that the task's prompts, filters and metrics come from, byte by byte."""
    digest = hashlib.sha256()
    for file in _files_of(definition_path(task)):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def definition_digest(task: str) -> str:
    """sha256 of everything the task's prompts and scores come from, lmms-eval's version among it; where the data lie is not."""
    own = [HERE / "pictures.py", *([HERE / "captions.py"] if task in CIDER else [])]
    digest = hashlib.sha256(f"lmms-eval {importlib.metadata.version('lmms-eval')} {task}".encode())
    engine = definition_path("vqav2_val").parents[2]  # whose installed copy may have been edited
    shared = [engine / "api/metrics.py", engine / "api/task.py", *sorted((engine / "filters").glob("*.py"))]
    for file in [*_files_of(definition_path(task)), *own, *shared]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _folders(task: str, root: Path) -> list[Path]:
    """Where the task's data set may lie: ROOT/<org>/<set> under its present and its former name, then the hub's cache likewise."""
    path = MINI_DATA if task in MINI else definition(task)["dataset_path"]
    names = [path, *([path.replace("lmms-lab-encoder/", "lmms-lab/", 1)] if path.startswith("lmms-lab-encoder/") else [])]
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface") / "hub")
    folders = [root / name for name in names]
    for name in names:
        repository = cache / f"datasets--{name.replace('/', '--')}"
        head = repository / "refs" / "main"
        if head.exists():
            folders.append(repository / "snapshots" / head.read_text().strip())
    return folders


def _parquet(folder: Path, subset: str | None, split: str) -> tuple[Path, ...]:
    """Shards of a split as hub repositories name them: `<subset>/<split>-*.parquet`, `data/...`, or in the folder itself."""
    for place in (folder / subset if subset else folder / "data", folder / "data", folder):
        files = sorted(place.glob(f"{split}-*.parquet")) or sorted(place.glob(f"{split}.parquet"))
        if files:
            return tuple(file.absolute() for file in files)
    return ()


def locate(task: str, root: Path) -> Data:
    """Find and count the task's data under `root` (as hub snapshots lie: ROOT/<org>/<set>/...) or in the hub's cache.

    ValueError where there are none (with the command that brings them) or where a file cannot be read.
    """
    config = definition(task)
    subset, split = OURS.get(task) or MINI.get(task) or config.get("dataset_name"), config["test_split"]
    for folder in _folders(task, root):
        files = _parquet(folder, subset, split)
        if files:
            break
    else:
        wanted = f"{subset}/{split}-*.parquet" if subset else f"{split}-*.parquet"
        raise ValueError(f"{task}: no {wanted} under {_folders(task, root)[0]}. Bring it: {fetch_command(task, root)}")
    pictures = "gqa_images" if task in MINI else GQA_IMAGES
    images = _parquet(folder, pictures, split) if packaged(task) == "gqa" else ()
    if packaged(task) == "gqa" and not images:
        wanted = f"{pictures}/{split}-*.parquet"
        raise ValueError(f"{task}: questions without pictures, no {wanted} under {folder}. Bring them: {fetch_command(task, root)}")
    rows = sum(map(_rows, files))
    for file in images:
        _rows(file)
    return Data(task, split, files, images, rows, _declared(folder, subset, "n"), _declared(folder, subset, "maximum"))


def _rows(file: Path) -> int:
    """Of a parquet file, by its footer."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(file).metadata.num_rows
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} is not a whole parquet file ({error}): copy or download it again") from error


def _declared(folder: Path, subset: str | None, what: str) -> int | float | dict | None:
    """`what` the data set's own manifest says of a subset; None where there is no manifest."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        return None
    try:
        return read_json(manifest, "build the data again")["sets"][subset][what]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{manifest} does not say the {what} of {subset!r} ({error!r}): build the data again") from error


def made_here(task: str) -> bool:
    """Whether the task's data are made by a command of ours, not fetched."""
    return task in OURS or task in MINI


def hub_source(task: str) -> tuple[str, str]:
    """(data set on the hub, pattern of the files that the scored split needs)."""
    config = definition(task)
    subset, split = config.get("dataset_name"), config["test_split"]
    pattern = "testdev_balanced_*/*" if task == "gqa" else f"{subset}/{split}-*" if subset else f"*{split}-*"
    return config["dataset_path"], pattern


def fetch_command(task: str, root: Path) -> str:
    """The command that brings a task's data to where `locate` looks."""
    if made_here(task):
        return f"python -m small_data.{'easyvqa' if task in OURS else 'mini'} --out {root}"
    path, pattern = hub_source(task)
    return f"hf download --repo-type dataset {path} --include '{pattern}' --local-dir {root / path}"


def resolved(data: Data, pictures: str = "decoded") -> dict:
    """Our definition of the task over these files: an `include:` of the packaged one, and only what the module's docstring allows.

    `pictures`: "decoded" for any model of lmms-eval, "undecoded" for ours, which reads them by our own rule (pictures.py).
    """
    config = {
        "include": str(definition_path(data.task)),
        "task": local_name(data.task),
        "dataset_path": "parquet",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {data.split: [str(file) for file in data.files]}, "description": data.digest},
        "process_docs": _Function(f"eval_suites.tasks.pictures.{pictures}"),
    }
    if data.task in CIDER:
        prefix = CIDER[data.task]
        function = _Function(f"eval_suites.tasks.captions.{prefix}_cider")
        config["metric_list"] = [{"metric": f"{prefix}_CIDEr", "aggregation": function, "higher_is_better": True}]
    if packaged(data.task) == "gqa":
        default = definition("gqa")["lmms_eval_specific_kwargs"]["default"]
        config["doc_to_visual"] = _Function("eval_suites.tasks.pictures.gqa_doc_to_visual")
        config["lmms_eval_specific_kwargs"] = {"default": {**default, "images": [str(file) for file in data.images], "digest": data.digest}}
    return config


class _Function(str):
    """A dotted name that YAML shows as `!function name`."""


def write_definition(folder: Path, data: Data, pictures: str = "decoded") -> Path:
    """Write the resolved definition of one task to FOLDER/<task>_local.yaml."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_representer(_Function, lambda dumper, name: dumper.represent_scalar("!function", str(name)))
    path = folder / f"{local_name(data.task)}.yaml"
    write_file(path, yaml.dump(resolved(data, pictures), Dumper=Dumper, sort_keys=False, width=200))
    return path
