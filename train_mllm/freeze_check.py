"""Verifies that a frozen encoder stayed bit-identical, and that a trained one changed and was saved; RuntimeError otherwise.

In today's tools unfrozen weights are at times never saved, and frozen ones at times drift; both make a comparison of encoders void.
"""

from pathlib import Path

import torch
from transformers import TrainerCallback

from llava_plugin import mllm
from llava_plugin.tower import VisionTower, digest


class FreezeCheck(TrainerCallback):
    """Watches the tower over a run that began with weights of the digest `before`. `check()` and `check_export()` raise RuntimeError where
    the promise was broken."""

    def __init__(self, tower: VisionTower, train_encoder: bool, before: str):
        self.tower, self.train_encoder, self.before = tower, train_encoder, before
        self.gradient_seen = False
        self.hooks: list = []

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        learning = [p for p in self.tower.parameters() if p.requires_grad]
        if not self.train_encoder:
            if learning:
                raise RuntimeError("the encoder is to stay frozen, yet its weights would learn: call tower.freeze() before training")
            return
        if not args.deepspeed:  # which holds flat copies of its own; there the digest at the end tells
            updated = {id(p) for group in optimizer.param_groups for p in group["params"]}
            if not learning or not all(id(p) in updated for p in learning):
                raise RuntimeError("the encoder is to be trained, yet the optimizer does not hold its weights: its group is empty")
        # Hooks see the gradient before an engine (ZeRO) takes it away.
        self.hooks = [p.register_hook(self._saw) for p in learning]

    def _saw(self, gradient: torch.Tensor) -> None:
        if not self.gradient_seen and bool(torch.any(gradient != 0)):
            self.gradient_seen = True

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if not self.train_encoder and any(p.requires_grad or p.grad is not None for p in self.tower.parameters()):
            raise RuntimeError("the encoder is to stay frozen, yet its weights received gradients: call tower.freeze() before training")

    def on_step_end(self, args, state, control, **kwargs):
        if not self.train_encoder or not self.hooks:
            return
        for hook in self.hooks:
            hook.remove()
        self.hooks = []
        if not self.gradient_seen:
            raise RuntimeError("the encoder is to be trained, yet no gradient reached it in the first step")

    def check(self) -> dict:
        """Compare the tower with what it was; returns both digests for the provenance."""
        after = digest(self.tower)
        if not self.train_encoder and after != self.before:
            raise RuntimeError(
                f"the encoder was to stay frozen, yet its weights changed ({self.before[:8]} -> {after[:8]}): nothing is exported"
            )
        if self.train_encoder and after == self.before:
            raise RuntimeError(f"the encoder was to be trained, yet its weights are what they were ({after[:8]}): is it in the optimizer?")
        return {"encoder_digest_before": self.before, "encoder_digest": after}

    def check_export(self, export: Path) -> None:
        """Read the export as its users will, and hold its tower against the one in memory: what is saved is what was trained.

        The files alone do not tell: transformers saves some families under the names of older versions.
        """
        try:
            saved = mllm.load(export, device="cpu").provenance.encoder_digest
        except ValueError as e:
            raise RuntimeError(f"the encoder saved in {export} is not the one that was trained: {e}") from e
        if saved != digest(self.tower):
            raise RuntimeError(
                f"the encoder saved in {export} is not the one that was trained: it has digest {str(saved)[:8]}, "
                f"the one in memory {digest(self.tower)[:8]}"
            )
