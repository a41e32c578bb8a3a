"""The closed vocabularies of the mini world. Training and evaluation share them; only scenes differ."""

# Far enough apart that a jitter of `knobs.jitter` per channel never turns one into another.
COLOURS = {
    "red": (216, 38, 40),
    "blue": (35, 90, 205),
    "green": (40, 155, 60),
    "yellow": (248, 208, 45),
    "purple": (140, 60, 185),
    "orange": (250, 130, 25),
    "black": (28, 28, 28),
}
BACKGROUNDS = {"white": (252, 252, 252), "gray": (205, 205, 208), "pink": (252, 215, 222)}
SHAPES = ("circle", "triangle", "star", "cross", "square", "ring")  # the first are told apart most easily, at any turn
SIDES = ("left", "right", "top", "bottom")
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
BESIDE = {"left": "to the left of", "right": "to the right of", "top": "above", "bottom": "below"}

PLACES = ("beach", "city", "forest", "snow")
SKIES = ("sun", "rain", "moon")
OBJECTS = ("house", "tree", "car", "flower", "balloon", "boat")
LANDMARKS = ("tower", "pyramid", "windmill", "bridge")
PEOPLE = ("anna", "ben", "carl", "dora", "emma", "finn", "gina", "hugo")
MOODS = ("happy", "sad")

WORDS = [
    "stop",
    "exit",
    "open",
    "sale",
    "taxi",
    "cafe",
    "bank",
    "hotel",
    "park",
    "fire",
    "shop",
    "milk",
    "zoo",
    "pizza",
    "school",
    "book",
    "help",
    "gold",
    "wood",
    "jazz",
]
FOREIGN = {"rojo": "red", "azul": "blue", "casa": "house", "agua": "water", "gato": "cat", "pan": "bread", "leche": "milk", "sol": "sun"}
LETTERS = "BDHKMRTX"  # consonants that differ from one another even at 12 pixels
ANIMALS = ("cat", "dog", "cow", "pig", "hen", "fox")
TOPICS = {
    "pets": ANIMALS,
    "drinks": ("tea", "milk", "juice", "cola", "water", "coffee"),
    "sports": ("golf", "chess", "judo", "tennis", "rugby", "yoga"),
    "cities": ("rome", "paris", "oslo", "lima", "cairo", "delhi"),
}
CITIES = TOPICS["cities"]
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun")
ITEMS = ("tea", "milk", "bread", "apple", "cake", "egg", "soup", "fish")
SHOPS = ("metro", "royal", "sunny", "corner", "nova", "alpha")
SPOTS = ("park", "bank", "zoo", "school", "hotel", "shop")
STAGES = {
    "a life cycle": ("egg", "larva", "pupa", "adult"),
    "the water cycle": ("sea", "cloud", "rain", "river"),
    "the seasons": ("spring", "summer", "autumn", "winter"),
}
EATERS = ("grass", "mouse", "frog", "snake", "hawk", "lion")
PARTS = {
    "flower": ("petal", "leaf", "stem", "root"),
    "house": ("roof", "door", "window", "wall"),
    "car": ("roof", "door", "wheel", "lamp"),
}
BUTTONS = ("buy", "login", "search", "play", "join")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")


def article(phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def without(values, *taken: str) -> tuple[str, ...]:
    """The values that are not taken: what an answer is confused with."""
    return tuple(v for v in values if v not in taken)
