"""GenLIP, a vision transformer that learns by speaking captions (arXiv 2605.00809).

`import genlip` stays without torch: names below load on first use. `genlip.register()` adds the classes to transformers'
Auto classes; every command of ours calls it, a user's script calls it once before `AutoModel.from_pretrained(folder)`.
"""

import importlib

_HOME = {
    "GenLIPConfig": "configuration_genlip",
    "GenLIPVisionModel": "modeling_genlip",
    "GenLIPForPretraining": "modeling_genlip",
    "GenLIPImageProcessor": "image_processing_genlip",
    "GenLIPProcessor": "image_processing_genlip",
}
__all__ = ["GenLIPConfig", "GenLIPForPretraining", "GenLIPImageProcessor", "GenLIPProcessor", "GenLIPVisionModel", "register"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'genlip' has no attribute {name!r}")
    return getattr(importlib.import_module(f"genlip.{_HOME[name]}"), name)


def register() -> None:
    """Make transformers' Auto classes (config, model, image-text-to-text, image processor, processor) read GenLIP folders.

    May be called twice.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor

    from .configuration_genlip import GenLIPConfig
    from .image_processing_genlip import GenLIPImageProcessor, GenLIPProcessor
    from .modeling_genlip import GenLIPForPretraining, GenLIPVisionModel

    AutoConfig.register("genlip", GenLIPConfig, exist_ok=True)
    AutoModel.register(GenLIPConfig, GenLIPVisionModel, exist_ok=True)
    AutoModelForImageTextToText.register(GenLIPConfig, GenLIPForPretraining, exist_ok=True)
    AutoImageProcessor.register(GenLIPConfig, slow_image_processor_class=GenLIPImageProcessor, exist_ok=True)
    AutoProcessor.register(GenLIPConfig, GenLIPProcessor, exist_ok=True)
