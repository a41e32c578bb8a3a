"""A contact sheet of the mini world: one picture of each of the twelve families, with a question and its answer.

python -m small_data.mini.sheet docs/mini_world.png
"""

import sys
from pathlib import Path

from genlip.common.command import command, new_parser
from small_data.mini import fonts, question_styles
from small_data.mini.families import FAMILIES, compose, stream
from small_data.mini.knobs import DEFAULT
from small_data.mini.scene import INK, paint
from small_data.mini.stamp import apart

COLUMNS, CELL, WORDS_HEIGHT, MARGIN = 4, 260, 52, 16
SEED = "sheet"


def sheet():
    """The sheet as a picture: four columns, three rows."""
    from PIL import Image, ImageDraw

    rows = -(-len(FAMILIES) // COLUMNS)
    across, down = CELL + MARGIN, CELL + WORDS_HEIGHT + MARGIN
    image = Image.new("RGB", (COLUMNS * across + MARGIN, rows * down + MARGIN), "white")
    draw = ImageDraw.Draw(image)
    for i, family in enumerate(FAMILIES):
        x, y = MARGIN + i % COLUMNS * across, MARGIN + i // COLUMNS * down
        scene, rng = _large(family)
        (question,) = question_styles.pick(apart(scene)[0], rng, DEFAULT, 1)
        shown = paint(scene)
        shown.thumbnail((CELL, CELL))
        image.paste(shown, (x + (CELL - shown.width) // 2, y + CELL - shown.height))
        draw.text((x + CELL / 2, y + CELL + 12), _fitted(question.text), INK, fonts.font("sans", 15), anchor="mm")
        draw.text((x + CELL / 2, y + CELL + 34), question.answer, (20, 90, 180), fonts.font("sans", 17), anchor="mm")
    return image


def _fitted(text: str) -> str:
    """Cut at a word where it is too long for a cell; lines of choices are not shown."""
    words = text.split()
    while len(words) > 1 and fonts.width("sans", " ".join(words)) * 15 > CELL:
        words.pop()
    return " ".join(words) if len(words) == len(text.split()) else " ".join(words) + " ..."


def _large(family: str):
    """The first scene of a family that is large enough to be looked at."""
    for i in range(10_000):
        rng = stream(SEED, family, i)
        scene = compose(family, rng)
        if max(scene.size) >= CELL and min(scene.size) >= 0.5 * CELL:
            return scene, rng
    raise AssertionError(f"no large picture of {family}")


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m small_data.mini.sheet",
        description="Draw twelve pictures of the mini world with a question and its answer each.",
        epilog="example: python -m small_data.mini.sheet sheet.png",
    )
    parser.add_argument("file", type=Path, help="the PNG file to write")
    file = parser.parse_args(argv).file
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet().save(file, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
