"""Two encoders, question by question: paired differences with intervals, a verdict per cell, and what else differs between the two."""

import json
from dataclasses import dataclass, fields

from eval_suites.score import stats
from eval_suites.score.averages import average, overall, weights
from eval_suites.score.results import EncoderResult
from eval_suites.suites import Column, Suite
from genlip.common.fingerprint import OF_THE_ENCODER
from genlip.common.schema import Provenance


@dataclass(frozen=True)
class ComparisonLine:
    """One line of a comparison: two values and what may be said of their difference, or why nothing may.

    `n` questions were asked of both; an average counts columns, so it has none.
    """

    title: str
    a: float | None
    b: float | None
    n: int | None
    verdict: stats.Verdict | None
    reason: str = ""
    average: bool = False


def compare(suite: Suite, a: EncoderResult, b: EncoderResult) -> list[ComparisonLine]:
    """Every column, every average and the micro-average of `a` against `b`: paired by question, drawn by picture."""
    lines, paired = [], {}
    for column in suite.columns:
        one, two = a.cells[column.name], b.cells[column.name]
        reason = _incomparable(column, a, b)
        if not reason:
            try:
                paired[column.name] = stats.difference(a.scores[column.name], b.scores[column.name])
            except ValueError as error:
                reason = str(error)
        verdict = None
        if not reason:
            verdict, reason = _judged([paired[column.name]], [column.scale], False, column.higher_is_better)
        lines.append(
            ComparisonLine(column.title, one.value, two.value, one.n if not reason else None, verdict, reason or one.refused or "")
        )
    for title, columns in suite.averaged.items():
        means = average(columns, a.cells), average(columns, b.cells)
        parts = [paired[column.name] for column in columns if column.name in paired and None not in means]
        complete = len(parts) == len(columns)
        verdict, reason = None, "not every column is complete in both"
        if complete:
            verdict, reason = _judged(parts, weights(columns, a.cells), suite.shared_pictures)
        lines.append(ComparisonLine(title, *means, None, verdict, reason, average=True))
    if suite.overall:  # of ALL AVG's parts
        n = None
        if complete:
            (verdict, reason), n = _judged([stats.pooled(parts)], [100.0], True), sum(len(part.ids) for part in parts)
        lines.append(ComparisonLine("overall", overall(suite, a), overall(suite, b), n, verdict, reason, average=True))
    return lines


def _judged(
    parts: list[stats.Scores], weights: list[float], shared_pictures: bool, higher_is_better: bool = True
) -> tuple[stats.Verdict | None, str]:
    """(the verdict, "") of `stats.judge`, or (None, why there is none)."""
    try:
        return stats.judge(parts, weights, shared_pictures, higher_is_better), ""
    except ValueError as error:
        return None, str(error)


def _incomparable(column: Column, a: EncoderResult, b: EncoderResult) -> str:
    for row in (a, b):
        if row.cells[column.name].value is None:
            return f"{row.label}: {row.cells[column.name].refused}"
    one, two = a.results[column.task]["key"], b.results[column.task]["key"]
    for name, what in (("task", "other prompts or metrics"), ("data", "other data")):
        if one[name] != two[name]:
            return f"{what}: evaluate both again with the same {'version' if name == 'task' else 'data'}"
    return ""


def protocol(row: EncoderResult) -> dict:
    """What has to be equal for two rows to differ in the encoder alone: stage, language model, data, recipe, token budget, ..."""
    said = next(iter(row.results.values()))["provenance"]
    stages = enumerate(said.earlier, 1)
    parts = next(iter(row.results.values())).get("fingerprint") or {}
    own = {"schema": row.schema, **said.compared()}
    own |= {f"answers.{name}": value for name, value in parts.items() if name not in OF_THE_ENCODER}
    return own | {f"stage {i}.{name}": value for i, stage in stages for name, value in stage.compared().items()}


def differences(a: EncoderResult, b: EncoderResult) -> list[str]:
    """What differs between the two rows' MLLMs besides the encoder, in words."""
    one, two = protocol(a), protocol(b)
    names = {**one, **two} if a.schema == b.schema else [name for name in one if name in two]  # one schema has fields the other has not
    differing = [(name, one.get(name), two.get(name)) for name in names if one.get(name) != two.get(name)]
    left, right = (next(iter(row.results.values())) for row in (a, b))
    if left["provenance"].encoder_digest == right["provenance"].encoder_digest:  # one encoder, read or shown otherwise
        parts = [(name, left["fingerprint"].get(name), right["fingerprint"].get(name)) for name in OF_THE_ENCODER if name != "weights"]
        differing += [(f"answers.{name}", *values) for name, *values in parts if values[0] != values[1]]
    called = {"llm_digest_before": (f"{a.llm} ", f"{b.llm} ")}  # a reader knows it by its name
    return [
        f"{name}: {before}{_short(left)} against {behind}{_short(right)}"
        for name, left, right in differing
        for before, behind in [called.get(name, ("", ""))]
    ]


def recorded(a: EncoderResult, b: EncoderResult) -> list[str]:
    """What differs in how the two rows came about without making them other models: devices, versions, processes, seeds."""
    said = []
    for row in (a, b):
        result = next(iter(row.results.values()))
        training = {f.name: result["provenance"][f.name] for f in fields(Provenance) if f.metadata["kind"] in ("environment", "seed")}
        versions = {f"training's {name}": value for name, value in (training.pop("versions") or {}).items()}
        said.append({**(result.get("environment") or {}), **training, **versions})
    one, two = said
    return [f"{name}: {_short(one.get(name))} against {_short(two.get(name))}" for name in {**one, **two} if one.get(name) != two.get(name)]


def asked_otherwise(a: EncoderResult, b: EncoderResult) -> list[str]:
    """What differs between the questions that the two answered, in words: tasks of other data, of other prompts or metrics."""
    both = [task for task in a.results if task in b.results]
    said = []
    for name, what in (("data", "other data in"), ("task", "other prompts or metrics in")):
        differing = [task for task in both if a.results[task]["key"][name] != b.results[task]["key"][name]]
        said += [f"{what} {', '.join(differing)}"] if differing else []
    return said


def ranks(suite: Suite, rows: list[EncoderResult], columns: tuple[Column, ...]) -> dict[int, int]:
    """Index of a row -> 1 (best) or 2 (second best of three or more) in the columns' average, among rows that may be compared.

    Rows may be compared that differ in the encoder alone and answered the same questions under the same prompts. Ties share a rank.
    """
    groups: dict[str, list[tuple[int, float]]] = {}
    sign = -1 if columns[0].higher_is_better else 1
    for i, row in enumerate(rows):
        mean = average(columns, row.cells)
        if row.results and mean is not None:
            asked = [{part: row.results[column.task]["key"][part] for part in ("task", "data", "limit")} for column in columns]
            lacking = [row.results[column.task].get("left_out") for column in columns]
            groups.setdefault(json.dumps([protocol(row), asked, lacking], sort_keys=True), []).append((i, sign * mean))
    best = {}
    for group in groups.values():
        order = sorted({value for _, value in group})
        for i, value in group:
            if len(group) > 1 and value == order[0]:
                best[i] = 1
            elif len(group) > 2 and value == order[1]:
                best[i] = 2
    return best


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:8]}..."
