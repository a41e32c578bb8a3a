"""mypy with a list of excused files that may only shrink: `make lint` runs this.

Excused files stand in pyproject.toml, in the override that says `ignore_errors = true`, so that a plain `mypy` is quiet about them. One run
without that line finds both faults: an error in a file that is not excused, and an excused file that has no error or is gone.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXCUSE = "ignore_errors = true"


def faults(excused: list[str], lines: list[str]) -> list[str]:
    """What is wrong, of mypy's lines: errors elsewhere as they are, and excused modules that need no excuse."""
    wrong = [line for line in lines if re.match(r"\S+?:\d+: error:", line)]
    modules = {line: re.sub(r"(/__init__)?\.py$", "", line.split(":")[0]).replace("/", ".") for line in wrong}
    errors = [line for line, module in modules.items() if module not in excused]
    return errors + [f"{module} has no error left: take it off the list" for module in excused if module not in modules.values()]


def main() -> int:
    text = (ROOT / "pyproject.toml").read_text()
    excused = next(each["module"] for each in tomllib.loads(text)["tool"]["mypy"]["overrides"] if each.get("ignore_errors"))
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
        config.write(text.replace(EXCUSE, ""))
        config.flush()
        command = [sys.executable, "-m", "mypy", "--config-file", config.name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode > 1 or done.stderr:  # it did not get as far as types
        print(done.stdout, done.stderr, file=sys.stderr)
        return 2
    found = faults(excused, done.stdout.splitlines())
    print("\n".join(found) or f"types: clean but for {len(excused)} excused files")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
