"""The encoder against reference vectors of the released code, and what batching, masks and positions mean."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import genlip
from genlip.configuration_genlip import GenLIPConfig, mrope_channels
from genlip.modeling_genlip import GenLIPForPretraining, GenLIPVisionModel, lay_out, row_mask

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


def test_encoder_equals_the_released_code(golden, attention):
    folder, ref = golden
    model = AutoModel.from_pretrained(folder, attn_implementation=attention)
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
    assert lay_out(grid, torch.tensor([words]), len(ref["patches"]), words).positions.equal(ref["position_ids"])


def test_positions_and_mask_of_a_2x3_grid_and_four_words():
    layout = lay_out(torch.tensor([[2, 3]]), torch.tensor([4]), 6, 4)
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
    layout = lay_out(torch.tensor([[1, 2], [1, 1]]), torch.tensor([2, 1]), 3, 3)
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
    layout = lay_out(torch.tensor([[1, 2], [1, 1]]), torch.tensor([1, 1]), 3, 2, registers=1)
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


def test_released_parameter_counts():
    shapes = {
        "L": ({}, 645_831_680, 334_666_752),
        "So": ({"hidden_size": 1152, "num_hidden_layers": 27, "intermediate_size": 3072, "text_embed_dim": 1152}, 817_301_376, 467_240_832),
        "g": ({"hidden_size": 1536, "num_hidden_layers": 40, "intermediate_size": 4096}, 1_543_396_352, 1_229_083_136),
    }
    for changes, total, encoder in shapes.values():
        with torch.device("meta"):
            assert GenLIPForPretraining(GenLIPConfig(**changes)).num_parameters() == total
            assert GenLIPVisionModel(GenLIPConfig(**changes)).num_parameters() == encoder


def test_wrong_input_is_said():
    model = tiny()
    with pytest.raises(ValueError, match="multiples"):
        model(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 3, 30, 32))
    with pytest.raises(ValueError, match="6 patches, but 5"):
        GenLIPVisionModel.forward(model, torch.zeros(5, 3, 16, 16), grid_hw=torch.tensor([[2, 3]]))
    with pytest.raises(ValueError, match="leaves an axis without channels"):
        GenLIPConfig(mrope_section=[8, 0, 12])
