"""Any vision encoder inside an MLLM: the table of encoders, the tower, the native LLaVA, the LLaVA-NeXT adapter.

`import llava_plugin` stays without torch. `llava_plugin.register()` makes transformers' Auto classes read GenLIP folders and the
tower inside an export, so that `LlavaForConditionalGeneration.from_pretrained(export)` works in a user's own script.
"""

__all__ = ["register"]


def register() -> None:
    """Add GenLIP, OpenVision 2 and the tower to AutoConfig and AutoModel. May be called twice."""
    from transformers import AutoConfig, AutoModel

    import genlip

    from .openvision2 import OpenVision2Config, OpenVision2VisionModel
    from .tower import VisionTower, VisionTowerConfig

    genlip.register()
    AutoConfig.register(OpenVision2Config.model_type, OpenVision2Config, exist_ok=True)
    AutoModel.register(OpenVision2Config, OpenVision2VisionModel, exist_ok=True)
    AutoConfig.register(VisionTowerConfig.model_type, VisionTowerConfig, exist_ok=True)
    AutoModel.register(VisionTowerConfig, VisionTower, exist_ok=True)
