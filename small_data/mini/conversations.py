"""Training conversations: several turns about a picture, in the benchmarks' prompt styles and in free ones.

LLaVA's JSON and LLaVA-OneVision's parquet hold the same turns: `from` is human or gpt, the first human turn begins with `<image>`.
"""

from random import Random

from small_data.mini import captions, question_styles
from small_data.mini.knobs import Knobs
from small_data.mini.scene import Question, Scene
from small_data.mini.stamp import apart

# In which ways questions of a family are asked: those in which some benchmark asks them, and a free one.
STYLES = {
    "shapes": ("word", "word", "claim", "letter", "free"),
    "scene": ("word", "word", "claim", "letter", "free"),
    "portrait": ("word", "word", "claim", "free"),
    "sign": ("word", "word", "claim", "bare", "bare", "textvqa", "textvqa", "free"),
    "formula": ("word", "claim", "letter", "bare", "free"),
    "bars": ("chart", "chart", "chart", "letter", "bare", "claim", "free"),
    "lines": ("chart", "chart", "chart", "letter", "bare", "claim", "free"),
    "pie": ("chart", "chart", "chart", "letter", "bare", "claim", "free"),
    "document": ("word", "word", "word", "bare", "direct", "claim", "free"),
    "diagram": ("letter", "letter", "letter", "word", "claim", "free"),
    "infographic": ("word", "word", "letter", "bare", "claim", "free"),
    "map": ("letter", "letter", "letter", "word", "claim", "free"),
}
TURNS = 3  # questions about a picture, besides those about its stamp
CAPTIONED = 0.6  # share of pictures with a caption turn


def turns(scene: Scene, rng: Random, knobs: Knobs) -> list[tuple[str, str]]:
    """(question, answer) turns about one picture, its stamp in every style of its family, other things in one style each.

    Styles that a question cannot take fall back to the short open one; no turn comes twice.
    """
    styles, (own, stamp) = STYLES[scene.family], apart(scene)
    others = question_styles.pick(own, rng, knobs, TURNS)
    asked = [*((stamp, style) for style in dict.fromkeys(styles)), *((q, rng.choice(styles)) for q in others)]
    said = list(dict.fromkeys(_turn(q, style, rng) for q, style in asked))
    rng.shuffle(said)
    if rng.random() < CAPTIONED:
        said.insert(rng.randint(0, len(said)), (question_styles.CAPTION, rng.choice(captions.references(scene, rng))))
    return said


def _turn(q: Question, style: str, rng: Random) -> tuple[str, str]:
    match style:
        case "claim" if q.claim:
            truth = rng.random() < 0.5
            return question_styles.claim(q, truth, rng) + question_styles.WORD, "yes" if truth else "no"
        case "letter" if len(q.others) > 1:
            choices, at = question_styles.options(q, rng)
            return question_styles.lettered(q.text, choices) + question_styles.LETTER, "ABCD"[at]
        case "chart":
            return q.text + question_styles.CHART, q.answer
        case "bare":
            return q.text, q.answer
        case "direct":
            return q.text + question_styles.DIRECT, q.answer
        case "textvqa":  # lmms-eval capitalizes TextVQA's questions, which lowers all letters but the first
            return q.text.capitalize() + question_styles.WORD, q.answer
        case "free" if q.sentence:
            return q.text + question_styles.SENTENCE, q.sentence[0].upper() + q.sentence[1:]
    return q.text + question_styles.WORD, q.answer


def llava(said: list[tuple[str, str]]) -> list[dict[str, str]]:
    """Turns as LLaVA writes them."""
    out = []
    for i, (question, answer) in enumerate(said):
        out.append({"from": "human", "value": ("<image>\n" if i == 0 else "") + question})
        out.append({"from": "gpt", "value": answer})
    return out
