"""CIDEr-D, for the one number of the mini world that has no fixed maximum: what is the best that a reference caption scores?

The formula of Vedantam et al. (2015, sec. 4) with the constants of coco-caption: n-grams up to 4, a Gaussian penalty on length (sigma 6),
clipping, times 10. Document frequencies come from the references of the whole set, so a score is one of a set, never of a picture.
A test holds it equal to pycocoevalcap, which needs Java for its tokenizer; here words are cut by one expression, as ours allow.
"""

import math
import re
from collections import Counter

SIGMA = 6.0
ORDERS = (1, 2, 3, 4)


def tokens(caption: str) -> list[str]:
    """Lower-case words, numbers and the signs % and $, as the Penn Treebank tokenizer cuts our captions."""
    return re.findall(r"[a-z0-9]+|[%$]", caption.lower())


def best(references: list[list[str]]) -> tuple[list[str], float]:
    """Of each picture's references the one that agrees best with all of them, and the set's CIDEr-D if these are the answers."""
    grams = [[_grams(caption) for caption in told] for told in references]
    frequency = Counter(gram for told in grams for gram in set().union(*told))
    weight = {gram: math.log(len(references)) - math.log(n) for gram, n in frequency.items()}
    chosen, total = [], 0.0
    for told, counted in zip(references, grams):
        vectors = [_vector(c, weight) for c in counted]
        scores = [sum(_similarity(a, b) for b in vectors) / len(vectors) * 10 for a in vectors]
        top = max(scores)
        chosen.append(told[scores.index(top)])
        total += top
    return chosen, total / len(references)


def _grams(caption: str) -> Counter:
    words = tokens(caption)
    return Counter(tuple(words[i : i + n]) for n in ORDERS for i in range(len(words) - n + 1))


def _vector(counts: Counter, weight: dict) -> tuple[dict, list[float], int]:
    """(tf-idf by n-gram, norm by order, number of bigrams: what coco-caption takes for the length)."""
    vector = {gram: count * weight[gram] for gram, count in counts.items()}
    norms = [math.sqrt(sum(v * v for gram, v in vector.items() if len(gram) == n)) for n in ORDERS]
    return vector, norms, sum(count for gram, count in counts.items() if len(gram) == 2)


def _similarity(hypothesis, reference) -> float:
    (h, h_norms, h_length), (r, r_norms, r_length) = hypothesis, reference
    dots = [0.0] * len(ORDERS)
    for gram, value in h.items():
        if gram in r:
            dots[len(gram) - 1] += min(value, r[gram]) * r[gram]
    penalty = math.exp(-((h_length - r_length) ** 2) / (2 * SIGMA**2))
    return sum(dot / (a * b) * penalty for dot, a, b in zip(dots, h_norms, r_norms) if a and b) / len(ORDERS)
