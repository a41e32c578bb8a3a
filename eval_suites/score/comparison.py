"""Two encoders, question by question: paired differences with intervals, a verdict per cell, and what else differs between the two."""

import json
from dataclasses import dataclass, replace

from eval_suites.score import lmms_files, stats
from eval_suites.score.averages import average, overall, weights
from eval_suites.score.results import EncoderResult
from eval_suites.suites import Column, Suite

# What may differ between two MLLMs without a word in a comparison: what an encoder is, what follows from it, names of files, and how a
# run was watched. Digests say whether data and language model were the same, so their paths need not.
_ENCODERS_OWN = {"encoder", "encoder_key", "arch", "untrained", "resolution", "interpolation", "parameters"}
_ENCODERS_OWN |= {"weights_digest", "encoder_digest", "encoder_digest_before"}
_NOT_COMPARED = {*_ENCODERS_OWN, "llm_digest", "git_commit", "out", "init", "data", "images", "workers", "cache_features"}
_NOT_COMPARED |= {"report", "save_every"}


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
                difference = stats.difference(a.scores[column.name], b.scores[column.name])
                # Ours name each picture by its pixels, lmms-eval's files few of them.
                paired[column.name] = replace(difference, pictures=b.scores[column.name].pictures) if a.elsewhere else difference
            except ValueError as error:
                reason = str(error)
        verdict = None
        if not reason:
            verdict, reason = _judged([paired[column.name]], [column.scale], False, column.higher_is_better)
        lines.append(
            ComparisonLine(column.title, one.value, two.value, one.n if not reason else None, verdict, reason or one.refused or "")
        )
    for title, columns in suite.averaged.items():
        means = [average(columns, row.cells) for row in (a, b)]
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


def _judged(*said) -> tuple[stats.Verdict | None, str]:
    """(the verdict, "") of what `stats.judge` takes, or (None, why there is none)."""
    try:
        return stats.judge(*said), ""
    except ValueError as error:
        return None, str(error)


def _incomparable(column: Column, a: EncoderResult, b: EncoderResult) -> str:
    for row in (a, b):
        if row.cells[column.name].value is None:
            return f"{row.label}: {row.cells[column.name].refused}"
    if a.elsewhere or b.elsewhere:
        return lmms_files.unpaired(column, a, b)
    one, two = a.results[column.task]["key"], b.results[column.task]["key"]
    for name, what in (("task", "other prompts or metrics"), ("data", "other data")):
        if one[name] != two[name]:
            return f"{what}: evaluate both again with the same {'version' if name == 'task' else 'data'}"
    return ""


def protocol(row: EncoderResult) -> dict:
    """What has to be equal for two rows to differ in the encoder alone: stage, language model, data, recipe, token budget, ...

    Files of lmms-eval state none of it: such rows are ranked among themselves, and a table says so.
    """
    if row.elsewhere:
        return {"evaluated by": "lmms-eval"}
    said = next(iter(row.results.values()))["provenance"]
    stages = enumerate(said.get("earlier") or [], 1)
    return _compared(said) | {f"stage {i}.{name}": value for i, stage in stages for name, value in _compared(stage).items()}


def _compared(stage: dict) -> dict:
    """What counts of a stage's provenance, its recipe's fields beside the rest."""
    flat = {**stage, **{f"recipe.{name}": value for name, value in (stage.get("recipe") or {}).items()}}
    nested = ("recipe", "earlier")
    return {name: value for name, value in flat.items() if name not in nested and name.removeprefix("recipe.") not in _NOT_COMPARED}


def differences(a: EncoderResult, b: EncoderResult) -> list[str]:
    """What differs between the two rows' MLLMs besides the encoder, in words; what cannot be known of rows of lmms-eval's files."""
    if a.elsewhere or b.elsewhere:
        return lmms_files.unknown(a, b)
    one, two = protocol(a), protocol(b)
    return [f"{name}: {_short(one.get(name))} against {_short(two.get(name))}" for name in {**one, **two} if one.get(name) != two.get(name)]


def asked_otherwise(a: EncoderResult, b: EncoderResult) -> list[str]:
    """What differs between the questions that the two answered, in words: tasks of other data, of other prompts or metrics."""
    both = [task for task in a.results if task in b.results]
    if a.elsewhere or b.elsewhere:
        differing = [task for task in both if not lmms_files.asked_alike(a, b, task)]
        return [f"other questions, or in other words, in {', '.join(differing)}"] if differing else []
    said = []
    for name, what in (("data", "other data in"), ("task", "other prompts or metrics in")):
        differing = [task for task in both if a.results[task]["key"][name] != b.results[task]["key"][name]]
        said += [f"{what} {', '.join(differing)}"] if differing else []
    return said


def ranks(suite: Suite, rows: list[EncoderResult], columns: tuple[Column, ...]) -> dict[int, int]:
    """Index of a row -> 1 (best) or 2 (second best of three or more) in the columns' average, among rows that may be compared.

    Rows may be compared that differ in the encoder alone and answered the same questions under the same prompts. Ties share a rank.
    """
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if all(column.task in row.results for column in columns) and average(columns, row.cells) is not None:
            asked = [{part: row.results[column.task]["key"][part] for part in ("task", "data", "limit")} for column in columns]
            lacking = [row.results[column.task].get("left_out") for column in columns]
            groups.setdefault(json.dumps([protocol(row), asked, lacking], sort_keys=True), []).append(i)
    best = {}
    for group in groups.values():
        sign = -1 if columns[0].higher_is_better else 1
        values = [sign * average(columns, rows[i].cells) for i in group]
        order = sorted(set(values))
        for i, value in zip(group, values):
            if len(group) > 1 and value == order[0]:
                best[i] = 1
            elif len(group) > 2 and value == order[1]:
                best[i] = 2
    return best


def _short(value) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:8]}..."
