"""What `bash benchmarks/gpu.sh` has measured, as one table and as JSON lines: a row per step, with the reason where one was left out.

    python -m benchmarks.summary gpu-results
    python -m benchmarks.summary --environment      # what the numbers were measured with

Reads the steps' exit codes (steps.jsonl) and the Markdown tables that they printed (STEP.txt); torch-free, a moment.
"""

import json
import platform
import shutil
import subprocess
from pathlib import Path

from eval_suites.report.formatting import markdown_text
from genlip.common.command import command, new_parser
from genlip.common.files import write_file
from genlip.common.versions import git_commit, package_versions

PACKAGES = ("torch", "transformers", "accelerate", "triton", "liger-kernel", "peft", "numpy")
SHOWN = ("tokens/s", "MFU", "peak memory", "planned")
UNITS = ", GiB"  # of a column's numbers, where its head says so


def environment() -> str:
    """The GPU, by nvidia-smi; versions; the commit."""
    gpu = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False).stdout if shutil.which("nvidia-smi") else ""
    found = {"python": platform.python_version(), "commit": git_commit(), **package_versions(PACKAGES)}
    return gpu + "\n".join(f"{name:14}{version}" for name, version in found.items())


def tables(text: str) -> list[list[list[str]]]:
    """The Markdown tables of a text: lines of cells, the head first, without the line of dashes."""
    found, before = [], ""
    for line in text.splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            cells = [cell.strip() for cell in line.strip("|\n").split("|")]
            if set("".join(cells)) - set("-:"):
                found[-1].append(cells)
        before = line
    return found


def measured(text: str) -> dict[str, str]:
    """The figures of SHOWN that a step printed: of pretraining as one line under its head, of fine-tuning as a line each."""
    found: dict[str, str] = {}
    for head, *lines in tables(text):
        if "measured" in head:
            for name, value, planned, *_ in lines:
                shown = next((key for key in SHOWN if name.startswith(key)), None)
                if shown and shown not in found:
                    found |= {shown: value} | ({"planned": planned} if planned else {})
        elif "MFU" in head:  # of several lines ours is the first
            named = {name.removesuffix(UNITS): value for name, value in zip(head, lines[0])}
            gib = {"peak memory", "planned"}
            found |= {key: f"{named[key]} GiB" if key in gib and named[key] != "-" else named[key] for key in SHOWN if key in named}
    return found


def outcome(step: dict, text: str) -> str:
    """ "done", or why the step was left out."""
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing was said")
    stopped = f"left out: stopped after {step['limit']} s"
    return {0: "done", -1: "left out: no time was left", 124: stopped, 137: stopped}.get(step["code"], f"left out: {last[:160]}")


def summary(folder: Path) -> tuple[str, bool]:
    """(the table, whether all steps are done); writes FOLDER/results.jsonl."""
    if not (folder / "steps.jsonl").is_file():
        raise ValueError(f"{folder} has no steps.jsonl: bash benchmarks/gpu.sh {folder} makes it")
    steps, records, lines = map(json.loads, (folder / "steps.jsonl").read_text().splitlines()), [], []
    for step in steps:
        file = folder / f"{step['step']}.txt"
        text = file.read_text(errors="replace") if file.is_file() else ""
        record = step | {"outcome": outcome(step, text), "measured": measured(text) if step["code"] == 0 else {}}
        records.append(record)
        lines.append((step["step"], *(record["measured"].get(key, "") for key in SHOWN), str(step["seconds"]), record["outcome"]))
    write_file(folder / "results.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    return markdown_text(("step", *SHOWN, "seconds", "outcome"), lines), all(record["code"] == 0 for record in records)


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m benchmarks.summary",
        description="One table of what benchmarks/gpu.sh has measured, with what was left out and why.",
        epilog="example: python -m benchmarks.summary gpu-results",
    )
    parser.add_argument("folder", nargs="?", type=Path, help="where gpu.sh has written")
    parser.add_argument("--environment", action="store_true", help="print the GPU, the versions and the commit instead")
    args = parser.parse_args(argv)
    if args.environment:
        print(environment())
        return 0
    if args.folder is None:
        raise ValueError("name the folder that gpu.sh has written")
    text, whole = summary(args.folder)
    print(text)
    return 0 if whole else 1


if __name__ == "__main__":
    raise SystemExit(main())
