"""Two encoders, question by question: paired differences with intervals, a verdict per line, and what else differs between the two."""

import json
import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from eval_suites.score import lmms_files, seeds, stats, verdicts
from eval_suites.score.averages import average, overall, weights
from eval_suites.score.exchange import exchange_test
from eval_suites.score.protocol import protocol, seed_of, seeds_in_words
from eval_suites.score.results import EncoderResult
from eval_suites.score.seeds import NoiseFile, SeedNoise
from eval_suites.score.verdicts import Verdict
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
    verdict: Verdict | None
    reason: str = ""
    average: bool = False


@dataclass(frozen=True)
class _Endpoint:
    """What a line's verdict is of: sum(weight x value) of paired differences."""

    title: str
    role: str
    parts: list[stats.Scores]
    weights: list[float]
    drawn: np.ndarray  # (R, J) the parts' values over resampled pictures
    higher_is_better: bool = True


def compare(
    suite: Suite, a: EncoderResult, b: EncoderResult, noise: NoiseFile | None = None, draws: int = stats.DRAWS
) -> list[ComparisonLine]:
    """Every column, every average and the micro-average of `a` against `b`: paired by question, exchanged by picture.

    Verdicts follow verdicts.py. Of single rows p is the exchange test's; of two rows of several seeds each it is Student's, over pictures
    and seeds. `noise` adds the smallest believable difference where either row is of one seed. `draws` of the bootstrap that the intervals
    shown are of; 0: none.
    """
    reasons = {column.name: incomparable(column, a, b) for column in suite.columns}
    paired: dict[str, stats.Scores] = {}
    for column in suite.columns:
        if not reasons[column.name]:
            try:
                difference = stats.difference(a.scores[column.name], b.scores[column.name])
                paired[column.name] = replace(difference, pictures=_pictures(column, a, b))
            except ValueError as error:
                reasons[column.name] = str(error)
    drawn: dict[str, np.ndarray] = {}  # (R, 1) a column
    if paired:
        paired = dict(zip(paired, stats.numbered(list(paired.values()))))
        drawn = dict(zip(paired, np.hsplit(stats.bootstrap(list(paired.values()), draws), len(paired))))
    lines: list[ComparisonLine] = []
    endpoints: dict[int, _Endpoint] = {}  # by place among the lines
    for column in suite.columns:
        one, two, reason = a.cells[column.name], b.cells[column.name], reasons[column.name]
        if not reason:
            endpoints[len(lines)] = _Endpoint(
                column.title, "column", [paired[column.name]], [column.scale], drawn[column.name], column.higher_is_better
            )
        lines.append(ComparisonLine(column.title, one.value, two.value, None if reason else one.n, None, reason or one.refused or ""))
    complete = False
    for title, columns in suite.averaged.items():
        means = average(columns, a.cells), average(columns, b.cells)
        complete = None not in means and all(column.name in paired for column in columns)
        if complete:
            # A group that is the whole suite is ALL AVG by another name.
            role = "primary" if columns == suite.columns else verdicts.EXPLORATORY
            parts = [paired[column.name] for column in columns]
            values = np.concatenate([drawn[column.name] for column in columns], axis=1)
            endpoints[len(lines)] = _Endpoint(title, role, parts, weights(columns, a.cells), values)
        lines.append(ComparisonLine(title, *means, None, None, "" if complete else "not every column is complete in both", average=True))
    if suite.overall:  # of ALL AVG's parts
        n = sum(len(paired[column.name].ids) for column in suite.columns) if complete else None
        if complete:
            parts = [stats.pooled([paired[column.name] for column in suite.columns])]
            endpoints[len(lines)] = _Endpoint("overall", verdicts.EXPLORATORY, parts, [100.0], stats.bootstrap(parts, draws))
        lines.append(ComparisonLine("overall", overall(suite, a), overall(suite, b), n, None, lines[-1].reason, average=True))
    spread = seeds.seed_noise(suite, a, b)
    measured = [_measured(each, spread, noise, (a.seeds, b.seeds)) for each in endpoints.values()]
    for i, verdict in zip(endpoints, _judged(list(endpoints.values()), measured)):
        lines[i] = replace(lines[i], verdict=verdict)
    return lines


def _measured(endpoint: _Endpoint, spread: SeedNoise | None, noise: NoiseFile | None, counts: tuple[int, int]) -> Verdict:
    """The endpoint's difference, its p and its interval, uncorrected and without a word."""
    amounts = stats.amounts(endpoint.parts, endpoint.weights)
    difference = float(amounts.sum())
    pictures = min(len(np.unique(part.pictures)) for part in endpoint.parts)
    error = stats.stderr(endpoint.parts, endpoint.weights) if spread or noise else None
    believable = noise.believable(endpoint.title, error, counts) if noise and error is not None and 1 in counts else None
    low: float | None
    high: float | None
    if spread and error is not None and endpoint.title in spread.variance:
        total = math.sqrt(error**2 + spread.variance[endpoint.title])
        p, reach = _student(difference, total, spread.degrees), stats.t_quantile(0.05, spread.degrees) * total
        low, high, covered = difference - reach, difference + reach, spread.words
    else:
        p, covered = exchange_test(amounts).p, "test pictures"
        low, high = stats.difference_interval(endpoint.drawn @ np.array(endpoint.weights), pictures)
    return Verdict(difference, low, high, pictures, p, p, endpoint.role, "", covered, believable)


def _judged(endpoints: list[_Endpoint], measured: list[Verdict]) -> list[Verdict]:
    """The endpoints' verdicts, which depend on one another: columns are corrected for their number, at a level that ALL AVG decides."""
    primary = next((each.p for each in measured if each.role == "primary"), None)
    columns = [i for i, each in enumerate(measured) if each.role == "column"]
    adjusted = dict(zip(columns, verdicts.holm([measured[i].p for i in columns])))
    said = []
    for i, (endpoint, each) in enumerate(zip(endpoints, measured)):
        level = verdicts.column_level(primary) if each.role == "column" else verdicts.PRIMARY
        p = adjusted.get(i, each.p)
        word = verdicts.word(each.role, each.difference, p, level, endpoint.higher_is_better)
        said.append(replace(each, p_adjusted=p, word=word))
    return said


def _student(difference: float, error: float, degrees: int) -> float:
    """Two-sided p of a difference with its standard error; without any error a difference is certain, and none is none."""
    if error == 0.0:
        return 1.0 if difference == 0.0 else 0.0
    return stats.t_tails(difference / error, degrees)


def incomparable(column: Column, a: EncoderResult, b: EncoderResult) -> str:
    """Why the two rows' cells of the column may not be compared; "" where they may."""
    one, two = a.cells[column.name], b.cells[column.name]
    for row, cell in ((a, one), (b, two)):
        if cell.value is None:
            return f"{row.label}: {cell.refused}"
    if one.full_mark != two.full_mark:
        return f"the data state different maxima, {one.full_mark:g} and {two.full_mark:g}: evaluate both again with the same data"
    if a.elsewhere or b.elsewhere:
        return lmms_files.unpaired(column, a, b)
    keys = [row.results[column.task]["key"] for row in (a, b)]
    for name, what in (("task", "other prompts or metrics"), ("data", "other data")):
        if keys[0][name] != keys[1][name]:
            return f"{what}: evaluate both again with the same {'version' if name == 'task' else 'data'}"
    return ""


def _pictures(column: Column, a: EncoderResult, b: EncoderResult) -> np.ndarray:
    """What names the pictures of the two rows' questions: ours their pixels, lmms-eval's files few of them, if they are all there is."""
    ours = next((row.scores[column.name].pictures for row in (a, b) if not row.elsewhere), None)
    if ours is not None:
        return ours
    return min((row.scores[column.name].pictures for row in (a, b)), key=lambda pictures: len(np.unique(pictures)))


def differences(a: EncoderResult, b: EncoderResult) -> list[str]:
    """What differs between the two rows' MLLMs besides the encoder, in words; what cannot be known of rows of lmms-eval's files."""
    if a.elsewhere or b.elsewhere:
        return lmms_files.unknown(a, b)
    if doubted := [row.label for row in (a, b) if not row.results]:
        return [f"of {', '.join(doubted)} no result is believed"]
    one, two = protocol(a), protocol(b)
    names = list({**one, **two}) if a.schema == b.schema else [name for name in one if name in two]  # fields of both
    left, right = (next(iter(row.results.values())) for row in (a, b))
    known = left["fingerprint"] and right["fingerprint"]  # results of before fingerprints say nothing of their parts
    names = [name for name in names if known or not name.startswith("answers.")]
    differing = [(name, one.get(name), two.get(name)) for name in names if one.get(name) != two.get(name)]
    encoders = {row["provenance"].encoder_digest for row in (left, right)}
    if known and len(encoders) == 1 and None not in encoders:  # one encoder, read or shown otherwise
        parts = [(name, left["fingerprint"].get(name), right["fingerprint"].get(name)) for name in OF_THE_ENCODER if name != "weights"]
        differing += [(f"answers.{name}", *values) for name, *values in parts if values[0] != values[1]]
    called = {"llm_digest_before": (f"{a.llm} ", f"{b.llm} ")}  # a reader knows it by its name
    return [
        f"{name}: {before}{_short(left)} against {behind}{_short(right)}"
        for name, left, right in differing
        for before, behind in [called.get(name, ("", ""))]
    ]


def nothing_else(a: EncoderResult, b: EncoderResult) -> str:
    """Of two rows without `differences`: a sentence that says what they do differ in, by what their exports record."""
    if a.digest == b.digest:
        return f"The two are one MLLM under two names ({a.digest[:8]})."
    one, two = (_began_as(row) for row in (a, b))
    if one != two or None in one:
        return "The two differ in the encoder alone, by what their exports record."
    if seed_of(a.first) == seed_of(b.first) and a.seeds == b.seeds:
        return "The two have the same encoder and seed, and differ in nothing that their exports record but the trained weights."
    return f"The two differ in the training seed alone ({seeds_in_words(a)} against {seeds_in_words(b)}): their encoder is the same."


def _began_as(row: EncoderResult) -> list[Any]:
    """What a row's encoder was before training, and how it is read and shown; None for what is not recorded."""
    parts = next(iter(row.results.values()))["fingerprint"]
    digest = row.provenance["encoder_digest_before"] or row.provenance["encoder_digest"]
    return [digest, *(parts.get(name) for name in OF_THE_ENCODER if name != "weights")]


def recorded(a: EncoderResult, b: EncoderResult) -> list[str]:
    """What differs in how the two rows came about without making them other models: devices, versions, processes; of every seed."""
    if a.elsewhere or b.elsewhere or not a.results or not b.results:
        return []
    one, two = ([_circumstances(member) for member in row.members or (row,)] for row in (a, b))
    names = dict.fromkeys(name for said in [*one, *two] for name in said)
    values = {name: [list(dict.fromkeys(_short(said.get(name)) for said in row)) for row in (one, two)] for name in names}
    return [f"{name}: {', '.join(left)} against {', '.join(right)}" for name, (left, right) in values.items() if left != right]


def _circumstances(row: EncoderResult) -> dict[str, Any]:
    """Where and with what a row of one seed was evaluated and trained."""
    results = list(row.results.values())
    result = results[0]
    training = {f.name: result["provenance"][f.name] for f in fields(Provenance) if f.metadata["kind"] == "environment"}
    versions = {f"training's {name}": value for name, value in (training.pop("versions") or {}).items()}
    told = [each.get("environment") or {} for each in results]
    evaluated = {name: ", ".join(dict.fromkeys(str(each[name]) for each in told if name in each)) for each in told for name in each}
    return {**evaluated, **training, **versions}


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
    groups: dict[str, list[tuple[int, float]]] = {}
    sign = -1 if columns[0].higher_is_better else 1
    for i, row in enumerate(rows):
        mean = average(columns, row.cells)
        if row.elsewhere and not all(lmms_files.asked(row, column.task) for column in columns):
            continue  # nothing says what it was asked
        if all(column.task in row.results for column in columns) and mean is not None:
            asked = [{part: row.results[column.task]["key"][part] for part in ("task", "data", "limit")} for column in columns]
            marks = [row.cells[column.name].full_mark for column in columns]
            lacking = [row.results[column.task].get("left_out") for column in columns]
            groups.setdefault(json.dumps([protocol(row), asked, lacking, marks], sort_keys=True), []).append((i, sign * mean))
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
