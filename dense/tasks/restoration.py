"""Restoration of degraded images, guided by DINO features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dense.backbone.spec import resolve_layers
from dense.data.labelled.sample import Batch, LabelledSource
from dense.losses import PerceptionContrast
from dense.metrics import RestorationMetrics
from dense.model.network import DenseModel, Inference, Maps
from dense.published.restormer import load_body
from dense.tasks.base import DenseTask
from dense.tasks.data import DataFacts
from dense.tasks.options import BackboneOptions, OptimOptions, PerceptionOptions, TargetOptions, TuneOptions


class RestorationTask(DenseTask):
    """Clean images from degraded ones; a frozen backbone guides the restoration and compares its result."""

    task = "restoration"
    outputs: ClassVar = {"restored": ("image", "picture")}  # "picture" is the former name of "image"
    monitor, mode, second = "val/psnr", "max", "val/ssim"
    baseline_name = "degraded input"

    def __init__(
        self,
        *,
        backbone: BackboneOptions = BackboneOptions(layers="even4"),
        head: dict[str, Any] = {"name": "restoration", "outputs": {"restored": {"name": "image"}}},
        perception: PerceptionOptions = PerceptionOptions(),
        body_weights: str | None = None,
        optim: OptimOptions = OptimOptions(lr=3e-4, schedule="cosine", clip=0.01),
        tune: TuneOptions = TuneOptions(),
        inference: Inference = Inference(),
        **shared: Any,
    ) -> None:
        """A restoration head in training, with L1 and the perception loss.

        Args:
            head: options of `heads.build`; in_channels is filled in.
            backbone: the features that guide the restoration, from shallow to deep.
            perception: the DINO perception contrastive loss.
            body_weights: a published Restormer file with which the body is initialised.
            optim: optimiser and learning-rate schedule.
            tune: how much of the backbone is trained.
            inference: how the network is applied to whole images, from validation on; saved with the model.
            **shared: options of every task.
        """
        super().__init__(
            head=head, backbone=backbone, optim=optim, tune=tune, target=TargetOptions(), inference=inference, **shared
        )
        if head.get("name") != "restoration":
            raise ValueError(f"head.name={head.get('name')!r}: a restoration task needs the head 'restoration'")
        if inference.resize is not None:
            raise ValueError(f"inference.resize={inference.resize}: a restored image keeps its size; leave it out")
        if perception.weight and not tune.frozen:
            raise ValueError(
                f"perception.weight={perception.weight} needs a frozen backbone, and model.tune trains it; drop one"
            )
        self.perception, self.body_weights = perception, body_weights
        self.contrast = PerceptionContrast(perception.layer_weights, perception.floor)

    def loss_recipe(self) -> dict[str, Any]:
        """Return the options of the perception loss, and the weights that the body started from."""
        return {"perception": asdict(self.perception), "body_weights": self.body_weights}

    def complete_outputs(self, outputs: dict[str, dict[str, Any]], data: DataFacts) -> dict[str, dict[str, Any]]:
        """Return the one output; raise where the data are not degraded."""
        if not data.degradations:
            raise ValueError(
                "the data have no degradation to undo: set data.degrade, such as {kinds: {noise: [25]}}, or use pairs "
                "with data.layout: paired"
            )
        self.degradations = data.degradations
        return {"restored": outputs.get("restored", {"name": "image"})}

    def build(self, data: DataFacts) -> DenseModel:
        """Build the network, with the published body where `body_weights` names one."""
        network = super().build(data)
        if self.body_weights is not None:
            load_body(network.head.body, self.body_weights)
        self.contrast_layers = resolve_layers(self.perception.layers, network.backbone.spec)
        return network

    def losses(self, maps: Maps, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return L1 of pixels plus the weighted ratio of feature distances."""
        assert batch.clean is not None
        assert batch.images is not None
        restored, clean = maps["restored"].float(), batch.clean.float() / 255
        l1 = (restored - clean).abs().mean()
        parts = {"l1": l1.detach()}
        if not self.perception.weight:
            return l1, parts
        normalise = self.network.backbone.normalise
        with torch.no_grad():
            good, bad = (self._compared_features(normalise(images)) for images in (batch.clean, batch.images))
        contrast = self.contrast(self._compared_features(self.network.normalise_pixels(restored)), good, bad)
        return l1 + self.perception.weight * contrast, parts | {"perception": contrast.detach()}

    def _compared_features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps by which the perception loss compares normalised images."""
        backbone = self.network.backbone
        images = self.network.head.backbone_input(images, backbone.spec.patch)
        return backbone(images, layers=self.contrast_layers, norm=self.perception.norm).maps

    def build_metrics(self) -> nn.Module:
        """Return PSNR and SSIM per kind of degradation."""
        return RestorationMetrics(self.degradations)

    def update_metrics(self, metrics: Any, maps: Maps, batch: Batch) -> None:
        """Add images as they would be saved."""
        assert batch.clean is not None
        metrics.update(maps["restored"], batch.clean.float() / 255, batch.degradations)

    def baseline(self, train: LabelledSource) -> Callable[[Batch], Maps]:
        """Return the degraded images themselves."""

        def predict(batch: Batch) -> Maps:
            assert batch.images is not None
            return {"restored": batch.images.float() / 255}

        return predict

    def numbers(self, metrics: Any = None) -> dict[str, float]:
        """Return the metrics of the set, and the PSNR of each kind."""
        per_kind = (self.metrics if metrics is None else metrics).compute()["per_degradation"]
        return super().numbers(metrics) | {f"psnr/{kind}": row["psnr"] for kind, row in per_kind.items()}
