"""Our tower inside the user's own LLaVA-NeXT checkout, which stays unchanged; the only file of ours that names `llava`.

    export LLAVA_NEXT_ROOT=/path/to/LLaVA-NeXT                # or put the checkout on PYTHONPATH
    python -m llava_plugin.llava_next doctor                  # what would stop it with the installed versions, and what is mended
    python -m llava_plugin.llava_next train --vision_tower enc:genlip-so16 --model_name_or_path Qwen/Qwen2.5-1.5B-Instruct ...
    python -m llava_plugin.llava_next convert CHECKPOINT EXPORT        # to the native folder, or back: the source's kind decides

A vision tower named `enc:KEY_OR_PATH` is ours; every other name reaches LLaVA-NeXT's own function. HEAD (df17966) was written for
transformers 4.40; what it lacks in a newer one is in `SHIMS`, each with its reason, applied only where needed, each removable.
Tried with transformers 5.23, torch 2.13, accelerate 1.15, without DeepSpeed.
"""

import argparse
import importlib
import importlib.machinery
import importlib.util
import os
import re
import shutil
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genlip.common.command import command, new_parser
from genlip.common.files import read_json

from . import encoders, views

PREFIX = "enc:"
CLONE = "git clone https://github.com/LLaVA-VL/LLaVA-NeXT && git -C LLaVA-NeXT checkout df17966"
ROOT_HINT = f"clone it ({CLONE}) and export LLAVA_NEXT_ROOT=/path/to/LLaVA-NeXT"


# --- shims ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shim:
    """One thing that stops LLaVA-NeXT on newer libraries: `needed()` looks, `apply()` mends, before or after `llava` is imported."""

    name: str
    why: str
    when: str
    needed: Callable[[], bool]
    apply: Callable[[], None]


def _lacks(module: str, *names: str) -> list[str]:
    loaded = importlib.import_module(module)
    return [name for name in names if not hasattr(loaded, name)]


def _absent(module: str) -> bool:
    return module not in sys.modules and importlib.util.find_spec(module) is None


def _stub(name: str, **attributes) -> types.ModuleType:
    """A module of that name, with a spec, so that libraries which look for it by metadata still find it absent."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    vars(module).update(attributes)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], child, module)
    return module


def _unused(*args, **kwargs):
    raise NotImplementedError("this part of LLaVA-NeXT (head pruning, or DPO) needs the library versions that it pins")


MOVED = ("apply_chunking_to_forward", "find_pruneable_heads_and_indices", "prune_linear_layer")


def _moved() -> None:
    from transformers import modeling_utils, pytorch_utils

    for name in _lacks("transformers.modeling_utils", *MOVED):
        setattr(modeling_utils, name, getattr(pytorch_utils, name, _unused))


def _file_utils() -> None:
    import transformers.utils

    names = {name: getattr(transformers.utils, name) for name in ("ModelOutput", "logging")}
    _stub("transformers.file_utils", **names)


def _trl() -> None:
    class Unavailable:
        __init__ = _unused

    _stub("trl")
    _stub("trl.trainer", DPOTrainer=Unavailable)
    _stub("trl.trainer.utils", DPODataCollatorWithPadding=Unavailable)


TRAINER_NAMES = (
    "is_sagemaker_mp_enabled",
    "get_parameter_names",
    "has_length",
    "ALL_LAYERNORM_LAYERS",
    "logger",
    "is_accelerate_available",
    "is_datasets_available",
    "GradientAccumulationPlugin",
)


def _trainer_names() -> None:
    import accelerate.utils
    import torch
    from transformers import trainer, trainer_pt_utils, trainer_utils, utils

    homes = (trainer_pt_utils, trainer_utils, utils, accelerate.utils)
    for name in _lacks("transformers.trainer", *TRAINER_NAMES):
        value = (
            [torch.nn.LayerNorm] if name == "ALL_LAYERNORM_LAYERS" else next((getattr(h, name) for h in homes if hasattr(h, name)), _unused)
        )
        setattr(trainer, name, value)


def _deepspeed() -> None:
    import contextlib
    import enum

    status = enum.Enum("ZeroParamStatus", ["NOT_AVAILABLE", "INFLIGHT", "AVAILABLE"])
    _stub("deepspeed")
    _stub("deepspeed.zero", GatheredParameters=lambda *args, **kwargs: contextlib.nullcontext())
    _stub("deepspeed.runtime")
    _stub("deepspeed.runtime.zero")
    _stub("deepspeed.runtime.zero.partition_parameters", ZeroParamStatus=status)


def _trainer_class() -> type:
    return importlib.import_module("llava.train.llava_trainer").LLaVATrainer


def _drop(method: str) -> None:
    if method in vars(_trainer_class()):
        delattr(_trainer_class(), method)


def _trainer_arguments() -> None:
    trainer = _trainer_class()
    init, sampler, checkpoint = trainer.__init__, trainer._get_train_sampler, trainer._save_checkpoint

    def with_processing_class(self, **kwargs):
        if "tokenizer" in kwargs:
            kwargs["processing_class"] = kwargs.pop("tokenizer")
        kwargs["args"].group_by_length = getattr(kwargs["args"], "group_by_length", False)
        init(self, **kwargs)

    def get_train_sampler(self, train_dataset=None):
        grouped = ("group_by_length", "group_by_modality_length", "group_by_modality_length_auto", "group_by_varlen")
        if any(getattr(self.args, name) for name in grouped):
            return sampler(self)
        return super(trainer, self)._get_train_sampler(train_dataset)

    def save_checkpoint(self, model, trial, metrics=None):
        from llava.train.llava_trainer import should_only_save_mm_adapter

        if should_only_save_mm_adapter(self.args):
            return checkpoint(self, model, trial)
        return super(trainer, self)._save_checkpoint(model, trial)

    trainer.__init__, trainer._get_train_sampler, trainer._save_checkpoint = with_processing_class, get_train_sampler, save_checkpoint


def _seed_worker(worker_id: int) -> None:
    import torch
    from transformers import set_seed

    set_seed(torch.initial_seed() % 2**32)


def _data_loader() -> None:
    importlib.import_module("llava.train.llava_trainer").seed_worker = _seed_worker


def _synchronize() -> None:
    import torch

    torch.cuda.synchronize = lambda device=None: None


def _is_version_5() -> bool:
    import transformers

    return int(transformers.__version__.split(".")[0]) >= 5


def _preprocess_qwen() -> None:
    train = importlib.import_module("llava.train.train")
    original = train.preprocess_qwen

    def preprocess_qwen(sources, tokenizer, *args, **kwargs):
        return original(sources, _QwenTokenizer(tokenizer), *args, **kwargs)

    train.preprocess_qwen = preprocess_qwen


class _QwenTokenizer:
    """The tokenizer as `preprocess_qwen` knew it: two special tokens beside the end, and a template that gives a list of ids."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __getattr__(self, name):
        if name == "tokenizer":  # asked for by copy before __init__ has run
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    def __call__(self, *args, **kwargs):
        return self.tokenizer(*args, **kwargs)

    def __deepcopy__(self, memo):
        import copy

        return _QwenTokenizer(copy.deepcopy(self.tokenizer, memo))

    @property
    def additional_special_tokens_ids(self) -> list[int]:
        return self.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])

    def apply_chat_template(self, messages) -> list[int]:
        return self.tokenizer.apply_chat_template(messages, chat_template=self.chat_template, tokenize=True, return_dict=False)


def _rope() -> None:
    llm = importlib.import_module("llava.model.language_model.llava_qwen").LlavaQwenForCausalLM
    from transformers import Qwen2Config

    original = llm.__init__

    def init(self, config):
        # Its constructor sets `rope_scaling` to None, which transformers 5 takes for the positions' own parameters.
        class Kept(type(config)):
            def __setattr__(self, name, value):
                if not (name == "rope_scaling" and value is None):
                    super().__setattr__(name, value)

        assert isinstance(config, Qwen2Config)
        own, config.__class__ = type(config), Kept
        try:
            original(self, config)
        finally:
            config.__class__ = own

    llm.__init__ = init


SHIMS = (
    Shim("names moved in transformers.modeling_utils", "transformers 5 keeps or dropped them in pytorch_utils; Q-Former imports them",
         "before", lambda: bool(_lacks("transformers.modeling_utils", *MOVED)), _moved),
    Shim("transformers.file_utils", "removed in transformers 5; Q-Former imports it", "before",
         lambda: _absent("transformers.file_utils"), _file_utils),
    Shim("bundled trl", "DPOTrainer is imported for training without DPO, and the bundled trl fits transformers 4 only", "before",
         lambda: "trl.trainer" not in sys.modules, _trl),
    Shim("names gone from transformers.trainer", "LLaVATrainer imports them from there", "before",
         lambda: bool(_lacks("transformers.trainer", *TRAINER_NAMES)), _trainer_names),
    Shim("deepspeed", "imported unconditionally; without --deepspeed it is not used", "before", lambda: _absent("deepspeed"), _deepspeed),
    Shim("LLaVATrainer._inner_training_loop", "a copy with undefined names at HEAD: raw HEAD cannot train", "after",
         lambda: "_inner_training_loop" in vars(_trainer_class()), lambda: _drop("_inner_training_loop")),
    Shim("LLaVATrainer.create_accelerator_and_postprocess", "uses dispatch_batches, removed from accelerate 1", "after",
         lambda: "create_accelerator_and_postprocess" in vars(_trainer_class()), lambda: _drop("create_accelerator_and_postprocess")),
    Shim("LLaVATrainer's arguments", "transformers 5: processing_class for tokenizer, other signatures, no group_by_length", "after",
         _is_version_5, _trainer_arguments),
    Shim("seed_worker", "handed to loading processes with a worker's number alone; transformers 5 wants two more", "after",
         _is_version_5, _data_loader),
    Shim("torch.cuda.synchronize", "called on machines without a GPU too", "after", lambda: not _cuda(), _synchronize),
    Shim("preprocess_qwen", "Qwen2.5 has more special tokens than the two it unpacks; templates give a dict in transformers 5", "after",
         lambda: True, _preprocess_qwen),
    Shim("LlavaQwenForCausalLM.__init__", "wipes rope_parameters in transformers 5", "after", _is_version_5, _rope),
)  # fmt: skip


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


# --- the tower --------------------------------------------------------------------------------------------------------------


def tower_class() -> type:
    """The class that stands for a vision tower inside LLaVA-NeXT (made when asked for, so that this file loads without torch)."""
    import torch

    from .tower import VisionTower

    class Processor:
        """What LLaVA-NeXT asks of an image processor: whole pictures to squares by the tower's own `preprocess`."""

        def __init__(self, spec, preprocess):
            self._preprocess = preprocess
            self.image_mean, self.image_std = list(spec.mean), list(spec.std)
            self.size = {"height": spec.resolution, "width": spec.resolution, "shortest_edge": spec.resolution}
            self.crop_size = {"height": spec.resolution, "width": spec.resolution}

        def preprocess(self, images, return_tensors="pt", **kwargs):
            from transformers import BatchFeature

            images = images if isinstance(images, (list, tuple)) else [images]
            return BatchFeature({"pixel_values": self._preprocess(images)})

        __call__ = preprocess

    class LlavaNextTower(torch.nn.Module):
        """Our tower with the attributes that LLaVA-NeXT reads. Its weights are in the MLLM's state dict, under `tower.`, so an
        unfrozen encoder is saved with the MLLM and read again with it."""

        is_loaded = True

        def __init__(self, name: str):
            super().__init__()
            self.vision_tower_name = name
            self.tower = VisionTower.from_encoder(name.removeprefix(PREFIX))
            self.image_processor = Processor(self.tower.spec, self.tower.preprocess)

        def load_model(self, device_map=None) -> None:
            """Nothing to do: an encoder is whole from the start."""

        def to(self, *args, **kwargs):
            # Their script makes the tower fp16 where it trains in fp32; a CPU takes a hundred times as long in it.
            if kwargs.get("dtype") == torch.float16 and not _cuda():
                del kwargs["dtype"]
            return super().to(*args, **kwargs)

        def forward(self, images):
            if isinstance(images, list):
                return [self.forward(image[None] if image.ndim == 3 else image) for image in images]
            return self.tower(images.to(self.device)).last_hidden_state.to(images.dtype)

        dtype = property(lambda self: self.tower.encoder.dtype)
        device = property(lambda self: self.tower.encoder.device)
        config = property(lambda self: self.tower.config)
        hidden_size = property(lambda self: self.tower.spec.width)
        num_patches = property(lambda self: self.tower.spec.tokens)
        num_patches_per_side = property(lambda self: self.tower.spec.grid)
        image_size = property(lambda self: self.tower.spec.resolution)
        dummy_feature = property(lambda self: torch.zeros(1, self.hidden_size, device=self.device, dtype=self.dtype))

    return LlavaNextTower


# --- joining the two --------------------------------------------------------------------------------------------------------


def find_llava() -> Path:
    """The user's checkout, from $LLAVA_NEXT_ROOT or the import path. ValueError where it is missing or another LLaVA."""
    root = os.environ.get("LLAVA_NEXT_ROOT")
    if root and root not in sys.path:
        sys.path.insert(0, root)
    spec = importlib.util.find_spec("llava")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"LLaVA-NeXT is not here: {ROOT_HINT}")
    folder = Path(next(iter(spec.submodule_search_locations)))
    if not (folder / "model" / "language_model" / "llava_qwen.py").is_file():
        raise ValueError(f"{folder} is a llava without Qwen, not LLaVA-NeXT as of df17966: {ROOT_HINT}")
    return folder


EXPECTED = {  # what is mended, replaced or called, by the names that it has at df17966
    "llava.train.train": ("train", "preprocess_qwen", "safe_save_model_for_hf_trainer"),
    "llava.train.llava_trainer": ("LLaVATrainer", "should_only_save_mm_adapter"),
    "llava.model.multimodal_encoder.builder": ("build_vision_tower",),
    "llava.model.llava_arch": ("build_vision_tower",),
    "llava.model.language_model.llava_qwen": ("LlavaQwenForCausalLM", "LlavaQwenConfig"),
}


def _check_version(folder: Path) -> None:
    """ValueError where this LLaVA-NeXT is not like the one that the adapter was written for."""
    mend = f"the adapter is for commit df17966: git -C {folder.parent} checkout df17966"
    for module, names in EXPECTED.items():
        try:
            lacking = _lacks(module, *names)
        except ImportError as e:
            raise ValueError(f"{module} of {folder} cannot be imported with the installed libraries ({e}); {mend}") from e
        if lacking:
            raise ValueError(f"{module} of {folder} has no {', '.join(lacking)}; {mend}")


def install() -> list[str]:
    """Import LLaVA-NeXT with what it needs mended, and our towers known to it; the names of the shims that were applied."""
    folder = find_llava()
    if "llava" in sys.modules and getattr(sys.modules["llava"], "_genlip_eval", None):
        return sys.modules["llava"]._genlip_eval
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # llava.conversation fetches a gated tokenizer while it is imported
    applied = []
    for when in ("before", "after"):
        if when == "after":
            _check_version(folder)
        for shim in SHIMS:
            if shim.when == when and shim.needed():
                shim.apply()
                applied.append(shim.name)
    builder = importlib.import_module("llava.model.multimodal_encoder.builder")
    arch = importlib.import_module("llava.model.llava_arch")
    original, ours = builder.build_vision_tower, tower_class()

    def build_vision_tower(vision_tower_cfg, **kwargs):
        name = getattr(vision_tower_cfg, "mm_vision_tower", getattr(vision_tower_cfg, "vision_tower", None))
        return ours(name) if str(name).startswith(PREFIX) else original(vision_tower_cfg, **kwargs)

    builder.build_vision_tower = arch.build_vision_tower = build_vision_tower  # the name is bound in both
    sys.modules["llava"]._genlip_eval = applied
    return applied


def encoder_digest(tower) -> str:
    """The digest of a tower's weights as float32, which holds bfloat16 and float16 exactly: training and loading differ in dtype."""
    import copy

    from .tower import digest

    return digest(copy.deepcopy(tower).float())


def load(checkpoint: Path):
    """A LLaVA-NeXT checkpoint with one of our towers, as LlavaQwenForCausalLM. ValueError where its tower is not the one recorded."""
    install()
    import torch
    from llava.model.language_model.llava_qwen import LlavaQwenForCausalLM

    from .tower import VisionTower

    mend = "give the folder that LLaVA-NeXT's trainer wrote"
    name = read_json(checkpoint / "config.json", mend, {"mm_vision_tower": str})["mm_vision_tower"]
    if not name.startswith(PREFIX):
        raise ValueError(f"{checkpoint} has the vision tower {name}, not one of ours ({PREFIX}KEY_OR_PATH)")
    model, info = LlavaQwenForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, output_loading_info=True)
    if lacking := [key for key in info["missing_keys"] if "vision_tower" in key or "mm_projector" in key]:
        raise ValueError(
            f"{checkpoint} lacks {', '.join(sorted(lacking)[:3])}: a projector-only checkpoint? Train all parts, or copy it again"
        )
    # Buffers that are not saved are garbage after from_pretrained in transformers 5: take them from an encoder built anew.
    tower = model.get_vision_tower().tower
    fresh = VisionTower.from_encoder(name.removeprefix(PREFIX)).to(tower.encoder.dtype)
    saved = set(tower.state_dict())
    with torch.no_grad():
        for (key, buffer), (_, right) in zip(tower.named_buffers(), fresh.named_buffers()):
            if key not in saved:
                buffer.copy_(right)
    recorded, found = checkpoint / "encoder_digest.txt", encoder_digest(tower)
    if recorded.is_file() and (said := recorded.read_text().strip()) != found:
        raise ValueError(f"{checkpoint}: its encoder has digest {found[:8]}, {recorded.name} says {said[:8]}: copy the checkpoint again")
    return model.eval()


def train(arguments: list[str]) -> None:
    """Run LLaVA-NeXT's own train() and write the encoder's digest beside what it saved."""
    applied = install()
    print(f"LLaVA-NeXT from {find_llava()}; mended: {', '.join(applied) or 'nothing'}", file=sys.stderr)
    module = importlib.import_module("llava.train.train")
    saver = module.safe_save_model_for_hf_trainer

    def save(trainer, output_dir):
        saver(trainer=trainer, output_dir=output_dir)
        tower = trainer.model.get_vision_tower()
        if tower is not None and str(getattr(tower, "vision_tower_name", "")).startswith(PREFIX) and trainer.args.should_save:
            (Path(output_dir) / "encoder_digest.txt").write_text(encoder_digest(tower.tower) + "\n")

    module.safe_save_model_for_hf_trainer, argv = save, sys.argv
    sys.argv = ["train.py", *arguments]
    try:
        module.train()
    finally:
        module.safe_save_model_for_hf_trainer, sys.argv = saver, argv


# --- conversion -------------------------------------------------------------------------------------------------------------

SEEN = "square with flat, and anyres or anyres_max_N with spatial_unpad, can be converted"
PROJECTOR = {"linear_1": "0", "linear_2": "2"}  # LlavaMultiModalProjector's names -> LLaVA-NeXT's mlp2x_gelu
# Its conversation "qwen_1_5", the one for Qwen: Qwen2.5's own template puts another system message where none is given.
QWEN_1_5 = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def picture_fields(spec) -> dict[str, Any]:
    """The fields of LLaVA-NeXT's config that show pictures by the view of `spec`. ValueError for one that it has not, under our towers."""
    view = views.parse(spec.view)
    if view.kind == "square":
        return {"image_aspect_ratio": "square", "mm_patch_merge_type": "flat"}
    if view.kind != "anyres":
        raise ValueError(f"LLaVA-NeXT shows our towers whole pictures, or tiles, and has no view {spec.view}: use --view square or anyres")
    limit = f"_max_{view.max_tiles}" if view.max_tiles else ""
    sides = [[across * spec.resolution, down * spec.resolution] for across, down in view.grids]
    return {"image_aspect_ratio": f"anyres{limit}", "mm_patch_merge_type": "spatial_unpad", "image_grid_pinpoints": sides}


def view_of(config, tile: int, checkpoint: Path) -> str:
    """How a checkpoint's pictures were seen, in our words. ValueError for what has no equal here."""
    ratio, merge = getattr(config, "image_aspect_ratio", None) or "square", getattr(config, "mm_patch_merge_type", None) or "flat"
    if (ratio, merge) == ("square", "flat"):
        return "square"
    if not re.fullmatch(r"anyres(_max_\d+)?", ratio) or merge != "spatial_unpad":
        raise ValueError(f"{checkpoint} was trained with image_aspect_ratio {ratio} and mm_patch_merge_type {merge}: {SEEN}")
    pinpoints = getattr(config, "image_grid_pinpoints", None)
    if not pinpoints:
        raise ValueError(f"{checkpoint} has image_aspect_ratio {ratio} and no image_grid_pinpoints: copy its config.json again")
    if isinstance(pinpoints, str) and "x" in pinpoints:  # all grids between the first and the last, whatever stands between them
        grids = re.findall(r"\(\d+x\d+\)", pinpoints)
        pinpoints = f"{grids[0]},...,{grids[-1]}"
    return str(views.asked(f"{ratio} {pinpoints}", tile, 0))


def to_native(checkpoint: Path, export: Path) -> None:
    """A LLaVA-NeXT checkpoint -> our export folder with equal logits, and its training's prompt as chat template. ValueError for another
    projector than mlp2x_gelu, or pictures that are seen in a way that we have not."""
    import tempfile

    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    from . import mllm

    source = load(checkpoint)
    if source.config.mm_projector_type != "mlp2x_gelu":
        raise ValueError(f"{checkpoint} has a projector {source.config.mm_projector_type}; mlp2x_gelu can be converted")
    tower = source.get_vision_tower().tower
    tower.with_view(view_of(source.config, tower.spec.resolution, checkpoint))
    state = source.state_dict()
    language = Qwen2ForCausalLM(
        Qwen2Config(**{k: v for k, v in source.config.to_dict().items() if k in Qwen2Config().to_dict() and k != "model_type"})
    )
    own = ("model.vision_tower.", "model.mm_projector.", "model.image_newline")
    language.load_state_dict({key: value for key, value in state.items() if not key.startswith(own)})
    with tempfile.TemporaryDirectory() as folder:
        language.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        tokenizer.chat_template = QWEN_1_5
        tokenizer.save_pretrained(folder)
        model, tokenizer = mllm.build(tower, folder)
    projector = {f"{ours}.{p}": state[f"model.mm_projector.{theirs}.{p}"] for ours, theirs in PROJECTOR.items() for p in ("weight", "bias")}
    model.model.multi_modal_projector.load_state_dict(projector)
    if tower.spec.view != "square":
        model.model.image_newline.data.copy_(state["model.image_newline"])
    name = source.config.mm_vision_tower
    said = {
        "stage": "sft",
        "llm": Path(source.config._name_or_path or checkpoint).name,
        "frozen": _frozen(source.config, name, model.model.vision_tower),
        "recipe": {"converted_from": "LLaVA-NeXT", "vision_tower": name},
        "protocol": {"converted_from": "LLaVA-NeXT"},
    }
    mllm.save(model, tokenizer, export, said)
    if (authors := checkpoint / "generation_config.json").exists():  # read where a user asks for the authors' word, and nowhere else
        shutil.copyfile(authors, export / "generation_config.json")


def _frozen(config, name: str, tower) -> bool | None:
    """Whether the encoder was frozen in every stage: a checkpoint tells of its last one alone, so its encoder is held against the one
    that its name means. Where that is one of an export of ours, it is what was known of it there; None: not known."""
    from .tower import digest, digests_as_trained

    parts = getattr(config, "mm_tunable_parts", None)
    older = [getattr(config, flag, False) for flag in ("unfreeze_mm_vision_tower", "tune_vision_tower")]
    if "mm_vision_tower" in (parts or "") or any(older):
        return False
    if digest(tower) not in digests_as_trained(name.removeprefix(PREFIX)):
        return False
    return {"true": True, "false": False, "not known": None}[getattr(config, "encoder_frozen_before", "true")]


def _frozen_fields(frozen: bool | None) -> dict[str, str]:
    """What a checkpoint's config says, in LLaVA-NeXT's own field and in one of ours, which later training there leaves as it is."""
    return {
        "mm_tunable_parts": "mm_vision_tower" if frozen is False else "",
        "encoder_frozen_before": "not known" if frozen is None else str(frozen).lower(),
    }


def to_llava_next(export: Path, checkpoint: Path) -> None:
    """Our export -> a LLaVA-NeXT checkpoint (Qwen2 language models, mlp2x_gelu) with equal logits, its encoder inside."""
    install()
    from llava.model.language_model.llava_qwen import LlavaQwenConfig
    from safetensors.torch import save_file

    from . import mllm

    native = mllm.load(export, device="cpu")
    model, text = native.model, native.model.config.text_config
    if text.model_type != "qwen2" or native.provenance.projector != "mlp2x_gelu":
        raise ValueError(f"{export} is a {text.model_type} with {native.provenance.projector}; LLaVA-NeXT reads Qwen2 with mlp2x_gelu here")
    spec = native.tower.spec
    shown = picture_fields(spec)
    encoder = checkpoint / "encoder"
    native.tower.encoder.save_pretrained(encoder)
    key = spec.key if not spec.path and native.tower.config.untrained else f"{spec.key}={encoder.resolve()}"
    state = {f"model.{key}": value for key, value in model.model.language_model.state_dict().items()}
    state["lm_head.weight"] = model.lm_head.weight.detach().clone()
    state |= {f"model.vision_tower.tower.{key}": value for key, value in native.tower.state_dict().items()}
    for ours, theirs in PROJECTOR.items():
        linear = model.model.multi_modal_projector.get_submodule(ours)
        state |= {f"model.mm_projector.{theirs}.weight": linear.weight.detach(), f"model.mm_projector.{theirs}.bias": linear.bias.detach()}
    fields = {k: v for k, v in text.to_dict().items() if k not in ("model_type", "architectures")}
    if (own := encoders.resolve(key).resolution) != spec.resolution:
        raise ValueError(f"{export} was trained at {spec.resolution} pixels a side, and LLaVA-NeXT would use its encoder at its own {own}")
    if spec.view != "square":
        state["model.image_newline"] = model.model.image_newline.detach()
    config = LlavaQwenConfig(
        **fields, architectures=["LlavaQwenForCausalLM"], mm_vision_tower=PREFIX + key, mm_hidden_size=spec.width, use_mm_proj=True,
        mm_projector_type="mlp2x_gelu", mm_vision_select_layer=-1, mm_vision_select_feature="patch", mm_resampler_type=None,
        mm_use_im_start_end=False, **shown, **_frozen_fields(native.provenance.frozen),
    )  # fmt: skip
    config.save_pretrained(checkpoint)
    save_file(
        {key: value.contiguous().clone() for key, value in state.items()}, checkpoint / "model.safetensors", metadata={"format": "pt"}
    )
    native.tokenizer.save_pretrained(checkpoint)
    (checkpoint / "encoder_digest.txt").write_text(encoder_digest(native.tower) + "\n")


# --- command ----------------------------------------------------------------------------------------------------------------


def doctor() -> int:
    """Print what stands in LLaVA-NeXT's way with the installed versions; 0 where all of it is mended, 2 where the user has to act."""
    import importlib.metadata

    for name in ("torch", "transformers", "accelerate", "deepspeed", "einops"):
        try:
            print(f"{name:14}{importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{name:14}absent")
    missing = [name for name in ("einops", "requests") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"error: LLaVA-NeXT imports {', '.join(missing)}: pip install {' '.join(missing)}", file=sys.stderr)
        return 2
    applied = install()
    print(f"{'LLaVA-NeXT':14}{find_llava()}")
    for shim in SHIMS:
        print(f"  {'mended' if shim.name in applied else 'fine':8}{shim.name}: {shim.why}")
    print("  note    --warmup_ratio: transformers 5 takes --warmup_steps, where a share below 1 is read as a ratio")
    print("  note    DeepSpeed 0.19 casts nothing outside zero.Init: train in bf16 or without --deepspeed")
    return 0


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m llava_plugin.llava_next",
        description="Use our encoders inside a LLaVA-NeXT checkout.",
        epilog="examples:\n"
        "  python -m llava_plugin.llava_next doctor\n"
        "  python -m llava_plugin.llava_next train --vision_tower enc:genlip-so16 --version qwen_1_5 ...   (its own flags)\n"
        "  python -m llava_plugin.llava_next convert CHECKPOINT EXPORT",
    )
    parser.add_argument("command", choices=("doctor", "train", "convert"))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of LLaVA-NeXT's train.py; or SOURCE TARGET of convert")
    args = parser.parse_args(argv)
    if args.command == "doctor":
        return doctor()
    if args.command == "train":
        train(args.arguments)
        return 0
    if len(args.arguments) != 2:
        raise ValueError("convert wants two folders: SOURCE TARGET")
    source, target = map(Path, args.arguments)
    (to_llava_next if (source / "provenance.json").is_file() else to_native)(source, target)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
