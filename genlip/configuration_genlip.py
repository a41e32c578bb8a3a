"""Configuration of GenLIP, in the field names of the released checkpoints' `config.json` (arXiv 2605.00809)."""

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


class GenLIPConfig(PreTrainedConfig):
    """Shape of a GenLIP: a ViT of `num_hidden_layers` x `hidden_size` whose patches and caption tokens share every layer.

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
        hidden_act: str = "silu",
        ls_init_value: float = 0.1,
        drop_path_rate: float = 0.1,
        initializer_range: float = 0.02,
        gated_attention: bool = True,
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
        self.hidden_act = hidden_act
        self.ls_init_value = ls_init_value
        self.drop_path_rate = drop_path_rate
        self.initializer_range = initializer_range
        self.gated_attention = gated_attention
        self.layer_norm_eps = layer_norm_eps
        self.rope_theta = rope_theta
        # Released files nest the section in `rope_scaling`, a name that transformers 5 rewrites with its own rules.
        self.mrope_section = mrope_section or (rope_scaling or {}).get("mrope_section") or [8, 12, 12]
        self.max_position_embeddings = max_position_embeddings
        if hidden_size % num_attention_heads or (hidden_size // num_attention_heads) % 2:
            raise ValueError(f"hidden_size {hidden_size} does not split into {num_attention_heads} heads of an even size")
        channels = mrope_channels(hidden_size // num_attention_heads, self.mrope_section)
        if min(channels) < 1:
            raise ValueError(
                f"mrope_section {self.mrope_section} leaves an axis without channels at head size "
                f"{hidden_size // num_attention_heads} (time/row/column get {channels})"
            )
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
