"""Data that we make, for laptops, tests and the demos: the mini world and easy-VQA, as captions, conversations and benchmarks."""
