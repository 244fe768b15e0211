"""What every process that loads data does first."""

from __future__ import annotations

import signal

import cv2
import torch


def init_worker(worker: int = 0) -> None:
    """One thread each: workers share the cores among themselves. For `DataLoader(worker_init_fn=init_worker)`.

    A signal to the whole process group (Ctrl-C, a scheduler's SIGTERM) is for the main process, which saves and then
    ends its workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
