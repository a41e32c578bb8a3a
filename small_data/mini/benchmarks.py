"""The fourteen benchmarks: which scenes each shows, what it asks of them, and its rows in the hub's columns.

A picture is asked one to three things, as in the real sets, so that standard errors clustered by picture mean something.
Every set is made from its own seeds, (seed, "eval", set, picture): no training scene is ever drawn from them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from small_data.mini import captions, question_styles
from small_data.mini.families import compose, stream
from small_data.mini.knobs import Knobs
from small_data.mini.picture import encode
from small_data.mini.scene import Question, Scene

Row = dict
CAPTION_COLUMN = "Please carefully observe the image and come up with a caption for the image"  # on the hub; no prompt is made of it
PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
# category -> the scenes that show it (family, sub-kind) and the kinds of question that ask for it
MME = {
    "existence": ((("scene", "count"), ("scene", "place")), ("stamp",)),
    "count": ((("shapes", "crowd"), ("scene", "count")), ("count",)),
    "position": ((("shapes", "one"), ("shapes", "corners")), ("position",)),
    "color": ((("shapes", "pair"), ("shapes", "one")), ("color",)),
    "posters": ((("infographic", "poster"),), ("stamp",)),
    "celebrity": ((("portrait", None),), ("who",)),
    "scene": ((("scene", "place"),), ("scene",)),
    "landmark": ((("scene", "landmark"),), ("landmark",)),
    "artwork": ((("scene", "art"),), ("artwork", "stamp")),
    "OCR": ((("sign", "regular"), ("sign", "board")), ("word",)),
    "commonsense_reasoning": ((("scene", "place"), ("scene", "street")), ("sense",)),
    "numerical_calculation": ((("formula", "sum"),), ("sum",)),
    "text_translation": ((("sign", "foreign"),), ("translation",)),
    "code_reasoning": ((("formula", "code"),), ("code",)),
}
# type -> scenes, kinds of question, and the name of the source that OCRBench has for it (HME100k is compared without spaces)
OCRBENCH = {
    "Regular Text Recognition": ((("sign", "regular"),), ("word",), "mini-regular"),
    "Irregular Text Recognition": ((("sign", "irregular"),), ("word",), "mini-irregular"),
    "Artistic Text Recognition": ((("sign", "artistic"),), ("word",), "mini-artistic"),
    "Handwriting Recognition": ((("sign", "handwriting"),), ("word",), "mini-handwriting"),
    "Digit String Recognition": ((("sign", "digits"),), ("number",), "mini-digits"),
    "Non-Semantic Text Recognition": ((("sign", "letters"),), ("letters",), "mini-letters"),
    "Scene Text-centric VQA": ((("sign", "board"), ("sign", "bus"), ("sign", "shirt")), ("word", "number", "stamp"), "mini-scene-text"),
    "Doc-oriented VQA": (
        (("document", "letter"), ("infographic", "page"), ("bars", None)),
        ("to", "from", "gift", "site", "button", "extreme", "title", "stamp"),
        "mini-doc",
    ),
    "Key Information Extraction": (
        (("document", "receipt"), ("document", "form")),
        ("shop", "total", "price", "item", "field", "stamp"),
        "mini-kie",
    ),
    "Handwritten Mathematical Expression Recognition": ((("formula", "latex"),), ("latex",), "HME100k"),
}


@dataclass(frozen=True)
class Set:
    """One benchmark set. `rows(picture number, seed, knobs)` makes the rows of one picture; `split` is the packaged task's."""

    split: str
    rows: Callable[[int, int, Knobs], list[Row]]


def _turn(shown, i: int) -> tuple:
    """The one of `shown` whose turn it is."""
    return (shown[i % len(shown)],)


def _scene(name: str, i: int, seed: int, knobs: Knobs, shown) -> tuple[Random, Scene]:
    """The i-th picture of a set: the scenes it may show take turns."""
    rng = stream(seed, "eval", name, i)
    family, kind = shown[i % len(shown)]
    return rng, compose(family, rng, knobs, kind)


def _chartqa(i: int, seed: int, knobs: Knobs) -> list[Row]:
    human = i % 2 == 0
    _, scene = _scene("chartqa", i // 2, seed, knobs, (("bars", None), ("bars", None), ("lines", None), ("pie", None)))
    kinds = (
        ("bar color", "extreme color", "difference", "count", "compare", "trend", "line color", "stamp")
        if human
        else ("value", "extreme", "title")  # the same picture's second question
    )
    picked = question_styles.pick(scene, stream(seed, "eval", "chartqa ask", i), knobs, 1, kinds)
    return [
        {"type": "human_test" if human else "augmented_test", "question": q.text, "answer": q.answer, "image": encode(scene)}
        for q in picked
    ]


def _ocrbench(i: int, seed: int, knobs: Knobs) -> list[Row]:
    kind = list(OCRBENCH)[i % len(OCRBENCH)]
    shown, kinds, source = OCRBENCH[kind]
    rng, scene = _scene("ocrbench", i, seed, knobs, _turn(shown, i // len(OCRBENCH)))
    (q,) = question_styles.pick(scene, rng, knobs, 1, kinds)
    text = q.text + (question_styles.DIRECT if kind == "Key Information Extraction" else "")
    return [{"dataset": source, "question": text, "question_type": kind, "answer": [q.answer], "image": encode(scene)}]


def _docvqa(i: int, seed: int, knobs: Knobs) -> list[Row]:
    rng, scene = _scene("docvqa_val", i, seed, knobs, (("document", "receipt"), ("document", "form"), ("document", "letter")))
    image = encode(scene)
    return [
        {
            "questionId": f"{i}{k}",
            "question": q.text,
            "question_types": [scene.kind],
            "image": image,
            "docId": i,
            "ucsf_document_id": f"mini{i:05d}",
            "ucsf_document_page_no": "1",
            "answers": [q.answer],
            "data_split": "val",
        }
        for k, q in enumerate(question_styles.pick(scene, rng, knobs, 2))
    ]


def _infovqa(i: int, seed: int, knobs: Knobs) -> list[Row]:
    rng, scene = _scene("infovqa_val", i, seed, knobs, (("infographic", "poster"), ("infographic", "poster"), ("infographic", "page")))
    image = encode(scene)
    return [
        {
            "questionId": f"{i}{k}",
            "question": q.text,
            "answers": [q.answer],
            "answer_type": ["single span"],
            "image": image,
            "operation/reasoning": ["counting"] if q.kind == "count" else [],
            "ocr": "",
            "data_split": "val",
        }
        for k, q in enumerate(question_styles.pick(scene, rng, knobs, 2))
    ]


def _textvqa(i: int, seed: int, knobs: Knobs) -> list[Row]:
    rng, scene = _scene("textvqa_val", i, seed, knobs, (("sign", "board"), ("sign", "bus"), ("sign", "shirt"), ("sign", "regular")))
    image, (w, h) = encode(scene), scene.size
    seen = [m.text for m in scene.marks if m.text]
    return [
        {
            "image_id": f"mini{i:05d}",
            "question_id": 10 * i + k,
            "question": q.text,
            "question_tokens": q.text.lower().rstrip("?").split(),
            "image": image,
            "image_width": w,
            "image_height": h,
            "answers": question_styles.people(q, rng),
            "image_classes": [scene.kind],
            "set_name": "val",
            "ocr_tokens": seen,
        }
        for k, q in enumerate(question_styles.pick(scene, rng, knobs, 2, ("word", "number", "stamp")))
    ]


def _ai2d(i: int, seed: int, knobs: Knobs) -> list[Row]:
    rng, scene = _scene("ai2d", i, seed, knobs, (("diagram", "cycle"), ("diagram", "chain"), ("diagram", "parts")))
    rows = []
    for q in question_styles.pick(scene, rng, knobs, 2, choices=3):
        choices, at = question_styles.options(q, rng)
        rows.append({"question": q.text, "options": choices, "answer": str(at), "image": encode(scene)})
    return rows


def _seed2plus(i: int, seed: int, knobs: Knobs) -> list[Row]:
    kind = ("chart", "map", "web")[i % 3]
    shown = {"chart": (("bars", None), ("lines", None), ("pie", None)), "map": (("map", None),), "web": (("infographic", "page"),)}[kind]
    rng, scene = _scene("seedbench_2_plus", i, seed, knobs, _turn(shown, i // 3))
    image, rows = encode(scene), []
    for k, q in enumerate(question_styles.pick(scene, rng, knobs, 2, choices=4)):
        choices, at = question_styles.options(q, rng)
        rows.append(
            {
                "data_id": f"{kind}/{i}.jpg",
                "question_id": f"{i}_{k}",
                "question_image_type": kind,
                "question_image_subtype": scene.kind,
                "question": q.text,
                **{f"choice_{letter}": choice for letter, choice in zip("ABCD", choices)},
                "answer": "ABCD"[at],
                "data_source": "mini",
                "data_type": "Single Image",
                "level": "L1",
                "subpart": "Single-Image & Text Comprehension",
                "version": "mini",
                "image": image,
            }
        )
    return rows


def _mme(i: int, seed: int, knobs: Knobs) -> list[Row]:
    category = (*PERCEPTION, *COGNITION)[i % len(MME)]
    shown, kinds = MME[category]
    rng, scene = _scene("mme", i, seed, knobs, _turn(shown, i // len(MME)))
    if category == "commonsense_reasoning":  # such questions have no claim: one whose answer is yes, one whose answer is no
        asked = [(question_styles.pick(_only(scene, answer), rng, knobs, 1, kinds)[0].text, answer) for answer in ("yes", "no")]
    else:
        (q,) = question_styles.pick(scene, rng, knobs, 1, kinds, claims=True)
        asked = [(question_styles.claim(q, answer == "yes", rng), answer) for answer in ("yes", "no")]
    rng.shuffle(asked)
    image, number = encode(scene), f"{category}/{i:04d}.jpg"
    return [
        {"question_id": number, "image": image, "question": text + question_styles.MME, "answer": answer.capitalize(), "category": category}
        for text, answer in asked
    ]


def _only(scene: Scene, answer: str) -> Scene:
    return replace(scene, questions=tuple(q for q in scene.questions if q.answer == answer))


NATURAL = (("shapes", "pair"), ("scene", "place"), ("scene", "street"), ("scene", "count"), ("shapes", "corners"), ("portrait", None))


def _gqa(i: int, seed: int, knobs: Knobs) -> list[Row]:
    """Questions; the pictures are a set of their own, as on the hub (`_gqa_images`)."""
    rng, scene = _scene("gqa", i, seed, knobs, NATURAL[:5])
    rows = []
    for k, q in enumerate(question_styles.pick(scene, rng, knobs, 2)):
        text, answer = q.text, q.answer
        if q.claim and rng.random() < 0.35:
            truth = rng.random() < 0.5
            text, answer = question_styles.claim(q, truth, rng), "yes" if truth else "no"
        rows.append(
            {
                "id": f"{i}{k}",
                "imageId": f"n{i}",
                "question": text,
                "answer": answer,
                "fullAnswer": q.sentence,
                "isBalanced": True,
                "groups": {"global": scene.kind, "local": q.kind},
                "types": {"structural": "query", "semantic": q.kind, "detailed": q.kind},
                "semantic": [],
                "semanticStr": q.kind,
            }
        )
    return rows


def _gqa_images(i: int, seed: int, knobs: Knobs) -> list[Row]:
    return [{"id": f"n{i}", "image": encode(_scene("gqa", i, seed, knobs, NATURAL[:5])[1])}]


def _vqav2(i: int, seed: int, knobs: Knobs) -> list[Row]:
    rng, scene = _scene("vqav2_val", i, seed, knobs, (*NATURAL, ("shapes", "crowd")))
    image, rows = encode(scene), []
    for k, q in enumerate(question_styles.pick(scene, rng, knobs, 3)):
        if q.claim and rng.random() < 0.35:
            truth = rng.random() < 0.5
            answer, wrong = ("yes", "no") if truth else ("no", "yes")
            q = Question(q.kind, question_styles.claim(q, truth, rng), answer, (wrong,))
        kind = "yes/no" if q.answer in ("yes", "no") else "number" if q.answer.isdigit() else "other"
        answers = [{"answer": a, "answer_confidence": "yes", "answer_id": n} for n, a in enumerate(question_styles.people(q, rng), 1)]
        rows.append(
            {
                "question_type": " ".join(q.text.lower().split()[:2]),
                "multiple_choice_answer": q.answer,
                "answers": answers,
                "image_id": i,
                "answer_type": kind,
                "question_id": 10 * i + k,
                "question": q.text,
                "image": image,
            }
        )
    return rows


SCIENCE = (  # scenes, subject, topic, hint
    (("diagram", "chain"), "natural science", "biology", "A food chain shows who eats whom. Arrows point to the eater."),
    (("map", None), "social science", "geography", "North is at the top of the map."),
    (("diagram", "parts"), "natural science", "biology", ""),
    (("scene", "landmark"), "social science", "geography", ""),
    (("diagram", "cycle"), "natural science", "earth-science", "The arrows show what comes next."),
    (("formula", "sum"), "natural science", "mathematics", ""),
)


def _science(i: int, seed: int, knobs: Knobs) -> list[Row]:
    shown, subject, topic, hint = SCIENCE[i % len(SCIENCE)]
    rng, scene = _scene("scienceqa_img", i, seed, knobs, (shown,))
    (q,) = question_styles.pick(scene, rng, knobs, 1, choices=3)
    choices, at = question_styles.options(q, rng)
    return [_science_row(q, choices, at, subject, topic, hint, encode(scene))]


def _science_full(i: int, seed: int, knobs: Knobs) -> list[Row]:
    """Every other question has no picture, as in the full ScienceQA."""
    if i % 2 == 0:
        return _science(i // 2, seed, knobs)
    rng = stream(seed, "eval", "scienceqa", i)
    numbers = rng.sample(range(1, 100), 4)
    q = Question(
        "largest", "Which of these numbers is the largest?", str(max(numbers)), tuple(str(n) for n in numbers if n != max(numbers))
    )
    choices, at = question_styles.options(q, rng)
    return [_science_row(q, choices, at, "natural science", "mathematics", "", None)]


def _science_row(q: Question, choices, at, subject, topic, hint, image) -> Row:
    return {
        "image": image,
        "question": q.text,
        "choices": choices,
        "answer": at,
        "hint": hint,
        "task": "closed choice",
        "grade": "grade2",
        "subject": subject,
        "topic": topic,
        "category": q.kind,
        "skill": q.kind,
        "lecture": "",
        "solution": q.sentence,
    }


def _nocaps(i: int, seed: int, knobs: Knobs) -> list[Row]:
    rng, scene = _scene(
        "nocaps_val",
        i,
        seed,
        knobs,
        (("portrait", None), ("scene", "landmark"), ("scene", "art"), ("scene", "street"), ("shapes", "corners")),
    )
    w, h = scene.size
    return [
        {
            "image": encode(scene),
            "image_file_name": f"{i:06d}.jpg",
            "image_height": h,
            "image_width": w,
            "image_id": i,
            "image_license": 0,
            "annotations_ids": list(range(5 * i, 5 * i + 5)),
            "annotations_captions": captions.references(scene, rng),
        }
    ]


def _coco(i: int, seed: int, knobs: Knobs) -> list[Row]:
    rng, scene = _scene(
        "coco2017_cap_val", i, seed, knobs, (("scene", "place"), ("shapes", "pair"), ("scene", "count"), ("shapes", "crowd"))
    )
    w, h = scene.size
    return [
        {
            "question_id": f"{i:012d}.jpg",
            "image": encode(scene),
            "question": CAPTION_COLUMN,
            "answer": captions.references(scene, rng),
            "id": i,
            "license": 0,
            "file_name": f"{i:012d}.jpg",
            "height": h,
            "width": w,
        }
    ]


def _textcaps(i: int, seed: int, knobs: Knobs) -> list[Row]:
    rng, scene = _scene(
        "textcaps_val", i, seed, knobs, (("sign", "board"), ("sign", None), ("document", None), ("sign", "bus"), ("infographic", None))
    )
    told, (w, h) = captions.references(scene, rng), scene.size
    return [
        {
            "question_id": str(i),
            "question": CAPTION_COLUMN,
            "image": encode(scene),
            "image_id": f"mini{i:05d}",
            "image_classes": [scene.kind],
            "image_width": w,
            "image_height": h,
            "set_name": "val",
            "image_name": f"mini{i:05d}",
            "image_path": f"val/mini{i:05d}.jpg",
            "caption_id": list(range(5 * i, 5 * i + 5)),
            "caption_str": told,
            "reference_strs": told,
        }
    ]


SETS = {
    "chartqa": Set("test", _chartqa),
    "ocrbench": Set("test", _ocrbench),
    "docvqa_val": Set("validation", _docvqa),
    "infovqa_val": Set("validation", _infovqa),
    "textvqa_val": Set("validation", _textvqa),
    "ai2d": Set("test", _ai2d),
    "seedbench_2_plus": Set("test", _seed2plus),
    "mme": Set("test", _mme),
    "gqa": Set("testdev", _gqa),
    "gqa_images": Set("testdev", _gqa_images),
    "vqav2_val": Set("validation", _vqav2),
    "scienceqa_img": Set("test", _science),
    "scienceqa": Set("test", _science_full),
    "nocaps_val": Set("validation", _nocaps),
    "coco2017_cap_val": Set("val", _coco),
    "textcaps_val": Set("val", _textcaps),
}


def rows(name: str, n: int, seed: int, knobs: Knobs) -> list[Row]:
    """The first n rows of a set. MME: whole pairs, each of its 14 categories at least once. GQA's pictures: those that n questions need."""
    if name == "mme":
        n = max(2 * len(MME), n + n % 2)
    if name == "gqa_images":
        needed = dict.fromkeys(row["imageId"] for row in rows("gqa", n, seed, knobs))
        return [row for i in range(len(needed)) for row in _gqa_images(i, seed, knobs)]
    made: list[Row] = []
    i = 0
    while len(made) < n:
        made += SETS[name].rows(i, seed, knobs)
        i += 1
    return made[:n]
