"""GenLIP on transformers: one stack of layers reads the patches, then speaks the caption (arXiv 2605.00809, section 3).

Shapes: B samples, T tokens of a packed row, N patches, R registers per sample (none by default), L longest sample of a bucket,
D width, H heads, V words. A packed row holds its samples one after another, each as [registers][patches][text]. Within a sample
(Prefix-LM; registers are as patches)

            patches  text            patches attend to patches, both ways;
    patches  1 1 1   0 0             text attends to all patches and to the text up to itself;
    text     1 1 1   1 0             nothing attends across samples.
             1 1 1   1 1

Module names are those of the released state dict, so that released folders and our own saves are one layout.

Differences from the reference (by design): the mask is right for any batch size (the released SDPA path broadcasts it over
heads); features are taken after `ln_post`, as the paper says; drop path acts per sample, not per packed row; loading is strict.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_genlip import GenLIPConfig
from .packed_row import AttentionPlan, build_layout, ends_of, for_function, plan_attention, row_mask


@dataclass
class GenLIPEncoderOutput(ModelOutput):
    """`last_hidden_state` after `ln_post`: (B, N, D) of pictures, (N, D) of packed patches, split by `cu_seqlens` (B+1,).

    `hidden_states` (on request): the patch embeddings and each layer's output, before `ln_post`. `attentions` (on request, eager
    only): per layer (B, H, R+N, R+N), packed a tuple of (H, R+n, R+n), one for each sample.
    """

    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None
    cu_seqlens: torch.Tensor | None = None


@dataclass
class GenLIPOutput(ModelOutput):
    """`logits` of the text tokens, (1, T_text, V) packed or (B, L, V) for an equal-size batch; None where only a loss was asked for.

    `last_hidden_state` covers all tokens, in the order of the row; the rest is as in GenLIPEncoderOutput.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    image_logits: torch.Tensor | None = None
    past_key_values: object | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None


MAX_LOGITS = 2**28  # logits that are held at once, 1 GiB in fp32: 1,766 tokens of Qwen's vocabulary


class ChunkedLinearCrossEntropy(torch.autograd.Function):
    """text (n, e), weight (V, e), target (n,) -> the sum of the n cross entropies of text @ weight.T, in fp32.

    The logits of one piece at a time exist, once: they become their own exponentials in place, from which the gradients follow at
    once, so the backward pass has none to make again. With p = exp(l - max) / z, the gradient of the logits is p less one at the target.
    """

    @staticmethod
    def forward(ctx, text, weight, target, with_gradients: bool):
        device = text.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        x, w, rows = text.to(dtype), weight.to(dtype), max(1, MAX_LOGITS // len(weight))
        total = torch.zeros((), device=text.device)
        if with_gradients:
            of_text, of_weight = -w[target].float(), torch.zeros_like(weight, dtype=torch.float32)
            of_weight.index_add_(0, target, x.float(), alpha=-1)
        for start in range(0, len(target), rows):
            piece = slice(start, start + rows)
            logits = (x[piece] @ w.T).float()
            largest, right = logits.amax(dim=1), logits.gather(1, target[piece, None])[:, 0]
            z = logits.sub_(largest[:, None]).exp_().sum(dim=1)
            total += (z.log() + largest - right).sum()
            if with_gradients:
                shares, z = logits.to(dtype), z[:, None]
                of_text[piece] += (shares @ w).float() / z
                of_weight += shares.T @ (x[piece] / z.to(dtype))
        if with_gradients:
            ctx.save_for_backward(of_text.to(text.dtype), of_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx, gradient):
        of_text, of_weight = ctx.saved_tensors
        return of_text * gradient, of_weight * gradient, None, None


# --- attention -----------------------------------------------------------------------------------------------------------


class GenLIPRotaryEmbedding(nn.Module):
    """Interleaved MRoPE: which rotary channel turns with time, row or column is fixed by `mrope_section` (see the configuration)."""

    def __init__(self, config: GenLIPConfig):
        super().__init__()
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.theta = config.rope_theta
        self.section = config.mrope_section

    def forward(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """positions (3, ...) -> cos, sin (..., head_dim / 2), the same for both halves of a head.

        The angles are computed in fp32 whatever the model's dtype.
        Nothing is kept in a buffer, so nothing can be lost when a model is built on the meta device.
        """
        half = self.head_dim // 2
        channel = torch.arange(half, device=positions.device)
        frequency = self.theta ** (-2.0 * channel.float() / self.head_dim)
        axis = torch.zeros_like(channel)
        axis[1 : min(3 * self.section[1], half) : 3] = 1
        axis[2 : min(3 * self.section[2], half) : 3] = 2
        angle = positions.float()[axis].movedim(0, -1) * frequency
        return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate x (B, T, H, head_dim) by cos, sin (B or 1, T, head_dim / 2): half rotation, in few passes over memory."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    return torch.cat([torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)], dim=-1)


def mul_maybe_inplace(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """x * factor; in x's own memory where no gradient is wanted, since on a CPU new memory costs more than the product."""
    return x * factor if torch.is_grad_enabled() else x.mul_(factor)


class Reordered(torch.autograd.Function):
    """x[order]; the gradient is read the other way round by `back`, where indexing's own would sort the places and add."""

    @staticmethod
    def forward(ctx, x, order, back):
        ctx.save_for_backward(back)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.index_select(0, ctx.saved_tensors[0]), None, None


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

    def forward(self, x, cos, sin, plan: AttentionPlan, past_key_values=None):
        """x (B, T, D), or (1, T, D) packed, as the plan says -> the same, and the attention weights (None unless eager)."""
        shape = (*x.shape[:2], self.num_heads, self.head_dim)
        query, gate = self.q_proj(x).chunk(2, dim=-1) if self.config.gated_attention else (self.q_proj(x), None)
        query = rotate(query.view(shape), cos, sin)
        key = rotate(self.k_proj(x).view(shape), cos, sin)
        value = self.v_proj(x).view(shape)
        if plan.buckets:
            out, weights = self.attend_buckets(query[0], key[0], value[0], plan)
        elif plan.spans:
            out, weights = self.attend_spans(query[0], key[0], value[0], plan.spans), None
        else:
            query, key, value = (t.transpose(1, 2) for t in (query, key, value))
            if past_key_values is not None:
                key, value = past_key_values.update(key, value, self.layer_idx)
            options = {}
            if plan.cu_seqlens is not None:
                options = {f"cu_seq_lens_{side}": plan.cu_seqlens for side in "qk"} | {f"max_length_{side}": plan.longest for side in "qk"}
            out, weights = self.attend(query, key, value, plan.mask, **options)
        out = out.reshape(*x.shape[:2], -1)
        return self.out_proj(out if gate is None else mul_maybe_inplace(out, gate.sigmoid())), weights

    def attend(self, query, key, value, mask, **options):
        """q, k, v (B, H, L, head_dim) -> (B, L, H, head_dim) by the attention function of the configuration."""
        function = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.config.attention_dropout if self.training else 0.0
        return function(self, query, key, value, mask, dropout=dropout, scaling=self.scaling, is_causal=False, **options)

    def attend_buckets(self, query, key, value, plan):
        """q, k, v (T, H, head_dim) -> (T, H, head_dim), and the weights of each sample (H, n, n) where the function gives them."""
        outs, weights = [], [None] * plan.samples
        for bucket in plan.buckets:
            out, scores = self.attend(*(t[bucket.index].transpose(1, 2) for t in (query, key, value)), bucket.mask)
            outs.append(out.flatten(0, 1) if bucket.valid is None else out[bucket.valid])
            for i, sample in enumerate(bucket.samples if scores is not None else ()):
                n = scores.shape[-1] if bucket.valid is None else int(bucket.valid[i].sum())
                weights[sample] = scores[i, :, :n, :n]
        return torch.cat(outs)[plan.back], tuple(weights)

    def attend_spans(self, query, key, value, spans):
        """q, k, v (T, H, head_dim) -> (T, H, head_dim). Rotated, queries and keys are fp32 under autocast, which this kernel refuses."""
        query, key = query.to(value.dtype), key.to(value.dtype)
        if spans.order is None:
            return varlen_attn(query, key, value, spans.ends, spans.ends, spans.longest, spans.longest, scale=self.scaling)
        q, k, v = (Reordered.apply(t, spans.order, spans.back) for t in (query, key, value))
        n, ends, longest = spans.prefix_tokens, spans.prefix_ends, spans.longest_prefix
        prefixes = varlen_attn(q[:n], k[:n], v[:n], ends, ends, longest, longest, scale=self.scaling)
        # The causal border ends where both end: a text's last word sees all of its sample, the one before it all but that.
        widths = (spans.longest_text, spans.longest)
        texts = varlen_attn(q[n:], key, value, spans.text_ends, spans.ends, *widths, scale=self.scaling, window_size=(-1, 0))
        return Reordered.apply(torch.cat([prefixes, texts]), spans.back, spans.order)


class GenLIPMLP(nn.Module):
    def __init__(self, config: GenLIPConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.gate_fc = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        return self.fc2(mul_maybe_inplace(F.silu(self.gate_fc(x), inplace=not torch.is_grad_enabled()), self.fc1(x)))


class GenLIPLayerScale(nn.Module):
    def __init__(self, config: GenLIPConfig):
        super().__init__()
        self.lambda1 = nn.Parameter(torch.full((config.hidden_size,), config.ls_init_value))

    def forward(self, x, branch):
        """x + lambda1 * branch in one pass over memory."""
        return torch.addcmul(x, branch, self.lambda1)


class GenLIPLayer(GradientCheckpointingLayer):
    """Pre-norm: x + LS1(DP(Attn(LN1 x))), then x + LS2(DP(MLP(LN2 x))); layer scale and drop path commute."""

    def __init__(self, config: GenLIPConfig, layer_idx: int):
        super().__init__()
        self.drop_path_rate = config.drop_path_rate
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = GenLIPAttention(config, layer_idx)
        self.layer_scale1 = GenLIPLayerScale(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = GenLIPMLP(config)
        self.layer_scale2 = GenLIPLayerScale(config)

    def drop_path(self, x, plan):
        """Drop the branch of whole samples, with the same rate in every layer; the survivors are scaled up."""
        if not self.training or self.drop_path_rate == 0.0:
            return x
        keep = 1.0 - self.drop_path_rate
        samples = len(x) if plan.sample is None else plan.samples
        kept = (torch.bernoulli(torch.full((samples,), keep, device=x.device)) / keep).to(x.dtype)
        return x * (kept[:, None, None] if plan.sample is None else kept[plan.sample][None, :, None])

    def forward(self, x, cos, sin, plan, past_key_values=None):
        attended, weights = self.self_attn(self.layer_norm1(x), cos, sin, plan, past_key_values)
        x = self.layer_scale1(x, self.drop_path(attended, plan))
        return self.layer_scale2(x, self.drop_path(self.mlp(self.layer_norm2(x)), plan)), weights


class GenLIPStack(nn.Module):
    def __init__(self, config: GenLIPConfig):
        super().__init__()
        self.layers = nn.ModuleList(GenLIPLayer(config, i) for i in range(config.num_hidden_layers))
        self.rotary = GenLIPRotaryEmbedding(config)

    def forward(self, x, positions, plan, past_key_values=None, hidden_states=None, attentions=None):
        """x (B, T, D), positions (3, 1, T). The lists `hidden_states` and `attentions`, where given, are filled layer by layer."""
        cos, sin = self.rotary(positions, x.dtype)
        for layer in self.layers:
            if hidden_states is not None:
                hidden_states.append(x)
            x, weights = layer(x, cos, sin, plan, past_key_values=past_key_values)
            if attentions is not None:
                attentions.append(weights)
        if hidden_states is not None:
            hidden_states.append(x)
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
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        """The released init: N(0, initializer_range) everywhere, biases 0, attention Xavier-uniform."""
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, GenLIPLayerScale):
            nn.init.constant_(module.lambda1, self.config.ls_init_value)
        elif isinstance(module, GenLIPVisionModel) and module.registers is not None:
            nn.init.normal_(module.registers, std=self.config.initializer_range)
        elif isinstance(module, GenLIPAttention):  # after its own linears, since children are initialised first
            for linear in (module.q_proj, module.k_proj, module.v_proj, module.out_proj):
                nn.init.xavier_uniform_(linear.weight)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info=False, **kwargs):
        """transformers' own, but strict and without pickle: a missing, unexpected or misshapen key is a ValueError that names it.

        Only the encoder alone may leave a folder's text keys aside.
        """
        source = pretrained_model_name_or_path
        folder = Path(source)
        pickles = sorted(f.name for f in folder.glob("*.bin")) if folder.is_dir() and not any(folder.glob("*.safetensors")) else []
        if pickles:
            raise ValueError(f"{source} holds pickled weights ({pickles[0]}), which could run code: save them as model.safetensors")
        strict = {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}  # mismatches are named below
        try:
            model, info = super().from_pretrained(source, *args, **kwargs | strict)
        except SafetensorError as e:
            raise ValueError(f"the weights in {source} are cut short or damaged ({e}): copy the file again") from e
        except OSError as e:
            raise ValueError(f"{source} is not a GenLIP folder: it needs config.json and model.safetensors ({e})") from e
        wrong = [f"missing {key}" for key in sorted(info["missing_keys"])]
        wrong += [f"unexpected {key}" for key in sorted(info["unexpected_keys"])]
        wrong += [f"{key} is {tuple(there)}, config.json says {tuple(ours)}" for key, there, ours in sorted(info["mismatched_keys"])]
        if wrong:
            raise ValueError(
                f"{source} does not hold the weights of a {cls.__name__} of its config.json: "
                f"{', '.join(wrong[:5])}{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}"
            )
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory, *args, layout: str = "ours", **kwargs):
        """transformers' own; `layout="official"` writes the released checkpoints' config.json (the keys of the weights are the same).

        Raises ValueError where the released code could not read the result: register tokens, or the encoder alone.
        """
        if layout not in ("ours", "official"):
            raise ValueError(f"layout {layout!r} is not known: 'ours' or 'official'")
        if layout == "official" and not isinstance(self, GenLIPForPretraining):
            raise ValueError("the released layout holds the text side too: load the folder with GenLIPForPretraining, then save it")
        config = self.config.official_json() if layout == "official" else None  # raises before anything is written
        super().save_pretrained(save_directory, *args, **kwargs)
        if config is not None:
            (Path(save_directory) / "config.json").write_text(config)


class GenLIPVisionModel(GenLIPPreTrainedModel):
    """The encoder: pixels -> `last_hidden_state` after `ln_post`, patches attending to patches both ways."""

    _keys_to_ignore_on_load_unexpected = [r"^embeddings\.", r"^in_proj\.", r"^proj\.", r"^lm_head\."]  # noqa: RUF012

    def __init__(self, config: GenLIPConfig):
        super().__init__(config)
        self.vision_embeddings = GenLIPPatchEmbedding(config)
        registers = config.num_register_tokens
        self.registers = nn.Parameter(torch.zeros(registers, config.hidden_size)) if registers else None
        self.visual = GenLIPStack(config)
        self.ln_post = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        grid_hw: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        **kwargs,
    ) -> GenLIPEncoderOutput:
        """pixel_values (B, 3, H, W) -> (B, N, D); or packed patches (N, 3, 16, 16) with grid_hw (B, 2) -> (N, D) and `cu_seqlens`.

        Batching never changes a result: samples do not see each other. Raises ValueError where grids and patches do not agree.
        """
        patches, grid, rows = self._patches(pixel_values, grid_hw)
        layout = build_layout(grid, torch.zeros_like(grid[:, 0]), patches.shape[-2], 0, self.config.num_register_tokens)
        hidden_states, attentions = self._collectors(output_hidden_states, output_attentions)
        x = self._run_layers(patches, None, layout, rows, None, hidden_states, attentions)

        def features(x):  # registers have served their turn
            x = x if self.registers is None else x[:, layout.patches]
            return x if rows else x[0]

        return GenLIPEncoderOutput(
            last_hidden_state=features(x),
            hidden_states=None if hidden_states is None else tuple(map(features, hidden_states)),
            attentions=None if attentions is None else tuple(attentions),
            cu_seqlens=None if rows else ends_of(grid.prod(dim=1)),
        )

    def _patches(self, pixel_values, grid_hw):
        """Embedded patches and their grids: (B, N, D), (1, 2), True for pictures; (N, D), (B, 2), False for packed patches.

        A batch of equal pictures is laid out as one sample, which all its rows share.
        """
        p = self.config.patch_size
        if grid_hw is None:
            if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
                raise ValueError(f"pixel_values {tuple(pixel_values.shape)}: give pictures (B, {self.config.num_channels}, H, W)")
            grid = torch.tensor([[side // p for side in pixel_values.shape[2:]]], device=pixel_values.device)
            patches = self.vision_embeddings(to_patches(pixel_values, p))
            return patches.view(len(pixel_values), -1, self.config.hidden_size), grid, True
        if pixel_values.shape[1:] != (self.config.num_channels, p, p):
            raise ValueError(
                f"pixel_values {tuple(pixel_values.shape)} beside grid_hw: give patches (N, {self.config.num_channels}, {p}, {p})"
            )
        if not torch.compiler.is_compiling() and int(grid_hw.prod(dim=1).sum()) != len(pixel_values):
            number = int(grid_hw.prod(dim=1).sum())
            raise ValueError(f"grid_hw {grid_hw.tolist()} makes {number} patches, but {len(pixel_values)} were given")
        return self.vision_embeddings(pixel_values), grid_hw, False

    def _collectors(self, output_hidden_states, output_attentions):
        if output_attentions and self.config._attn_implementation != "eager":
            raise ValueError("attention weights exist in eager attention only: from_pretrained(..., attn_implementation='eager')")
        return [] if output_hidden_states else None, [] if output_attentions else None

    def _run_layers(self, patches, words, layout, rows, cache, hidden_states, attentions):
        """Patches and words (None for the encoder alone) through all layers and `ln_post` -> (B, T, D), or (1, T, D) packed."""
        implementation = self.config._attn_implementation
        if words is not None and "flash" in implementation:
            raise ValueError("flash attention knows no prefix mask: read captions with attn_implementation='sdpa' or 'flex_attention'")
        parts = [patches] if words is None else [patches, words.to(patches.dtype)]
        if rows:
            if self.registers is not None:
                parts.insert(0, self.registers.expand(len(patches), -1, -1))
            x = torch.cat(parts, dim=1)
            plan = AttentionPlan(mask=None if words is None else for_function(row_mask(layout), implementation))
        else:
            if self.registers is not None:
                parts.insert(0, self.registers)
            x = (torch.cat(parts)[layout.source] if len(parts) > 1 else patches).unsqueeze(0)
            half = x.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(x.device.type)
            plan = plan_attention(layout, implementation, words is not None, half and not (self.training and self.config.attention_dropout))
        x = self.visual(x, layout.positions.unsqueeze(1), plan, cache, hidden_states, attentions)
        return self.ln_post(x)


class GenLIPForPretraining(GenLIPVisionModel, GenerationMixin):
    """Encoder plus language-model head: patches and caption tokens through the same layers, the next word from each text token."""

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
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        past_key_values=None,
        **kwargs,
    ) -> GenLIPOutput:
        """Packed: input_ids (1, T_text), pixel_values (N, 3, 16, 16), grid_hw (B, 2), text_lens (B,) -> logits (1, T_text, V).
        Equal sizes: input_ids (B, L), pixel_values (B, 3, H, W) -> logits (B, L, V). While generating, `pixel_values` is None
        after the first call and the keys of picture and text so far come from `past_key_values`.

        With `labels` (as input_ids; -100 = no loss) the head runs only where there is a label, `logits` is None, and
        loss = sum over supervised tokens / `num_items_in_batch` (their number here, if not given). Raises ValueError for word ids
        beyond the vocabulary, text beyond `max_position_embeddings`, grids or lengths that do not add up.
        """
        if past_key_values is not None and past_key_values.get_seq_length():
            return self._continue(input_ids, past_key_values)
        if pixel_values is None:
            raise ValueError("pixel_values is missing: GenLIP speaks about a picture")
        patches, grid, rows = self._patches(pixel_values, grid_hw)
        if not rows and len(grid) == 1:  # one sample of patches is a row as any other, which a KV cache can follow
            patches, rows, text_lens = patches.unsqueeze(0), True, None
        if rows:
            text_lens = torch.tensor([input_ids.shape[1]], device=grid.device)
        self._check_text(input_ids, grid, text_lens, len(patches) if rows else 1)
        words = self.in_proj(self.embeddings(input_ids))
        registers = self.config.num_register_tokens
        layout = build_layout(grid, text_lens, patches.shape[-2], input_ids.shape[1], registers)
        if past_key_values is not None:
            if not rows:
                raise ValueError("a KV cache follows one sample a row: generate from pictures of one size, or from one sample of patches")
            past_key_values.image_tokens, past_key_values.text_start = registers + patches.shape[1], int(grid.max())
        hidden_states, attentions = self._collectors(output_hidden_states, output_attentions)
        x = self._run_layers(patches, words if rows else words[0], layout, rows, past_key_values, hidden_states, attentions)

        text = x[:, layout.words]
        loss = logits = None
        if labels is not None:
            loss = self._caption_loss(text.flatten(0, 1), labels, layout.sample[layout.words], num_items_in_batch)
        else:
            logits = self.lm_head(self.proj(text))
        image_logits = self.lm_head(self.proj(x[:, layout.patches].flatten(0, 1))) if output_image_logits else None
        return GenLIPOutput(
            loss=loss,
            logits=logits,
            last_hidden_state=x,
            image_logits=image_logits,
            past_key_values=past_key_values,
            hidden_states=None if hidden_states is None else tuple(hidden_states),
            attentions=None if attentions is None else tuple(attentions),
        )

    def _check_text(self, input_ids, grid, text_lens, batch):
        if torch.compiler.is_compiling():
            return
        if text_lens is None:
            raise ValueError("text_lens (B,) is missing: it says which words belong to which of the packed samples")
        if len(input_ids) != batch:
            raise ValueError(f"input_ids has {len(input_ids)} rows, the pictures make {batch}")
        if len(text_lens) != len(grid) or int(text_lens.sum()) != input_ids.shape[1]:
            raise ValueError(
                f"text_lens {text_lens.tolist()} do not share {input_ids.shape[1]} words among the {len(grid)} sample(s) of grid_hw"
            )
        if input_ids.numel() and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < self.config.vocab_size:
            raise ValueError(
                f"word ids reach from {int(input_ids.min())} to {int(input_ids.max())}, the vocabulary has {self.config.vocab_size}: "
                "use the tokenizer that the model was trained with"
            )
        self._check_end(int((grid.max(dim=1).values + text_lens).max()))

    def _check_end(self, end):
        if end > self.config.max_position_embeddings:
            raise ValueError(f"the text ends at position {end}, max_position_embeddings is {self.config.max_position_embeddings}: cut it")

    def _caption_loss(self, text, labels, sample, num_items):
        """Each text token predicts the next one of its sample; a sample's last token predicts nothing.

        text (B*L or T_text, D), labels (B, L) or (1, T_text), sample (L,) or (T_text,): whose word it is, in a row.
        """
        target = F.pad(labels[:, 1:], (0, 1), value=-100)
        target[:, :-1].masked_fill_(sample[1:] != sample[:-1], -100)
        target = target.reshape(-1)
        supervised = target != -100
        text, target = text[supervised], target[supervised]

        total = ChunkedLinearCrossEntropy.apply(self.proj(text), self.lm_head.weight, target, torch.is_grad_enabled())
        return total / (max(1, len(target)) if num_items is None else num_items)

    def _continue(self, input_ids, cache):
        """The next words (B, l) behind a picture and a text whose keys are in the cache."""
        cached, new = cache.get_seq_length(), input_ids.shape[1]
        start = cached - cache.image_tokens + cache.text_start
        self._check_end(start + new)
        step = torch.arange(new, device=input_ids.device)
        positions = (start + step).expand(3, 1, -1)
        seen = torch.arange(cached + new, device=input_ids.device)
        mask = None if new == 1 else (seen <= cached + step[:, None])[None, None]  # one word sees all that is there
        plan = AttentionPlan(mask=for_function(mask, self.config._attn_implementation))
        x = self.ln_post(self.visual(self.in_proj(self.embeddings(input_ids)), positions, plan, cache))
        return GenLIPOutput(logits=self.lm_head(self.proj(x)), last_hidden_state=x, past_key_values=cache)

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, pixel_values=None, grid_hw=None, attention_mask=None, **kwargs
    ):
        """transformers' `generate` counts text tokens; the picture in front of them is known to the cache alone."""
        if attention_mask is not None and not attention_mask.all():
            raise ValueError("prompts in one batch must be equally long: GenLIP's rows have no padding")
        cached = past_key_values.get_seq_length() if past_key_values is not None else 0
        if not cached:
            return {"input_ids": input_ids, "pixel_values": pixel_values, "grid_hw": grid_hw, "past_key_values": past_key_values}
        return {"input_ids": input_ids[:, cached - past_key_values.image_tokens :], "past_key_values": past_key_values}
