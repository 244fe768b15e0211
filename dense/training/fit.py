"""A run that continues exactly: seeds, the comparison of recipes, and fitting from the last checkpoint."""

from __future__ import annotations

import hashlib
import pickle
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from dense.console import counting, say
from dense.data.cache import FeatureCache
from dense.data.labelled.sample import Identity
from dense.files import write
from dense.training.checkpoints import Checkpoints
from dense.training.logs import MetricsFile, ProgressLine
from dense.training.precision import OnePrecision


def check_batch_size(size: int) -> None:
    """Raise for a batch without images."""
    if size < 1:
        raise ValueError(f"data.batch_size={size}: expected at least 1")


def continue_metrics(trainer: pl.Trainer) -> None:
    """Continue metrics.csv at the step where the run continues."""
    for logger in trainer.loggers:
        if isinstance(logger, MetricsFile) and trainer.is_global_zero:
            logger.start(trainer.global_step)


def seed_micro_batch(trainer: pl.Trainer, seed: int, micro: int) -> None:
    """Seed everything random in a micro-batch by (seed, optimiser step, micro-batch of the step, process)."""
    torch.manual_seed(hash((seed, trainer.global_step, micro, trainer.global_rank)) & (2**63 - 1))


def refuse_another(recipe: Mapping[str, Any], saved: Mapping[str, Any], free: str | None = None) -> None:
    """Raise for a checkpoint of another recipe and name what differs; values under the key `free` may differ."""
    changed = differences(renamed(recipe), renamed(saved))
    changed = [line for line in changed if free is None or not line.startswith(f"{free}.")]
    if changed:
        raise ValueError(
            "the checkpoint belongs to another recipe; use the same settings, or another --output\n  "
            + "\n  ".join(changed)
        )


def renamed(value: Any) -> Any:
    """Return plain data with "image" for "picture", the word of former versions, in keys and texts."""
    if isinstance(value, Mapping):
        return {renamed(k): renamed(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [renamed(v) for v in value]
    return re.sub(r"\bpicture(s?)\b", r"image\1", value) if isinstance(value, str) else value


def images_in_words(count: int, name: Callable[[int], str], root: str, most: int = 1000) -> str:
    """Describe a set of images by its count and a digest of the names and sizes of some files, relative to the root."""
    path = Path(root)
    digest, top = hashlib.blake2b(digest_size=4), str(path if path.is_dir() else path.parent)
    for place in range(min(count, most)):
        image = name(place * count // min(count, most))
        size = file.stat().st_size if (file := Path(image)).is_file() else 0
        digest.update(f"{image.removeprefix(top)} {size}\0".encode("utf-8", "surrogateescape"))
    return f"{count} images, {digest.hexdigest()}"


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return 'optim.lr: 0.001 now, 0.0005 then' for every leaf in which two nested mappings differ."""
    found = []
    for key in dict.fromkeys([*ours, *theirs]):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {a} now, {b} then")
    return found


def fill_cache(
    trainer: pl.Trainer,
    cache: FeatureCache,
    identities: Sequence[Identity],
    load: Callable[[int, int], torch.Tensor],
    what: str,
) -> None:
    """Compute the features that a cache lacks, each process its share (see `FeatureCache.fill`); report how many."""
    share = (trainer.global_rank, trainer.world_size)
    with counting(what) if trainer.is_global_zero else nullcontext() as progress:
        count = cache.fill(identities, load, progress=progress, share=share)
    everyone = torch.tensor(count, device=trainer.strategy.root_device)
    count = int(trainer.strategy.reduce(everyone, reduce_op="sum"))  # returns when all processes are done
    if trainer.is_global_zero:
        say(f"{what}: {count} computed, {len(identities) * cache.copies - count} in the cache")


class SettingsFile(pl.Callback):
    """Write FOLDER/config.yaml when training starts, so that settings which the checkpoint refuses replace nothing."""

    def __init__(self, folder: Path, config: str) -> None:
        self.path, self.config = folder / "config.yaml", config

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.config and trainer.is_global_zero:
            write(self.path, self.config)


def begin(
    trainer: pl.Trainer,
    folder: Path,
    checkpoint: dict[str, Any],
    about: str,
    config: str = "",
    callbacks: Sequence[pl.Callback] = (),
) -> Checkpoints:
    """Prepare a run in `folder` (checkpoints, logs, progress, settings) and print `about`; return its checkpoints."""
    checkpoints = Checkpoints(folder / "checkpoints", **checkpoint)
    given: Any = trainer  # Lightning declares no such attribute
    given.callbacks += [OnePrecision(), SettingsFile(folder, config), *callbacks, checkpoints, ProgressLine()]
    trainer.loggers = [MetricsFile(folder), *tensorboard(folder)]
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        say(f"{'continuing' if checkpoints.last.is_file() else 'starting'} {folder}: {about}")
    return checkpoints


def tensorboard(folder: Path) -> list[TensorBoardLogger]:
    """Return a TensorBoard logger, where tensorboard is installed."""
    try:
        return [TensorBoardLogger(folder, name="", version="tensorboard")]
    except ModuleNotFoundError:
        return []


def fit(
    trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule, checkpoints: Checkpoints
) -> None:
    """Fit, from the last checkpoint if there is one.

    Raises:
        KeyboardInterrupt: Ctrl-C came a second time, or before there was a step to finish.
    """
    resume = checkpoints.last if checkpoints.last.is_file() else None
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{resume} is corrupt or is no checkpoint of this project; remove it to start again, or replace it with a "
            "copy that was kept"
        ) from None
    except SystemExit:  # Lightning exits at Ctrl-C
        if trainer.interrupted:
            raise KeyboardInterrupt(how_to_continue(checkpoints)) from None
        raise


def how_to_continue(checkpoints: Checkpoints) -> str:
    """Return how the same command continues the run, in words."""
    if checkpoints.last.is_file():
        return f"the same command continues from {checkpoints.last}"
    return "there is no checkpoint yet: the same command starts again"


def stopped(trainer: pl.Trainer, checkpoints: Checkpoints) -> int:
    """Return 0, or the exit status of a run that a signal stopped, and report where it stopped."""
    if checkpoints.stopped_by is None:
        return 0
    if trainer.is_global_zero:
        name = "Ctrl-C" if checkpoints.stopped_by == signal.SIGINT else "SIGTERM"
        where = how_to_continue(checkpoints)
        print(f"stopped by {name} at step {trainer.global_step}; {where}", file=sys.stderr)
    return 128 + checkpoints.stopped_by
