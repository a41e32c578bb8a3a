"""The native MLLM: text alone as the bare language model, batches as one by one, exports that prove what they hold."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from llava_plugin import mllm
from llava_plugin.tower import VisionTower


def picture(seed):
    return Image.effect_noise((40, 30), 20 + 40 * seed).convert("RGB")


def user(text, pictures=0):
    return [{"role": "user", "content": [{"type": "image"}] * pictures + [{"type": "text", "text": text}]}]


@pytest.fixture(scope="module")
def export(llama_tiny, tmp_path_factory):
    tower = VisionTower.from_encoder("clip-tiny")
    model, tokenizer = mllm.build(tower, str(llama_tiny))
    folder = tmp_path_factory.mktemp("export")
    mllm.save(model, tokenizer, folder, {"stage": "sft", "encoder": "clip-tiny"})
    return folder


@pytest.fixture(scope="module")
def loaded(export):
    return mllm.load(export)


MIXED = [user("yes", 1), user("what is in the picture", 0), user("a blue triangle in it, or no", 2), user("no", 1), user("x", 0)] * 2
PICTURES = [[picture(10 * i + j) for j in range(sum(p["type"] == "image" for p in c[0]["content"]))] for i, c in enumerate(MIXED)]


def test_batch_size_never_changes_an_answer(loaded):
    together = loaded.answer(MIXED, PICTURES, max_new_tokens=10)
    assert len(set(together)) > 3  # answers that differ, so that a mix-up would show
    for size in (1, 3):
        chunks = [loaded.answer(MIXED[i : i + size], PICTURES[i : i + size], max_new_tokens=10) for i in range(0, len(MIXED), size)]
        assert [answer for chunk in chunks for answer in chunk] == together


def test_pictures_are_seen(loaded):
    ids = torch.tensor([mllm.prompt_ids(loaded.tokenizer, user("yes", 1), loaded.model.config.image_token_id, 16)])
    with torch.inference_mode():
        logits = [loaded.model(input_ids=ids, pixel_values=loaded.features([picture(seed)])).logits[0, -1] for seed in (1, 2)]
    assert not torch.allclose(*logits)


def test_text_alone_is_answered_as_by_the_bare_language_model(loaded, llama_tiny):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(llama_tiny), AutoTokenizer.from_pretrained(llama_tiny)
    ids = torch.tensor([tokenizer.apply_chat_template([{"role": "user", "content": "what"}], add_generation_prompt=True)["input_ids"]])
    bare = tokenizer.decode(model.generate(input_ids=ids, max_new_tokens=10, do_sample=False)[0, ids.shape[1] :], skip_special_tokens=True)
    assert loaded.answer([user("what")], [[]], max_new_tokens=10) == [bare.strip()]


def test_the_placeholder_is_no_new_row_where_there_is_room_and_never_generated(llama_tiny):
    model, tokenizer = mllm.build(VisionTower.from_encoder("genlip-tiny"), str(llama_tiny))
    assert model.config.image_token_id == tokenizer.convert_tokens_to_ids("<image>")
    assert model.get_input_embeddings().num_embeddings == AutoModelForCausalLM.from_pretrained(llama_tiny).config.vocab_size
    with torch.no_grad():
        model.lm_head.weight[model.config.image_token_id] = 100 * model.lm_head.weight.abs().max()
    out = model.generate(input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=5, do_sample=False)
    assert model.config.image_token_id not in out[0, 3:]


def test_stop_strings_and_the_end_of_a_turn_cut_an_answer(loaded):
    pictures = [[picture(3)]]
    whole = loaded.answer([user("yes", 1)], pictures, max_new_tokens=12)[0]
    stop = whole[len(whole) // 2]
    assert loaded.answer([user("yes", 1)], pictures, max_new_tokens=12, stop=(stop,)) == [whole.split(stop)[0].strip()]


def test_structured_and_plain_content_are_one_prompt(loaded):
    ids = [
        mllm.prompt_ids(loaded.tokenizer, [{"role": "user", "content": content}], 3, 4)
        for content in ("<image>\nwhat", [{"type": "image"}, {"type": "text", "text": "what"}])
    ]
    assert ids[0] == ids[1] and ids[0].count(3) == 4


def test_markers_and_pictures_must_match(loaded):
    with pytest.raises(ValueError, match="1 <image> markers and 2 pictures"):
        loaded.answer([user("yes", 1)], [[picture(1), picture(2)]], max_new_tokens=1)
    with pytest.raises(ValueError, match="a message holds video"):
        mllm.plain([{"type": "video"}])


def test_projector_start_depends_on_its_seed_alone(llama_tiny):
    first, second = (
        mllm.build(VisionTower.from_encoder(key), str(llama_tiny))[0].model.multi_modal_projector for key in ("clip-tiny", "genlip-tiny")
    )
    assert all(a.equal(b) for a, b in zip(first.parameters(), second.parameters()))


def test_saved_and_loaded_is_bit_equal_and_a_changed_weight_is_refused(export, loaded, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    mllm.save(loaded.model, loaded.tokenizer, tmp_path / "again", {})
    assert json.loads((tmp_path / "again/provenance.json").read_text())["weights_digest"] == loaded.digest
    changed = tmp_path / "changed"
    shutil.copytree(export, changed)
    state = load_file(changed / "model.safetensors")
    key = next(k for k in state if "vision_tower" in k and state[k].ndim == 2)
    state[key][0, 0] += 1e-3
    save_file(state, changed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="its weights have digest"):
        mllm.load(changed)
    (changed / "provenance.json").unlink()
    with pytest.raises(ValueError, match=r"no provenance\.json"):
        mllm.load(changed)


def test_opens_with_transformers_alone_after_register(export, loaded):
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(export)
    assert type(model.model.vision_tower) is VisionTower
    assert model.model.multi_modal_projector.linear_1.weight.equal(loaded.model.model.multi_modal_projector.linear_1.weight)
