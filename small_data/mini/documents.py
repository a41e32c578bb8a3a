"""Family `document`: receipts, forms and letters."""

from random import Random

from small_data.mini.knobs import Knobs
from small_data.mini.scene import INK, Question, Scene, Sketch, fact, pick_size
from small_data.mini.vocabulary import CITIES, ITEMS, MONTHS, PEOPLE, SHOPS, without

RULE = (150, 150, 152)


def compose(rng: Random, knobs: Knobs, kind: str | None = None) -> Scene:
    kind = kind or rng.choice(("receipt", "form", "letter"))
    s = Sketch(rng, knobs, pick_size(rng, knobs, (0.75, 1.0)))
    s.background(rng.choice(((252, 252, 250), (248, 244, 230), (240, 245, 250))))
    return {"receipt": _receipt, "form": _form, "letter": _letter}[kind](s)


def _receipt(s: Sketch) -> Scene:
    rng, (w, h) = s.rng, s.size
    shop = rng.choice(SHOPS)
    n = rng.randint(2, s.knobs.rows)
    items = rng.sample(ITEMS, n)
    prices = [rng.randint(1, 9) for _ in items]
    total = sum(prices)
    style = rng.choice(("sans", "serif"))
    s.text(w / 2, h * 0.11, shop.upper(), h * 0.15, font=style, fit=0.9 * w)
    s.line(((w * 0.06, h * 0.21), (w * 0.94, h * 0.21)), RULE, max(1, 0.008 * s.unit))
    pitch = 0.56 / n
    for i, (item, price) in enumerate(zip(items, prices)):
        s.begin()
        y = h * (0.23 + pitch * (i + 0.5))
        s.text_left(w * 0.07, y, item, h * 0.12, font=style, fit=0.58 * w)
        s.text(w * 0.86, y, str(price), h * 0.12, font=style)
    s.line(((w * 0.06, h * 0.81), (w * 0.94, h * 0.81)), RULE, max(1, 0.008 * s.unit))
    s.begin()
    s.text_left(w * 0.07, h * 0.9, "TOTAL", h * 0.12, font=style, fit=0.56 * w)
    s.text(w * 0.84, h * 0.9, str(total), h * 0.13, font=style)
    digits = tuple(map(str, range(1, 10)))
    questions = [
        fact("shop", "What is", "the name of the shop", shop, SHOPS, told="the shop"),
        fact("total", "What is", "the total", str(total), map(str, range(max(2, total - 3), total + 4))),
        fact("count", "How many items are on the receipt?", "the number of items", str(n), "1234"),
    ]
    for item, price in zip(items, prices):
        questions.append(fact("price", "What is", f"the price of {item}", str(price), digits))
    for i, word in ((0, "first"), (n - 1, "last")):
        questions.append(fact("item", "What is", f"the {word} item on the receipt", items[i], ITEMS, told=f"the {word} item"))
    bought = ", ".join(f"{i} {p}" for i, p in zip(items, prices))
    subjects = (
        f"a receipt from {shop}: {bought}, total {total}",
        f"a {shop} receipt with a total of {total} for {', '.join(items)}",
        f"a receipt from {shop} with a total of {total}",
        f"a receipt for {items[0]} and {items[1]}",
    )
    return s.scene("document", "receipt", questions, subjects, f"There are {n} items.", f"The total is {total}.")


def _form(s: Sketch) -> Scene:
    rng, (w, h) = s.rng, s.size
    name, city, age, month = rng.choice(PEOPLE), rng.choice(CITIES), rng.randint(10, 99), rng.choice(MONTHS)
    fields = [("name", name), ("city", city), ("age", str(age)), ("month", month)]
    rng.shuffle(fields)
    fields = fields[:3]
    style = rng.choice(("hand", "sans"))  # filled in by hand or by machine
    s.rect(0, 0, w, h * 0.19, s.noisy((70, 90, 120)))
    s.text(w / 2, h * 0.1, "FORM", h * 0.15, (252, 252, 250))
    for i, (label, value) in enumerate(fields):
        s.begin()
        y = h * (0.24 + 0.25 * i)
        s.text_left(w * 0.06, y + h * 0.11, label, h * 0.1, (60, 80, 110), fit=0.34 * w)
        s.frame(w * 0.42, y, w * 0.95, y + h * 0.22, RULE, max(1, 0.01 * s.unit))
        s.text(w * 0.685, y + h * 0.11, value.capitalize() if style == "sans" else value, h * 0.14, (25, 35, 120), style, fit=0.48 * w)
    pools = {"name": PEOPLE, "city": CITIES, "month": MONTHS, "age": map(str, range(max(10, age - 3), min(99, age + 3) + 1))}
    questions = [fact("field", "What is", f"the {label} on the form", value, pools[label], told=f"the {label}") for label, value in fields]
    questions.append(
        Question("kind", "What kind of document is this?", "form", ("letter", "receipt"), "Is this document a {}?", "This is a form.")
    )
    told = ", ".join(f"{a} {b}" for a, b in fields)
    subjects = (
        f"a form with {told}",
        f"a filled form: {told}",
        f"a form with the {fields[0][0]} {fields[0][1]}",
        f"a form with the {fields[1][0]} {fields[1][1]}",
    )
    return s.scene("document", "form", questions, subjects, "It has three fields.", "This is a form.")


def _letter(s: Sketch) -> Scene:
    rng, (w, h) = s.rng, s.size
    to, sender = rng.sample(PEOPLE, 2)
    month, day = rng.choice(MONTHS), rng.randint(1, 28)
    gift = rng.choice(ITEMS)
    style = rng.choice(("hand", "serif"))
    for y, left, text in (
        (0.1, None, f"{month} {day}"),
        (0.3, 0.07, f"Dear {to},"),
        (0.5, 0.07, "thanks for the"),
        (0.67, 0.07, f"{gift}."),
        (0.88, 0.3, f"From {sender}"),
    ):
        s.begin()
        if left is None:
            s.text(w * 0.74, h * y, text, h * 0.11, INK, style, fit=0.46 * w)
        else:
            s.text_left(w * left, h * y, text, h * 0.14, INK, style, fit=(0.93 - left) * w)
    questions = [
        fact("to", "To whom is", "the letter", to, without(PEOPLE, sender), link="to"),
        fact("from", "Who wrote", "the letter", sender, without(PEOPLE, to), link="from"),
        Question(
            "month",
            "In which month was the letter written?",
            month,
            without(MONTHS, month),
            "Is the letter from the month {}?",
            f"It was written in {month}.",
        ),
        Question(
            "day",
            "On which day of the month was the letter written?",
            str(day),
            tuple(str(d) for d in range(day - 3, day + 4) if 1 <= d <= 28 and d != day),
            "Is the day on the letter {}?",
            f"It was written on day {day}.",
        ),
        fact("gift", "What is the writer thankful for?", "the writer", gift, ITEMS, link="thankful for"),
        Question("kind", "What kind of document is this?", "letter", ("form", "receipt"), "Is this document a {}?", "This is a letter."),
    ]
    subjects = (
        f"a letter to {to} from {sender}, thanks for the {gift}, {month} {day}",
        f"a letter of {month} {day} in which {sender} thanks {to} for the {gift}",
        f"a letter from {sender} to {to}",
        f"a letter to {to} about {gift}",
    )
    return s.scene("document", "letter", questions, subjects, f"The date is {month} {day}.", "This is a letter.")
