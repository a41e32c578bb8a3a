"""One pair of rows as a section of text: values, paired difference with its interval, p, verdict, and what else differs."""

from eval_suites.report.formatting import markdown_text, p_text
from eval_suites.score import stats, verdicts
from eval_suites.score.comparison import ComparisonLine, compare, differences, recorded
from eval_suites.score.protocol import seeds_in_words
from eval_suites.score.results import EncoderResult
from eval_suites.score.seeds import NoiseFile
from eval_suites.suites import Suite

LMMS_FILES = "lmms-eval's files"  # in the place of a digest, which they do not name


def section(suite: Suite, a: EncoderResult, b: EncoderResult, noise: NoiseFile | None = None, differing: bool = True) -> str:
    """The section of one pair: values, paired difference with its interval, p, verdict, and what else differs (`differing`)."""
    lines = compare(suite, a, b, noise)
    believable = any(line.verdict and line.verdict.believable is not None for line in lines)
    head = ["benchmark", a.label, b.label, "difference [95 %]", *["believable from"] * believable, "n", "p", f"{a.label} is"]
    one, two = (f"{row.label} ({row.digest[:8] or LMMS_FILES})" for row in (a, b))
    text = f"\n## {one} against {two}\n\n"
    lacking = {name: titles for name, row in ((one, a), (two, b)) if (titles := _not_evaluated(suite, row))}
    shown = [line for line in lines if line.title not in {title for titles in lacking.values() for title in titles}]
    sentences = [f"Not evaluated of {name}: {', '.join(titles)}." for name, titles in lacking.items()]
    if len(lacking) > 1 and lacking[one] == lacking[two]:
        sentences = [f"Not evaluated of either: {', '.join(lacking[one])}."]
    text += f"{' '.join(how(a, b, lines, noise) + sentences)}\n\n"
    text += f"{markdown_text(tuple(head), [_line(line, believable) for line in shown])}\n"
    aside = recorded(a, b)
    text += besides(a, b, differences(a, b)) if differing else ""
    return text + (f"\nRecorded, and no other model by itself: {'; '.join(aside)}.\n" if aside else "")


def _not_evaluated(suite: Suite, row: EncoderResult) -> list[str]:
    return [column.title for column in suite.columns if row.cells[column.name].refused == "not evaluated"]


def besides(a: EncoderResult, b: EncoderResult, others: list[str]) -> str:
    """The list of what differs, or cannot be known; "" where there is nothing."""
    known = "" if not a.elsewhere and not b.elsewhere else ", or are not known"
    return "".join([f"Besides the encoder, these differ{known}:\n", *(f"- {other}\n" for other in others)]) if others else ""


def _line(line: ComparisonLine, believable: bool) -> tuple[str, ...]:
    values = ["-" if value is None else f"{value:.2f}" for value in (line.a, line.b)]
    said = line.verdict
    if said is None:
        return (line.title, *values, "-", *["-"] * believable, str(line.n or ""), "", line.reason)
    bracket = "" if said.low is None else f" [{said.low:+.2f}, {said.high:+.2f}]"
    least = ["-" if said.believable is None else f"{said.believable:.2f}"] * believable
    partial = f" ({line.reason})" if line.reason else ""
    return (
        line.title,
        *values,
        f"{said.difference:+.2f}{bracket}",
        *least,
        str(line.n or ""),
        p_text(said.p_adjusted),
        said.word + partial,
    )


def how(a: EncoderResult, b: EncoderResult, lines: list[ComparisonLine], noise: NoiseFile | None = None) -> list[str]:
    """Sentences that say what the lines' verdicts are made of, and what they do not cover."""
    judged = [line for line in lines if line.verdict]
    if not judged:
        return ["Nothing of the two can be compared."]
    columns = [line for line in judged if line.verdict and line.verdict.role == "column"]
    primary = next((line for line in judged if line.verdict and line.verdict.role == "primary"), None)
    noises = {line.verdict.noise for line in judged if line.verdict}
    joined = next((each for each in noises if each != "test pictures"), "")
    test = "Student's t over pictures and seeds" if joined else "the two models' answers exchanged by picture"
    said = [f"Paired by question; p: {test}."]
    corrected = f"The p of {len(columns)} column{'s' * (len(columns) > 1)} is corrected by Holm, and told apart at {verdicts.COLUMNS:g}"
    if primary:
        said.append(f"ALL AVG is the primary endpoint, told apart at p {verdicts.PRIMARY:g}.")
        said.append(f"{corrected} where ALL AVG is, else at {verdicts.COLUMNS_ALONE:g}.")
    else:
        said += ["There is no primary endpoint, for ALL AVG has a hole.", f"{corrected}."]
    if any(line.verdict and line.verdict.role == verdicts.EXPLORATORY for line in judged):
        said.append("Other averages are exploratory: p is not corrected, and no word is said.")
    if not joined:
        said.append(f"Intervals, for display: {stats.DRAWS} draws of pictures; none of fewer than {stats.FEWEST_PICTURES}.")
    said.append(f"Noise covered: {joined or 'test pictures'}{_seeds(a, b, bool(joined))}.")
    if noise and any(line.verdict and line.verdict.believable is not None for line in judged):
        said.append(f"Believable from: pictures and seeds, by the spread of {noise.seeds} seeds of {noise.encoder}.")
    if noise and a.members and b.members:
        said.append("Seeds are in the two rows already: --noise is not used.")
    return said


def _seeds(a: EncoderResult, b: EncoderResult, covered: bool) -> str:
    return "" if covered else f"; not training seeds ({seeds_in_words(a)} against {seeds_in_words(b)})"
