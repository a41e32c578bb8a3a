"""The native MLLM: tower + projector + any causal language model, on transformers' own LLaVA.

    mllm = load("runs/sft/export")
    mllm.answer([[{"role": "user", "content": "<image>\\nWhat is it?"}]], [[picture]], max_new_tokens=16)

transformers' LlavaForConditionalGeneration is used as it is: our tower is its `vision_tower` (by AutoModel), and hands it the
right layer without prefix tokens. What is ours is around it: building it from parts, the placeholder token, the chat text (one
function for training and evaluation), and answering in batches. Where it does not fit: it knows one projector (two linear maps
with a GELU between) and lays no tiles out, so a model with another one, or with anyres, is the subclass `LlavaWithProjector`.

Shapes: B samples, S tokens, N visual tokens per picture.
"""

import functools
import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import init_empty_weights
from jinja2.exceptions import TemplateError
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from genlip.common import fingerprint, model_folder
from genlip.common.files import read_json, require
from genlip.common.fingerprint import Fingerprint
from genlip.common.schema import SCHEMA, Provenance, read, write
from genlip.common.suggest import choose
from genlip.common.tokens import broken, broken_ids

from . import register
from .anyres import AnyresLlavaModel
from .encoders import KEYS
from .pictures import upright_size
from .projectors import PROJECTORS
from .tower import VisionTower, digest, tensor_digests
from .views import parse, tokens

IMAGE = "<image>"  # the marker in messages and in LLaVA's data
# Without cuDNN's attention: it re-plans for every new shape (80 ms on an H100), that is at each decoding step.
DECODE_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# In front of a chat template that prints today's date: there it is always this one, and a prompt the same on every day.
TODAY = datetime(2024, 7, 26)
PINNED = "".join(f"|replace('%{letter}', '{TODAY.strftime(f'%{letter}')}')" for letter in "aAbBdHIjmMpSyY")
PINNED = "{%- macro strftime_now(form) -%}{{ form" + PINNED + " }}{%- endmacro -%}"
FEATURES_KEPT = 512  # pictures whose features `answer` keeps: benchmarks ask several questions about one picture in a row


# --- building -------------------------------------------------------------------------------------------------------------


class LlavaWithProjector(LlavaForConditionalGeneration):
    """transformers' LLaVA with the projector that `config.projector` names and, by anyres, the body that lays tiles out."""

    def __init__(self, config: LlavaConfig):
        super().__init__(config)
        if parse(config.vision_config.spec["view"]).kind == "anyres":
            self.model = AnyresLlavaModel(config)
        self.model.multi_modal_projector = PROJECTORS[config.projector].make(config)


def _model_class(projector: str, view: str) -> type[LlavaForConditionalGeneration]:
    return LlavaForConditionalGeneration if projector == "mlp2x_gelu" and parse(view).kind != "anyres" else LlavaWithProjector


def build(
    tower: VisionTower,
    llm: str,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    projector: str = "mlp2x_gelu",
) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerBase]:
    """(LlavaForConditionalGeneration, tokenizer) from a tower and a language model's folder or hub id.

    projector: "mlp2x_gelu" (LLaVA's, the paper's), "linear", or "pixel_shuffle" (2 x 2 tokens to one: a quarter of the tokens).
    It is drawn from its own seed, so that two encoders of equal width start from the same one. Raises ValueError where the language model
    or its chat template is missing, or the projector does not fit the grid or the view.
    """
    joined = PROJECTORS[choose(projector, PROJECTORS, "projector")].joined
    if joined > 1 and tower.spec.grid % 2:
        raise ValueError(f"{projector} joins 2 x 2 tokens; {tower.spec.key} has {tower.spec.grid} x {tower.spec.grid}: use an even grid")
    if joined > 1 and parse(tower.spec.view).kind == "native":
        raise ValueError(f"{projector} joins the 2 x 2 tokens of a square: with --view native use --projector mlp2x_gelu or linear")
    if Path(llm).is_dir():
        model_folder.check(Path(llm))
    try:
        with model_folder.building(Path(llm, "config.json")):
            language, found = model_folder.load_auto(AutoModelForCausalLM, llm, dtype=dtype, output_loading_info=True)
        with model_folder.building(Path(llm, "tokenizer.json")):
            tokenizer = model_folder.load_auto(AutoTokenizer, llm)
    except OSError as e:
        raise ValueError(f"the language model in {llm} cannot be read ({e}): bring it again with python -m llava_plugin.fetch") from e
    if lacking := sorted(found["missing_keys"]):
        raise ValueError(f"{llm} lacks {', '.join(lacking[:5])}, which its config.json promises: {model_folder.MEND}")
    if not tokenizer.chat_template:
        raise ValueError(f"the tokenizer of {llm} has no chat template: use the -Instruct variant of the model")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    image_token_id = _image_token(tokenizer, language)
    model = assemble(tower, language, image_token_id, dtype, seed, projector)
    model.generation_config = decoding(tokenizer, image_token_id)
    return model, tokenizer


def assemble(
    tower: VisionTower,
    language: PreTrainedModel,
    image_token_id: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    projector: str = "mlp2x_gelu",
) -> LlavaForConditionalGeneration:
    """The MLLM of a tower and a causal language model, by a fresh projector: see `build`."""
    view = parse(tower.spec.view)
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=language.config,
        image_token_index=image_token_id,
        image_seq_length=tower.spec.tokens // PROJECTORS[projector].joined,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="full",  # the tower has dropped its prefix tokens already
        vision_feature_layer=-1,  # and hands over exactly one layer, the right one
        tie_word_embeddings=language.config.tie_word_embeddings,
        dtype=dtype,
        projector=projector,
        native_tokens=view.max_tokens or None,
    )
    with init_empty_weights():
        model = _model_class(projector, tower.spec.view)(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.model.multi_modal_projector = PROJECTORS[projector].make(config).to(dtype)
        if view.kind == "anyres":  # as LLaVA-NeXT draws it
            wide = language.config.hidden_size
            model.model.image_newline = torch.nn.Parameter((torch.randn(wide) / wide**0.5).to(dtype))
    model.model.vision_tower = tower.to(dtype)
    model.model.language_model = language.base_model
    model.lm_head = language.get_output_embeddings()
    model.generation_config = language.generation_config
    return model


def _image_token(tokenizer: PreTrainedTokenizerBase, language) -> int:
    """The id of the placeholder: Qwen's own `<|image_pad|>`, or `<image>`, added where the tokenizer lacks it.

    The embedding grows by one row only where it has no spare one; that row is never looked up and never generated, so that
    text alone is answered exactly as by the bare language model.
    """
    vocabulary = tokenizer.get_vocab()
    token = "<|image_pad|>" if "<|image_pad|>" in vocabulary else IMAGE
    if token not in vocabulary:
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]}, replace_extra_special_tokens=False)
    token_id = tokenizer.convert_tokens_to_ids(token)
    if token_id >= language.get_input_embeddings().num_embeddings:
        language.resize_token_embeddings(token_id + 1, mean_resizing=False)
    return token_id


def save(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, export: Path, said: Mapping[str, Any]) -> None:
    """Write an export: weights, configs, tokenizer and, last, provenance.json with the digest of all weights.

    `said` is what the stage says of itself, fields of Provenance; what the model tells by itself is added.
    """
    model.save_pretrained(export)
    tokenizer.save_pretrained(export)
    tower, spec = model.model.vision_tower, model.model.vision_tower.spec
    brought = {
        "encoder": spec.key,
        "encoder_key": spec.key if spec.key in KEYS and not spec.path else None,
        "arch": spec.family,
        "resolution": spec.resolution,
        "tokens": parse(spec.view).max_tokens or spec.tokens,
        "view": spec.view,
        "untrained": tower.config.untrained,
    }
    told = {"projector": model.config.projector, "native_tokens": model.config.native_tokens, "interpolation": tower.interpolation}
    provenance = Provenance(**brought | dict(said) | told | _digests(model) | {"schema": SCHEMA})
    write(export / "provenance.json", provenance)


def _digests(model: LlavaForConditionalGeneration) -> dict[str, str]:
    """The digests of an export's provenance, of all weights and of two parts, from one pass over the bytes."""
    tensors = tensor_digests(model)
    parts = {"encoder_digest": "model.vision_tower.", "llm_digest": "model.language_model."}
    return {"weights_digest": digest(tensors), **{name: digest(tensors, part) for name, part in parts.items()}}


def identity(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """What a model in memory is, part by part, under the names of a run's record, from one pass over its weights. Configs, preprocessing
    and tokenizer have the digests that the fingerprint of its export would have."""
    tensors = tensor_digests(model)
    parts = {"encoder_digest": "model.vision_tower.", "llm_digest": "model.language_model.", "head_digest": "lm_head."}
    with TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        made_of = fingerprint.of_export(Path(folder), digest(tensors)).parts
    named = {"encoder_config": "config.encoder", "preprocessing": "preprocessing", "llm_config": "config.llm"}
    named |= {"tokenizer_digest": "tokenizer", "chat_template": "chat_template"}
    return {name: digest(tensors, part) for name, part in parts.items()} | {name: made_of[part] for name, part in named.items()}


def load(
    export: str | Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None, generation: str = "ours"
) -> "Mllm":
    """Read an export and check its weights against its provenance. Raises ValueError where one of the two is missing or differs.

    `device` defaults to a GPU where there is one; `dtype` to what the weights were saved in. `generation`: "ours", or "authors": by the
    settings of the export's generation_config.json, which may not sample.
    """
    register()
    export = Path(export)
    if not (export / "provenance.json").is_file():
        raise ValueError(f"{export} has no provenance.json: give the export/ folder of a run of train_mllm (runs/NAME/export)")
    provenance = read(Provenance, export / "provenance.json", "export the model again")
    model_folder.check(export)
    made_of = fingerprint.of_export(export, provenance.weights_digest, dtype and str(dtype), generation)
    authors = fingerprint.authors_settings(export) if generation == "authors" else None
    parts = read_json(export / "config.json", model_folder.MEND, {"vision_config": dict, "text_config": dict})
    for part in ("vision_config", "text_config"):  # of a part that is not said, transformers would build a default of 7 billion
        require(parts[part], {"model_type": str}, f"{export / 'config.json'}, {part}", model_folder.MEND)
    with model_folder.building(export / "config.json"):
        config = LlavaConfig.from_pretrained(export)
        config.projector = projector = getattr(config, "projector", "mlp2x_gelu")  # exports from before there was a choice
        view = config.vision_config.spec.setdefault(
            "view", f"native_{config.native_tokens}" if getattr(config, "native_tokens", None) else "square"
        )
        model = _model_class(projector, view).from_pretrained(export, config=config, dtype=dtype or "auto")
    for name, found in _digests(model).items() if dtype is None else ():  # in another dtype the bytes are others
        if found != provenance[name] and not (provenance.schema == 1 and provenance[name] is None):
            raise ValueError(
                f"{export}: its {name.removesuffix('_digest')} have digest {found[:8]}, its provenance says {provenance[name][:8]}: "
                "the files were changed after training; copy the export again or train again"
            )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with model_folder.building(export / "tokenizer.json"):
        tokenizer = model_folder.load_auto(AutoTokenizer, export)
    provenance = read(Provenance, export / "provenance.json", "export the model again")
    if changed := made_of.differing(fingerprint.of_export(export, provenance.weights_digest, dtype and str(dtype), generation)):
        raise ValueError(f"{export} was replaced while it was read ({', '.join(changed)}): run the same command again")
    return Mllm(model.to(device).eval(), tokenizer, provenance, made_of, authors)


# --- chat text ------------------------------------------------------------------------------------------------------------


def plain(content: str | list[dict]) -> str:
    """A message's content as one string with `<image>` markers: structured parts are joined in order, each picture on a line
    of its own, which is LLaVA's form "<image>\\nquestion"."""
    if isinstance(content, str):
        return content
    parts = [part["text"] if part["type"] == "text" else IMAGE for part in content]
    kinds = [part["type"] for part in content]
    if unknown := set(kinds) - {"text", "image"}:
        raise ValueError(f"a message holds {', '.join(sorted(unknown))}: this model reads text and pictures")
    return "".join(p + ("\n" if kind == "image" and i + 1 < len(parts) else "") for i, (p, kind) in enumerate(zip(parts, kinds)))


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict], image_token_id: int, image_tokens: int | list[int]) -> list[int]:
    """Token ids up to where the assistant's next answer begins, each `<image>` marker expanded to `image_tokens` placeholders: as
    many for every picture, or a list with each picture's own number. A control token that somebody typed is text. ValueError where
    list and markers differ in length, and where the chat template refuses the conversation.

    The same function serves training and evaluation, so the two prompts are equal token by token.
    """
    said = [{"role": m["role"], "content": broken(tokenizer, plain(m["content"]))} for m in messages]
    template = tokenizer.get_chat_template()
    pinned = PINNED + template if "strftime_now" in template else template
    try:
        text = tokenizer.apply_chat_template(said, chat_template=pinned, add_generation_prompt=True, tokenize=False)
    except TemplateError as e:
        raise ValueError(f"the chat template refuses it ({e})") from e
    pieces = text.split(IMAGE)
    counts = [image_tokens] * (len(pieces) - 1) if isinstance(image_tokens, int) else image_tokens
    if len(counts) != len(pieces) - 1:
        raise ValueError(f"a conversation has {len(pieces) - 1} {IMAGE} markers and {len(counts)} pictures; they must match")
    ids: list[int] = []
    for piece, count in zip(pieces, [0, *counts]):
        ids += [image_token_id] * count
        ids += broken_ids(tokenizer, piece)
    return ids


@functools.lru_cache(maxsize=4)  # a property of the tokenizer: found once, not for every conversation
def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that the chat template puts behind an assistant's answer: what training teaches, and where an answer stops. Raises
    ValueError if that is no special token."""
    probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "qzq"}, {"role": "user", "content": "c"}]
    text = tokenizer.apply_chat_template(probe, tokenize=False)
    behind = tokenizer(text.split("qzq", 1)[1], add_special_tokens=False).input_ids[0]
    if behind not in tokenizer.all_special_ids and behind not in tokenizer.added_tokens_decoder:
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path} ends an answer with {tokenizer.decode([behind])!r}, which is no special token: "
            "a model could not learn when to stop. Pass --llm a model whose template closes turns (ChatML, Llama 3), "
            "usually its -Instruct variant"
        )
    return behind


def decoding(tokenizer: PreTrainedTokenizerBase, image_token_id: int, authors: Mapping[str, Any] | None = None) -> GenerationConfig:
    """How answers are decoded, whatever a language model's folder says: greedily, without penalties, up to the end of a turn or of text.

    `authors`: the settings to go by instead, where their word is asked for; what they leave open stays ours.
    """
    if authors is not None:
        own = decoding(tokenizer, image_token_id)
        said = {name: value for name, value in authors.items() if value is not None}
        said["suppress_tokens"] = [*said.get("suppress_tokens", ()), image_token_id]
        return GenerationConfig(**{"eos_token_id": own.eos_token_id, "pad_token_id": own.pad_token_id} | said, do_sample=False)
    stops = dict.fromkeys([end_of_turn(tokenizer), tokenizer.eos_token_id])
    return GenerationConfig(
        do_sample=False,
        eos_token_id=[token for token in stops if token is not None],
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[image_token_id],  # a placeholder is never an answer
    )


def cleaned(text: str, stop: tuple[str, ...]) -> str:
    """A decoded answer up to the first of `stop`, without space around it."""
    for mark in stop:
        text = text.split(mark)[0]
    return text.strip()


# --- answering ------------------------------------------------------------------------------------------------------------


@dataclass
class Mllm:
    """A loaded export. `answer` decodes by our rule, greedily, or by its authors'; in batches, whose size changes no answer in fp32."""

    model: LlavaForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    provenance: Provenance
    fingerprint: Fingerprint | None = None  # of the export that was loaded
    authors: Mapping[str, Any] | None = None  # the export's own settings of generation, where answers are decoded by them
    prompt_digests: list[str] = field(default_factory=list)  # digests of the token ids of the prompts that `answer` was last given
    _features: OrderedDict = field(default_factory=OrderedDict, repr=False)

    def __post_init__(self) -> None:
        self.model.generation_config = decoding(self.tokenizer, self.model.config.image_token_id, self.authors)

    @property
    def digest(self) -> str:
        return self.provenance.weights_digest

    @property
    def device(self) -> str:
        """By name: `cpu`, or the GPU's own."""
        return torch.cuda.get_device_name(self.model.device) if self.model.device.type == "cuda" else str(self.model.device)

    @property
    def tower(self) -> VisionTower:
        return self.model.model.vision_tower

    @torch.inference_mode()
    def features(self, images: list[Image.Image]) -> list[torch.Tensor]:
        """Each picture's features as `VisionTower.features` gives them; those met before come from a cache keyed by the pixels."""
        keys = [hashlib.sha1(f"{image.size} {image.mode}".encode() + image.tobytes()).digest() for image in images]
        fresh = {key: image for key, image in zip(keys, images) if key not in self._features}
        if fresh:
            self._features.update(zip(fresh, self.tower.features(list(fresh.values()))))
        out = [self._features[key] for key in keys]
        for key in keys:
            self._features.move_to_end(key)
        while len(self._features) > FEATURES_KEPT:
            self._features.popitem(last=False)
        return out

    @torch.inference_mode()
    @sdpa_kernel(DECODE_BACKENDS)
    def answer(
        self,
        conversations: list[list[dict]],
        images: list[list[Image.Image]],
        max_new_tokens: int,
        stop: tuple[str, ...] = (),
    ) -> list[str]:
        """One greedy answer to each conversation, cut at the end of turn or at the first of `stop`.

        conversations: chat messages whose content is text with `<image>` markers, or structured parts; images: for each
        conversation its PIL pictures in order. Raises ValueError where markers and pictures do not match.
        """
        config, tokenizer = self.model.config, self.tokenizer
        for messages, pictures in zip(conversations, images, strict=True):
            markers = sum(plain(m["content"]).count(IMAGE) for m in messages)
            if markers != len(pictures):
                raise ValueError(f"a conversation has {markers} {IMAGE} markers and {len(pictures)} pictures; they must match")
        joined = PROJECTORS[config.projector].joined
        sizes = [[upright_size(picture) for picture in pictures] for pictures in images]
        prompts = [
            prompt_ids(tokenizer, messages, config.image_token_id, [tokens(self.tower.spec, *size, joined) for size in own])
            for messages, own in zip(conversations, sizes)
        ]
        self.prompt_digests = [hashlib.sha256(str(ids).encode()).hexdigest()[:16] for ids in prompts]
        longest = max(map(len, prompts))
        pad = tokenizer.pad_token_id
        input_ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=self.model.device)
        attention_mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        options = {"stop_strings": list(stop), "tokenizer": tokenizer} if stop else {}
        if features := self.features([picture for pictures in images for picture in pictures]):
            options |= self.tower.as_input(features, [size for own in sizes for size in own])
        out = self.model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            **options,
        )
        return [cleaned(text, stop) for text in tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)]
