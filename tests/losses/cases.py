"""Every depth loss with maps that it is for."""

from collections.abc import Callable

import torch
from torch import Tensor

from dense.losses import (
    L1,
    SSI,
    BerHu,
    BinCrossEntropy,
    DepthLoss,
    GradientLog,
    GradientMatching,
    MiDaSLoss,
    RobustSSI,
    SiLog,
)

CENTRES = torch.linspace(0.5, 6, 12)

LOSSES: dict[str, Callable[[], DepthLoss]] = {
    "silog": SiLog,
    "silog over images": lambda: SiLog(0.5, over="image"),
    "silog of dinov2": lambda: SiLog(unbiased=True, warmup_steps=100, eps=1e-3),
    "silog of logs": lambda: SiLog(log_space=True),
    "l1": L1,
    "berhu": BerHu,
    "gradient_log": GradientLog,
    "ssi": SSI,
    "ssi of metres": lambda: SSI(invert=True),
    "robust_ssi": RobustSSI,
    "gradient_matching": GradientMatching,
    "robust gradient_matching": lambda: GradientMatching(robust=True),
    "midas": MiDaSLoss,
    "robust midas": lambda: MiDaSLoss(robust=True),
    "bins": lambda: BinCrossEntropy(CENTRES),
    "linear bins": lambda: BinCrossEntropy(CENTRES, "linear", "linear"),
}
BY_IMAGE = [name for name in LOSSES if name not in ("silog", "silog of dinov2", "silog of logs", "berhu")]


def example(name: str, images: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction (or logits), target and a mask that keeps most pixels; 17x23."""
    generator = torch.Generator().manual_seed(7)
    channels = len(CENTRES) if "bins" in name else 1
    prediction = (0.5 + 5 * torch.rand(images, channels, 17, 23, generator=generator)).to(dtype)
    target = (0.5 + 5 * torch.rand(images, 1, 17, 23, generator=generator)).to(dtype)
    mask = torch.rand(images, 1, 17, 23, generator=generator) > 0.3
    return prediction, target, mask
