"""Model setup: initialise from an earlier stage, freeze, attach LoRA adapters, build optimizer groups. Loads without torch."""

from dataclasses import replace
from pathlib import Path

from genlip.common.schema import EarlierStage, Provenance, read
from llava_plugin import views

from .recipes import Recipe
from .setup import Setup


def initialise_from(model, setup: Setup) -> Provenance:
    """Take over what an earlier stage learned: the projector, and of an SFT stage the language model too. The encoder stays the recipe's.

    Returns the provenance of that stage. Raises ValueError where its export was made for another encoder or language model: a projector
    belongs to the very weights and preprocessing that it was made for.
    """
    from llava_plugin import mllm

    recipe = setup.recipe
    before = read(Provenance, Path(recipe.init) / "provenance.json", "export that stage again")
    if before.projector != recipe.projector:
        raise ValueError(f"{recipe.init} has a {before.projector} projector: give --projector {before.projector}")
    start = mllm.load(recipe.init, device="cpu")
    theirs, before = start.model, start.provenance
    ours, found = model.model.multi_modal_projector, theirs.model.multi_modal_projector
    if [p.shape for p in ours.parameters()] != [p.shape for p in found.parameters()]:
        raise ValueError(f"{recipe.init} is a projector from {before.encoder} to {before.llm}, not from {recipe.encoder} to {recipe.llm}")
    check_made_for(start, model.model.vision_tower, setup)
    ours.load_state_dict(found.state_dict())
    for name, newline in newline_of(theirs).items():
        newline_of(model)[name].data.copy_(newline)
    if before.stage == "sft":
        model.model.language_model.load_state_dict(theirs.model.language_model.state_dict())
        model.lm_head.load_state_dict(theirs.lm_head.state_dict())
        return before
    language = model.model.language_model
    words = next(name for name, p in language.named_parameters() if p is language.get_input_embeddings().weight)
    unused = {words: model.config.image_token_id}  # the placeholder's row, at times drawn from the seed, is never looked up
    if not same_weights(language, theirs.model.language_model, unused):
        now = digest_of(language)
        raise ValueError(
            f"{recipe.init} was trained with the language model {before.llm} {str(before.llm_digest)[:8]}, and {setup.llm} holds "
            f"{now[:8]}: bring that one back, or train the projector again"
        )
    return before


def check_made_for(start, tower, setup: Setup) -> None:
    """Raises ValueError where the loaded export `start` has another encoder than `tower`, or one that is given other pixels; resolutions
    may differ, since a projector works token by token. Behind squares tiles may come, as in LLaVA-NeXT, or pictures at their own aspect
    ratio."""
    own, theirs, before = tower.spec, start.tower.spec, start.provenance
    labels = {name: getattr(own, name) for name in ("key", "hub_id", "path", "licence", "seed", "parameters", "resolution", "why")}
    if own.view != "crop":
        labels["crop"] = own.crop  # which acts in that view alone
    if theirs.view == "square" and views.parse(own.view).by_size:
        labels["view"] = own.view
    if replace(theirs, **labels) != own:
        raise ValueError(
            f"{setup.recipe.init} has a projector for {before.encoder} with other preprocessing than {setup.recipe.encoder} has now: bring "
            "that back, or train the projector again"
        )
    if not same_weights(tower, start.tower):
        raise ValueError(
            f"{setup.recipe.init} has a projector for the encoder {before.encoder} {digest_of(start.tower)[:8]}, and "
            f"{setup.encoder or setup.recipe.encoder} holds {digest_of(tower)[:8]}: give --encoder that one, or train the projector again"
        )


def check_read_alike(before: Provenance, digests: dict[str, str | None], setup: Setup) -> None:
    """Raises ValueError where encoder, language model or tokenizer, whose weights are those of the earlier stage, are configured otherwise.
    Of an export from before these digests were kept nothing is known. A chat template may change: it is recorded, and compared."""
    places = {"llm_config": ("the language model's config", setup.llm), "tokenizer_digest": ("the tokenizer", setup.llm)}
    if setup.spec and setup.spec.resolution == before.resolution:  # a config may state the resolution, in which two stages may differ
        places["encoder_config"] = ("the encoder's config", setup.encoder)
    for name, (what, place) in places.items():
        if before[name] not in (None, digests[name]):
            raise ValueError(
                f"{setup.recipe.init} was trained with {what} {before[name][:8]}, and {place or setup.recipe.encoder} holds "
                f"{str(digests[name])[:8]}: bring that one back, or train the projector again"
            )


def digest_of(module) -> str:
    from llava_plugin.tower import digest

    return digest(module)


def same_weights(ours, theirs, unused: dict[str, int] | None = None) -> bool:
    """Whether two modules hold equal weights in the coarser of their dtypes: an export in bf16 was made from fp32 weights that round to
    it. `unused`: name of a tensor -> a row that does not count."""
    import torch

    mine, found = ours.state_dict(), theirs.state_dict()
    if mine.keys() != found.keys() or any(mine[name].shape != found[name].shape for name in mine):
        return False
    for name, tensor in mine.items():
        dtype = min(tensor.dtype, found[name].dtype, key=lambda dtype: dtype.itemsize)
        a, b = tensor.to(dtype), found[name].to(dtype)
        row = (unused or {}).get(name)
        parts = [(a, b)] if row is None else [(a[:row], b[:row]), (a[row + 1 :], b[row + 1 :])]
        if not all(torch.equal(*part) for part in parts):
            return False
    return True


def frozen_throughout(recipe: Recipe, earlier: list[EarlierStage]) -> bool:
    """Whether the encoder is frozen in this stage, and was in all before it."""
    return not recipe.train_encoder and not any(stage.recipe.get("train_encoder") for stage in earlier)


def stages_of(before: Provenance | None) -> list[EarlierStage]:
    """The stages that a run continues, oldest first: by these a comparison tells whether two MLLMs differ in the encoder alone."""
    return [] if before is None else [*before.earlier, before.as_earlier()]


def newline_of(model) -> dict:
    """The newline of an MLLM that sees tiles, by its name; nothing of another."""
    return {name: p for name, p in model.named_parameters() if name.endswith("image_newline")}


def count_parameters(model) -> dict[str, dict[str, int]]:
    """{"encoder" | "projector" | "llm": {"trained", "all"}}, counted once where weights are tied; a newline counts to the projector."""
    members = {"encoder": list(model.model.vision_tower.parameters())}
    members["projector"] = [*model.model.multi_modal_projector.parameters(), *newline_of(model).values()]
    apart = {id(p) for part in members.values() for p in part}
    members["llm"] = [p for p in model.parameters() if id(p) not in apart]
    return {
        name: {"trained": sum(p.numel() for p in some if p.requires_grad), "all": sum(p.numel() for p in some)}
        for name, some in members.items()
    }


def with_adapters(language_model, recipe: Recipe):
    """The language model with LoRA adapters on all its linear layers; its own weights stay. `merge_and_unload()` gives it back."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        language_model, LoraConfig(r=recipe.lora_rank, lora_alpha=recipe.lora_alpha or 2 * recipe.lora_rank, target_modules="all-linear")
    )


def freeze_parts(model, recipe: Recipe) -> None:
    """Freeze what the recipe does not teach."""
    if not recipe.train_encoder:
        model.model.vision_tower.freeze()
    if recipe.stage == "projector":
        model.model.language_model.requires_grad_(False)
        model.lm_head.requires_grad_(False)


def prepare_for_training(model, setup: Setup, dtype, zero: bool, on_gpu: bool) -> None:
    """The kernels, the checkpointing and the adapters of the recipe; and what learns in fp32, where `dtype` is bf16 and DeepSpeed does
    not keep such a copy itself."""
    import torch

    from .packing import use_packed_attention

    # Where it can, torch takes cuDNN's attention, which plans anew for every shape it meets: 80 ms each on an H100, and packed rows
    # hardly ever meet one twice.
    torch.backends.cuda.enable_cudnn_sdp(False)
    recipe, kernels = setup.recipe, setup.kernels
    if recipe.batching != "padded":
        use_packed_attention(model, kernels.flash and on_gpu)
    if kernels.liger and on_gpu:
        use_liger(model.model.language_model)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable()
        # It lets the input embeddings of every part require gradients, the encoder's patches too: a frozen one would keep all its
        # activations and be gone through backwards, and some classes' embeddings are no single tensor.
        model.disable_input_require_grads()
        model.model.language_model.enable_input_require_grads()
    if recipe.lora_rank:
        model.model.language_model = with_adapters(model.model.language_model, recipe)
        model.lm_head.requires_grad_(False)
    if dtype == torch.bfloat16 and not zero:
        for p in model.parameters():
            p.data = p.data.float() if p.requires_grad else p.data


def use_liger(language_model) -> None:
    """Liger's norms, rotary positions and SwiGLU for a language model that it knows. Its loss is left out: here only the logits of
    supervised tokens are computed at all."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(model=language_model, cross_entropy=False, fused_linear_cross_entropy=False)


def adamw(model, recipe: Recipe):
    """AdamW over what learns, the encoder at its own rate where it is trained."""
    import torch

    of_tower = {id(p) for p in model.model.vision_tower.parameters()}
    learning = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in learning if id(p) not in of_tower], "lr": recipe.lr}]
    if recipe.train_encoder:
        groups.append({"params": [p for p in learning if id(p) in of_tower], "lr": recipe.encoder_lr})
    return torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
