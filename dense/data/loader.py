"""Batches of a training: endless, and from any step on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, Dataset

from dense.data.sampler import IndexSampler
from dense.data.workers import init_worker

if TYPE_CHECKING:
    import lightning.pytorch as pl


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
    """Batches of a data set that is indexed by `Draw`, or what another sampler draws, from the trainer's current step on."""
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
    """What a DataLoader is told of its processes."""
    return {"num_workers": workers, "worker_init_fn": init_worker, "persistent_workers": workers > 0}
