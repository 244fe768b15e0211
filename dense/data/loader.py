"""Data loaders: worker processes, and endless batches from the trainer's step on."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from dense.data.sampler import IndexSampler

if TYPE_CHECKING:
    import lightning.pytorch as pl


def init_worker(worker: int = 0) -> None:
    """Limit a worker process to one thread and let it ignore signals, for `DataLoader(worker_init_fn=init_worker)`.

    The workers share the cores among themselves. A signal to the whole process group (Ctrl-C, a scheduler's SIGTERM) is
    for the main process, which saves and then ends its workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def endless_loader(
    dataset: Dataset[Any],
    length: int,
    trainer: pl.Trainer | None,
    *,
    batch_size: int,
    seed: int,
    workers: int,
    collate: Callable[[Any], Any],
    sampler_class: Callable[..., IndexSampler] = IndexSampler,
) -> DataLoader[Any]:
    """Return a loader of endless batches from the trainer's current step on; the sampler's draws index the data set."""
    if trainer is None:
        raise RuntimeError("the data module is not attached to a trainer")
    sampler = sampler_class(
        length,
        batch_size,
        seed,
        rank=trainer.global_rank,
        world=trainer.world_size,
        start_step=trainer.global_step,
        accumulate=trainer.accumulate_grad_batches,
    )
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        pin_memory=trainer.strategy.root_device.type == "cuda",
        **workers_options(workers),
    )


def workers_options(workers: int) -> dict[str, Any]:
    """Return the options of a DataLoader for its worker processes."""
    return {"num_workers": workers, "worker_init_fn": init_worker, "persistent_workers": workers > 0}
