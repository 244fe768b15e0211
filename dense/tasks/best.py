"""Keep the best model of a run as a saved directory, and stop when nothing gets better."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from dense.model.network import DenseModel
from dense.tasks.base import DenseTask
from dense.tasks.tuning import LoRALinear, merge_lora


class BestModel(pl.Callback):
    """Saves FOLDER whenever the task's validation number is better than ever; `patience` validations without that end
    the run (0: never)."""

    def __init__(self, folder: str | Path, patience: int = 0) -> None:
        if patience < 0:
            raise ValueError(f"patience={patience}: expected 0 or more validations")
        self.folder, self.patience = Path(folder), patience
        self.best: dict[str, float] = {}  # all numbers of the best validation, and its step
        self.waited = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run that patience has ended stays ended."""
        if self.patience and self.waited >= self.patience:
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare."""
        assert isinstance(pl_module, DenseTask)
        name = pl_module.monitor
        if trainer.sanity_checking or name not in pl_module.seen:
            return
        now = pl_module.seen[name]
        sign = 1 if pl_module.mode == "max" else -1
        if not self.best or sign * now > sign * self.best[name] or self.best[name] != self.best[name]:
            self.best, self.waited = {"step": trainer.global_step, **pl_module.seen}, 0
            if trainer.is_global_zero:
                save(pl_module.network, self.folder)
        else:
            self.waited += 1
            if self.patience and self.waited >= self.patience:
                trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """For an exact continuation."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Counterpart of `state_dict`."""
        self.best, self.waited = dict(state_dict["best"]), int(state_dict["waited"])


def save(network: DenseModel, folder: Path) -> None:
    """Write a model; low-rank additions become part of the weights they were added to."""
    if any(isinstance(module, LoRALinear) for module in network.modules()):
        network = copy.deepcopy(network)
        merge_lora(network)
    network.save_pretrained(folder)
