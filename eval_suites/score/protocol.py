"""What has to be equal for two rows to differ in the encoder alone, read from their provenance; and the seeds they were trained with."""

from typing import Any

from eval_suites.score.results import EncoderResult
from genlip.common.fingerprint import OF_THE_ENCODER
from genlip.common.schema import Provenance, Stage


def protocol(row: EncoderResult) -> dict[str, Any]:
    """What has to be equal for two rows to differ in the encoder alone: stage, language model, data, recipe, token budget, ...

    Files of lmms-eval state none of it: such rows are ranked among themselves, and a table says so.
    """
    if row.elsewhere:
        return {"evaluated by": "lmms-eval"}
    if not row.results:
        return {"believed": "no result"}
    parts = next(iter(row.results.values())).get("fingerprint") or {}
    own: dict[str, Any] = {"schema": row.schema}
    own |= {f"answers.{name}": value for name, value in parts.items() if name not in OF_THE_ENCODER}
    own |= {f"{where}{name}": value for where, stage in _stages(row) for name, value in stage.compared().items()}
    # Data that nobody recorded are equal to no others.
    unknown = [name for name, value in own.items() if value is None and name.rpartition(".")[2] == "data_digest"]
    return own | {name: f"not recorded ({row.weights_digest[:8]})" for name in unknown}


def seed_of(row: EncoderResult) -> tuple[int, ...]:
    """The seed of the row's own stage, then those of the stages before it; -1 where a stage names none."""
    return tuple(int(stage.recipe.get("seed", -1)) for _, stage in _stages(row))


def seeds_in_words(row: EncoderResult) -> str:
    """The seeds of the row's own stage, as a comparison says them: "0", "0, 1, 2", or "not recorded"."""
    own = [seed_of(each)[0] for each in row.members or (row,) if not each.elsewhere]
    return ", ".join("not recorded" if seed < 0 else str(seed) for seed in own) or "not recorded"


def _stages(row: EncoderResult) -> list[tuple[str, Stage]]:
    """("", the row's own stage), then ("stage 1.", the first of the earlier ones), and so on; none of lmms-eval's files."""
    if row.elsewhere or not row.results:
        return []
    said: Provenance = next(iter(row.results.values()))["provenance"]
    return [("", said), *((f"stage {i}.", stage) for i, stage in enumerate(said.earlier, 1))]
