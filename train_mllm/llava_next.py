"""The same SFT recipe, trained by LLaVA-NeXT in the user's own checkout: `python -m train_mllm.train ... --backend llava_next`.

    export LLAVA_NEXT_ROOT=/path/to/LLaVA-NeXT       # what stops it with the installed versions: python -m llava_plugin.llava_next doctor

Ours are the prepared data with its ledger (written out in LLaVA's form under RUN/llava_next/), the projector stage, the
learning rates, the proof on the encoder, and the export. Theirs are prompt, labels, batches and loss; `NOTE` says where those differ, and
stands in the provenance. The conversion gives the export the chat template that they train on, so that evaluation asks as training did.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from genlip.common import fingerprint
from genlip.common.files import file_aside, read_json, write_file, write_json, written_aside
from genlip.common.flags import flag
from genlip.common.locks import one_at_a_time
from genlip.common.run_folder import pin, recorded
from genlip.common.schema import Provenance, RunRecord, read, write

from . import estimate
from .conversations import open_conversations
from .model import check_made_for, frozen_throughout, stages_of
from .recipes import Recipe, protocol
from .setup import Setup, micro_steps

if TYPE_CHECKING:
    from llava_plugin.mllm import Mllm

NOTE = (
    "trained by LLaVA-NeXT: padded batches of bf16 weights, its qwen_1_5 prompt, whose <|im_start|>, <|im_end|> and newlines are learned "
    "in questions too; what is too long is cut at any token; two or more pictures of one conversation are padded to squares, one is resized"
)
SAME = {  # fields that LLaVA-NeXT cannot follow elsewhere
    "stage": "sft",
    "projector": "mlp2x_gelu",
    "turns": "dialogue",
    "batching": "batch",
    "lora_rank": 0,
    "resolution": 0,
    "view": "square",
    "feature_layer": -1,
    "cache_features": False,
    "standardise": False,
    "bf16": True,
}


def check_recipe(recipe: Recipe) -> None:
    """Raises ValueError for a recipe that LLaVA-NeXT cannot follow."""
    other = [flag(name, value) for name, value in SAME.items() if getattr(recipe, name) != value]
    if other:
        raise ValueError(f"--backend llava_next goes with {', '.join(other)} alone: change that, or train with --backend native")


def write_data(data: Path, folder: Path) -> None:
    """The prepared conversations as FOLDER/conversations.json and FOLDER/images/, in LLaVA's form. Raises ValueError for system turns,
    at which LLaVA-NeXT would train on a neighbour instead."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    table = open_conversations(data)
    with file_aside(folder / "conversations.json") as aside, aside.open("w") as stream:
        for number in range(len(table)):
            row = table.slice(number, 1).to_pylist()[0]
            if any(message["role"] == "system" for message in row["messages"]):
                raise ValueError(f"conversation {row['id']!r} has a system turn, which LLaVA-NeXT does not read: use --backend native")
            turns = [{"from": "human" if message["role"] == "user" else "gpt", "value": message["content"]} for message in row["messages"]]
            record = {"id": row["id"], "conversations": turns}
            if names := [_picture(p, folder / "images" / f"{number}-{k}") for k, p in enumerate(row["images"])]:
                record["image"] = names[0] if len(names) == 1 else names
            stream.write(("[\n" if number == 0 else ",\n") + json.dumps(record))
        stream.write("\n]\n")


def _picture(picture: dict, file: Path) -> str:
    if picture["bytes"] is None:
        return picture["path"]
    file.write_bytes(picture["bytes"])
    return str(file.absolute())


def arguments(recipe: Recipe, llm: str, folder: Path, accumulation: int, on_gpu: bool, zero: int) -> list[str]:
    """Of LLaVA-NeXT's train.py."""
    parts = ["mm_mlp_adapter", "mm_language_model"] + ["mm_vision_tower"] * recipe.train_encoder
    given = {
        "model_name_or_path": llm,
        "version": "qwen_1_5",
        "data_path": folder / "conversations.json",
        "image_folder": folder / "images",
        "vision_tower": f"enc:{recipe.encoder}",
        "mm_tunable_parts": ",".join(parts),
        "mm_vision_tower_lr": recipe.encoder_lr,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -1,
        "mm_patch_merge_type": "flat",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "square",
        "lazy_preprocess": True,
        "attn_implementation": "sdpa",
        "output_dir": folder / "checkpoint",
        "num_train_epochs": recipe.epochs,
        "max_steps": recipe.max_steps or -1,
        "per_device_train_batch_size": recipe.batch,
        "gradient_accumulation_steps": accumulation,
        "model_max_length": recipe.max_length,
        "learning_rate": recipe.lr,
        "weight_decay": recipe.weight_decay,
        "warmup_steps": recipe.warmup,  # a share below 1 is read as a ratio
        "lr_scheduler_type": "cosine",
        "max_grad_norm": recipe.max_grad_norm,
        "seed": recipe.seed,
        "bf16": True,
        "use_cpu": not on_gpu,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "dataloader_num_workers": recipe.workers,
        "logging_steps": estimate.log_every(recipe),
        "save_steps": recipe.save_every,
        "save_total_limit": 2,
        "report_to": recipe.report,
    }
    if recipe.init:
        given["pretrain_mm_mlp_adapter"] = folder / "mm_projector.bin"
    if zero:
        given["deepspeed"] = Path(__file__).parent / "deepspeed" / f"zero{zero}.json"
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


def write_inputs(recipe: Recipe, run: Path, data: Path, start: "Mllm | None" = None) -> None:
    """Write what LLaVA-NeXT reads into RUN/llava_next/, once: conversations, pictures, and the projector that training starts from, of the
    export `start` where that is loaded already."""
    folder = run / "llava_next"
    if not (folder / "conversations.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        if recipe.init:
            write_projector(start, recipe.init, folder / "mm_projector.bin")
        write_data(data, folder)  # last: where its file is, all is there


def prepare_run(setup: Setup, run: Path, data: Path, zero: int) -> RunRecord:
    """Hold what LLaVA-NeXT will load against what the run began with, and write its inputs."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llava_plugin import mllm
    from llava_plugin.tower import VisionTower, digest

    recipe, on_gpu, began = setup.recipe, torch.cuda.is_available(), recorded(run)
    tower = VisionTower.from_encoder(recipe.encoder)
    dtype = torch.bfloat16 if on_gpu else torch.float32  # as the native backend has it
    language = AutoModelForCausalLM.from_pretrained(setup.llm, dtype=dtype)
    start = mllm.load(recipe.init, device="cpu") if recipe.init else None
    if start is not None:
        check_made_for(start, tower, setup)
    tokenizer = fingerprint.of_loaded_tokenizer(AutoTokenizer.from_pretrained(setup.llm))
    digests = {
        "encoder_digest": digest(tower.to(torch.bfloat16).float()),  # in which it trains
        "llm_digest": digest(language.base_model),
        "head_digest": digest(language.get_output_embeddings()),
        "tokenizer_digest": tokenizer["tokenizer"],
        "chat_template": tokenizer["chat_template"],
        "init_digest": None if start is None else start.provenance.weights_digest,
        "projector_made_for": None if start is None else start.provenance.encoder_digest,
    }
    accumulation = micro_steps(began, setup.processes, setup.accumulation, run)
    ledger = read_json(data / "ledger.json")
    record = setup.record(digests, ledger["digest"], accumulation, zero, str(dtype).removeprefix("torch."), on_gpu)
    pin(run, record)
    write_inputs(recipe, run, data, start)
    write_json(run / "ledger.json", ledger)
    return record


def train(setup: Setup, run: Path, data: Path) -> Path:
    """Train and export; returns the export folder. ValueError for what the user can mend, RuntimeError where LLaVA-NeXT fails or the
    promise on the encoder was broken."""
    import torch

    recipe, folder, export = setup.recipe, run / "llava_next", run / "export"
    llm = str(setup.llm)
    if "qwen" not in llm.lower():
        raise ValueError(f"LLaVA-NeXT takes a language model for Qwen where its path says so; {llm} does not: name the folder qwen-...")
    first, on_gpu = os.environ.get("RANK", "0") == "0", torch.cuda.is_available()
    began = recorded(run)
    zero = estimate.zero_here(setup, began)
    accumulation = micro_steps(began, setup.processes, setup.accumulation, run)
    earlier = stages_of(read(Provenance, Path(recipe.init) / "provenance.json", "export that stage again")) if recipe.init else []
    with one_at_a_time(run):
        record = prepare_run(setup, run, data, zero) if first else None  # of one process: a large model is loaded for it
        write_inputs(recipe, run, data)  # by whichever comes first

    command = [sys.executable, "-m", "llava_plugin.llava_next"]
    environment = os.environ if on_gpu else os.environ | {"ACCELERATE_USE_CPU": "1"}
    given = arguments(recipe, llm, folder, accumulation, on_gpu, zero)
    trained = subprocess.run([*command, "train", *given], env=environment, check=False)
    if trained.returncode:
        raise RuntimeError(f"LLaVA-NeXT ended with exit code {trained.returncode}; what it said stands above. Its folder is {folder}")
    if record is None:
        return export
    with written_aside(export) as part:
        converted = subprocess.run([*command, "convert", str(folder / "checkpoint"), str(part)], env=environment, check=False)
        if converted.returncode:
            raise RuntimeError(f"the checkpoint in {folder} could not be brought into the native form; what was said stands above")

        provenance = read(Provenance, part / "provenance.json", "run the same command again")
        before, after = str(record.encoder_digest), str(provenance.encoder_digest)
        if (after == before) == recipe.train_encoder:
            said = "be trained, yet its weights are what they were" if recipe.train_encoder else "stay frozen, yet its weights changed"
            raise RuntimeError(f"the encoder was to {said} ({before[:8]} -> {after[:8]}): nothing is exported")
        state = read_json(folder / "checkpoint" / "trainer_state.json")
        provenance = replace(
            provenance,
            stage=recipe.stage,
            llm=Path(recipe.llm).name,
            frozen=frozen_throughout(recipe, earlier),
            note=NOTE + (f"; {estimate.NO_ANYRES}" if recipe.train_encoder else ""),
            encoder_digest_before=before,
            data_digest=record.data_digest,
            steps=state["global_step"],
            processes=record.processes,
            accumulation=record.accumulation,
            zero=zero,
            protocol=protocol(recipe, record.processes, record.accumulation, True),  # it trains in bf16 anywhere
            seed=recipe.seed,
            recipe=asdict(recipe),
            versions=record.versions,
            git_commit=record.git_commit,
            earlier=earlier,
            llm_digest_before=record.llm_digest,
        )
        write(part / "provenance.json", provenance)
        write_file(run / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in state["log_history"]))
    print(f"wrote {export}")
    return export


def write_projector(start: "Mllm | None", init: str, file: Path) -> None:
    """An export's projector in the one form that LLaVA-NeXT starts from."""
    import torch

    from llava_plugin import mllm

    start = start or mllm.load(init, device="cpu")
    if start.provenance.stage != "projector" or start.provenance.projector != "mlp2x_gelu":
        raise ValueError(f"{init} is no mlp2x_gelu export of a projector stage, from which LLaVA-NeXT can start")
    names = {"linear_1": "0", "linear_2": "2"}
    weights = {}
    for name, tensor in start.model.model.multi_modal_projector.state_dict().items():
        layer, kind = name.split(".")
        weights[f"model.mm_projector.{names[layer]}.{kind}"] = tensor
    torch.save(weights, file)
