"""How hard the mini world is: one knob per family, written into the manifest.

What separates encoders are shape-like facts (which shape, which word, which number, which place); colour-like facts are read even from an
untrained encoder. So shape-like facts carry most questions, and the knobs keep them within reach of a small encoder at 128 pixels.
"""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Knobs:
    jitter: int = 12  # colour noise per channel, of 255
    count: int = 5  # things to be counted, at most
    tilt: int = 14  # degrees that printed words lean, at most
    words: int = 20  # words in use, of vocabulary.WORDS
    digits: int = 2  # digits in a printed number
    letters: int = 2  # letters in a string without meaning
    operand: int = 5  # operands of sums, at most
    bars: int = 4  # bars, points or slices of a chart, at most (three at least)
    step: int = 10  # chart values are multiples of this, up to 90
    printed: float = 0.8  # share of bar and line charts with values printed beside the marks
    rows: int = 3  # items of a receipt, at most (two at least)
    chain: int = 4  # members of a food chain, at most (three at least)
    panels: int = 3  # panels of a poster, at most (two at least)
    easy_weight: float = 0.3  # how often an easy question (a color, the sky, day or night) is asked, against 1 for any other
    short_side: int = 96  # pixels: below this no side is drawn for dense pictures (documents, charts); plain ones go down to 64
    long_side: int = 512

    def as_dict(self) -> dict:
        return asdict(self)


DEFAULT = Knobs()
