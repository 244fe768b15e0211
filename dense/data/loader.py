"""Data loaders: worker processes, and endless batches from the trainer's step on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from dense.data.sampler import IndexSampler

if TYPE_CHECKING:
    import lightning.pytorch as pl


def init_worker(worker: int = 0) -> None:
    """Limit a worker process to one thread, and let it end with its parent alone, for `DataLoader(worker_init_fn=...)`.

    The workers share the cores among themselves. A signal to the whole process group (Ctrl-C, a scheduler's SIGTERM) is
    for the main process, which saves and then ends its workers: they obey a SIGTERM of their parent, and end within a
    second of its death, also where they wait for a queue that nobody reads any more.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # the thread below receives it, with its sender
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """End this process once its parent is dead or sends it SIGTERM."""
    parent, parent_id = multiprocessing.parent_process(), os.getppid()
    assert parent is not None, "a worker process has a parent"
    # Later siblings hold the pipe that `is_alive` watches: they keep it open for another second each.
    while os.getppid() == parent_id and parent.is_alive():
        if not hasattr(signal, "sigtimedwait"):  # macOS
            time.sleep(1)
        elif (received := signal.sigtimedwait([signal.SIGTERM], 1)) and received.si_pid == parent.pid:
            break
    os._exit(0)  # as torch's own handler does: another status would raise in a parent that is shutting down


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
