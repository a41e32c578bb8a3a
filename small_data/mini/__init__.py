"""The mini world: one deterministic generator of small pictures, their captions, conversations and fourteen benchmark sets.

    python -m small_data.mini --out data --train 20000 --eval 200 --seed 0

Why: no hub can be reached in a test, on an air-gapped cluster or on a laptop in a train, yet all of the paper's benchmarks must run there
through lmms-eval's own prompts and metrics, on pictures from which an encoder can learn something that the benchmarks then measure.

How it is made. `families.compose(family, random)` gives a `Scene`: a display list of drawn primitives, and, from the same facts, questions
with answers, and captions. `scene.paint` turns the display list into a picture. `captions`, `conversations` and `benchmarks` only re-word
what the scene says. Everything follows from (seed, split, set, index): any part can be made alone, by any process, byte for byte.
"""
