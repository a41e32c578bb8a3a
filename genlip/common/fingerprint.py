"""What determines the answers of an export, part by part: its files' and those of our own code that shape answers.

    fingerprint = of_export(Path("runs/sft/export"), weights_digest)
    fingerprint.digest      # what a result's folder, its journal and the tables are named by
    fingerprint.parts       # kept in result.json, so that a comparison can say which part differs

The weights' part is the digest that provenance.json states and that loading verifies; all else is read from the folder's files. Where the
export lies is no part, nor torch, device and batch size: those are recorded beside a result. Standard library only.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .files import read_json

MEND = "export the model again"
# Raised by hand wherever our code gives other pixels, prompts, tokens or texts for equal files; a test holds what each gives today.
CODE = {"pixels": 1, "prompt": 1, "decoding": 1, "cleaning": 1}
# Parts in which two encoders' exports differ by themselves; in all others they have to be equal to differ in the encoder alone.
OF_THE_ENCODER = ("weights", "config", "config.encoder", "preprocessing")

_UNSAID = {"_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype", "is_local", "local_files_only", "chat_template"}
_LABELS = {"key", "hub_id", "path", "licence", "seed", "parameters"}  # of an encoder's spec
_TOKENIZER = ("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "*.model", "*.tiktoken")
_TEMPLATES = ("chat_template.*", "additional_chat_templates/*")


@dataclass(frozen=True)
class Fingerprint:
    """Part -> its digest, or the thing itself where that is a word."""

    parts: dict[str, str]

    @cached_property
    def digest(self) -> str:
        return _sha256(self.parts)

    def differing(self, other: "Fingerprint") -> list[str]:
        return [name for name in {**self.parts, **other.parts} if self.parts.get(name) != other.parts.get(name)]


def of_export(export: Path, weights: str, dtype: str | None = None) -> Fingerprint:
    """The fingerprint of an export's files and of our code. ValueError where its config.json is missing or no JSON.

    `weights` is the digest of its weights; `dtype` what they are computed in, where it is not the one they were saved in.
    """
    config = _json(export / "config.json")
    vision, text = (config.pop(name, None) or {} for name in ("vision_config", "text_config"))
    spec = {name: value for name, value in (vision.pop("spec", None) or {}).items() if name not in _LABELS}
    vision.pop("untrained", None)
    saved = str(config.get("dtype") or config.get("torch_dtype"))
    return Fingerprint(
        {
            "weights": weights,
            "config": _digest(config),
            "config.encoder": _digest(vision),
            "config.llm": _digest(text),
            "preprocessing": _digest(spec),
            **of_tokenizer(export),
            "generation": "greedy",
            "dtype": (dtype or saved).removeprefix("torch."),
            "view": "native" if config.get("native_tokens") else "square",
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


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(content: object) -> str:
    return _sha256(_said(content))


def _said(content: object) -> object:
    """Without what names a place or a version, at any depth."""
    if isinstance(content, dict):
        return {name: _said(value) for name, value in content.items() if name not in _UNSAID}
    return [_said(each) for each in content] if isinstance(content, list) else content
