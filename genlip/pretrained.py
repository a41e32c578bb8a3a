"""A folder of GenLIP's weights -> the model, or one sentence that names the file which is not what it should be."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import model_folder
from .common.files import read_json
from .common.model_folder import MEND

if TYPE_CHECKING:
    from .configuration_genlip import GenLIPConfig
    from .modeling_genlip import GenLIPForPretraining


def read_config(folder: Path) -> "GenLIPConfig":
    """config.json of an export, or of a released folder. ValueError where there is none, and where it describes no GenLIP."""
    from .configuration_genlip import GenLIPConfig

    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no config.json: give the folder of a checkpoint, such as runs/NAME/export")
    model_folder.check(folder)
    content = read_json(file, MEND, fields={"model_type": str})
    if content["model_type"] != GenLIPConfig.model_type:
        raise ValueError(f"{file}: model_type is {content['model_type']!r}, not {GenLIPConfig.model_type!r}: give a folder of GenLIP")
    try:
        return GenLIPConfig.from_dict(content)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}: {MEND}") from error


def load_model(folder: Path, config: "GenLIPConfig | None" = None, **options: Any) -> "GenLIPForPretraining":
    """The model in a folder, with `config` in place of its own where one is given; `options` are from_pretrained's. ValueError as
    `read_config`'s and as the model's own."""
    from .modeling_genlip import GenLIPForPretraining

    return GenLIPForPretraining.from_pretrained(folder, config=config or read_config(folder), **options)


def check_finite(model: "GenLIPForPretraining") -> None:
    """Raises ValueError that names the weights which hold NaN or infinity."""
    bad = [f"{key} ({int((~tensor.isfinite()).sum())})" for key, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if bad:
        raise ValueError(f"{len(bad)} weights are not finite: {', '.join(bad[:5])}. Take an earlier checkpoint of that run")
