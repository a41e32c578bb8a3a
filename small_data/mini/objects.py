"""Things that stand in scenes and diagrams, skies, places and landmarks: each a fixed order of primitives, by which it is told apart."""

import math

from small_data.mini.scene import INK, Sketch

PAINTED = {"house", "car", "flower", "balloon", "boat"}  # things whose color varies and can be asked; trees are green
WOOD, LEAF, GLASS = (120, 78, 45), (30, 120, 55), (200, 228, 245)


def draw_object(s: Sketch, name: str, cx: float, base: float, r: float, fill) -> None:
    """An object about 2r wide standing on y = base."""
    s.begin()
    match name:
        case "house":
            s.rect(cx - r * 0.8, base - r * 1.1, cx + r * 0.8, base, fill)
            s.polygon(((cx - r, base - r * 1.1), (cx, base - r * 1.9), (cx + r, base - r * 1.1)), (92, 60, 52))
            s.rect(cx - r * 0.22, base - r * 0.6, cx + r * 0.22, base, WOOD)
        case "tree":
            s.rect(cx - r * 0.16, base - r * 0.9, cx + r * 0.16, base, WOOD)
            s.ellipse(cx, base - r * 1.3, r * 0.75, r * 0.72, LEAF)
        case "car":
            s.polygon(
                ((cx - r * 0.6, base - r * 0.6), (cx - r * 0.35, base - r), (cx + r * 0.35, base - r), (cx + r * 0.6, base - r * 0.6)),
                GLASS,
            )
            s.rect(cx - r, base - r * 0.65, cx + r, base - r * 0.2, fill)
            s.ellipse(cx - r * 0.55, base - r * 0.2, r * 0.22, r * 0.22, INK)
            s.ellipse(cx + r * 0.55, base - r * 0.2, r * 0.22, r * 0.22, INK)
        case "flower":
            s.line(((cx, base), (cx, base - r * 1.2)), LEAF, r * 0.14)
            for i in range(5):
                turn = 2 * math.pi * i / 5
                s.ellipse(cx + r * 0.42 * math.cos(turn), base - r * 1.4 + r * 0.42 * math.sin(turn), r * 0.3, r * 0.3, fill)
            s.ellipse(cx, base - r * 1.4, r * 0.22, r * 0.22, (250, 250, 250))
        case "balloon":
            s.line(((cx, base), (cx, base - r * 0.9)), INK, r * 0.08)
            s.ellipse(cx, base - r * 1.5, r * 0.6, r * 0.72, fill)
        case "boat":
            s.polygon(((cx - r, base - r * 0.5), (cx + r, base - r * 0.5), (cx + r * 0.6, base), (cx - r * 0.6, base)), fill)
            s.line(((cx, base - r * 0.5), (cx, base - r * 1.7)), WOOD, r * 0.1)
            s.polygon(((cx + r * 0.1, base - r * 1.7), (cx + r * 0.8, base - r * 0.65), (cx + r * 0.1, base - r * 0.65)), (250, 250, 250))


def draw_sky(s: Sketch, sky: str) -> None:
    w, h = s.size
    s.background({"sun": (150, 205, 245), "rain": (150, 155, 165), "moon": (28, 34, 80)}[sky])
    s.begin()
    x, y, r = s.rng.uniform(0.15, 0.85) * w, h * 0.14, 0.085 * s.unit
    if sky == "sun":
        s.ellipse(x, y, r, r, (255, 215, 60))
    elif sky == "moon":
        s.ellipse(x, y, r, r, (240, 240, 225))
        s.ellipse(x + r * 0.5, y - r * 0.2, r * 0.85, r * 0.85, s.marks[0].fill)
    else:
        for i in range(7):
            dx = (i + 0.6) * w / 7
            s.line(((dx, h * 0.05), (dx - w * 0.035, h * 0.25)), (60, 100, 200), max(1.2, s.unit * 0.014))


def draw_place(s: Sketch, place: str) -> float:
    """The ground of a place. Returns the y on which things stand."""
    w, h = s.size
    s.begin()
    line = h * 0.6
    if place == "beach":
        s.rect(0, line - h * 0.08, w, line + h * 0.1, (40, 120, 200))
        s.rect(0, line + h * 0.1, w, h, (236, 212, 150))
    elif place == "city":
        for i in range(5):
            s.rect(i * w / 5, line - h * (0.12 + 0.1 * s.rng.random()), (i + 0.85) * w / 5, line + h * 0.1, (112, 112, 122))
        s.rect(0, line + h * 0.1, w, h, (70, 70, 74))
    elif place == "forest":
        for i in range(6):
            x = (i + 0.5) * w / 6
            s.polygon(((x - w * 0.1, line + h * 0.1), (x, line - h * 0.2), (x + w * 0.1, line + h * 0.1)), (22, 82, 46))
        s.rect(0, line + h * 0.1, w, h, (120, 170, 80))
    else:
        for i, peak in enumerate((0.2, 0.28)):
            x = (0.3 + 0.45 * i) * w
            s.polygon(((x - w * 0.32, line + h * 0.1), (x, line - h * peak), (x + w * 0.32, line + h * 0.1)), (168, 182, 200))
        s.rect(0, line + h * 0.1, w, h, (246, 249, 252))
    return h * 0.9


def draw_landmark(s: Sketch, name: str, cx: float, base: float, r: float) -> None:
    s.begin()
    match name:
        case "tower":
            s.polygon(
                ((cx - r * 0.6, base), (cx - r * 0.1, base - r * 2.4), (cx + r * 0.1, base - r * 2.4), (cx + r * 0.6, base)), (110, 80, 70)
            )
            s.rect(cx - r * 0.5, base - r * 0.75, cx + r * 0.5, base - r * 0.6, (60, 45, 40))
            s.polygon(((cx - r * 0.25, base), (cx, base - r * 0.5), (cx + r * 0.25, base)), (225, 225, 230))
        case "pyramid":
            s.polygon(((cx - r * 1.3, base), (cx, base - r * 1.6), (cx + r * 1.3, base)), (215, 170, 80))
            s.polygon(((cx + r * 0.35, base), (cx, base - r * 1.6), (cx + r * 1.3, base)), (170, 125, 50))
        case "windmill":
            s.polygon(
                ((cx - r * 0.5, base), (cx - r * 0.3, base - r * 1.5), (cx + r * 0.3, base - r * 1.5), (cx + r * 0.5, base)),
                (230, 225, 215),
            )
            for turn in (0.4, 0.4 + math.pi / 2):
                dx, dy = r * 0.9 * math.cos(turn), r * 0.9 * math.sin(turn)
                s.line(((cx - dx, base - r * 1.5 - dy), (cx + dx, base - r * 1.5 + dy)), (90, 50, 40), r * 0.16)
        case "bridge":
            s.rect(cx - r * 1.5, base - r * 0.55, cx + r * 1.5, base - r * 0.35, (190, 60, 50))
            for side in (-1, 1):
                s.rect(cx + side * r * 0.8 - r * 0.1, base - r * 1.6, cx + side * r * 0.8 + r * 0.1, base, (190, 60, 50))
                s.line(((cx + side * r * 1.5, base - r * 0.55), (cx + side * r * 0.8, base - r * 1.6), (cx, base - r * 0.6)), INK, r * 0.07)
