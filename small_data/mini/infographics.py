"""Family `infographic`: posters that mix a title, numbers and pictures, and web pages."""

from random import Random

from small_data.mini.knobs import Knobs
from small_data.mini.scene import INK, PAPER, Question, Scene, Sketch, contrast, extreme, fact, pick_size
from small_data.mini.shapes import draw_shape
from small_data.mini.vocabulary import BUTTONS, COLOURS, ITEMS, NUMBERS, SHAPES, SHOPS, TOPICS, article, without


def compose(rng: Random, knobs: Knobs, kind: str | None = None) -> Scene:
    kind = kind or rng.choices(("poster", "page"), (65, 35))[0]
    s = Sketch(rng, knobs, pick_size(rng, knobs, (0.7, 0.95) if kind == "poster" else (1.0, 1.4)))
    return _poster(s) if kind == "poster" else _page(s)


def _poster(s: Sketch) -> Scene:
    """A title above panels, each with a percentage, a word, a colour and a shape."""
    rng, (w, h) = s.rng, s.size
    s.background((250, 248, 240))
    topic = rng.choice(list(TOPICS))
    n = rng.randint(2, s.knobs.panels)
    labels, colours, shapes = rng.sample(TOPICS[topic], n), rng.sample(list(COLOURS), n), rng.sample(SHAPES, n)
    values = rng.sample(range(10, 100, s.knobs.step), n)
    s.text(w / 2, h * 0.09, topic.upper(), h * 0.14, font=rng.choice(("sans", "round")), fit=0.92 * w)
    pitch = 0.8 / n
    for i, (label, colour, shape, value) in enumerate(zip(labels, colours, shapes, values)):
        y0, y1 = h * (0.185 + pitch * i), h * (0.175 + pitch * (i + 1))
        cy, fill = (y0 + y1) / 2, s.colour(colour)
        s.begin()
        s.rect(w * 0.04, y0, w * 0.96, y1, fill)
        ink = contrast(fill)
        s.text(w * 0.62, cy - (y1 - y0) * 0.24, f"{value}%", min(0.15 * h, (y1 - y0) * 0.5), ink, "round", fit=0.6 * w)
        s.text(w * 0.62, cy + (y1 - y0) * 0.24, label, min(0.13 * h, (y1 - y0) * 0.46), ink, "sans", fit=0.6 * w)
        draw_shape(s, shape, w * 0.19, cy, min(0.12 * w, (y1 - y0) * 0.36), ink)
    high = labels[values.index(max(values))]
    low = labels[values.index(min(values))]
    scale = tuple(map(str, range(10, 100, s.knobs.step)))
    questions = [
        fact("topic", "What is the poster about?", "this poster", topic, TOPICS, told="the poster", link="about"),
        extreme("Which", "highest percentage", high, labels),
        extreme("Which", "lowest percentage", low, labels),
        fact("count", "How many panels are there?", "the number of panels", str(n), "1234"),
    ]
    for label, colour, shape, value in zip(labels, colours, shapes, values):
        questions += [
            Question(
                "percent",
                f"What percentage like {label}?",
                f"{value}%",
                tuple(f"{v}%" for v in without(scale, str(value))),
                f"Do {{}} like {label}?",
                f"{value}% like {label}.",
            ),
            fact("panel color", "What color is", f"the panel of {label}", colour, COLOURS),
            Question(
                "panel shape",
                f"What shape is beside {label}?",
                shape,
                without(SHAPES, shape),
                f"Is there a {{}} beside {label}?",
                f"Beside {label} is a {shape}.",
            ),
        ]
    told = ", ".join(f"{label} {value}%" for label, value in zip(labels, values))
    full = ", ".join(f"{colour} {label} {value}% with a {shape}" for label, colour, shape, value in zip(labels, colours, shapes, values))
    subjects = (
        f"a poster about {topic}: {full}",
        f"an infographic about {topic} with {told}",
        f"a poster about {topic} in which {high} is highest",
        f"{NUMBERS[n]} panels about {topic}",
    )
    return s.scene("infographic", "poster", questions, subjects, f"{high} has the highest percentage.", f"There are {NUMBERS[n]} panels.")


def _page(s: Sketch) -> Scene:
    """A web page: a site's name in a bar, an item with its price, a button."""
    rng, (w, h) = s.rng, s.size
    s.background((248, 249, 251))
    site, item, price, button = rng.choice(SHOPS), rng.choice(ITEMS), rng.randint(1, 9), rng.choice(BUTTONS)
    bar, key = rng.sample(("red", "blue", "green", "purple", "black", "orange"), 2)
    fill = s.colour(bar)
    s.begin()
    s.rect(0, 0, w, h * 0.24, fill)
    s.text(w / 2, h * 0.125, site, h * 0.18, contrast(fill), "sans", fit=0.8 * w)
    s.begin()
    s.text_left(w * 0.07, h * 0.47, item, h * 0.2, INK, "sans", fit=0.5 * w)
    s.text(w * 0.8, h * 0.47, f"${price}", h * 0.2, INK, "sans", fit=0.3 * w)
    fill = s.colour(key)
    s.begin()
    s.rect(w * 0.2, h * 0.66, w * 0.8, h * 0.93, fill)
    s.text(w / 2, h * 0.795, button.upper(), h * 0.18, contrast(fill) if key != "orange" else PAPER, "sans", fit=0.5 * w)
    digits = tuple(f"${d}" for d in range(1, 10))
    questions = (
        fact("site", "What is", "the name of the website", site, SHOPS, told="the website"),
        Question("item", "What is sold on the page?", item, without(ITEMS, item), "Is {} sold on the page?", f"The page sells {item}."),
        fact("price", "What is", "the price on the page", f"${price}", digits, told="the price"),
        Question(
            "button", "What does the button say?", button, without(BUTTONS, button), "Does the button say {}?", f"The button says {button}."
        ),
        fact("button color", "What color is", "the button", key, COLOURS),
        fact("bar color", "What color is", "the bar at the top", bar, COLOURS, told="the bar"),
    )
    subjects = (
        f"a web page of {site} with {article(bar)} bar that sells {item} for ${price}, and {article(key)} button that says {button}",
        f"the {site} website: {item} for ${price}, {article(key)} {button} button",
        f"a page that sells {item} for ${price}",
        f"a website with {article(f'{key} {button}')} button",
    )
    return s.scene("infographic", "page", questions, subjects, f"The bar at the top is {bar}.", f"The button is {key}.")
