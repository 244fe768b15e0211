"""What every process that loads data does first."""

from __future__ import annotations

import cv2
import torch


def init_worker(worker: int = 0) -> None:
    """One thread each: workers share the cores among themselves. For `DataLoader(worker_init_fn=init_worker)`."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
