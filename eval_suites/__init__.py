"""Evaluate an encoder's MLLM through lmms-eval's own task code, aggregate, report: `python eval_suites/run.py --encoder KEY`."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas


def table(root: str | Path, suite: str) -> "pandas.DataFrame":
    """The rows of tables/<suite>.csv, from the results folder `root`: a column per benchmark and average, NaN where there is no number.

        import eval_suites
        rows = eval_suites.table("results", "genlip14").set_index("encoder")
        rows.loc["genlip-g16", ["chartqa", "docvqa", "all_avg"]]

    The paper's rows stand below the measured ones: `source` tells them apart. `suite` is a name or a YAML file. ValueError where `root` is
    no folder, or the suite is not known.
    """
    import pandas

    from eval_suites import suites
    from eval_suites.report.tables import csv_table
    from eval_suites.score.results import read_rows

    if not Path(root).is_dir():
        raise ValueError(f"{root} is no folder of results: give the one that run.py writes, such as results/")
    asked = suites.get(suite)
    text = io.StringIO(csv_table(asked, read_rows(Path(root), asked)))
    words = dict.fromkeys(("encoder", "arch", "llm", "source", "complete", "digest"), "str")  # a digest may look like a number
    known = {**words, "frozen": "boolean", "resolution": "Int64", "tokens": "Int64"}
    frame = pandas.read_csv(text, dtype=known, keep_default_na=False, na_values=[""])  # an encoder may be called "null"
    return frame.astype({name: float for name in frame if name not in known})
