"""Configuration of GenLIP, in the field names of the released checkpoints' `config.json` (arXiv 2605.00809).

`GenLIPConfig(**PRESETS["genlip-so16"])` is a released size; `GenLIPConfig()` is the paper's L/16.
"""

import json
import math

from transformers import PreTrainedConfig


def mrope_channels(head_dim: int, section: list[int]) -> tuple[int, int, int]:
    """How many of the head_dim/2 rotary channels turn with time, row and column.

    The released rule interleaves the axes: every channel starts on T; channels 1, 4, 7, ... below 3*section[1] go to H;
    2, 5, 8, ... below 3*section[2] to W. So [8, 12, 12] gives 11/11/10 at head size 64 and 12/12/12 at 72.
    """
    half = head_dim // 2
    rows = len(range(1, min(3 * section[1], half), 3))
    columns = len(range(2, min(3 * section[2], half), 3))
    return half - rows - columns, rows, columns


_SO16 = {"hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 27, "mrope_section": [12, 12, 12]}

# The released sizes. L/16 is the paper's; So/16 was released with a text width of 1024 before June 2026, of 1152 since.
PRESETS = {
    "genlip-l16": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "text_embed_dim": 1024},
    "genlip-so16": _SO16 | {"text_embed_dim": 1152},
    "genlip-so16-e1024": _SO16 | {"text_embed_dim": 1024},
    "genlip-g16": {
        "hidden_size": 1536,
        "intermediate_size": 4096,
        "num_hidden_layers": 40,
        "text_embed_dim": 1024,
        "mrope_section": [16, 16, 16],
        "drop_path_rate": 0.2,
    },
}

# What the released code can be told to do otherwise, and no released model does: any other value is refused.
FIXED = {"use_swiglu_ffn": True, "mrope_interleaved": True, "use_llm_head": False, "hidden_act": "silu", "spatial_merge_size": 1}
# Fields of the released config.json that only its training code reads.
UNREAD = {"use_liger_kernel": False, "tokens_per_second": 2}

# Whole numbers of a configuration, from least to most: far beyond any model of this kind, and held before anything of that size is built.
BOUNDS = {
    "vocab_size": (1, 2**24),
    "hidden_size": (2, 2**16),
    "intermediate_size": (1, 2**18),
    "num_hidden_layers": (1, 1024),
    "num_attention_heads": (1, 1024),
    "num_channels": (1, 64),
    "patch_size": (1, 1024),
    "text_embed_dim": (1, 2**16),
    "num_register_tokens": (0, 4096),
    "max_position_embeddings": (1, 2**24),
}
NUMBERS = ("attention_dropout", "ls_init_value", "drop_path_rate", "initializer_range", "layer_norm_eps", "rope_theta")


class GenLIPConfig(PreTrainedConfig):
    """Shape of a GenLIP: a ViT of `num_hidden_layers` x `hidden_size` whose patches and caption tokens share every layer.

    The paper's ablations: `gated_attention=False`, `num_register_tokens` (1 or 4; learned vectors in front of every sample's
    patches, seen by all of it, at position 0, left out of the features).

    `text_embed_dim` is the width of the word embedding and of the head; where it differs from `hidden_size`, two linear maps
    join them. The defaults are the paper's L/16. Raises ValueError where heads or rotary sections do not fit the width.
    """

    model_type = "genlip"

    def __init__(
        self,
        vocab_size: int = 151_936,
        hidden_size: int = 1024,
        intermediate_size: int = 2816,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 16,
        num_channels: int = 3,
        patch_size: int = 16,
        text_embed_dim: int = 1024,
        attention_dropout: float = 0.0,
        ls_init_value: float = 0.1,
        drop_path_rate: float = 0.1,
        initializer_range: float = 0.02,
        gated_attention: bool = True,
        num_register_tokens: int = 0,
        layer_norm_eps: float = 1e-6,
        rope_theta: float = 10_000.0,
        mrope_section: list[int] | None = None,
        rope_scaling: dict | None = None,
        max_position_embeddings: int = 16_384,
        tie_word_embeddings: bool = False,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_channels = num_channels
        self.patch_size = patch_size
        self.text_embed_dim = text_embed_dim
        self.attention_dropout = attention_dropout
        self.ls_init_value = ls_init_value
        self.drop_path_rate = drop_path_rate
        self.initializer_range = initializer_range
        self.gated_attention = gated_attention
        self.num_register_tokens = num_register_tokens
        self.layer_norm_eps = layer_norm_eps
        self.rope_theta = rope_theta
        # Released files nest the section in `rope_scaling`, a name that transformers 5 rewrites with its own rules.
        if mrope_section is None and isinstance(rope_scaling, dict):
            mrope_section = rope_scaling.get("mrope_section")
        self.mrope_section = [8, 12, 12] if mrope_section is None else mrope_section
        self.max_position_embeddings = max_position_embeddings
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{name} is {value!r}, and takes a whole number from {least} to {most}")
        for name in NUMBERS:
            if type(getattr(self, name)) not in (int, float) or not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)!r}, and takes a number")
        section = self.mrope_section
        if type(section) not in (list, tuple) or len(section) != 3 or not all(type(each) is int and each >= 0 for each in section):
            raise ValueError(f"mrope_section is {section!r}, and takes three whole numbers: channels of time, row and column")
        if hidden_size % num_attention_heads or (hidden_size // num_attention_heads) % 2:
            raise ValueError(f"hidden_size {hidden_size} does not split into {num_attention_heads} heads of an even size")
        channels = mrope_channels(hidden_size // num_attention_heads, self.mrope_section)
        if min(channels) < 1:
            raise ValueError(
                f"mrope_section {self.mrope_section} leaves an axis without channels at head size "
                f"{hidden_size // num_attention_heads} (time/row/column get {channels})"
            )
        head_dim = kwargs.get("head_dim")
        if head_dim is not None and head_dim != hidden_size // num_attention_heads:
            raise ValueError(f"head_dim {head_dim} is not hidden_size {hidden_size} / num_attention_heads {num_attention_heads}")
        for name, value in FIXED.items():
            if kwargs.get(name, value) != value:
                raise ValueError(f"{name}={kwargs[name]!r} is not GenLIP as published: only {value!r} is supported")
        if tie_word_embeddings:
            raise ValueError("tie_word_embeddings=true is not GenLIP as published: embeddings and head are separate weights")
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)

    def official_json(self) -> str:
        """This configuration as the released code's `config.json`. Raises ValueError for what that code cannot build."""
        if self.num_register_tokens:
            raise ValueError(f"the released code knows no register tokens (num_register_tokens={self.num_register_tokens})")
        theirs: dict = {"architectures": ["GenLIPModel"], "model_type": self.model_type}
        theirs |= {name: getattr(self, name) for name in OFFICIAL} | FIXED | {name: getattr(self, name, UNREAD[name]) for name in UNREAD}
        theirs["rope_scaling"] = {"type": "mrope", "mrope_section": list(self.mrope_section)}
        theirs["torch_dtype"] = str(self.dtype or "float32").removeprefix("torch.")
        return json.dumps(theirs, indent=1) + "\n"


# Fields that our config.json and the released one share.
OFFICIAL = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "patch_size",
    "text_embed_dim",
    "attention_dropout",
    "ls_init_value",
    "drop_path_rate",
    "initializer_range",
    "gated_attention",
    "rope_theta",
    "max_position_embeddings",
    "tie_word_embeddings",
)
