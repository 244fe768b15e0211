"""Whether a file computes what the model does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dense.export.network import Maps, Network, pictures
from heads.features import Size

TOLERANCE = 1e-4  # of the largest absolute value of an output


@torch.no_grad()
def compare(
    network: Network, run: Callable[[Tensor], Maps], sizes: Sequence[tuple[int, Size]], path: Path
) -> dict[str, float]:
    """The largest difference of each output, relative to its scale; too large a one raises."""
    found: dict[str, float] = {}
    for batch, size in sizes:
        images = pictures(network, batch, size)
        where = f"{path} was written, but on {batch} pictures of {size[0]}x{size[1]}"
        try:
            answers = run(images)
        except Exception as error:
            raise RuntimeError(f"{where} it does not run: {error}") from error
        for name, expected in network(images).items():
            if answers[name].shape != expected.shape:
                raise RuntimeError(
                    f"{where} its {name} has shape {tuple(answers[name].shape)}, not {tuple(expected.shape)}"
                )
            scale = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
            difference = float((answers[name] - expected).abs().max() / scale)
            if not difference <= TOLERANCE:  # also not a number
                raise RuntimeError(
                    f"{where} its {name} differs from the model's by {difference:.1e} of the largest value, more than "
                    f"{TOLERANCE:.0e}; do not use it, and try another --opset or a .pt2 file"
                )
            found[name] = max(found.get(name, 0.0), difference)
    return found
