"""What determines the answers of an export, part by part: its files' and those of our own code that shape answers.

    fingerprint = of_export(Path("runs/sft/export"), weights_digest)
    fingerprint.digest      # what a result's folder, its journal and the tables are named by
    fingerprint.parts       # kept in result.json, so that a comparison can say which part differs

The weights' part is the digest that provenance.json states and that loading verifies; all else is read from the folder's files. Where the
export lies is no part, nor torch, device and batch size: those are recorded beside a result. Nor is what another version of transformers
writes into an equal config: fields that act in no answer, and fields that are switched off. Standard library only; 17 MB of tokenizer and
configs take 0.1 s.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .files import read_json, sha256_json

MEND = "export the model again"
# Raised by hand wherever our code gives other pixels, prompts, tokens or texts for equal files; a test holds what each gives today.
CODE = {"pixels": 2, "prompt": 1, "decoding": 1, "cleaning": 1}
# Parts in which two encoders' exports differ by themselves; in all others they have to be equal to differ in the encoder alone.
OF_THE_ENCODER = ("weights", "config", "config.encoder", "preprocessing")

_UNSAID = {"_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype", "is_local", "local_files_only", "chat_template"}
# Of configs: what acts in training alone, or in how transformers is called, and in no answer.
_IDLE = {
    "architectures",
    "chunk_size_feed_forward",
    "id2label",
    "label2id",
    "initializer_factor",
    "initializer_range",
    "is_encoder_decoder",
}
_IDLE |= {"output_attentions", "output_hidden_states", "pretraining_tp", "problem_type", "return_dict", "use_cache"}
# A field that a newer transformers adds is off (false, null, empty) in every model of before, so that off says no more than silence. But
# of these, which some model has on where its config is silent; a test holds the list against transformers.
ON_UNLESS_SAID = {
    "apply_layernorm",
    "attention_bias",
    "gated_attention",
    "layer_types",
    "mlp_bias",
    "multimodal_projector_bias",
    "proj_bias",
}
ON_UNLESS_SAID |= {"qkv_bias", "query_bias", "reshape_hidden_states", "scale_attn_weights", "sliding_window", "summary_proj_to_labels"}
ON_UNLESS_SAID |= {"summary_use_proj", "tie_word_embeddings", "use_head", "use_mask_token", "use_parallel_residual", "value_bias"}
ON_UNLESS_SAID |= {"vision_use_head"}
# Of generation_config.json: places and versions, what the question's own limit overrules, and what acts in sampling alone.
_OF_GENERATION_ALONE = {"transformers_version", "_from_model_config", "max_length", "max_new_tokens", "do_sample", "temperature", "top_k"}
_OF_GENERATION_ALONE |= {"top_p", "typical_p", "min_p"}
_LABELS = {"key", "hub_id", "path", "licence", "seed", "parameters", "why"}  # of an encoder's spec
_TOKENIZER = ("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "*.model", "*.tiktoken")
_TEMPLATES = ("chat_template.*", "additional_chat_templates/*")


@dataclass(frozen=True)
class Fingerprint:
    """Part -> its digest, or the thing itself where that is a word."""

    parts: dict[str, str]

    @cached_property
    def digest(self) -> str:
        return sha256_json(self.parts)

    def differing(self, other: "Fingerprint") -> list[str]:
        return [name for name in {**self.parts, **other.parts} if self.parts.get(name) != other.parts.get(name)]


def of_export(export: Path, weights: str, dtype: str | None = None, generation: str = "ours") -> Fingerprint:
    """The fingerprint of an export's files and of our code. ValueError where its config.json is missing or no JSON.

    `weights` is the digest of its weights; `dtype` what they are computed in, where it is not the one they were saved in. `generation`:
    "ours", or "authors": by the settings of its generation_config.json, see `authors_settings`.
    """
    config = _json(export / "config.json")
    vision, text = (config.pop(name, None) or {} for name in ("vision_config", "text_config"))
    spec = {name: value for name, value in (vision.pop("spec", None) or {}).items() if name not in _LABELS}
    vision.pop("untrained", None)
    saved = str(config.get("dtype") or config.get("torch_dtype"))
    return Fingerprint(
        {
            "weights": weights,
            "config": _digest(_set(config)),
            "config.encoder": _digest(_set(vision)),
            "config.llm": _digest(_set(text)),
            "preprocessing": _digest(spec),
            **of_tokenizer(export),
            "generation": "greedy" if generation == "ours" else f"authors {_digest(authors_settings(export))[:16]}",
            "dtype": (dtype or saved).removeprefix("torch."),
            "view": str(spec.get("view") or ("native" if config.get("native_tokens") else "square")),
            "engine": "native",
            **{f"code.{name}": str(number) for name, number in CODE.items()},
        }
    )


def of_tokenizer(folder: Path) -> dict[str, str]:
    """The parts `tokenizer` and `chat_template` of a folder that a tokenizer was saved in."""
    settings = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    template = json.dumps(settings.get("chat_template")).encode()
    words = b"".join(_bytes(folder, name) for name in ("tokenizer.json", *_TOKENIZER))
    return {
        "tokenizer": hashlib.sha256(_digest(settings).encode() + words).hexdigest(),
        "chat_template": hashlib.sha256(template + b"".join(_bytes(folder, name) for name in _TEMPLATES)).hexdigest(),
    }


def of_loaded_tokenizer(tokenizer: Any) -> dict[str, str]:
    """The same of a tokenizer of transformers' in memory, whatever files it was read from."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return of_tokenizer(Path(folder))


def authors_settings(export: Path) -> dict[str, Any]:
    """The settings of an export's generation_config.json, such as penalties and the tokens that end an answer.

    ValueError where there is none, or where it samples: an answer that is drawn depends on the draw, so on batch size and device, and
    the benchmarks' definitions ask for one that is not.
    """
    path = export / "generation_config.json"
    if not path.exists():
        raise ValueError(f"{path} is missing, and --generation authors goes by it: put the authors' file there, or leave the flag out")
    said = _json(path)
    if said.get("do_sample"):
        raise ValueError(
            f"{path} samples (do_sample), and a benchmark's answers are not drawn: set it to false there, or leave the flag out"
        )
    return {name: value for name, value in said.items() if name not in _OF_GENERATION_ALONE}


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ValueError(f"{path} is missing: {MEND}")
    content = read_json(path, MEND)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no object: {MEND}")
    return content


def _bytes(folder: Path, pattern: str) -> bytes:
    """Names and bytes of the files that a pattern finds."""
    files = sorted(file for file in folder.glob(pattern) if file.is_file())
    return b"".join(f"{file.relative_to(folder).as_posix()} {file.stat().st_size} ".encode() + file.read_bytes() for file in files)


def _digest(content: object) -> str:
    return sha256_json(_said(content))


def _set(config: object) -> object:
    """A config without what says nothing of the model, at any depth."""
    if not isinstance(config, dict):
        return config
    said = {name: _set(value) for name, value in config.items() if name not in _IDLE}
    off = {name for name, value in said.items() if value is None or value is False or value in ("", [], {})}
    return {name: value for name, value in said.items() if name in ON_UNLESS_SAID or name not in off}


def _said(content: object) -> object:
    """Without what names a place or a version, at any depth."""
    if isinstance(content, dict):
        return {name: _said(value) for name, value in content.items() if name not in _UNSAID}
    return [_said(each) for each in content] if isinstance(content, list) else content
