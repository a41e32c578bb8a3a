"""Families `sign` (words and numbers, in the manners that OCRBench tells apart) and `formula` (sums, code, handwritten algebra)."""

from random import Random

from small_data.mini.knobs import Knobs
from small_data.mini.scene import INK, PAPER, Question, Scene, Sketch, contrast, fact, pick_size
from small_data.mini.vocabulary import BACKGROUNDS, COLOURS, FOREIGN, LETTERS, WORDS, article, without

KINDS = ("regular", "irregular", "artistic", "handwriting", "digits", "letters", "board", "bus", "shirt", "foreign")
DARK = ("red", "blue", "green", "purple", "black")  # colors that words are printed in on a light ground


def compose(rng: Random, knobs: Knobs, kind: str | None = None) -> Scene:
    kind = kind or rng.choices(KINDS, (10, 10, 10, 10, 14, 8, 14, 8, 8, 8))[0]
    aspect = {"bus": (1.2, 1.7), "shirt": (0.8, 1.1)}.get(kind, (1.3, 2.4))
    s = Sketch(rng, knobs, pick_size(rng, knobs, aspect, dense=False))
    if kind in ("board", "bus", "shirt"):
        return {"board": _board, "bus": _bus, "shirt": _shirt}[kind](s)
    return _plain(s, kind)


def _number(s: Sketch) -> str:
    return str(s.rng.randint(10 ** (s.knobs.digits - 1), 10**s.knobs.digits - 1))


def _other_numbers(number: str) -> tuple[str, ...]:
    """Numbers of as many digits, each with one digit changed."""
    flipped = ((int(number[0]) + k - 1) % 9 + 1 for k in (1, 3, 5))
    return (*(f"{first}{number[1:]}" for first in flipped), number[:-1] + str((int(number[-1]) + 5) % 10))


def _cased(s: Sketch, word: str) -> str:
    """As printed; answers are always lower case."""
    return s.rng.choice((word.upper(), word.upper(), word.capitalize(), word))


def _plain(s: Sketch, kind: str) -> Scene:
    """One word, number or string on a plain ground."""
    rng, (w, h) = s.rng, s.size
    ground = rng.choice(list(BACKGROUNDS))
    s.background(BACKGROUNDS[ground])
    colour = rng.choice(DARK)
    s.begin()
    text = {
        "digits": lambda: _number(s),
        "letters": lambda: "".join(rng.sample(LETTERS, s.knobs.letters)),
        "foreign": lambda: rng.choice(list(FOREIGN)),
    }.get(kind, lambda: rng.choice(WORDS[: s.knobs.words]))()
    shown = text if kind in ("digits", "letters") else _cased(s, text)
    style = {"artistic": "round", "handwriting": rng.choice(("hand", "caps"))}.get(kind) or rng.choice(("sans", "serif"))
    tilt = rng.choice((-1, 1)) * rng.uniform(0.4, 1) * s.knobs.tilt if kind == "irregular" else 0
    bend = rng.choice((-1, 1)) * rng.uniform(30, 70) if kind == "irregular" and rng.random() < 0.5 else 0
    fill = s.colour(colour)
    cx, cy = w * rng.uniform(0.47, 0.53), h * rng.uniform(0.44, 0.56)
    size = h * rng.uniform(0.42, 0.6) * (0.8 if kind == "irregular" else 1)
    if kind == "artistic":  # a shadow makes it display type; it is the same word, and belongs to the same thing
        off = max(1.5, 0.012 * w)
        s.text(cx + off, cy + off, shown, size, (170, 170, 175), style, fit=0.86 * w)
    s.text(cx, cy, shown, size, fill, style, fit=0.86 * w, angle=0 if bend else tilt, bend=bend)
    answer = text.lower()
    colours = fact("color", "What color is", f"the {'number' if kind == 'digits' else 'text'}", colour, DARK, told="the text")
    if kind == "digits":
        ask = fact("number", "What number is in the image?", "the number in the image", answer, _other_numbers(answer), told="the number")
        what, says = f"the number {answer}", (f"number {answer}", "a number")
    elif kind == "letters":
        others = tuple(a + b for a, b in zip(LETTERS.lower(), LETTERS.lower()[3:]) if a + b != answer)
        ask = Question(
            "letters", "What letters are in the image?", answer, others, "Are the letters in the image {}?", f"The letters are {answer}."
        )
        what, says = f"the letters {answer}", (f"letters {answer}", "some letters")
    else:
        pool = tuple(FOREIGN) if kind == "foreign" else WORDS[: s.knobs.words]
        ask = fact("word", "What is", "the word in the image", answer, pool, told="the word")
        what, says = f"the word {answer}", (f"text that reads {answer}", "a word")
    questions = [ask, colours]
    if kind == "foreign":
        meaning = FOREIGN[text]
        questions.append(
            Question(
                "translation",
                "What does the Spanish word mean in English?",
                meaning,
                without(FOREIGN.values(), meaning),
                "Does the word in the image mean {} in English?",
                f"The word {answer} means {meaning}.",
            )
        )
    manner = {"handwriting": "handwritten ", "artistic": "decorated ", "irregular": "slanted "}.get(kind, "")
    subjects = (f"{what} in {manner}{colour} letters", f"{manner}{colour} {says[0]}", what, f"{says[1]} in {colour}")
    return s.scene("sign", kind, questions, subjects, f"The background is {ground}.", f"The text is {colour}.")


def _word_question(word: str, s: Sketch, on: str) -> Question:
    return fact("word", f"What word is on the {on}?", f"the word on the {on}", word, WORDS[: s.knobs.words])


def _number_question(number: str, on: str) -> Question:
    return fact("number", f"What number is on the {on}?", f"the number on the {on}", number, _other_numbers(number))


def _color_question(colour: str, on: str) -> Question:
    return fact("color", "What color is", f"the {on}", colour, COLOURS)


def _board(s: Sketch) -> Scene:
    """A street sign: a word above a number."""
    rng, (w, h) = s.rng, s.size
    s.background((176, 212, 240))
    word, number, colour = rng.choice(WORDS[: s.knobs.words]), _number(s), rng.choice(list(COLOURS))
    fill = s.colour(colour)
    s.begin()
    s.rect(w * 0.47, h * 0.8, w * 0.53, h, (110, 110, 112))
    s.rect(w * 0.06, h * 0.06, w * 0.94, h * 0.88, fill)
    s.frame(w * 0.09, h * 0.1, w * 0.91, h * 0.84, contrast(fill), 0.02 * s.unit)
    s.text(w / 2, h * 0.32, _cased(s, word), h * 0.36, contrast(fill), rng.choice(("sans", "round")), fit=0.74 * w)
    s.text(w / 2, h * 0.65, number, h * 0.32, contrast(fill), "sans")
    questions = (_word_question(word, s, "sign"), _number_question(number, "sign"), _color_question(colour, "sign"))
    sign = article(f"{colour} sign")
    subjects = (
        f"{sign} with the word {word} and the number {number}",
        f"the word {word} and the number {number} on {sign}",
        f"{sign} that says {word}",
        f"a sign with the number {number}",
    )
    return s.scene("sign", "board", questions, subjects, f"The sign is {colour}.", "It stands on a gray post.")


def _bus(s: Sketch) -> Scene:
    rng, (w, h) = s.rng, s.size
    s.background((214, 222, 226))
    word, number, colour = rng.choice(WORDS[: s.knobs.words]), _number(s), rng.choice(list(COLOURS))
    fill = s.colour(colour)
    s.begin()
    s.rect(0, h * 0.84, w, h, (96, 96, 100))
    s.begin()
    s.rect(w * 0.05, h * 0.14, w * 0.95, h * 0.84, fill)
    s.rect(w * 0.1, h * 0.2, w * 0.62, h * 0.46, (30, 34, 40))
    s.rect(w * 0.66, h * 0.2, w * 0.91, h * 0.46, (245, 245, 235))
    for x in (0.25, 0.75):
        s.ellipse(w * x, h * 0.85, 0.1 * s.unit, 0.1 * s.unit, INK)
    s.text(w * 0.36, h * 0.33, _cased(s, word), h * 0.22, (255, 200, 60), "sans", fit=0.46 * w)
    s.text(w * 0.785, h * 0.33, number, h * 0.26, INK, "sans", fit=0.22 * w)
    questions = (_word_question(word, s, "bus"), _number_question(number, "bus"), _color_question(colour, "bus"))
    bus = article(f"{colour} bus")
    subjects = (
        f"{bus} with the word {word} and the number {number}",
        f"{bus} number {number} to {word}",
        f"bus number {number}",
        f"{bus} that says {word}",
    )
    return s.scene("sign", "bus", questions, subjects, f"The bus is {colour}.", "It stands on a gray road.")


def _shirt(s: Sketch) -> Scene:
    rng, (w, h) = s.rng, s.size
    s.background((235, 238, 228))
    number, colour = _number(s), rng.choice(list(COLOURS))
    fill = s.colour(colour)
    s.begin()
    s.polygon(
        (
            (w * 0.28, h * 0.1),
            (w * 0.42, h * 0.16),
            (w * 0.58, h * 0.16),
            (w * 0.72, h * 0.1),
            (w * 0.96, h * 0.34),
            (w * 0.8, h * 0.46),
            (w * 0.76, h * 0.42),
            (w * 0.76, h * 0.94),
            (w * 0.24, h * 0.94),
            (w * 0.24, h * 0.42),
            (w * 0.2, h * 0.46),
            (w * 0.04, h * 0.34),
        ),
        fill,
    )
    s.text(w / 2, h * 0.56, number, h * 0.42, contrast(fill), rng.choice(("sans", "round")), fit=0.44 * w)
    questions = (_number_question(number, "shirt"), _color_question(colour, "shirt"))
    shirt = article(f"{colour} shirt")
    subjects = (f"{shirt} with the number {number}", f"the number {number} on {shirt}", f"a shirt with the number {number}", shirt)
    return s.scene("sign", "shirt", questions, subjects, f"The shirt is {colour}.", f"The number is {number}.")


def compose_formula(rng: Random, knobs: Knobs, kind: str | None = None) -> Scene:
    kind = kind or rng.choices(("sum", "code", "latex"), (5, 3, 3))[0]
    s = Sketch(rng, knobs, pick_size(rng, knobs, (1.6, 2.4), dense=False))
    return {"sum": _sum, "code": _code, "latex": _latex}[kind](s)


def _operation(s: Sketch) -> tuple[int, str, int, int]:
    a, b = s.rng.randint(1, s.knobs.operand), s.rng.randint(1, s.knobs.operand)
    sign = "+" if a < b else s.rng.choice("+-")
    return a, sign, b, a + b if sign == "+" else a - b


def _results(s: Sketch, value: int) -> tuple[str, ...]:
    """Near misses: a far one would be known for wrong without the picture."""
    near = sorted(range(2 * s.knobs.operand + 1), key=lambda n: (abs(n - value), n))
    return tuple(map(str, near[1:5]))


def _sum(s: Sketch) -> Scene:
    s.background(s.rng.choice(((252, 252, 250), (40, 78, 60))))
    a, sign, b, value = _operation(s)
    w, h = s.size
    s.begin()
    s.text(w / 2, h / 2, f"{a} {sign} {b} = ?", h * 0.5, contrast(s.marks[0].fill), s.rng.choice(("sans", "serif", "hand")), fit=0.88 * w)
    questions = (
        fact("sum", "What is", "the answer to the sum in the image", str(value), _results(s, value), told=f"{a} {sign} {b}"),
        fact("operand", "What is", "the first number in the sum", str(a), _results(s, a), told="the first number"),
    )
    words = f"{a} {'plus' if sign == '+' else 'minus'} {b}"
    subjects = (f"the sum {words}", f"a sum that asks for {words}", f"{words} is {value}", "a sum with two numbers")
    return s.scene("formula", "sum", questions, subjects, f"The answer is {value}.")


def _code(s: Sketch) -> Scene:
    s.background((24, 30, 38))
    a, sign, b, value = _operation(s)
    w, h = s.size
    s.begin()
    if s.rng.random() < 0.5:
        s.text_left(w * 0.07, h / 2, f"print({a} {sign} {b})", h * 0.34, (150, 230, 150), "sans", fit=0.86 * w)
    else:
        s.text_left(w * 0.07, h * 0.32, f"x = {a}", h * 0.3, (150, 200, 250), "sans")
        s.text_left(w * 0.07, h * 0.68, f"print(x {sign} {b})", h * 0.3, (150, 230, 150), "sans", fit=0.86 * w)
    questions = (
        Question(
            "code", "What does the code print?", str(value), _results(s, value), "Does the code print {}?", f"The code prints {value}."
        ),
        fact("operand", "What is", "the first number in the code", str(a), _results(s, a), told="the first number"),
    )
    words = f"{a} {'plus' if sign == '+' else 'minus'} {b}"
    subjects = (f"code that prints {words}", f"a line of code with {words}", f"code that prints {value}", "a piece of code")
    return s.scene("formula", "code", questions, subjects, f"The code prints {value}.")


def _latex(s: Sketch) -> Scene:
    """A handwritten equation, a x + b = c, to be written out as LaTeX."""
    s.background(PAPER)
    rng, (w, h) = s.rng, s.size
    a, b, c = (rng.randint(2, s.knobs.operand + 1) for _ in range(3))
    sign = rng.choice("+-")
    s.begin()
    s.text(w / 2, h / 2, f"{a} x {sign} {b} = {c}", h * 0.46, rng.choice((INK, (30, 50, 140))), "hand", fit=0.9 * w)
    expression = f"{a} x {sign} {b} = {c}"
    others = (f"{a} x {'-' if sign == '+' else '+'} {b} = {c}", f"{b} x {sign} {a} = {c + 1}", f"{a} x {sign} {b + 1} = {c}")
    questions = (
        fact(
            "latex",
            "Please write out the expression of the formula in the image using LaTeX format.",
            "the formula in the image",
            expression,
            others,
            told="the formula",
        ),
        fact("operand", "What number is before x?", "the number before x", str(a), _results(s, a)),
    )
    words = f"{a} x {'plus' if sign == '+' else 'minus'} {b} equals {c}"
    subjects = (f"the formula {words}", f"a handwritten formula, {words}", f"{words}", "a handwritten formula")
    return s.scene("formula", "latex", questions, subjects, f"The number before x is {a}.")
