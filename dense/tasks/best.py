"""The best model of a run as a saved directory, and early stopping."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from dense.model.network import DenseModel
from dense.tasks.base import DenseTask
from dense.tasks.tuning import LoRALinear, merge_lora


class BestModel(pl.Callback):
    """Save the model whenever the monitored metric improves; stop early when it does not.

    Args:
        folder: the saved directory of the best model.
        patience: early stopping after so many validations without improvement; 0 for none.
    """

    def __init__(self, folder: str | Path, patience: int = 0) -> None:
        if patience < 0:
            raise ValueError(f"patience={patience}: expected 0 or more validations")
        self.folder, self.patience = Path(folder), patience
        self.best: dict[str, float] = {}  # metrics of the best validation, and its step
        self.waited = 0  # validations since then

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop a continued run that early stopping has ended before."""
        if self.patience and self.waited >= self.patience:
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the model if it is the best so far, else count towards early stopping."""
        assert isinstance(pl_module, DenseTask)
        name = pl_module.monitor
        if trainer.sanity_checking or name not in pl_module.validated:
            return
        value = pl_module.validated[name]
        sign = 1 if pl_module.mode == "max" else -1
        if not self.best or sign * value > sign * self.best[name] or self.best[name] != self.best[name]:
            self.best, self.waited = {"step": trainer.global_step, **pl_module.validated}, 0
            if trainer.is_global_zero:
                save(pl_module.network, self.folder)
        else:
            self.waited += 1
            if self.patience and self.waited >= self.patience:
                trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.waited = dict(state_dict["best"]), int(state_dict["waited"])


def save(network: DenseModel, folder: Path) -> None:
    """Write a model, with LoRA merged into the weights of its layers."""
    if any(isinstance(module, LoRALinear) for module in network.modules()):
        network = copy.deepcopy(network)
        merge_lora(network)
    network.save_pretrained(folder)
