"""A stricter transformers Trainer: trainable weights are saved and restored exactly, a checkpoint counts only when it is whole, the
newest are told by their steps, a non-finite loss stops the run before the optimizer moves, and the log says how many tokens are
supervised.

What transformers and DeepSpeed keep of optimizer, schedule and random numbers is in torch's pickled form. It is read as data alone:
whoever can write into a run folder could otherwise run code in the process that goes on from it.
"""

import hashlib
import json
import os
import pickle
import shutil
import sys
import time
from importlib import import_module
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

from genlip.common.files import LONG, in_their_sizes, naming, numbered, open_to_append, read_json, write_file

from . import estimate
from .data import IGNORED
from .recipes import Recipe

DEEPSPEED = Path(__file__).parent / "deepspeed"
WHOLE = "whole.json"  # written last into a checkpoint: its files and their sizes
KEPT = 2  # newest checkpoints

# What DeepSpeed pickles of its own beside tensors: plain holders of numbers.
DEEPSPEED_CLASSES = (
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.utils.tensor_fragment.fragment_address",
)


def arguments(recipe: Recipe, run: Path, accumulation: int, zero: int, processes: int) -> TrainingArguments:
    """The recipe as transformers' TrainingArguments."""
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(run / "checkpoints"),
        per_device_train_batch_size=recipe.batch if recipe.batching == "batch" else 1,
        gradient_accumulation_steps=accumulation,
        learning_rate=recipe.lr,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup,  # a share below 1 is read as a ratio
        bf16=recipe.bf16 and on_gpu,
        logging_steps=estimate.log_every(recipe),
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_steps=recipe.save_every,
        seed=recipe.seed,
        dataloader_num_workers=recipe.workers,
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        report_to=recipe.report,
        run_name=run.name,
        use_cpu=not on_gpu,
        ddp_backend="gloo" if processes > 1 and not on_gpu else None,
        ddp_find_unused_parameters=recipe.train_encoder,  # a tower's last norm and pooling head are often not used
        deepspeed=str(DEEPSPEED / f"zero{zero}.json") if zero else None,
        disable_tqdm=not sys.stderr.isatty(),
    )


class StrictTrainer(Trainer):
    """Checkpoints hold what learns (a frozen encoder or language model is read from its own files again) and buffers."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.counts = torch.zeros(2, dtype=torch.long, device=self.args.device)  # tokens, supervised tokens since the last log
        self.since = time.perf_counter()
        self.metrics: Path | None = None  # JSON lines of everything logged

    def train(self, *args, **kwargs):
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # of every torch.load from here on: DeepSpeed's asks for the other
        try:
            with torch.serialization.safe_globals(deepspeed_classes() if self.is_deepspeed_enabled else []):
                return super().train(*args, **kwargs)
        except pickle.UnpicklingError as error:
            checkpoint = kwargs.get("resume_from_checkpoint")
            raise ValueError(
                f"{checkpoint} holds more than a trainer's state, and is not read, since that could run code: "
                f"remove it to go on from the checkpoint before ({str(error).splitlines()[0]})"
            ) from error

    def compute_loss(self, model, inputs, *args, **kwargs):
        tokens = inputs["attention_mask"].sum() if "attention_mask" in inputs else inputs["labels"].numel()
        self.counts += torch.stack([torch.as_tensor(tokens, device=self.counts.device), (inputs["labels"] != IGNORED).sum()])
        if (items := kwargs.get("num_items_in_batch")) is not None and not items:  # a step of conversations that broke learns nothing
            kwargs["num_items_in_batch"] = items + 1
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss):
            raise RuntimeError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}: nothing was updated with it. "
                f"Lower --lr (now {self.args.learning_rate}); an earlier checkpoint is in {self.args.output_dir}"
            )
        return loss

    def log(self, logs: dict, *args, **kwargs) -> None:
        if "loss" in logs:
            tokens, supervised = self.accelerator.reduce(self.counts, "sum").tolist()
            now = time.perf_counter()
            logs["tokens_per_second"] = round(tokens / (now - self.since), 1)
            logs["supervised_share"] = round(supervised / tokens, 4)
            self.counts.zero_()
            self.since = now
        super().log(logs, *args, **kwargs)
        if self.metrics and self.args.should_save:
            with os.fdopen(open_to_append(self.metrics), "a", encoding="utf-8") as stream:
                stream.write(json.dumps(self.state.log_history[-1]) + "\n")

    def _learns(self) -> dict[str, torch.Tensor]:
        kept = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        return kept | {name: b for name, b in self.model.named_buffers() if name in self.model.state_dict()}

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save and not self.is_deepspeed_enabled:  # DeepSpeed's engine saves its own shards
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            save_file({name: t.detach().contiguous() for name, t in self._learns().items()}, Path(output_dir) / "model.safetensors")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        saved, own = load_file(Path(resume_from_checkpoint) / "model.safetensors"), self._learns()
        if saved.keys() != own.keys():
            raise RuntimeError(f"{resume_from_checkpoint} does not hold what this run trains: {sorted(saved.keys() ^ own.keys())[:3]}")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(saved[name])

    def _save_checkpoint(self, *args, **kwargs) -> None:
        with naming(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(*args, **kwargs)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            sizes = {str(f.relative_to(folder)): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()}
            write_file(folder / WHOLE, json.dumps({"run": run_digest(folder.parents[1]), "files": sizes}))
            for old in checkpoints(folder.parent)[:-KEPT]:
                shutil.rmtree(old)


def checkpoints(folder: Path) -> list[Path]:
    """By their steps: a clock that was put back would make the one just written the oldest."""
    return numbered(folder, "checkpoint-")


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that was saved to its end; those cut short or spoilt are removed. OSError where one cannot be read now."""
    found = None
    for checkpoint in checkpoints(folder):
        if whole(checkpoint):
            found = checkpoint
        else:
            print(f"{checkpoint} is not whole; going on from the one before")
            shutil.rmtree(checkpoint)
    return found


def whole(checkpoint: Path) -> bool:
    """Whether every file that whole.json names is there in its size, and the trainer's state is that of the folder's step.

    OSError where the system does not give a file that is there: it may give it next time, and the checkpoint is kept.
    """
    try:
        sizes = read_json(checkpoint / WHOLE, fields={"run": str, "files": dict})["files"]
        state = read_json(checkpoint / "trainer_state.json", fields={"global_step": int, "max_steps": int, "log_history": list}, most=LONG)
        right = bool(sizes) and f"checkpoint-{state['global_step']}" == checkpoint.name and state["global_step"] <= state["max_steps"]
        return right and in_their_sizes(checkpoint, sizes)
    except (FileNotFoundError, ValueError):
        return False


def run_digest(run: Path) -> str:
    """Of what a run is: its recipe, and what that was resolved to."""
    return hashlib.sha256(b"".join((run / name).read_bytes() for name in ("recipe.json", "run.json"))).hexdigest()


def check_of_this_run(run: Path, checkpoint: Path | None) -> None:
    """ValueError where a checkpoint was written by another run, or by this one under another recipe.json or run.json."""
    if checkpoint and read_json(checkpoint / WHOLE)["run"] != run_digest(run):
        raise ValueError(
            f"{checkpoint} was written under another recipe.json or run.json than {run} holds: bring those back, or give another --out"
        )


def deepspeed_classes() -> list[type]:
    """Those that the installed DeepSpeed has of DEEPSPEED_CLASSES."""
    found = []
    for name in DEEPSPEED_CLASSES:
        module, _, attribute = name.rpartition(".")
        found.append(getattr(import_module(module), attribute))
    return found
