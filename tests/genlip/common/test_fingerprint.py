"""The fingerprint of an export: every file that may change an answer is in it, where the export lies and how it was written is not."""

import json
import shutil

import pytest

from genlip.common.fingerprint import _IDLE, CODE, ON_UNLESS_SAID, of_export

SPEC = {"mean": [0.5], "resample": "bilinear", "resolution": 64, "key": "a", "path": "/here", "hub_id": None}
CONFIG = {
    "dtype": "bfloat16", "native_tokens": None, "image_seq_length": 16, "transformers_version": "5.23.0",
    "text_config": {"_name_or_path": "/here/llm", "hidden_size": 8, "rope_theta": 1.0, "dtype": "bfloat16"},
    "vision_config": {"spec": SPEC, "encoder": {"layers": 2, "transformers_version": "5.23.0"}},
}  # fmt: skip
TOKENIZER = {"eos_token": "<e>", "is_local": True, "name_or_path": "/here"}


@pytest.fixture
def export(tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def edit(folder, file, *path, value):
    content = json.loads((folder / file).read_text())
    place = content
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    (folder / file).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "path", "value", "part"),
    [
        ("config.json", ("image_seq_length",), 4, "config"),
        ("config.json", ("native_tokens",), 30, "view"),
        ("config.json", ("dtype",), "float32", "dtype"),
        ("config.json", ("text_config", "rope_theta"), 2.0, "config.llm"),
        ("config.json", ("vision_config", "encoder", "layers"), 3, "config.encoder"),
        ("config.json", ("vision_config", "spec", "mean"), [0.4], "preprocessing"),
        ("config.json", ("vision_config", "spec", "resample"), "bicubic", "preprocessing"),
        ("tokenizer.json", ("vocab",), 1, "tokenizer"),
        ("tokenizer_config.json", ("eos_token",), "<f>", "tokenizer"),
        ("tokenizer_config.json", ("chat_template",), "x", "chat_template"),
    ],
)
def test_a_change_of_one_part_is_named(export, file, path, value, part):
    before = of_export(export, "w")
    edit(export, file, *path, value=value)
    after = of_export(export, "w")
    assert part in after.differing(before) and set(after.differing(before)) <= {part, "config"} and after.digest != before.digest


@pytest.mark.parametrize(
    ("file", "part"),
    [("chat_template.jinja", "chat_template"), ("additional_chat_templates/a.jinja", "chat_template"), ("merges.txt", "tokenizer"),
     ("special_tokens_map.json", "tokenizer"), ("tokenizer.model", "tokenizer"), ("added_tokens.json", "tokenizer")],
)  # fmt: skip
def test_a_file_that_comes_or_changes_is_named(export, file, part):
    before = of_export(export, "w")
    (export / file).parent.mkdir(exist_ok=True)
    (export / file).write_text("changed")
    assert of_export(export, "w").differing(before) == [part]


def test_weights_dtype_and_our_code_are_parts(export, monkeypatch):
    before = of_export(export, "w")
    assert of_export(export, "x").differing(before) == ["weights"]
    assert of_export(export, "w", "torch.float32").differing(before) == ["dtype"] and of_export(export, "w", "torch.bfloat16") == before
    monkeypatch.setitem(CODE, "prompt", CODE["prompt"] + 1)
    assert of_export(export, "w").differing(before) == ["code.prompt"]


def test_places_versions_and_labels_are_none(export, tmp_path):
    before = of_export(export, "w")
    moved = tmp_path / "elsewhere"
    shutil.copytree(export, moved)
    for file, *path in (
        ("config.json", "transformers_version"), ("config.json", "text_config", "_name_or_path"),
        ("config.json", "vision_config", "encoder", "transformers_version"), ("config.json", "vision_config", "spec", "path"),
        ("config.json", "vision_config", "spec", "key"), ("tokenizer_config.json", "name_or_path"),
    ):  # fmt: skip
        edit(moved, file, *path, value="another")
    (moved / "README.md").write_text("notes")
    (moved / "generation_config.json").write_text('{"repetition_penalty": 1.1}')
    assert of_export(moved, "w") == before and of_export(moved, "w").digest == before.digest


@pytest.mark.parametrize("path", [(), ("text_config",), ("vision_config", "encoder")])
def test_fields_that_another_transformers_writes_at_their_defaults_are_none_and_switched_on_they_are(export, path):
    before = of_export(export, "w")
    new = {
        "use_new_gate": False,
        "new_scaling": None,
        "new_layers": [],
        "return_dict": True,
        "initializer_range": 0.02,
        "id2label": {"0": "L"},
    }
    for name, value in new.items():
        edit(export, "config.json", *path, name, value=value)
    assert of_export(export, "w") == before
    for name, value in (
        ("use_new_gate", True),
        ("new_scaling", 2.0),
        ("new_layers", [1]),
        ("new_number", 0),
        ("tie_word_embeddings", False),
    ):
        edit(export, "config.json", *path, name, value=value)
        after = of_export(export, "w")
        assert len(after.differing(before)) == 1, f"{name} counts"
        before = after


def test_a_field_that_a_model_has_on_where_its_config_is_silent_always_counts():
    """Of each family of encoders, and of language models: without it, off could not be told from silence."""
    from transformers import AutoConfig

    from llava_plugin import register
    from llava_plugin.encoders import FAMILIES

    register()
    for kind in [
        *FAMILIES,
        "llava",
        "llama",
        "qwen2",
        "qwen3",
        "mistral",
        "gemma2",
        "gemma3_text",
        "phi3",
        "smollm3",
        "olmo2",
        "gpt2",
        "gpt_neox",
    ]:
        on = {name for name, value in AutoConfig.for_model(kind).to_dict().items() if value is True}
        assert on <= ON_UNLESS_SAID | _IDLE, kind


def test_what_is_missing_is_said_with_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json is missing: export the model again"):
        of_export(tmp_path, "w")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json holds no object"):
        of_export(tmp_path, "w")
