"""The benchmarks, declared once: which number of which task is a column of the table, in what unit, over how many samples.

Why: a metric without a declared name, unit, scale, range and expected n is a wrong number waiting to happen. Everything that
reads, checks, averages or prints a score takes these declarations from here, and nowhere else.

    python -c "from eval_suites import suites; print(*suites.get('genlip14').columns, sep='\\n')"

Standard library only. Keys and sample counts: lmms-eval 0.7.3 and the data sets it names. ALL AVG: the GenLIP paper (arXiv
2605.00809) says 14 benchmarks in its body and 15 in an appendix; its printed averages recompute with 14.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from genlip.common.suggest import choose

GROUPS = {"doc_ocr": "Doc & OCR", "general_vqa": "General VQA", "caption": "Caption"}


@dataclass(frozen=True)
class Column:
    """One number of the table.

    The printed value is `scale` times lmms-eval's number; `full_mark` is the printed value that counts as 100 in ALL AVG. None: the
    data's manifest states it, as the number that lmms-eval gives to a model that answers everything rightly.
    """

    name: str  # in CSV headers, on the command line and in files
    title: str  # as the paper prints it
    task: str  # lmms-eval's task name
    metric: str  # exact key in lmms-eval's results, "metric,filter"
    n: int | None  # rows of the task's data; None: the data's own manifest says
    split: str
    group: str = ""  # a key of GROUPS, or "" for none
    unit: str = "%"
    scale: float = 100.0
    range: tuple[float, float] = (0.0, 1.0)  # of lmms-eval's number
    full_mark: float | None = 100.0
    higher_is_better: bool = True
    aggregate: str = "mean"  # lmms-eval's way from samples to the number: "mean", "mme" (by pair and category), "points" (sum / 1000)
    aliases: tuple[str, ...] = ()  # the same number's key in older lmms-eval versions
    prompt: str = ""  # digest of the packaged definition that prompts and metrics come from (tasks.prompt_digest); "": a task of ours


@dataclass(frozen=True)
class Suite:
    """Columns whose plain mean is ALL AVG; `overall` adds a micro-average over all samples."""

    name: str
    columns: tuple[Column, ...]
    note: str = ""
    overall: bool = False
    paper: tuple[str, ...] = ()  # tables of the paper (report/paper.py) whose rows stand beside ours

    @property
    def tasks(self) -> tuple[str, ...]:
        """lmms-eval tasks in column order; MME is one task and two columns."""
        return tuple(dict.fromkeys(column.task for column in self.columns))

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(group for group in GROUPS if any(column.group == group for column in self.columns))

    @property
    def averaged(self) -> dict[str, tuple[Column, ...]]:
        """The columns that each average is over, by its title: those of each group, then all of them."""
        of_groups = {GROUPS[group]: tuple(column for column in self.columns if column.group == group) for group in self.groups}
        return {**of_groups, "ALL AVG": self.columns}

    @property
    def n(self) -> int | None:
        """Samples of all columns together, for the micro-average; None where a manifest has to say."""
        counts = [column.n for column in self.columns if column.n is not None]
        return sum(counts) if len(counts) == len(self.columns) else None


def _caption(name: str, title: str, task: str, metric: str, n: int, split: str, prompt: str) -> Column:
    """CIDEr has no upper bound of 1: scores of single pictures reach 10, and columns of the paper 145 (x 100)."""
    return Column(name, title, task, metric, n, split, "caption", unit="CIDEr", range=(0.0, 10.0), prompt=prompt)


_DOC_OCR = (
    Column("chartqa", "ChartQA", "chartqa", "relaxed_overall,none", 2500, "test", "doc_ocr", prompt="ddd57cb0ddf9b27c"),
    Column(
        "ocrbench", "OCRBench", "ocrbench", "ocrbench_accuracy,none", 1000, "test", "doc_ocr", aggregate="points", prompt="17b3e11d46774d60"
    ),
    Column("docvqa", "DocVQA", "docvqa_val", "anls,none", 5349, "validation", "doc_ocr", prompt="5deafefbb552a1c1"),
    Column("textvqa", "TextVQA", "textvqa_val", "exact_match,none", 5000, "validation", "doc_ocr", prompt="9bd40eee3b0dcb53"),
    Column("ai2d", "AI2D", "ai2d", "exact_match,flexible-extract", 3088, "test", "doc_ocr", prompt="cc4c0f7767d26d5b"),
    Column("infovqa", "InfoVQA", "infovqa_val", "anls,none", 2801, "validation", "doc_ocr", prompt="0ca77768fc163813"),
    Column("seed2plus", "SEED2+", "seedbench_2_plus", "seedbench_2_plus_all,none", 2277, "test", "doc_ocr", prompt="f9ad9de938b3014e"),
)
_MME_P = Column(
    "mme_p", "MME-P", "mme", "mme_perception_score,none", 2374, "test", "general_vqa", unit="points", scale=1.0,
    range=(0.0, 2000.0), full_mark=2000.0, aggregate="mme", aliases=("mme_percetion_score,none",),
    prompt="f559d940fc3284b6",
)  # fmt: skip
_MME_C = replace(_MME_P, name="mme_c", title="MME-C", metric="mme_cognition_score,none", range=(0.0, 800.0), full_mark=800.0, aliases=())
_GENERAL_VQA = (
    Column("vqav2", "VQAv2", "vqav2_val", "exact_match,none", 214354, "validation", "general_vqa", prompt="2514414602ad1cd2"),
    Column("gqa", "GQA", "gqa", "exact_match,none", 12578, "testdev", "general_vqa", prompt="691a810a4e1f5d5b"),
    Column("scienceqa", "SQA", "scienceqa_img", "exact_match,none", 2017, "test", "general_vqa", prompt="f12002dfb53ddf7f"),
    _MME_P,
)
_CAPTION = (
    _caption("nocaps", "NoCaps", "nocaps_val", "nocaps_CIDEr,none", 4500, "validation", "c033df529a0175a4"),
    _caption("coco", "COCO", "coco2017_cap_val", "coco_CIDEr,none", 5000, "val", "1789d6167cb006c9"),
    _caption("textcaps", "TextCaps", "textcaps_val", "textcaps_CIDEr,none", 3166, "val", "8bfb36fafe4b31af"),
)
# Questions of the package easy-vqa's 1,000 test pictures, told apart by their answers: yes or no, one of 3 shapes, one of 8 colours.
_EASYVQA = tuple(
    Column(name, title, f"easyvqa_{name}", "exact_match,none", n, "test")
    for name, title, n in (("shape", "shape", 1257), ("colour", "colour", 1280), ("yes_no", "yes/no", 7136))
)

_ALL = (
    Suite(
        "genlip14", _DOC_OCR + _GENERAL_VQA + _CAPTION, "the 14 benchmarks that the paper's printed averages are made of", paper=("3", "4")
    ),
    Suite(
        "genlip15",
        (*_DOC_OCR, *_GENERAL_VQA, _MME_C, *_CAPTION),
        "the paper's 14 and, as the 15th, MME-Cognition / 800 x 100. The 15th is ours: the paper speaks of 15 once and prints 14",
    ),
    Suite(
        "easyvqa",
        _EASYVQA,
        "easy-VQA's test pictures, by kind of question. Without the picture the best answers get 34.8, 12.0 and 82.5, overall 67.0",
        overall=True,
    ),
)
# The same 14 columns over the mini world's rows. How many there are is a choice of whoever makes it: its manifest says, and states each
# column's maximum too. The paper's rule would count OCRBench (n / 1000 for full marks) for next to nothing and CIDEr (near 5 for captions
# made of one grammar) fivefold: here a column counts as its share of that maximum.
_MINI = Suite(
    "mini14",
    tuple(replace(column, task=f"mini_{column.task}", n=None, full_mark=None) for column in _ALL[0].columns),
    "the 14 benchmarks' prompts and metrics on the mini world, a generated data set: to be compared with one another, never with the paper",
)


def _single_groups(suite: Suite, prefix: str) -> tuple[Suite, ...]:
    """One suite for each group of columns: its ALL AVG is the group's."""
    return tuple(Suite(prefix + group, suite.averaged[GROUPS[group]], f"{GROUPS[group]} alone, of {suite.name}") for group in suite.groups)


SUITES = {suite.name: suite for suite in (*_ALL, *_single_groups(_ALL[0], ""), _MINI, *_single_groups(_MINI, "mini14_"))}


def get(name: str) -> Suite:
    """The suite of that exact name, or that of a YAML file; ValueError with the nearest name and the list otherwise."""
    if name.endswith((".yaml", ".yml")):
        return _from_yaml(Path(name))
    return SUITES[choose(name, SUITES, "suite")]


def _from_yaml(path: Path) -> Suite:
    """A user's own suite: `columns`, a list of columns of our suites, plain (`gqa`, `mme_c`) or by suite (`mini14/gqa`), and a `note`.

    It is named after its file, in folders and tables. ValueError says what is wrong with the file.
    """
    import yaml

    if not path.is_file():
        raise ValueError(f"no suite file {path}; it holds, say, columns: [chartqa, docvqa]")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("columns"), list) or not content["columns"]:
        raise ValueError(f"{path} needs a list of columns, as in columns: [chartqa, docvqa]")
    if unknown := set(content) - {"columns", "note"}:
        raise ValueError(f"{path}: unknown {', '.join(map(str, sorted(unknown, key=str)))}; a suite has columns and a note")
    if path.stem in SUITES:
        raise ValueError(f"{path}: {path.stem} is a suite of ours; its results would be mixed with yours: rename the file")
    plain = {column.name: column for suite in reversed(_ALL) for column in suite.columns}
    known = plain | {f"{suite.name}/{column.name}": column for suite in SUITES.values() for column in suite.columns}
    names = [choose(str(name), known, f"column in {path}") for name in content["columns"]]
    columns = tuple(known[name] for name in names)
    if len({column.name for column in columns}) < len(columns):
        raise ValueError(f"{path} names a column twice")
    return Suite(path.stem, columns, str(content.get("note") or f"columns of {path.name}: {', '.join(names)}"))


def select(suite: Suite, names: str | None) -> tuple[str, ...]:
    """The suite's tasks named in a comma-separated list, by task or column (`docvqa` is `docvqa_val`); None: all."""
    if not names:
        return suite.tasks
    task_of = {column.name: column.task for column in suite.columns} | {task: task for task in suite.tasks}
    wanted = {task_of[choose(name.strip(), task_of, f"task of suite {suite.name}")] for name in names.split(",")}
    return tuple(task for task in suite.tasks if task in wanted)
