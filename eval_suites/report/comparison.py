"""One pair of rows as a section of text: values, paired difference with its interval, verdict, and what else differs."""

from eval_suites.report.formatting import markdown_text
from eval_suites.score import stats
from eval_suites.score.comparison import compare, differences, recorded
from eval_suites.score.results import EncoderResult
from eval_suites.suites import Suite


def section(suite: Suite, a: EncoderResult, b: EncoderResult) -> str:
    """The section of one pair: values, paired difference with its interval, verdict, and what else differs."""
    lines = []
    for line in compare(suite, a, b):
        values = ["-" if value is None else f"{value:.2f}" for value in (line.a, line.b)]
        verdict = line.verdict
        told = (
            ("-", line.reason)
            if verdict is None
            else (f"{verdict.difference:+.2f} [{verdict.low:+.2f}, {verdict.high:+.2f}]", verdict.word)
        )
        few = f" ({verdict.pictures} pictures: too few to tell)" if verdict and verdict.pictures < stats.FEWEST_PICTURES else ""
        partial = f" ({line.reason})" if verdict and line.reason else ""
        lines.append((line.title, *values, told[0], str(line.n or ""), f"{told[1]}{few}{partial}"))
    head = ("benchmark", a.label, b.label, "difference [95 %]", "n", f"{a.label} is")
    others = differences(a, b)
    text = f"\n## {a.label} ({a.digest[:8]}) against {b.label} ({b.digest[:8]})\n\n"
    text += f"Paired by question, {stats.DRAWS} draws of pictures.\n\n{markdown_text(head, lines)}\n"
    text += "Besides the encoder, these differ:\n" + "".join(f"- {other}\n" for other in others) if others else ""
    aside = recorded(a, b)
    return text + (f"\nRecorded, and no other model by itself: {'; '.join(aside)}.\n" if aside else "")
