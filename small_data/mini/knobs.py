"""How hard the mini world is: one knob per family, written into the manifest.

What separates encoders are shape-like facts (which shape, which word, which number, which place); colour-like facts are read even from an
untrained encoder. Text is out of reach of an encoder that was trained for minutes, so a shape-like fact within its reach, the stamp
(stamp.py), stands beside every picture and carries most questions.
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
    stamps: int = 4  # shapes that a stamp may show, of vocabulary.SHAPES
    stamp_share: float = 0.8  # how often the first question about a picture is about its stamp
    strip: float = 0.6  # depth of the stamp's strip, of the picture's side
    turn: int = 25  # degrees that a stamp is turned, at most
    easy_weight: float = 0.3  # how often an easy question (a color, the sky, day or night) is asked, against 1 for any other
    short_side: int = 96  # pixels: below this no side is drawn for dense pictures (documents, charts); plain ones go down to 64
    long_side: int = 320  # without the stamp's strip, 512 with it

    def as_dict(self) -> dict:
        return asdict(self)


DEFAULT = Knobs()
