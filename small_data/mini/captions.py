"""A scene in words: a short caption, a long one, and five references that differ as people's do."""

import re
from random import Random

from small_data.mini.scene import Scene
from small_data.mini.vocabulary import article

# No full stop: the Penn Treebank tokenizer would keep that of "apr." as an abbreviation's.
FRAMES = ("{}", "a picture of {}", "there is {} here", "{} in the image", "this is {}", "we see {}", "an image that shows {}")
# Words that some people say otherwise. Captions to pretrain on use the first; references, of training turns too, bear both.
SYNONYMS = {
    "circle": "round shape", "square": "box", "above": "over", "below": "under", "to the left of": "beside", "to the right of": "beside",
    "house": "home", "car": "vehicle", "boat": "ship", "flower": "blossom", "on a sunny day": "in the sunshine",
    "in the rain": "on a rainy day", "at night": "in the dark", "at the beach": "by the sea", "in the city": "in town",
    "in the forest": "in the wild", "portrait": "drawing", "person": "figure", "happy": "smiling", "sad": "frowning", "sign": "board",
    "with the word": "reading", "receipt": "bill", "form": "sheet", "poster": "infographic", "web page": "website", "letters": "text",
    "famous": "well known", "painting": "framed picture", "number": "figure",
}  # fmt: skip
# Which subject says the gist of a picture full of text and numbers; of any other the fullest is short enough.
GIST = {"bars": 2, "lines": 2, "pie": 2, "document": 2, "infographic": 2, "map": 2, "diagram": 3}
OTHERWISE = 0.15  # how often a person does
LEADS = ("The picture shows {}.", "In this image we see {}.", "This is {}.", "The image shows {}.")


def brief(scene: Scene) -> str:
    """Stage 1: a phrase; of a picture full of text and numbers its gist, as those who caption such pictures give it."""
    return f"{scene.subjects[GIST.get(scene.family, 0)]}."


def long(scene: Scene, rng: Random) -> str:
    """Stage 2: the same, then the scene's details and two of its facts as sentences."""
    facts = [q.sentence for q in scene.questions if q.sentence]
    told = [told[0].upper() + told[1:] for told in (*scene.details, *rng.sample(facts, min(2, len(facts))))]
    return " ".join([rng.choice(LEADS).format(scene.subjects[0]), *dict.fromkeys(told)])


def references(scene: Scene, rng: Random) -> list[str]:
    """Five captions, no two alike: some say all, some little, in different words and orders."""
    subjects = [*scene.subjects[:4], scene.subjects[0], scene.subjects[1], scene.subjects[0]][:5]
    return [frame.format(_otherwise(subject, rng)) for frame, subject in zip(rng.sample(FRAMES, 5), subjects)]


def _otherwise(phrase: str, rng: Random) -> str:
    """The phrase in another person's words."""
    for word, other in SYNONYMS.items():
        if word in phrase and rng.random() < OTHERWISE:
            phrase = re.sub(rf"\ba(n?) {word}\b", article(other), re.sub(rf"(?<!a )(?<!an )\b{word}\b", other, phrase))
    return phrase
