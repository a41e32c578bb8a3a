"""What is here, and the next command: trained MLLMs and benchmark data, for someone who has just come or has nothing trained yet.

    python eval_suites/run.py

Looks into this folder and into demo/, which `make demo` fills. Reads provenance files and parquet footers: a quarter of a second, neither
torch nor lmms_eval.
"""

from dataclasses import dataclass
from pathlib import Path

from eval_suites import suites, tasks
from eval_suites.runner import preflight
from eval_suites.runner.preflight import Export

# Suites that a user chooses between; those of single groups ask for a part of the same data. The quickest to evaluate comes first.
WHOLE = ("easyvqa", "mini14", "genlip14")


@dataclass(frozen=True)
class Place:
    """A folder of runs and the data beside it: MLLMs, and how many of each suite's tasks have data (suites with none are left out)."""

    runs: Path
    data: Path
    exports: list[Export]
    tasks_there: dict[str, int]

    @property
    def tuned(self) -> list[Export]:
        return [export for export in self.exports if export.provenance.stage == "sft"]

    @property
    def suites(self) -> list[str]:
        """Those whose data are all there."""
        return [name for name, count in self.tasks_there.items() if count == len(suites.get(name).tasks)]


def survey(runs: Path, data: Path) -> Place:
    counts = {name: sum(_is_there(task, data) for task in suites.get(name).tasks) for name in WHOLE}
    return Place(runs, data, preflight.exports_in(runs), {name: count for name, count in counts.items() if count})


def _is_there(task: str, root: Path) -> bool:
    try:
        tasks.locate(task, root)
    except (ValueError, OSError):  # whoever asks for it is told why: here it is only not there
        return False
    return True


def next_steps(data: Path) -> str:
    """What to say to a command that names no encoder: what exists, which encoders are known, what to type next."""
    from llava_plugin import encoders

    places = [survey(Path("runs"), data), survey(Path("demo/runs"), Path("demo/data"))]
    lines = ["which encoder? For instance: python eval_suites/run.py --encoder genlip-g16 (--help says more)"]
    for place in places:
        if place is places[0] or place.exports or place.tasks_there:
            lines += [f"MLLMs under {place.runs}/: {'' if place.exports else 'none yet'}".rstrip(), *map(_described, place.exports)]
            lines += [f"benchmark data under {place.data}/: {data_said(place) or 'none yet'}"]
    lines += [f"known keys: {', '.join(encoders.KEYS)}; also a folder, a hub id, or NAME=FOLDER", "next:"]
    return "\n".join([*lines, *(f"  {command}" for command in next_commands(places))])


def _described(export: Export) -> str:
    stage = export.provenance.stage
    return f"  {export.encoder}, {export.llm}, {export.folder}{'' if stage == 'sft' else f' ({stage} stage: does not count)'}"


def data_said(place: Place) -> str:
    """The suites that have data, as in `easyvqa, genlip14 (3 of 14 tasks)`; "" for none."""
    counts = [(name, there, len(suites.get(name).tasks)) for name, there in place.tasks_there.items()]
    return ", ".join(name if there == n else f"{name} ({there} of {n} tasks)" for name, there, n in counts)


def other_suites(suite: str, data: Path) -> list[str]:
    """A line on the suites whose data are there, for someone who asked for one without any; [] where there are none."""
    there = [name for name in survey(Path("runs"), data).suites if name != suite]
    return [f"under {data}/ are the data of {', '.join(there)}: ask for --suite {there[0]}"] if there else []


def next_commands(places: list[Place]) -> list[str]:
    """Evaluate what is trained on the data that are there; where that cannot be, what brings the one or the other."""
    ready = [_evaluate(place) for place in places if place.tuned and place.suites]
    if ready:
        return ready
    if places[0].tuned:
        return [
            f"python eval_suites/run.py --encoder {places[0].tuned[0].encoder} --dry-run    (says how to bring the benchmarks' data)",
            f"python -m small_data.mini --out {places[0].data}    (makes small ones without a network, for --suite mini14)",
        ]
    return [
        "make demo    (the whole chain, small, on a laptop)",
        "ENCODER=genlip-g16 bash train_mllm/sft_qwen1.5b_frozen.sh    (an MLLM of an encoder at full size)",
    ]


def _evaluate(place: Place) -> str:
    """The command that evaluates the place's first MLLM on its first suite."""
    export = place.tuned[0]
    own = place.runs == Path("runs")
    alone = own and [other.encoder for other in place.tuned].count(export.encoder) == 1
    more = "" if alone else f" --mllm {export.folder}"
    more += "" if place.data == Path("data") else f" --data-root {place.data}"
    more += "" if own else f" --out {place.runs.parent}"
    return f"python eval_suites/run.py --encoder {export.encoder} --suite {place.suites[0]}{more}"
