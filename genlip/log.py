"""What a run says of itself: metrics.jsonl, captions.jsonl, the progress bar, TensorBoard or W&B. Rank 0 speaks, the others are silent."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from .common.files import keep_until, open_to_append
from .common.progress import bars
from .recipes import Recipe


class Log:
    """Opened at `step`: lines of steps that will be run again are taken out of the files. On ranks other than 0 it does nothing."""

    def __init__(self, run: Path, recipe: Recipe, step: int, rank: int):
        self.recipe, self.silent, self.writer, self.wandb = recipe, rank != 0, None, None
        if self.silent:
            return
        self.files = {}
        for name in ("metrics", "captions"):
            if name == "metrics" or recipe.eval_data:
                keep_until(file := run / f"{name}.jsonl", step - 1)
                self.files[name] = os.fdopen(open_to_append(file), "a", buffering=1, encoding="utf-8")  # a line is there once it is written
        if recipe.report == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(run / "tensorboard", purge_step=step)
        elif recipe.report == "wandb":
            try:
                import wandb
            except ImportError as e:
                raise ValueError("wandb is not installed: pip install wandb, or leave --report out") from e
            self.wandb = wandb.init(dir=run, name=run.name, id=run.name, resume="allow", config=asdict(recipe))
        self.progress = bars("{task.fields[note]}")
        self.bar = self.progress.add_task("pretrain", total=recipe.max_steps, completed=step, note="")

    def __enter__(self):
        if not self.silent:
            self.progress.start()
        return self

    def __exit__(self, *_):
        if self.silent:
            return
        self.progress.stop()
        for file in self.files.values():
            file.close()
        if self.writer:
            self.writer.close()
        if self.wandb:
            self.wandb.finish()

    def step(self, record: dict) -> None:
        if self.silent:
            return
        self.files["metrics"].write(json.dumps(record) + "\n")
        done = record["step"] + 1
        note = f"loss {record['loss']:.3f}  norm {record['grad_norm']:.2f}  waste {record['waste']:.1%}"
        note += f"  {record['tokens_per_second']:,} tokens/s"
        note += f"  MFU {record['mfu']:.0%}" if "mfu" in record else ""
        self.progress.update(self.bar, completed=done, note=note)
        if not sys.stderr.isatty() and (done % 100 == 0 or done == self.recipe.max_steps):
            print(f"step {done}/{self.recipe.max_steps}  {note}", flush=True)
        if self.writer:
            for name, value in record.items():
                self.writer.add_scalar(name, value, record["step"])
        if self.wandb:
            self.wandb.log(record, step=record["step"])

    def captions(self, step: int, said: list[dict]) -> None:
        if self.silent:
            return
        for each in said:
            self.files["captions"].write(json.dumps({"step": step} | each, ensure_ascii=False) + "\n")
