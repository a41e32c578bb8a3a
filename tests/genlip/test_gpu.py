"""On a GPU alone: FlexAttention gives what SDPA gives, packed rows what each sample gives alone, at the released heads in bf16."""

from dataclasses import replace

import pytest
import torch

from benchmarks.pretraining import full_row
from genlip.configuration_genlip import PRESETS as SIZES
from genlip.configuration_genlip import GenLIPConfig
from genlip.data import normalised
from genlip.modeling_genlip import GenLIPForPretraining
from genlip.recipes import PRESETS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
VOCAB_SIZE = 1024


def learnt(model, row):
    """(loss, gradients) of a packed row in bf16 on fp32 weights."""
    model.zero_grad()
    with torch.autocast("cuda", torch.bfloat16):
        loss = model(
            input_ids=row.input_ids.cuda(),
            pixel_values=normalised(row.patches.cuda()),
            grid_hw=row.grid_hw.cuda(),
            text_lens=row.text_lens.cuda(),
            labels=row.labels.cuda(),
        ).loss
    loss.backward()
    return loss.item(), {n: p.grad.flatten() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("size", ["genlip-so16", "genlip-g16"])
def test_flex_attention_equals_sdpa(size):
    """Heads of 72 and 96 channels, which no power of two holds."""
    config = GenLIPConfig(**SIZES[size] | {"num_hidden_layers": 2, "drop_path_rate": 0.0, "vocab_size": VOCAB_SIZE})
    torch.manual_seed(0)
    model = GenLIPForPretraining(config).cuda().train()
    row = full_row(replace(PRESETS["so16-s2"](), row_tokens=4096), VOCAB_SIZE, seed=0)
    loss, gradients = learnt(model, row)
    model.set_attn_implementation("flex_attention")
    other, found = learnt(model, row)
    assert other == pytest.approx(loss, rel=2e-3)
    for name, gradient in gradients.items():
        assert (found[name] - gradient).norm() < 0.05 * gradient.norm() + 1e-6, name


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
def test_a_packed_row_equals_its_samples_alone(attention):
    config = GenLIPConfig(**SIZES["genlip-so16"] | {"num_hidden_layers": 2, "vocab_size": VOCAB_SIZE})
    torch.manual_seed(0)
    model = GenLIPForPretraining(config).cuda().eval()
    row = full_row(replace(PRESETS["so16-s2"](), row_tokens=4096), VOCAB_SIZE, seed=1)
    patches = normalised(row.patches.cuda())
    model.set_attn_implementation(attention)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        packed = model(row.input_ids.cuda(), patches, grid_hw=row.grid_hw.cuda(), text_lens=row.text_lens.cuda()).logits[0]
        model.set_attn_implementation("sdpa")
        pictures, words = patches.split(row.grid_hw.prod(dim=1).tolist()), row.input_ids.cuda().split(row.text_lens.tolist(), dim=1)
        alone = [model(ids, p, grid_hw=grid[None].cuda()).logits[0] for ids, p, grid in zip(words, pictures, row.grid_hw)]
    alone = torch.cat(alone)
    assert (packed - alone).norm() < 0.02 * alone.norm()
