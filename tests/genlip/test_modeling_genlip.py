"""The encoder against reference vectors of the released code, and what batching, masks and positions mean."""

import itertools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import genlip
from genlip import modeling_genlip
from genlip.configuration_genlip import PRESETS, GenLIPConfig, mrope_channels
from genlip.modeling_genlip import GenLIPForPretraining, GenLIPVisionModel
from genlip.packed_row import AttentionPlan, bucket_lens, build_layout, plan_spans, row_mask
from genlip.recipes import TINY

genlip.register()


@pytest.fixture(params=["with_proj", "no_proj"])
def golden(request, shared):
    folder = shared / "golden" / request.param
    return folder, load_file(folder / "reference.safetensors")


@pytest.fixture(params=["sdpa", "eager"])
def attention(request):
    return request.param


def tiny(**changes):
    torch.manual_seed(0)
    config = {"vocab_size": 64, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config |= {"text_embed_dim": 32, "mrope_section": [4, 4, 4], "drop_path_rate": 0.0}
    return GenLIPForPretraining(GenLIPConfig(**config | changes)).eval()


def encode(model, *args, **kwargs):
    """The encoder's forward, on the weights of a whole model."""
    return GenLIPVisionModel.forward(model, *args, **kwargs)


def test_encoder_equals_the_released_code(golden, attention):
    folder, ref = golden
    model = AutoModel.from_pretrained(folder, attn_implementation=attention)
    assert type(model) is GenLIPVisionModel
    features = model(ref["patches"], grid_hw=ref["grid_hw"].view(1, 2)).last_hidden_state
    torch.testing.assert_close(features, ref["encoder_ln_post"], atol=2e-5, rtol=0)


def test_joint_forward_equals_the_released_code(golden, attention):
    folder, ref = golden
    model = GenLIPForPretraining.from_pretrained(folder, attn_implementation=attention)
    out = model(
        ref["text_ids"][None],
        ref["patches"],
        grid_hw=ref["grid_hw"].view(1, 2),
        text_lens=torch.tensor([len(ref["text_ids"])]),
        output_image_logits=True,
    )
    torch.testing.assert_close(out.last_hidden_state[0], ref["ln_post"], atol=2e-5, rtol=0)
    torch.testing.assert_close(torch.cat([out.image_logits, out.logits[0]]), ref["logits"], atol=2e-5, rtol=0)


def test_positions_equal_the_released_code(golden):
    _, ref = golden
    grid, words = ref["grid_hw"].view(1, 2), len(ref["text_ids"])
    assert build_layout(grid, torch.tensor([words]), len(ref["patches"]), words).positions.equal(ref["position_ids"])


def test_positions_and_mask_of_a_2x3_grid_and_four_words():
    layout = build_layout(torch.tensor([[2, 3]]), torch.tensor([4]), 6, 4)
    time, row, column = layout.positions.tolist()
    assert time == [0, 0, 0, 0, 0, 0, 3, 4, 5, 6]
    assert row == [0, 0, 0, 1, 1, 1, 3, 4, 5, 6]
    assert column == [0, 1, 2, 0, 1, 2, 3, 4, 5, 6]
    assert row_mask(layout)[0, 0].int().tolist() == [
        [1, 1, 1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    ]


def test_positions_and_mask_of_two_packed_samples():
    """A 1x2 grid with two words, then one patch with one word: positions start anew, nothing crosses."""
    layout = build_layout(torch.tensor([[1, 2], [1, 1]]), torch.tensor([2, 1]), 3, 3)
    assert layout.positions.tolist() == [[0, 0, 2, 3, 0, 1], [0, 0, 2, 3, 0, 1], [0, 1, 2, 3, 0, 1]]
    assert row_mask(layout)[0, 0].int().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]
    assert layout.source.tolist() == [0, 1, 3, 4, 2, 5]  # of [3 patches][3 words]


def test_registers_stand_before_the_patches_at_position_zero():
    layout = build_layout(torch.tensor([[1, 2], [1, 1]]), torch.tensor([1, 1]), 3, 2, registers=1)
    assert layout.positions.tolist() == [[0, 0, 0, 2, 0, 0, 1], [0, 0, 0, 2, 0, 0, 1], [0, 0, 1, 2, 0, 0, 1]]
    assert layout.source.tolist() == [0, 1, 2, 4, 0, 3, 5]  # of [1 register][3 patches][2 words]
    assert layout.patches.tolist() == [1, 2, 5] and layout.words.tolist() == [3, 6]


@pytest.mark.parametrize(
    ("head", "section", "counts"), [(64, [8, 12, 12], (11, 11, 10)), (72, [8, 12, 12], (12, 12, 12)), (96, [16, 16, 16], (16, 16, 16))]
)
def test_rotary_channels(head, section, counts):
    assert mrope_channels(head, section) == counts


@pytest.mark.parametrize("number", [2, 5])  # 2 is the number of heads, where the released code is silently wrong
def test_packing_pictures_of_different_grids_changes_nothing(number, attention):
    model = tiny(attn_implementation=attention)
    grids = torch.tensor([[2, 3], [4, 1], [1, 1], [3, 3], [2, 2]])[:number]
    patches = torch.randn(int(grids.prod(1).sum()), 3, 16, 16)
    packed = GenLIPVisionModel.forward(model, patches, grid_hw=grids).last_hidden_state
    alone = [
        GenLIPVisionModel.forward(model, p, grid_hw=g[None]).last_hidden_state for p, g in zip(patches.split(grids.prod(1).tolist()), grids)
    ]
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-5, rtol=0)


def test_packed_text_equals_alone_and_images_do_not_see_text():
    model = tiny()
    grids, lens = torch.tensor([[2, 3], [2, 2]]), torch.tensor([4, 3])
    patches, ids = torch.randn(10, 3, 16, 16), torch.randint(0, 64, (1, 7))
    packed = model(ids, patches, grid_hw=grids, text_lens=lens)
    first = model(ids[:, :4], patches[:6], grid_hw=grids[:1], text_lens=lens[:1])
    second = model(ids[:, 4:], patches[6:], grid_hw=grids[1:], text_lens=lens[1:])
    torch.testing.assert_close(packed.logits, torch.cat([first.logits, second.logits], 1), atol=1e-5, rtol=0)
    encoder = GenLIPVisionModel.forward(model, patches[:6], grid_hw=grids[:1]).last_hidden_state
    torch.testing.assert_close(first.last_hidden_state[0, :6], encoder, atol=1e-5, rtol=0)


def test_pictures_equal_their_patches():
    model = tiny()
    pixels = torch.randn(2, 3, 32, 48)
    grid = model(torch.randint(0, 64, (2, 3)), pixels).last_hidden_state
    batch = GenLIPVisionModel.forward(model, pixels).last_hidden_state
    torch.testing.assert_close(grid[:, :6], batch, atol=1e-5, rtol=0)


def test_loss_is_the_sum_over_labels_within_samples():
    model = tiny()
    grids, lens = torch.tensor([[1, 1], [1, 2]]), torch.tensor([3, 2])
    patches, ids = torch.randn(3, 3, 16, 16), torch.randint(0, 64, (1, 5))
    labels = ids.clone()
    labels[0, 0] = -100  # but not the second sample's first word: a shift over the border must have no loss all the same
    logits = model(ids, patches, grid_hw=grids, text_lens=lens).logits[0].log_softmax(-1)
    by_hand = -(logits[0, ids[0, 1]] + logits[1, ids[0, 2]] + logits[3, ids[0, 4]])
    loss = model(ids, patches, grid_hw=grids, text_lens=lens, labels=labels, num_items_in_batch=10).loss
    torch.testing.assert_close(loss, by_hand / 10)
    torch.testing.assert_close(model(ids, patches, grid_hw=grids, text_lens=lens, labels=labels).loss, by_hand / 3)


def test_generate_equals_decoding_without_a_cache():
    model = tiny()
    pixels, ids = torch.randn(3, 3, 32, 48), torch.randint(0, 64, (3, 4))
    out = model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=8, do_sample=False)
    slow = ids
    for _ in range(8):
        slow = torch.cat([slow, model(slow, pixels).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert out.equal(slow)


def test_saved_folder_opens_by_auto_model_without_its_text_keys(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path)
    assert type(encoder) is GenLIPVisionModel
    assert not any("embeddings.weight" in key for key in encoder.state_dict())
    pixels = torch.randn(1, 3, 32, 32)
    assert encoder(pixels).last_hidden_state.equal(GenLIPVisionModel.forward(model, pixels).last_hidden_state)


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_loading_is_strict(tmp_path, change):
    tiny().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    if change == "missing":
        del state["visual.layers.1.mlp.fc1.weight"]
    else:
        state["visual.layers.1.mlp.fc9.weight"] = torch.zeros(1)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for load in (AutoModel.from_pretrained, GenLIPForPretraining.from_pretrained):
        with pytest.raises(ValueError, match=rf"{change} visual\.layers\.1\.mlp\.fc"):
            load(tmp_path)


@pytest.mark.parametrize(
    ("preset", "total", "encoder"),
    [
        ("genlip-l16", 645_831_680, 334_666_752),
        ("genlip-so16", 817_301_376, 467_240_832),
        ("genlip-so16-e1024", 780_767_232, 467_240_832),
        ("genlip-g16", 1_543_396_352, 1_229_083_136),
    ],
)
def test_released_parameter_counts(preset, total, encoder):
    with torch.device("meta"):
        assert GenLIPForPretraining(GenLIPConfig(**PRESETS[preset])).num_parameters() == total
        assert GenLIPVisionModel(GenLIPConfig(**PRESETS[preset])).num_parameters() == encoder


def test_presets_are_the_papers_but_for_the_tiny_one():
    assert all(GenLIPConfig(**preset).num_attention_heads == 16 for preset in PRESETS.values())
    assert [GenLIPConfig(**PRESETS[k]).drop_path_rate for k in ("genlip-l16", "genlip-so16", "genlip-g16")] == [0.1, 0.1, 0.2]
    assert GenLIPConfig().to_dict() == GenLIPConfig(**PRESETS["genlip-l16"]).to_dict()
    assert 0.9e6 < GenLIPVisionModel(GenLIPConfig(**TINY)).num_parameters() < 1.1e6


# --- batching -------------------------------------------------------------------------------------------------------------

GRIDS = torch.tensor([[12, 13], [2, 3], [4, 1], [13, 12], [1, 1], [16, 16], [3, 3], [2, 2]])  # long and short, two of equal length


def test_buckets_join_equals_and_what_is_short():
    assert bucket_lens([156, 6, 4, 156, 1, 256, 9, 4], with_text=False) == [[5], [0, 3], [6, 1], [2, 7, 4]]
    assert bucket_lens([220, 210, 60, 50], with_text=True) == [[0, 1], [2, 3]]
    assert bucket_lens([220, 210, 60, 50], with_text=False) == [[0], [1], [2, 3]]
    assert bucket_lens([64, 60, 62], with_text=False) == [[0, 2, 1]]


@pytest.mark.parametrize("registers", [0, 4])
def test_long_and_short_pictures_in_one_row_equal_each_alone(attention, registers):
    model = tiny(attn_implementation=attention, num_register_tokens=registers)
    lens = GRIDS.prod(1).tolist()
    patches = torch.randn(sum(lens), 3, 16, 16)
    packed = encode(model, patches, grid_hw=GRIDS)
    assert packed.cu_seqlens.tolist() == [0, *itertools.accumulate(lens)]
    alone = [encode(model, p, grid_hw=g[None]).last_hidden_state for p, g in zip(patches.split(lens), GRIDS)]
    torch.testing.assert_close(packed.last_hidden_state, torch.cat(alone), atol=1e-5, rtol=0)


@pytest.mark.parametrize("registers", [0, 4])
def test_pictures_of_one_size_equal_each_alone_and_their_patches(attention, registers):
    model = tiny(attn_implementation=attention, num_register_tokens=registers)
    pixels = torch.randn(2, 3, 32, 48)  # as many as heads
    batch = encode(model, pixels).last_hidden_state
    assert batch.shape == (2, 6, 48)
    alone = torch.cat([encode(model, one[None]).last_hidden_state for one in pixels])
    torch.testing.assert_close(batch, alone, atol=1e-5, rtol=0)
    patches = pixels.reshape(2, 3, 2, 16, 3, 16).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, 16, 16)
    packed = encode(model, patches, grid_hw=torch.tensor([[2, 3]] * 2)).last_hidden_state
    torch.testing.assert_close(packed, batch.flatten(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("registers", [0, 1])
def test_many_captions_in_one_row_equal_each_alone(attention, registers):
    model = tiny(attn_implementation=attention, num_register_tokens=registers)
    lens = torch.tensor([7, 3, 30, 1, 5, 2, 9, 12])
    patches, ids = torch.randn(int(GRIDS.prod(1).sum()), 3, 16, 16), torch.randint(0, 64, (1, int(lens.sum())))
    packed = model(ids, patches, grid_hw=GRIDS, text_lens=lens)
    parts = zip(ids[0].split(lens.tolist()), patches.split(GRIDS.prod(1).tolist()), GRIDS)
    alone = [model(i[None], p, grid_hw=g[None]) for i, p, g in parts]
    torch.testing.assert_close(packed.logits[0], torch.cat([one.logits[0] for one in alone]), atol=1e-5, rtol=0)
    torch.testing.assert_close(packed.last_hidden_state[0], torch.cat([one.last_hidden_state[0] for one in alone]), atol=1e-5, rtol=0)


# --- outputs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("registers", [0, 1])
def test_hidden_states_and_attentions(registers):
    model = tiny(attn_implementation="eager", num_register_tokens=registers)
    patches, lens = torch.randn(10, 3, 16, 16), [6 + registers, 4 + registers]
    out = encode(model, patches, grid_hw=torch.tensor([[2, 3], [2, 2]]), output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == 3 and len(out.attentions) == 2
    torch.testing.assert_close(out.hidden_states[0], model.vision_embeddings(patches))
    torch.testing.assert_close(model.ln_post(out.hidden_states[-1]), out.last_hidden_state)
    for layer in out.attentions:
        assert [weights.shape for weights in layer] == [(2, n, n) for n in lens]
        for weights in layer:
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
    joint = model(torch.randint(0, 64, (2, 3)), torch.randn(2, 3, 32, 32), output_attentions=True)
    before = 4 + registers
    assert joint.attentions[0].shape == (2, 2, before + 3, before + 3)
    assert (joint.attentions[0][:, :, :before, before:] == 0).all()  # patches do not see words
    with pytest.raises(ValueError, match="eager"):
        encode(tiny(), patches, grid_hw=torch.tensor([[2, 3], [2, 2]]), output_attentions=True)


# --- attention functions, compilation, precision --------------------------------------------------------------------------


@pytest.mark.slow  # compiles for a minute
def test_flex_attention_equals_sdpa():
    lens = torch.tensor([2, 1, 3])
    grids = torch.tensor([[2, 3], [1, 4], [3, 3]])
    patches, ids, pixels = torch.randn(19, 3, 16, 16), torch.randint(0, 64, (1, 6)), torch.randn(2, 3, 32, 48)
    sdpa, flex = tiny(hidden_size=64), tiny(hidden_size=64, attn_implementation="flex_attention")
    with torch.no_grad():
        for forward in (
            lambda m: m(ids, patches, grid_hw=grids, text_lens=lens).logits,
            lambda m: encode(m, patches, grid_hw=grids).last_hidden_state,
            lambda m: m(ids[:, :4].expand(2, -1), pixels).logits,
        ):
            torch.testing.assert_close(forward(flex), forward(sdpa), atol=1e-5, rtol=0)


def test_flash_attention_is_called_with_the_samples_and_refuses_captions():
    """No flash attention on a CPU: a plain function in its place reads the same arguments."""
    calls = []

    def flash(module, query, key, value, attention_mask, scaling, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, **kwargs):
        calls.append((cu_seq_lens_q.tolist(), cu_seq_lens_q.dtype, max_length_k, kwargs["is_causal"]))
        pieces = [t.split(cu_seq_lens_k.diff().tolist(), dim=2) for t in (query, key, value)]
        outs = [torch.nn.functional.scaled_dot_product_attention(*qkv, scale=scaling) for qkv in zip(*pieces)]
        return torch.cat(outs, dim=2).transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register("a_flash_stand_in", flash)
    model, grids, patches = tiny(), torch.tensor([[2, 3], [2, 2]]), torch.randn(10, 3, 16, 16)
    expected = encode(model, patches, grid_hw=grids).last_hidden_state
    model.config._attn_implementation = "a_flash_stand_in"
    torch.testing.assert_close(encode(model, patches, grid_hw=grids).last_hidden_state, expected, atol=1e-5, rtol=0)
    assert calls == [([0, 6, 10], torch.int32, 6, False)] * 2
    with pytest.raises(ValueError, match="no prefix mask"):
        model(torch.zeros(1, 2, dtype=torch.long), patches, grid_hw=grids, text_lens=torch.tensor([1, 1]))


def spans_one_by_one(q, k, v, ends_q, ends_k, longest_q, longest_k, scale, window_size=(-1, -1)):
    """What varlen_attn is documented to do: query tokens ends_q[i] to ends_q[i + 1] see keys of the same i; with (-1, 0) none behind
    its own place, counted from the end."""
    assert ends_q.dtype == ends_k.dtype == torch.int32
    assert (longest_q, longest_k) == (ends_q.diff().max(), ends_k.diff().max())
    outs = []
    for (a, b), (c, d) in zip(itertools.pairwise(ends_q.tolist()), itertools.pairwise(ends_k.tolist())):
        mask = None if window_size == (-1, -1) else torch.ones(b - a, d - c).tril(d - c - (b - a)).bool()
        some = (t.transpose(0, 1) for t in (q[a:b], k[c:d], v[c:d]))
        outs.append(torch.nn.functional.scaled_dot_product_attention(*some, mask, scale=scale).transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize("registers", [0, 2])
def test_spans_give_what_masks_give(registers, monkeypatch):
    """The kernel is the GPU's: a plain function in its place reads the same arguments. Texts of no word and of several, drop path."""
    model = tiny(num_register_tokens=registers, drop_path_rate=0.5).train()
    grids, lens = torch.tensor([[2, 3], [1, 4], [3, 3], [2, 3]]), torch.tensor([2, 0, 5, 1])
    patches, ids = torch.randn(25, 3, 16, 16), torch.randint(0, 64, (1, 8))

    def learnt():
        torch.manual_seed(0)
        model.zero_grad()
        encoded = encode(model, patches, grid_hw=grids).last_hidden_state
        loss = model(ids, patches, grid_hw=grids, text_lens=lens, labels=ids).loss
        loss.backward()
        return [encoded.detach(), loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    expected = learnt()
    monkeypatch.setattr(modeling_genlip, "varlen_attn", spans_one_by_one)
    monkeypatch.setattr(modeling_genlip, "plan_attention", lambda layout, name, with_text, half: plan_spans(layout, with_text))
    for found, wanted in zip(learnt(), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("registers", [0, 1])
def test_the_encoder_compiles_as_one_graph(registers):
    """`fullgraph` fails at the first break; other grids of as many samples and patches take the same graph."""
    model = GenLIPVisionModel(tiny(num_register_tokens=registers).config).eval()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        pixels, patches = torch.randn(2, 3, 32, 48), torch.randn(10, 3, 16, 16)
        torch.testing.assert_close(compiled(pixels).last_hidden_state, model(pixels).last_hidden_state, atol=1e-5, rtol=0)
        for grids in ([[2, 3], [2, 2]], [[1, 8], [2, 1]]):
            grid = torch.tensor(grids)
            ours, theirs = compiled(patches, grid_hw=grid), model(patches, grid_hw=grid)
            torch.testing.assert_close(ours.last_hidden_state, theirs.last_hidden_state, atol=1e-5, rtol=0)
            assert ours.cu_seqlens.equal(theirs.cu_seqlens)
    assert len(graphs) == 2


def test_bf16_is_close_to_fp32():
    model, pixels = tiny(), torch.randn(2, 3, 64, 64)
    exact = encode(model, pixels).last_hidden_state
    low = encode(model.to(torch.bfloat16), pixels).last_hidden_state
    assert low.dtype == torch.bfloat16
    assert 0 < (low.float() - exact).norm() / exact.norm() < 0.02


# --- training -------------------------------------------------------------------------------------------------------------


def test_gradient_checkpointing_changes_nothing_but_memory():
    grids, lens = torch.tensor([[2, 3], [2, 2]]), torch.tensor([4, 3])
    patches, ids = torch.randn(10, 3, 16, 16), torch.randint(0, 64, (1, 7))
    gradients, calls = [], []
    for checkpointed in (False, True):
        model = tiny(drop_path_rate=0.5).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.visual.layers[0].mlp.register_forward_hook(lambda *_, mode=checkpointed: calls.append(mode))
        torch.manual_seed(1)  # the same samples are dropped, in the second forward of a checkpoint too
        model(ids, patches, grid_hw=grids, text_lens=lens, labels=ids).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert calls.count(False) == 1 and calls.count(True) == 2  # it ran again for its gradient
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_drop_path_drops_whole_samples_and_scales_the_others():
    layer = tiny(drop_path_rate=0.25, num_hidden_layers=1).train().visual.layers[0]
    layout = build_layout(torch.tensor([[2, 3], [1, 1], [2, 2]] * 40), torch.ones(120, dtype=torch.long), 440, 120)
    plan = AttentionPlan(sample=layout.sample, samples=120)
    torch.manual_seed(0)
    packed = layer.drop_path(torch.ones(1, 560, 3), plan)[0]
    kept = [set(tokens.flatten().tolist()) for tokens in packed.split(layout.lens.tolist())]
    assert all(len(values) == 1 for values in kept)  # a sample has one fate
    assert sorted(set().union(*kept)) == pytest.approx([0.0, 1 / 0.75])
    assert 0.6 < sum(values != {0.0} for values in kept) / 120 < 0.9
    rows = layer.drop_path(torch.ones(120, 4, 3), AttentionPlan())
    assert all(len(set(row.flatten().tolist())) == 1 for row in rows) and 0.6 < (rows > 0).float().mean() < 0.9
    assert layer.eval().drop_path(rows, AttentionPlan()) is rows


@pytest.mark.parametrize("change", [{"gated_attention": False}, {"num_register_tokens": 1}, {"num_register_tokens": 4}])
def test_ablations_train_save_and_load(change, tmp_path):
    model = tiny(**change)
    pixels, ids = torch.randn(2, 3, 32, 32), torch.randint(0, 64, (2, 3))
    model(ids, pixels, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert model.visual.layers[0].self_attn.q_proj.out_features == (96 if model.config.gated_attention else 48)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(pixels).last_hidden_state, encode(model, pixels).last_hidden_state)


def test_registers_are_seen():
    model, pixels = tiny(num_register_tokens=1), torch.randn(1, 3, 32, 32)
    before = encode(model, pixels).last_hidden_state
    with torch.no_grad():
        model.registers += torch.randn(1, 48)
    assert (encode(model, pixels).last_hidden_state - before).abs().max() > 1e-3


# --- generation -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("registers", [0, 1])
def test_generate_from_patches_of_any_shape(registers):
    model = tiny(num_register_tokens=registers)
    patches, grid, ids = torch.randn(8, 3, 16, 16), torch.tensor([[2, 4]]), torch.randint(0, 64, (1, 4))
    inputs = {"pixel_values": patches, "grid_hw": grid, "text_lens": torch.tensor([4])}
    out = model.generate(input_ids=ids, **inputs, max_new_tokens=8, do_sample=False)
    slow = ids
    for _ in range(8):
        slow = torch.cat([slow, model(slow, patches, grid_hw=grid).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert out.equal(slow)


def test_several_words_behind_a_cache_see_only_what_is_before_them():
    model, pixels, ids = tiny(), torch.randn(2, 3, 32, 48), torch.randint(0, 64, (2, 7))
    whole = model(ids, pixels).logits
    cache = DynamicCache()
    first = model(ids[:, :3], pixels, past_key_values=cache).logits
    then = model(ids[:, 3:], past_key_values=cache).logits
    torch.testing.assert_close(torch.cat([first, then], 1), whole, atol=1e-5, rtol=0)


# --- wrong input ----------------------------------------------------------------------------------------------------------


def test_wrong_input_is_said():
    model = tiny(max_position_embeddings=10)
    word, one, patches = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 3, 32, 32), torch.zeros(5, 3, 16, 16)
    with pytest.raises(ValueError, match="multiples"):
        model(word, torch.zeros(1, 3, 30, 32))
    with pytest.raises(ValueError, match="give pictures"):
        encode(model, torch.zeros(3, 32, 32))
    with pytest.raises(ValueError, match="give patches"):
        encode(model, torch.zeros(5, 768), grid_hw=torch.tensor([[1, 5]]))
    with pytest.raises(ValueError, match="6 patches, but 5"):
        encode(model, patches, grid_hw=torch.tensor([[2, 3]]))
    with pytest.raises(ValueError, match="from 0 to 64, the vocabulary has 64"):
        model(torch.tensor([[0, 64]]), one)
    with pytest.raises(ValueError, match="ends at position 11, max_position_embeddings is 10"):
        model(word.expand(1, 9), one)
    with pytest.raises(ValueError, match="ends at position 11"):
        model.generate(input_ids=word.expand(1, 7), pixel_values=one, max_new_tokens=5, min_new_tokens=5)
    with pytest.raises(ValueError, match="which words belong to which"):
        model(word, patches, grid_hw=torch.tensor([[1, 2], [1, 3]]))
    with pytest.raises(ValueError, match=r"\[1, 1\] do not share 1 words"):
        model(word, patches, grid_hw=torch.tensor([[1, 2], [1, 3]]), text_lens=torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="2 rows, the pictures make 1"):
        model(word.expand(2, 1), one)
    with pytest.raises(ValueError, match="equally long"):
        ids = torch.zeros(2, 3, dtype=torch.long)
        mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
        model.generate(input_ids=ids, pixel_values=one.expand(2, -1, -1, -1), attention_mask=mask, max_new_tokens=1)
    with pytest.raises(ValueError, match="speaks about a picture"):
        model(word)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"mrope_section": [8, 0, 12]}, "leaves an axis without channels"),
        ({"num_attention_heads": 24}, "does not split into 24 heads"),
        ({"head_dim": 72}, "head_dim 72 is not hidden_size 1024 / num_attention_heads 16"),
        ({"use_swiglu_ffn": False}, "not GenLIP as published"),
        ({"tie_word_embeddings": True}, "separate weights"),
    ],
)
def test_contradictions_of_a_configuration_are_said(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        GenLIPConfig(**fields)


@pytest.mark.parametrize(("section", "head"), [([8, 12, 12], 64), ([8, 12, 12], 72), ([12, 12, 12], 72), ([16, 16, 16], 96)])
def test_released_sections_all_load(section, head):
    assert GenLIPConfig(hidden_size=head * 16, rope_scaling={"type": "mrope", "mrope_section": section}).mrope_section == section


def test_weights_of_another_shape_than_config_json_says_are_named(tmp_path):
    tiny().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    written = file.read_text()
    for field, wrong, key in (
        ("vocab_size", 65, "embeddings.weight"),
        ("hidden_size", 96, "ln_post.bias"),
        ("gated_attention", False, r"visual\.layers\.0\.self_attn\.q_proj\.bias"),
        ("num_hidden_layers", 1, r"unexpected visual\.layers\.1\."),
    ):
        file.write_text(json.dumps(json.loads(written) | {field: wrong}))
        with pytest.raises(ValueError, match=key):
            GenLIPForPretraining.from_pretrained(tmp_path)
