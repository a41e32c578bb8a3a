"""GenLIP on transformers: one stack of layers reads the patches, then speaks the caption (arXiv 2605.00809, section 3).

Shapes: B samples, T tokens of a packed row, N patches, L longest sample, D width, H heads, V words.
A packed row holds its samples one after another, each as [image patches][text]. Within a sample (Prefix-LM)

            patches  text            patches attend to patches, both ways;
    patches  1 1 1   0 0             text attends to all patches and to the text up to itself;
    text     1 1 1   1 0             nothing attends across samples.
             1 1 1   1 1

Module names are those of the released state dict, so that released folders and our own saves are one layout.

Differences from the reference (by design): the mask is right for any batch size (the released SDPA path broadcasts it over
heads); features are taken after `ln_post`, as the paper says; drop path acts per sample, not per packed row; loading is strict.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_genlip import GenLIPConfig


@dataclass
class GenLIPOutput(ModelOutput):
    """`logits` of the text tokens, (1, T_text, V) packed or (B, L, V) for an equal-size batch; None where only a loss was asked for."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    image_logits: torch.Tensor | None = None
    past_key_values: object | None = None


# --- positions ------------------------------------------------------------------------------------------------------------


def image_positions(grid_hw: torch.Tensor) -> torch.Tensor:
    """(3, N) time, row, column of every patch of the grids (B, 2), row-major, packed one after another."""
    parts = []
    for rows, columns in grid_hw.tolist():
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        parts.append(torch.stack([torch.zeros_like(row), row, column]).flatten(1))
    return torch.cat(parts, dim=1).to(grid_hw.device)


def text_positions(grid_hw: torch.Tensor, text_lens: torch.Tensor) -> torch.Tensor:
    """(3, T_text): text token j after an H x W grid stands at max(H, W) + j on all three axes; each sample starts anew."""
    starts = grid_hw.max(dim=1).values
    ends = text_lens.cumsum(0)
    j = torch.arange(int(ends[-1]), device=grid_hw.device) - (ends - text_lens).repeat_interleave(text_lens)
    return (starts.repeat_interleave(text_lens) + j).expand(3, -1)


class GenLIPRotaryEmbedding(nn.Module):
    """Interleaved MRoPE: which rotary channel turns with time, row or column is fixed by `mrope_section` (see the configuration)."""

    def __init__(self, config: GenLIPConfig):
        super().__init__()
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.theta = config.rope_theta
        self.section = config.mrope_section

    def forward(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """positions (3, ...) -> cos, sin (..., head_dim). The angles are computed in fp32 whatever the model's dtype.

        Nothing is kept in a buffer, so nothing can be lost when a model is built on the meta device.
        """
        half = self.head_dim // 2
        channel = torch.arange(half, device=positions.device)
        frequency = self.theta ** (-2.0 * channel.float() / self.head_dim)
        axis = torch.zeros_like(channel)
        axis[1 : min(3 * self.section[1], half) : 3] = 1
        axis[2 : min(3 * self.section[2], half) : 3] = 2
        angle = positions.float()[axis].movedim(0, -1) * frequency
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate x (B, T, H, head_dim) by cos, sin (B or 1, T, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.unsqueeze(2) + torch.cat([-second, first], dim=-1) * sin.unsqueeze(2)


# --- which token sees which -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segments:
    """The samples of a packed row, laid out for attention: computed once a forward, used by every layer.

    index (B, L): where in the row the l-th token of sample b stands (padding points at token 0);
    valid (B, L): True for real tokens; mask (B, 1, L, L): True where a query (row) sees a key (column), None if all see all.
    """

    index: torch.Tensor
    valid: torch.Tensor
    mask: torch.Tensor | None


def prefix_lm_mask(image_lens: torch.Tensor, lens: torch.Tensor, longest: int) -> torch.Tensor:
    """(B, 1, L, L) bool, True where a query sees a key. image_lens, lens (B,): patches and all tokens of each sample.

    A padding query sees key 0, which keeps its softmax finite; its output is dropped.
    """
    i = torch.arange(longest, device=lens.device)
    query, key = i[:, None], i[None, :]
    sees = (key <= query) | (key < image_lens[:, None, None])
    real = (key < lens[:, None, None]) & (query < lens[:, None, None])
    return ((sees & real) | (key == 0)).unsqueeze(1)


def segments_of(image_lens: torch.Tensor, text_lens: torch.Tensor) -> Segments:
    """Segments of a packed row that holds samples of image_lens (B,) patches and text_lens (B,) text tokens each."""
    lens = image_lens + text_lens
    longest = int(lens.max())
    start = lens.cumsum(0) - lens
    step = torch.arange(longest, device=lens.device)
    valid = step < lens[:, None]
    index = torch.where(valid, start[:, None] + step, 0)
    only_equal_images = bool((text_lens == 0).all()) and bool(valid.all())
    return Segments(index, valid, None if only_equal_images else prefix_lm_mask(image_lens, lens, longest))


def eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Plain attention with the same boolean mask as SDPA; q, k, v (B, H, L, head_dim) -> (B, L, H, head_dim), weights."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


# --- layers ---------------------------------------------------------------------------------------------------------------


class GenLIPAttention(nn.Module):
    """Attention whose output is gated per channel: out_proj(softmax(QK^T)V * sigmoid(gate)); q_proj holds q, then the gate."""

    def __init__(self, config: GenLIPConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False  # transformers' attention functions read it; the mask alone says who sees whom
        width = config.hidden_size
        self.q_proj = nn.Linear(width, 2 * width if config.gated_attention else width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x, cos, sin, segments=None, mask=None, past_key_values=None):
        """x (B, T, D), or (1, T, D) with `segments`; `mask` (B, 1, T, T_keys) where there are none."""
        shape = (*x.shape[:2], self.num_heads, self.head_dim)
        query, gate = self.q_proj(x).chunk(2, dim=-1) if self.config.gated_attention else (self.q_proj(x), None)
        query = rotate(query.view(shape), cos, sin)
        key = rotate(self.k_proj(x).view(shape), cos, sin)
        value = self.v_proj(x).view(shape)
        if segments is not None:  # each sample of the row becomes a row of its own, for the attention alone
            query, key, value = (t[0, segments.index] for t in (query, key, value))
            mask = segments.mask
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.config.attention_dropout if self.training else 0.0
        out, _ = attend(self, query, key, value, mask, dropout=dropout, scaling=self.scaling, is_causal=False)
        if segments is not None:
            out = out[segments.valid].unsqueeze(0)
        out = out.reshape(*out.shape[:2], -1)
        return self.out_proj(out if gate is None else out * gate.sigmoid())


class GenLIPMLP(nn.Module):
    def __init__(self, config: GenLIPConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.gate_fc = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        return self.fc2(F.silu(self.gate_fc(x)) * self.fc1(x))


class GenLIPLayerScale(nn.Module):
    def __init__(self, config: GenLIPConfig):
        super().__init__()
        self.lambda1 = nn.Parameter(torch.full((config.hidden_size,), config.ls_init_value))

    def forward(self, x):
        return x * self.lambda1


class GenLIPLayer(GradientCheckpointingLayer):
    """Pre-norm: x + DP(LS1(Attn(LN1 x))), then x + DP(LS2(MLP(LN2 x)))."""

    def __init__(self, config: GenLIPConfig, layer_idx: int):
        super().__init__()
        self.drop_path_rate = config.drop_path_rate
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = GenLIPAttention(config, layer_idx)
        self.layer_scale1 = GenLIPLayerScale(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = GenLIPMLP(config)
        self.layer_scale2 = GenLIPLayerScale(config)

    def drop_path(self, x, segments):
        """Drop the branch of whole samples, with the same rate in every layer; the survivors are scaled up."""
        if not self.training or self.drop_path_rate == 0.0:
            return x
        keep = 1.0 - self.drop_path_rate
        samples = len(x) if segments is None else len(segments.valid)
        kept = torch.bernoulli(torch.full((samples,), keep, device=x.device)) / keep
        if segments is None:
            return x * kept.to(x.dtype)[:, None, None]
        return x * kept.to(x.dtype).repeat_interleave(segments.valid.sum(1))[None, :, None]

    def forward(self, x, cos, sin, segments=None, mask=None, past_key_values=None):
        attended = self.self_attn(self.layer_norm1(x), cos, sin, segments, mask, past_key_values)
        x = x + self.drop_path(self.layer_scale1(attended), segments)
        return x + self.drop_path(self.layer_scale2(self.mlp(self.layer_norm2(x))), segments)


class GenLIPStack(nn.Module):
    def __init__(self, config: GenLIPConfig):
        super().__init__()
        self.layers = nn.ModuleList(GenLIPLayer(config, i) for i in range(config.num_hidden_layers))
        self.rotary = GenLIPRotaryEmbedding(config)

    def forward(self, x, positions, segments=None, mask=None, past_key_values=None):
        """x (B, T, D), positions (3, B or 1, T)."""
        cos, sin = self.rotary(positions, x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin, segments=segments, mask=mask, past_key_values=past_key_values)
        return x


class GenLIPPatchEmbedding(nn.Module):
    """A convolution whose kernel is its stride, so that patches (N, 3, 16, 16) and pictures (B, 3, H, W) take the same weights."""

    def __init__(self, config: GenLIPConfig):
        super().__init__()
        size = config.patch_size
        self.patch_embedding = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=size, stride=size)

    def forward(self, patches):
        """patches (N, 3, 16, 16) -> (N, D): one matrix product."""
        weight = self.patch_embedding.weight
        return F.linear(patches.to(weight.dtype).flatten(1), weight.flatten(1), self.patch_embedding.bias)


def to_patches(pixel_values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Pictures (B, 3, H, W) -> patches (B*N, 3, p, p), row-major. Raises ValueError if H or W is no multiple of p."""
    b, c, height, width = pixel_values.shape
    if height % patch_size or width % patch_size:
        raise ValueError(f"a picture of {height} x {width} pixels does not split into patches of {patch_size}: resize it to multiples")
    p = patch_size
    patches = pixel_values.reshape(b, c, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(-1, c, p, p)


# --- models ---------------------------------------------------------------------------------------------------------------


class GenLIPPreTrainedModel(PreTrainedModel):
    config_class = GenLIPConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GenLIPLayer"]  # noqa: RUF012 (transformers' own convention)
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        """The released init: N(0, 0.02) everywhere, biases 0, attention Xavier-uniform."""
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, GenLIPLayerScale):
            nn.init.constant_(module.lambda1, self.config.ls_init_value)
        elif isinstance(module, GenLIPAttention):  # after its own linears, since children are initialised first
            for linear in (module.q_proj, module.k_proj, module.v_proj, module.out_proj):
                nn.init.xavier_uniform_(linear.weight)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info=False, **kwargs):
        """transformers' own, but strict: a missing or unexpected key is a ValueError that names it.

        Only the encoder alone may leave a folder's text keys aside.
        """
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        wrong = [f"missing {key}" for key in sorted(info["missing_keys"])]
        wrong += [f"unexpected {key}" for key in sorted(info["unexpected_keys"])]
        if wrong:
            raise ValueError(
                f"{pretrained_model_name_or_path} does not hold the weights of a {cls.__name__} of its config.json: "
                f"{', '.join(wrong[:5])}{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}"
            )
        return (model, info) if output_loading_info else model


class GenLIPVisionModel(GenLIPPreTrainedModel):
    """The encoder: pixels -> `last_hidden_state` after `ln_post`, patches attending to patches both ways."""

    _keys_to_ignore_on_load_unexpected = [r"^embeddings\.", r"^in_proj\.", r"^proj\.", r"^lm_head\."]  # noqa: RUF012

    def __init__(self, config: GenLIPConfig):
        super().__init__(config)
        self.vision_embeddings = GenLIPPatchEmbedding(config)
        self.visual = GenLIPStack(config)
        self.ln_post = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, grid_hw: torch.Tensor | None = None, **kwargs) -> BaseModelOutput:
        """pixel_values (B, 3, H, W) -> (B, N, D); or packed patches (N, 3, 16, 16) with grid_hw (B, 2) -> (N, D).

        Batching never changes a result: samples do not see each other.
        """
        if grid_hw is None:
            b = len(pixel_values)
            grid = torch.tensor([[side // self.config.patch_size for side in pixel_values.shape[2:]]], device=pixel_values.device)
            x = self.vision_embeddings(to_patches(pixel_values, self.config.patch_size)).view(b, -1, self.config.hidden_size)
            return BaseModelOutput(last_hidden_state=self.ln_post(self.visual(x, image_positions(grid).unsqueeze(1))))
        check_grid(pixel_values, grid_hw)
        x = self.vision_embeddings(pixel_values).unsqueeze(0)
        lens = grid_hw.prod(dim=1)
        x = self.visual(x, image_positions(grid_hw).unsqueeze(1), segments_of(lens, torch.zeros_like(lens)))
        return BaseModelOutput(last_hidden_state=self.ln_post(x)[0])


def check_grid(patches: torch.Tensor, grid_hw: torch.Tensor) -> None:
    """Raises ValueError where the grids do not add up to the number of patches."""
    if int(grid_hw.prod(dim=1).sum()) != len(patches):
        raise ValueError(f"grid_hw {grid_hw.tolist()} makes {int(grid_hw.prod(dim=1).sum())} patches, but {len(patches)} were given")


class GenLIPForPretraining(GenLIPVisionModel, GenerationMixin):
    """The encoder and its tongue: patches and caption tokens through the same layers, the next word from each text token."""

    main_input_name = "input_ids"
    _keys_to_ignore_on_load_unexpected = None

    def __init__(self, config: GenLIPConfig):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.text_embed_dim)
        joined = config.text_embed_dim != config.hidden_size
        self.in_proj = nn.Linear(config.text_embed_dim, config.hidden_size) if joined else nn.Identity()
        self.proj = nn.Linear(config.hidden_size, config.text_embed_dim) if joined else nn.Identity()
        self.lm_head = nn.Linear(config.text_embed_dim, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings

    def get_output_embeddings(self):
        return self.lm_head

    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        grid_hw: torch.Tensor | None = None,
        text_lens: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        output_image_logits: bool = False,
        past_key_values=None,
        **kwargs,
    ) -> GenLIPOutput:
        """Packed: input_ids (1, T_text), pixel_values (N, 3, 16, 16), grid_hw (B, 2), text_lens (B,) -> logits (1, T_text, V).
        Equal sizes: input_ids (B, L), pixel_values (B, 3, H, W) -> logits (B, L, V). While generating, `pixel_values` is None
        after the first call and the keys of picture and text so far come from `past_key_values`.

        With `labels` (as input_ids; -100 = no loss) the head runs only where there is a label, `logits` is None, and
        loss = sum over labelled tokens / `num_items_in_batch` (their number here, if not given).
        """
        embedded = self.in_proj(self.embeddings(input_ids))
        if past_key_values is not None and past_key_values.get_seq_length():
            return self._continue(embedded, past_key_values)
        batch = grid_hw is None
        if batch:
            b, length = input_ids.shape
            grid_hw = torch.tensor([[side // self.config.patch_size for side in pixel_values.shape[2:]]] * b, device=input_ids.device)
            text_lens = torch.full((b,), length, device=input_ids.device)
            pixel_values = to_patches(pixel_values, self.config.patch_size)
        check_grid(pixel_values, grid_hw)
        patches = self.vision_embeddings(pixel_values)
        image_lens = grid_hw.prod(dim=1)
        # One order for all: sample by sample, patches before text.
        is_text = torch.stack([torch.zeros_like(text_lens), torch.ones_like(text_lens)], 1).flatten().bool()
        is_text = is_text.repeat_interleave(torch.stack([image_lens, text_lens], 1).flatten())
        x = patches.new_empty(len(is_text), self.config.hidden_size)
        x[~is_text], x[is_text] = patches, embedded.reshape(-1, self.config.hidden_size).to(patches.dtype)
        positions = image_lens.new_empty(3, len(is_text))
        positions[:, ~is_text], positions[:, is_text] = image_positions(grid_hw), text_positions(grid_hw, text_lens)
        if batch:  # all samples are equally long: rows instead of segments, which a KV cache can follow
            x, positions = x.view(b, -1, x.shape[-1]), positions.view(3, b, -1)
            mask = prefix_lm_mask(image_lens, image_lens + text_lens, x.shape[1])
            if past_key_values is not None:
                past_key_values.image_tokens, past_key_values.text_start = int(image_lens[0]), int(grid_hw[0].max())
            x = self.visual(x, positions, mask=mask, past_key_values=past_key_values)
        else:
            x = self.visual(x.unsqueeze(0), positions.unsqueeze(1), segments_of(image_lens, text_lens))
        x = self.ln_post(x)
        flat = x.reshape(-1, x.shape[-1])
        text = flat[is_text]
        loss = logits = None
        if labels is not None:
            loss = self._caption_loss(text, labels.reshape(-1), text_lens, num_items_in_batch)
        else:
            logits = self.lm_head(self.proj(text)).view(*input_ids.shape, -1)
        image_logits = self.lm_head(self.proj(flat[~is_text])) if output_image_logits else None
        return GenLIPOutput(loss=loss, logits=logits, last_hidden_state=x, image_logits=image_logits, past_key_values=past_key_values)

    def _caption_loss(self, text, labels, text_lens, num_items):
        """Each text token predicts the next one of its sample; a sample's last token predicts nothing."""
        target = F.pad(labels[1:], (0, 1), value=-100)
        target[text_lens.cumsum(0) - 1] = -100
        labelled = target != -100
        logits = self.lm_head(self.proj(text[labelled])).float()
        total = F.cross_entropy(logits, target[labelled], reduction="sum")
        return total / (labelled.sum().clamp(min=1) if num_items is None else num_items)

    def _continue(self, embedded, cache):
        """The next text tokens (B, l) behind a picture and a text whose keys are in the cache."""
        step = torch.arange(embedded.shape[1], device=embedded.device)
        behind = cache.get_seq_length() + step
        positions = (behind - cache.image_tokens + cache.text_start).expand(3, 1, -1)
        seen = torch.arange(int(behind[-1]) + 1, device=embedded.device)
        mask = (seen <= behind[:, None])[None, None]
        x = self.ln_post(self.visual(embedded, positions, mask=mask, past_key_values=cache))
        return GenLIPOutput(logits=self.lm_head(self.proj(x)), last_hidden_state=x, past_key_values=cache)

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, pixel_values=None, **kwargs):
        """transformers' `generate` counts text tokens; the picture in front of them is known to the cache alone."""
        cached = past_key_values.get_seq_length() if past_key_values is not None else 0
        if not cached:
            return {"input_ids": input_ids, "pixel_values": pixel_values, "past_key_values": past_key_values}
        return {"input_ids": input_ids[:, cached - past_key_values.image_tokens :], "past_key_values": past_key_values}
