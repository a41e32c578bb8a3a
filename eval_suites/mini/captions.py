"""A scene in words: a short caption, a long one, and five references that differ as people's do."""

from random import Random

from eval_suites.mini.scene import Scene

FRAMES = ("{}.", "a picture of {}.", "there is {} here.", "{} in the image.", "this is {}.", "we see {}.", "an image that shows {}.")
LEADS = ("The picture shows {}.", "In this image we see {}.", "This is {}.", "The image shows {}.")


def brief(scene: Scene) -> str:
    """Stage 1: every fact of the scene in one phrase."""
    return f"{scene.subjects[0]}."


def long(scene: Scene, rng: Random) -> str:
    """Stage 2: the same, then the scene's details and two of its facts as sentences."""
    facts = [q.sentence for q in scene.questions if q.sentence]
    told = [*scene.details, *(f[0].upper() + f[1:] for f in rng.sample(facts, min(2, len(facts))))]
    return " ".join([rng.choice(LEADS).format(scene.subjects[0]), *dict.fromkeys(told)])


def references(scene: Scene, rng: Random) -> list[str]:
    """Five captions, no two alike: some say all, some little, in different words and orders."""
    subjects = [*scene.subjects[:4], scene.subjects[0], scene.subjects[1], scene.subjects[0]][:5]
    return [frame.format(subject) for frame, subject in zip(rng.sample(FRAMES, 5), subjects)]
