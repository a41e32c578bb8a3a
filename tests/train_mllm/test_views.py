"""Pictures of different shapes through training: packed = padded = one by one, cached = not, learned = evaluated with the same view."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from genlip.common.fingerprint import of_export
from llava_plugin import mllm, views
from llava_plugin.tower import VisionTower
from tests.train_mllm.test_train import assert_same, start
from train_mllm import features
from train_mllm.data import encode
from train_mllm.packing import Collator, use_packed_attention
from train_mllm.recipes import PRESETS
from train_mllm.setup import resolve
from train_mllm.train import build_model, train

VIEWS = {
    "anyres": ("clip-tiny", "anyres"),
    "anyres_max": ("genlip-tiny", "anyres_max_2 (1x1),...,(3x3)"),
    "native": ("genlip-tiny", "native_30"),
    "naflex": ("siglip2-naflex-tiny", "native_30"),
}
SHAPES = [(40, 64), (200, 60), (64, 200), (150, 150), (30, 300)]


def picture(i: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (*SHAPES[i % len(SHAPES)][::-1], 3), dtype=np.uint8))


def asked(words: str, answer: str, pictures: int) -> list[dict]:
    return [{"role": "user", "content": "<image>\n" * pictures + words}, {"role": "assistant", "content": answer}]


CONVERSATIONS = [
    (asked("what is in the picture", "a red circle", 1) + asked("no", "yes", 0), [0]),
    (asked("what", "yes", 2), [1, 2]),
    (asked("Describe the image", "a blue triangle", 0), []),
    (asked("no", "yes", 1), [3]),
]


@pytest.fixture(params=[pytest.param(name, marks=() if name in ("anyres", "native") else pytest.mark.slow) for name in VIEWS])
def parts(request, llama_tiny):
    key, view = VIEWS[request.param]
    tower = VisionTower.from_encoder(key, view=view)
    return tower, *mllm.build(tower, str(llama_tiny))


def samples(tower, model, tokenizer, turns="dialogue"):
    out = []
    for i, (messages, numbers) in enumerate(CONVERSATIONS):
        pictures = [picture(n) for n in numbers]
        counts = [views.tokens(tower.spec, p.height, p.width) for p in pictures]
        row = encode(messages, tokenizer, model.config.image_token_id, counts, turns, 5000)
        assert row.ids.count(model.config.image_token_id) == sum(counts)
        out.append({"id": str(i), "row": row, "pictures": pictures})
    return out


def step(model, batch, supervised):
    model.zero_grad()
    loss = model(**batch, num_items_in_batch=supervised).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_a_mixed_batch_gives_the_loss_and_gradients_of_each_conversation_alone(parts):
    """Padded with plain attention; packed as dialogues, as independent turns, and from cached features."""
    tower, model, tokenizer = parts
    for way in ("padded", "packed", "independent", "cached"):
        some = samples(tower, model, tokenizer, "independent" if way == "independent" else "dialogue")
        supervised = sum(label >= 0 for s in some for label in s["row"].labels)
        if way != "padded":
            use_packed_attention(model)
        collate = Collator(tower, model.config, tokenizer.pad_token_id, way == "padded")
        one_by_one = [step(model, collate([s]), supervised) for s in some]
        for s in some if way == "cached" else ():
            with torch.no_grad():
                nothing = tower.features([picture(0)])[0][:0]
                s["features"] = torch.cat([nothing, *(tower.features(s["pictures"]) if s["pictures"] else [])])
            s["sizes"] = [(p.height, p.width) for p in s["pictures"]]
        loss, gradients = step(model, collate(some), supervised)
        torch.testing.assert_close(loss, sum(each for each, _ in one_by_one), atol=1e-5, rtol=1e-5, msg=way)
        for name, found in gradients.items():
            torch.testing.assert_close(found, sum(g[name] for _, g in one_by_one if name in g), atol=2e-5, rtol=1e-3, msg=f"{way} {name}")
        assert ("model.image_newline" in gradients) == (views.parse(tower.spec.view).kind == "anyres")


@pytest.fixture
def recipe(tmp_path, llama_tiny):
    rows = []
    for i in range(8):
        picture(i).save(tmp_path / f"{i}.png")
        turns = [("<image>\nwhat", ["yes", "no"][i % 2]), ("no", "yes")]
        said = [t for q, a in turns for t in ({"from": "human", "value": q}, {"from": "gpt", "value": a})]
        rows.append({"id": str(i), "image": f"{i}.png", "conversations": said})
    (tmp_path / "sft.json").write_text(json.dumps(rows))
    base = replace(PRESETS["tiny-sft"](), encoder="genlip-tiny", llm=str(llama_tiny), data=str(tmp_path / "sft.json"))
    return replace(base, out=str(tmp_path / "run"), max_steps=4, batch=4, workers=0, save_every=3, cache_features=False, standardise=False)


@pytest.mark.parametrize("view", ["anyres", pytest.param("native_30", marks=pytest.mark.slow)])
def test_features_that_are_kept_teach_the_same(recipe, view, tmp_path):
    plain = train(replace(recipe, view=view))
    cached = train(replace(recipe, view=view, cache_features=True, out=str(tmp_path / "cached")))
    assert json.loads((plain / "provenance.json").read_text())["view"].startswith(view)
    ours, theirs = (mllm.load(export).model.state_dict() for export in (plain, cached))
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert of_export(cached, "x").parts["view"].startswith(view)


@pytest.mark.slow
@pytest.mark.parametrize("batching", ["padded", "tokens"])
@pytest.mark.parametrize("view", ["anyres", "native_30"])
def test_other_ways_to_batch(recipe, view, batching):
    assert train(replace(recipe, view=view, batching=batching, turns="dialogue")).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(("key", "view"), [("siglip2-tiny", "anyres"), ("genlip-tiny", "native_40")])
def test_photos_of_different_shapes_are_learned_by_heart_by_an_unfrozen_encoder(key, view, recipe, shared, tmp_path):
    """Ten photos, one question: only what is seen tells the answers apart. Asked with the same view, in a batch and one by one."""
    photos = sorted((shared / "sft" / "images").glob("*.jpg"))
    answers = ["red", "blue", "yes", "no", "a red circle", "a blue triangle", "picture", "image", "the picture", "Describe"]
    said = [[{"from": "human", "value": "<image>\nwhat is in the picture"}, {"from": "gpt", "value": answer}] for answer in answers]
    rows = [{"id": photo.stem, "image": str(photo), "conversations": turns} for photo, turns in zip(photos, said, strict=True)]
    (tmp_path / "photos.json").write_text(json.dumps(rows))
    changes = {"train_encoder": True, "batch": 10, "max_steps": 50, "save_every": 50, "encoder_lr": 5e-4, "lr": 1e-3}
    export = train(replace(recipe, encoder=key, view=view, data=str(tmp_path / "photos.json"), **changes))
    provenance = json.loads((export / "provenance.json").read_text())
    assert not provenance["frozen"] and provenance["encoder_digest"] != provenance["encoder_digest_before"]
    assert provenance["view"].startswith(view) and ("no anyres" in (provenance["note"] or "")) == (view != "anyres")
    loaded = mllm.load(export)
    pictures = [[Image.open(photo)] for photo in photos]
    assert len({views.tokens(loaded.tower.spec, p.height, p.width) for [p] in pictures}) > 1
    asked = [[{"role": "user", "content": "<image>\nwhat is in the picture"}] for _ in photos]
    assert loaded.answer(asked, pictures, max_new_tokens=16) == answers
    assert [loaded.answer([a], [p], max_new_tokens=16)[0] for a, p in zip(asked, pictures)] == answers


def test_tiles_come_behind_squares_and_a_newline_is_learned_and_handed_on(recipe, tmp_path):
    short = replace(recipe, max_steps=2, save_every=2)
    squares = train(replace(short, stage="projector", out=str(tmp_path / "squares")))
    behind = replace(short, view="anyres", init=str(squares), out=str(tmp_path / "behind"))
    built = build_model(resolve(behind, 1))
    assert built.before.view == "square" and built.tower.spec.view.startswith("anyres")
    drawn = built.model.model.image_newline.detach().clone()
    tiles = train(replace(short, stage="projector", view="anyres", out=str(tmp_path / "tiles")))
    loaded = mllm.load(tiles)
    learned = loaded.model.model.image_newline
    assert not learned.equal(drawn) and loaded.provenance.parameters["llm"]["trained"] == 0
    assert loaded.provenance.parameters["projector"]["trained"] == resolve(behind, 1).parts.projector
    handed_on = build_model(resolve(replace(behind, init=str(tiles)), 1)).model.model.image_newline
    assert handed_on.equal(learned)
    with pytest.raises(ValueError, match="other preprocessing"):
        build_model(resolve(replace(behind, init=str(tiles), view="square"), 1))


@pytest.mark.parametrize(("view", "cached"), [("anyres", True), pytest.param("native_30", False, marks=pytest.mark.slow)])
def test_a_picture_that_cannot_be_decoded_costs_its_conversation_alone(recipe, view, cached, tmp_path, monkeypatch):
    """A PNG damaged between its ends is found where sizes are read; one whose header says a size, where it is decoded."""
    real = features.open_picture

    def damaged_later(picture):
        if picture["path"].endswith("3.png"):
            raise ValueError("undecodable picture")
        return real(picture)

    monkeypatch.setattr(features, "open_picture", damaged_later)
    damaged = tmp_path / "5.png"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 80] = bytes(80)
    damaged.write_bytes(bytes(data))
    assert train(replace(recipe, view=view, cache_features=cached, max_bad=0.2)).is_dir()
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())
    assert ledger["tokens"]["left_out"] == {"undecodable picture": 1}
    assert ("in_training" in ledger) == cached and (not cached or ledger["in_training"]["names"] == {"undecodable picture": ["3"]})
    sizes = np.load(next((tmp_path / "run" / "data").glob("sizes-*.npy")))
    assert sizes[5].tolist() == [0, 0] and (np.delete(sizes, 5, axis=0) > 0).all()


@pytest.mark.slow
def test_two_processes_equal_one_with_tiles_and_conversations_without_a_picture(recipe, tmp_path):
    rows = json.loads((tmp_path / "sft.json").read_text())
    words = [{"from": "human", "value": "what"}, {"from": "gpt", "value": "yes"}]
    (tmp_path / "sft.json").write_text(json.dumps([*rows, *({"id": f"text {i}", "conversations": words} for i in range(4))]))
    unfrozen = replace(recipe, view="anyres", train_encoder=True, batch=1, max_steps=3)
    alone = train(replace(unfrozen, out=str(tmp_path / "alone"), accumulation=4))
    together = replace(unfrozen, out=str(tmp_path / "together"), accumulation=2)
    process = start(together, 2)
    assert process.communicate() and process.returncode == 0
    assert_same(alone, Path(together.out) / "export", 1e-5)


def test_pictures_of_later_turns_have_their_own_tokens(llama_tiny):
    tokenizer = AutoTokenizer.from_pretrained(llama_tiny)
    row = encode(asked("what", "yes", 1) + asked("no", "no", 1), tokenizer, 9999, [3, 5], "dialogue", 500)
    assert [len(list(run)) for image, run in itertools.groupby(i == 9999 for i in row.ids) if image] == [3, 5]
