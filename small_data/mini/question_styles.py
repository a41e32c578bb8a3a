"""How one fact is asked: openly, among lettered choices, or as a claim. Used by the benchmarks and, alike, by the training conversations.

The suffixes are those that lmms-eval 0.7.3 puts after a question of each benchmark (a part of every score); the tests hold them equal.
"""

from random import Random

from small_data.mini.knobs import Knobs
from small_data.mini.scene import Question, Scene

WORD = "\nAnswer the question using a single word or phrase."  # VQAv2, GQA, MME, DocVQA, InfoVQA, TextVQA
CHART = "\nAnswer the question with a single word."  # ChartQA
LETTER = "\nAnswer with the option's letter from the given choices directly."  # AI2D, ScienceQA, SEED-Bench-2-Plus
CAPTION = "Provide a one-sentence caption for the provided image."  # NoCaps, COCO, TextCaps
DIRECT = " Answer this question using the text in the image directly."  # OCRBench, key information extraction
SENTENCE = "\nAnswer the question with a full sentence."  # no benchmark's: free talk
MME = " Please answer yes or no."  # in MME's own questions; lmms-eval replaces it by WORD


def pick(
    scene: Scene, rng: Random, knobs: Knobs, n: int, kinds: tuple[str, ...] = (), claims: bool = False, choices: int = 0
) -> list[Question]:
    """n different questions of a scene (fewer where it has fewer), easy ones more rarely.

    `kinds` limits them to some kinds, `claims` to those that can be put as a claim, `choices` to those with that many choices.
    """
    left = [
        q
        for q in scene.questions
        if (not kinds or q.kind in kinds) and (q.claim or not claims) and (not choices or len(q.others) + 1 >= choices)
    ]
    chosen: list[Question] = []
    while left and len(chosen) < n:
        q = rng.choices(left, _weights(left, knobs))[0]
        left.remove(q)
        chosen.append(q)
    return chosen


def _weights(questions: list[Question], knobs: Knobs) -> list[float]:
    """How often each is asked: the stamp in `knobs.stamp_share` of all cases, an easy one at `knobs.easy_weight` of any other."""
    weights = [0 if q.kind == "stamp" else knobs.easy_weight if _easy(q) else 1 for q in questions]
    others = sum(weights) or 1
    return [others * knobs.stamp_share / (1 - knobs.stamp_share) if q.kind == "stamp" else w for q, w in zip(questions, weights)]


def _easy(q: Question) -> bool:
    """Read even from an untrained encoder, or guessed well without the picture: such questions do not tell encoders apart."""
    return "color" in q.kind or q.kind in ("sky", "sense", "day")


def claim(q: Question, truth: bool, rng: Random) -> str:
    """A yes/no question that the picture answers with `truth`."""
    return _sentence(q.claim.format(q.answer if truth else rng.choice(q.others)))


def options(q: Question, rng: Random, n: int = 4) -> tuple[list[str], int]:
    """n choices in alphabetical order (fewer where fewer exist), only one of them true, and its index."""
    choices = sorted([q.answer, *rng.sample(q.others, min(n - 1, len(q.others)))])
    return choices, choices.index(q.answer)


def lettered(text: str, choices: list[str]) -> str:
    """The question above its choices, one a line, as AI2D, ScienceQA and SEED-Bench-2-Plus print them."""
    return "\n".join([text, *(f"{letter}. {choice}" for letter, choice in zip("ABCD", choices))])


def people(q: Question, rng: Random, wrong_at_most: int = 3) -> list[str]:
    """Ten people's answers: up to three differ, as in VQAv2 and TextVQA. At least four agree, so that the score can be 1."""
    wrong = rng.randint(0, wrong_at_most) if q.others else 0
    answers = [q.answer] * (10 - wrong) + [rng.choice(q.others) for _ in range(wrong)]
    rng.shuffle(answers)
    return answers


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
