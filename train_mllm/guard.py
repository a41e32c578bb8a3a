"""Proof of what was trained: a frozen encoder stayed bit-equal, an unfrozen one moved. A broken promise fails the run, in words.

In today's tools unfrozen weights are at times never saved, and frozen ones at times drift; both make a comparison of encoders void.
"""

import torch
from transformers import TrainerCallback

from llava_plugin.tower import VisionTower, digest


class Guard(TrainerCallback):
    """Watches the tower over a run. `check()` raises RuntimeError where the promise was broken."""

    def __init__(self, tower: VisionTower, train_encoder: bool):
        self.tower, self.train_encoder = tower, train_encoder
        self.before = digest(tower)
        self.gradient_seen = False

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        gradients = [p.grad for p in self.tower.parameters() if p.grad is not None]
        if not self.train_encoder and gradients:
            raise RuntimeError("the encoder is to stay frozen, yet its weights received gradients: call tower.freeze() before training")
        if self.train_encoder and not self.gradient_seen:
            if not any(bool(torch.any(g != 0)) for g in gradients):
                raise RuntimeError("the encoder is to be trained, yet no gradient reached it in the first step")
            self.gradient_seen = True

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
