"""Restoration of degraded images, guided by DINO features."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dense.backbone.spec import resolve_layers
from dense.losses import PerceptionContrast
from dense.metrics import RestorationMetrics
from dense.model.inference import through
from dense.model.network import DenseModel, Inference, normalised
from dense.tasks.base import DenseTask, Maps
from dense.tasks.batch import Batch
from dense.tasks.options import BackboneOptions, OptimOptions, TargetOptions
from dense.tasks.tuning import TuneOptions


@dataclass(frozen=True)
class PerceptionOptions:
    """The DINO perception contrastive loss beside L1: see `dense.losses.PerceptionContrast`.

    weight: 0 for none. layers: of the backbone; shallow ones tell quality apart. norm: the final norm on each of them.
    layer_weights: one a layer; null for equal ones. floor: of the denominator.
    """

    weight: float = 0.0
    layers: str | list[int] = "even4"
    norm: bool = True
    layer_weights: list[float] | None = None
    floor: float = 0.1

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"perception.weight={self.weight}: expected 0 or more")


class RestorationTask(DenseTask):
    """Clean images from degraded ones. The backbone stays frozen, and both guides the body and judges its result."""

    task = "restoration"
    outputs: ClassVar = {"restored": ("image", "picture")}  # "picture" is the former name of "image"
    monitor, mode = "val/psnr", "max"

    def __init__(
        self,
        backbone: BackboneOptions = BackboneOptions(layers="even4"),
        head: dict[str, Any] = {"name": "restoration", "outputs": {"restored": {"name": "image"}}},  # noqa: B006
        perception: PerceptionOptions = PerceptionOptions(),
        body_weights: str | None = None,
        optim: OptimOptions = OptimOptions(lr=3e-4, schedule="cosine", clip=0.01),
        tune: TuneOptions = TuneOptions(),
        inference: Inference = Inference(),
        steps: int = 1000,
        seed: int = 0,
    ) -> None:
        """A restoration in training, by L1 and the perception loss.

        Args:
            backbone: which features guide; layers from shallow to deep.
            head: what heads.build takes; in_channels is filled in.
            perception: the DINO perception contrastive loss.
            body_weights: a published file of Restormer from which the body starts.
            optim: optimiser and schedule.
            tune: how much of the backbone learns.
            inference: how images meet the network later; saved with the model.
            steps: optimiser steps.
            seed: of the head's weights and the order of images.
        """
        super().__init__(backbone, head, optim, tune, TargetOptions(), inference, steps, seed)
        if head.get("name") != "restoration":
            raise ValueError(f"head.name={head.get('name')!r}: a restoration task needs the head 'restoration'")
        if inference.resize is not None:
            raise ValueError(f"inference.resize={inference.resize}: a restored image keeps its size; leave it out")
        if perception.weight and not tune.frozen:
            raise ValueError(
                f"perception.weight={perception.weight} judges by a frozen backbone, and model.tune lets it learn; drop one"
            )
        self.perception, self.body_weights = perception, body_weights
        self.contrast = PerceptionContrast(perception.layer_weights, perception.floor)

    def loss_recipe(self) -> dict[str, Any]:
        """The perception loss, and what the body started from."""
        return {"perception": asdict(self.perception), "body_weights": self.body_weights}

    def complete_outputs(self, outputs: dict[str, dict[str, Any]], data: Any) -> dict[str, dict[str, Any]]:
        """The one output; the data must have degradation."""
        if not data.degradations:
            raise ValueError(
                "the data have no degradation to undo: say data.degrade, such as {kinds: {noise: [25]}}, or bring pairs with "
                "data.layout: paired"
            )
        self.degradations = tuple(data.degradations)
        return {"restored": outputs.get("restored", {"name": "image"})}

    def build(self, data: Any) -> DenseModel:
        """With the published body, where there is one."""
        network = super().build(data)
        if self.body_weights is not None:
            from dense.published.restormer import load_body

            load_body(network.head.body, self.body_weights)  # type: ignore[arg-type]
        self.contrast_layers = resolve_layers(self.perception.layers, network.backbone.spec)
        return network

    def losses(self, maps: Maps, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """L1 of pixels, and the ratio of distances of features."""
        assert batch.clean is not None
        assert batch.images is not None
        restored, clean = maps["restored"].float(), batch.clean.float() / 255
        l1 = (restored - clean).abs().mean()
        parts = {"l1": l1.detach()}
        if not self.perception.weight:
            return l1, parts
        with torch.no_grad():
            good, bad = (self._perceived(normalised(self.network.backbone, t)) for t in (batch.clean, batch.images))
        contrast = self.contrast(self._perceived(self.network.normal(restored)), good, bad)
        return l1 + self.perception.weight * contrast, parts | {"perception": contrast.detach()}

    def _perceived(self, images: Tensor) -> tuple[Tensor, ...]:
        """Features of normalised images by which they are compared."""
        backbone = self.network.backbone
        seen = self.network.head.backbone_input(images, backbone.spec.patch)  # type: ignore[operator]
        return backbone(seen, layers=self.contrast_layers, norm=self.perception.norm).maps

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch, which is seen as a predictor sees it: through the windows that are saved with the model."""
        assert batch.images is not None
        maps = through(self.network, self.inference)(normalised(self.network.backbone, batch.images))
        self.update_metrics(self.metrics, maps, batch)

    def build_metrics(self) -> nn.Module:
        """PSNR and SSIM by kind of degradation."""
        return RestorationMetrics(self.degradations)

    def update_metrics(self, metrics: nn.Module, maps: Maps, batch: Batch) -> None:
        """Of images as they would be saved."""
        assert batch.clean is not None
        metrics.update(maps["restored"], batch.clean.float() / 255, batch.degradations)  # type: ignore[operator]

    def numbers(self) -> dict[str, float]:
        """Also the PSNR of each kind."""
        per_kind = self.metrics.compute()["per_degradation"]  # type: ignore[operator]
        return super().numbers() | {f"psnr/{kind}": row["psnr"] for kind, row in per_kind.items()}
