"""What has to be equal for two rows to differ in the encoder alone, read from their provenance; and the seeds they were trained with."""

from typing import Any

from eval_suites.score.results import EncoderResult

# What may differ between two MLLMs without a word in a comparison: what an encoder is, what follows from it, names of files, and how a
# run was watched. Digests say whether data and language model were the same, so their paths need not. Seeds are noise, not a protocol:
# a verdict says whether it covers them.
_ENCODERS_OWN = {"encoder", "encoder_key", "arch", "untrained", "resolution", "interpolation", "parameters"}
_ENCODERS_OWN |= {"weights_digest", "encoder_digest", "encoder_digest_before"}
_NOT_COMPARED = {*_ENCODERS_OWN, "llm_digest", "git_commit", "out", "init", "data", "images", "workers", "cache_features"}
_NOT_COMPARED |= {"report", "save_every", "seed"}


def protocol(row: EncoderResult) -> dict[str, Any]:
    """What has to be equal for two rows to differ in the encoder alone: stage, language model, data, recipe, token budget, ...

    Files of lmms-eval state none of it: such rows are ranked among themselves, and a table says so.
    """
    if row.elsewhere:
        return {"evaluated by": "lmms-eval"}
    return {f"{where}{name}": value for where, stage in _stages(row) for name, value in _compared(stage).items()}


def seed_of(row: EncoderResult) -> tuple[int, ...]:
    """The seed of the row's own stage, then those of the stages before it; -1 where a stage names none."""
    return tuple(int((stage.get("recipe") or {}).get("seed", -1)) for _, stage in _stages(row))


def seeds_in_words(row: EncoderResult) -> str:
    """The seeds of the row's own stage, as a comparison says them: "0", "0, 1, 2", or "not recorded"."""
    own = [seed_of(each)[0] for each in row.members or (row,) if each.results]
    return ", ".join("not recorded" if seed < 0 else str(seed) for seed in own) or "not recorded"


def _stages(row: EncoderResult) -> list[tuple[str, dict[str, Any]]]:
    """("", the row's own stage), then ("stage 1.", the first of the earlier ones), and so on."""
    said = row.provenance
    return [("", said), *((f"stage {i}.", stage) for i, stage in enumerate(said.get("earlier") or [], 1))]


def _compared(stage: dict[str, Any]) -> dict[str, Any]:
    """What counts of a stage's provenance, its recipe's fields beside the rest."""
    flat = {**stage, **{f"recipe.{name}": value for name, value in (stage.get("recipe") or {}).items()}}
    nested = ("recipe", "earlier")
    return {name: value for name, value in flat.items() if name not in nested and name.removeprefix("recipe.") not in _NOT_COMPARED}
