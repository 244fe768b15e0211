"""Instance, panoptic and semantic segmentation by queries in the last blocks of the backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dense.data.copy_paste import copy_paste
from dense.data.labelled.sample import IGNORE, UNCOVERED, Batch, LabelledSource, Segments, label_map, masks_of
from dense.data.transforms import new_size, resize_image
from dense.losses import MaskLoss
from dense.metrics import MaskAP, PanopticQuality, SegmentationMetrics
from dense.model import queries
from dense.model.inference import slid, whole_size
from dense.model.network import Maps, task_of_masks
from dense.model.tiles import best, finder, search
from dense.tasks.base import DenseTask
from dense.tasks.data import DataFacts
from dense.tasks.options import BackboneOptions, OptimOptions, PasteOptions, TargetOptions
from dense.tasks.segmentation import constant_class
from heads.eomt import annealed, default_spans
from heads.features import Size
from heads.layers import resize
from heads.outputs import MaskKind

MONITORS: dict[MaskKind, tuple[str, str]] = {
    "instance": ("val/ap", "val/ap50"),
    "panoptic": ("val/pq", "val/sq"),
    "semantic": ("val/miou", "val/aacc"),
}


class MasksTask(DenseTask):
    """Masks with classes by a head of queries (EoMT), on a frozen backbone unless `tune` says otherwise.

    The head runs the last blocks of the backbone, so that `backbone.layers` and `backbone.norm` follow from it. Masked
    attention, which it is trained with, is annealed until none is left.
    """

    outputs: ClassVar = {"masks": ("masks",)}
    mode = "max"

    def __init__(
        self,
        *,
        kind: MaskKind = "instance",
        head: dict[str, Any] = {"name": "eomt", "outputs": {"masks": {"name": "masks"}}},
        backbone: BackboneOptions = BackboneOptions(),
        loss: dict[str, Any] = {},
        annealing: list[tuple[float, float]] | None = None,
        copy_paste: PasteOptions = PasteOptions(),
        optim: OptimOptions = OptimOptions(lr=1e-4, weight_decay=0.05, warmup_steps=500, clip=0.01),
        **shared: Any,
    ) -> None:
        """Queries in training.

        Args:
            kind: instance, objects that may overlap; panoptic, objects and stuff that divide the image; semantic, one
                region per class.
            head: options of `heads.build`: queries and blocks of the head eomt; the rest is filled in.
            backbone: the backbone whose last blocks the queries join; layers and norm are not for this head.
            loss: options of `dense.losses.MaskLoss`, such as points, the weights, and drop.
            annealing: for each block from which to which fraction of the run its masked attention fades out; null for
                the published one, block after block; [] for no masked attention.
            copy_paste: objects of other images of the batch that are pasted into an image.
            optim: optimiser and learning-rate schedule.
            **shared: options of every task.
        """
        super().__init__(head=head, backbone=backbone, optim=optim, **shared)
        if head.get("name") != "eomt":
            raise ValueError(f"head.name={head.get('name')!r}: this task needs a head of queries, eomt")
        if backbone.layers != "last":
            raise ValueError(
                f"backbone.layers={backbone.layers!r}: the head runs the last blocks itself; leave layers out and set "
                "head.blocks"
            )
        if self.inference.refine != "none":
            raise ValueError(
                f"inference.refine={self.inference.refine!r}: masks of queries are not refined; leave it out"
            )
        usual = TargetOptions()
        for name, value in vars(self.target).items():
            if value != getattr(usual, name):
                raise ValueError(f"target.{name}={value!r} has no meaning for masks of queries; leave it out")
        if backbone.norm is not True:
            raise ValueError(f"backbone.norm={backbone.norm!r}: the head applies the final norm itself; leave it out")
        if copy_paste.probability and kind != "instance":
            raise ValueError(f"copy_paste.probability={copy_paste.probability} needs kind instance, not {kind}")
        self.kind, self.task = kind, task_of_masks(kind)
        self.monitor, self.second = MONITORS[kind]  # type: ignore[misc]
        self.loss_options, self.loss, self.paste = loss, MaskLoss(**loss), copy_paste
        self.annealing = annealing

    def loss_recipe(self) -> dict[str, Any]:
        paste = {"copy_paste": [self.paste.probability, *self.paste.scale]} if self.paste.probability else {}
        return {"kind": self.kind, "loss": self.loss_options, "annealing": self.annealing} | paste

    def complete_outputs(self, outputs: dict[str, dict[str, Any]], data: DataFacts) -> dict[str, dict[str, Any]]:
        """Fill in the kind, the number of classes, and which of them are things."""
        wanted = {"labels", "masks"} if self.kind == "semantic" else {"masks"}
        if data.classes is None or not wanted & set(data.val_targets):
            raise ValueError(
                f"the data have no {'classes' if self.kind == 'semantic' else 'masks of objects'} for training and "
                "validation; give COCO annotations, maps of instances or, for kind semantic, masks of classes"
            )
        if self.kind == "semantic" and not data.covers:
            raise ValueError(f"kind semantic: {UNCOVERED}, or train kind instance")
        if data.partial and self.kind != "semantic":
            raise ValueError(
                f"data.partial=True: kind {self.kind} needs the objects of each image, since where they are unknown a "
                "query is neither right nor wrong; leave partial out, and images without a map of instances"
            )
        count = len(data.classes)
        if outputs.get("masks", {}).get("count", count) != count:
            raise ValueError(f"the head has another number of classes than the data, {count}; leave count out")
        things = None if self.kind == "semantic" or data.things is None else list(data.things)
        given = {"name": "masks"} | outputs.get("masks", {})
        return {"masks": given | {"count": count, "kind": self.kind, "things": things}}

    def setup(self, stage: str) -> None:
        """Refuse copy-paste in batches of one image, where there is nothing to paste, and padding unlike inference."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        size = data.batch_size
        if self.inference.square and data.settings["augment"].get("pad") != "corner":
            raise ValueError(
                "model.inference.square pads images at a corner; set data.augment.pad corner, and crop_size"
            )
        if self.paste.probability and size < 2:
            raise ValueError(
                f"copy_paste.probability={self.paste.probability} with data.batch_size={size}: objects are those of "
                "other images of the batch; set data.batch_size to 2 at least, or leave copy_paste out"
            )
        super().setup(stage)

    @property
    def feature_change(self) -> str:
        """What changes the features before the head's blocks: their training, pasted objects, or random depth."""
        if self.paste.probability:
            return "model.copy_paste changes the images"
        unfrozen = self.tune.unfreeze
        if self.tune.patch_steps or not isinstance(unfrozen, int) or unfrozen > self.network.head.blocks:
            return super().feature_change
        return "stochastic depth or dropout changes them" if drops(self.network.backbone) else ""

    # ---- a step

    def set_masking(self) -> None:
        """Set each block's probability of masked attention to that of this step."""
        self.network.head.masking = annealed(self.trainer.global_step / self.steps, self.spans)

    @property
    def spans(self) -> Sequence[tuple[float, float]]:
        """From which to which fraction of the run each block's masked attention fades out."""
        blocks = self.network.head.blocks
        spans = default_spans(blocks) if self.annealing is None else self.annealing or [(-1.0, 0.0)] * blocks
        if len(spans) != blocks:
            raise ValueError(f"annealing={spans}: expected a start and an end for each of {blocks} blocks")
        return spans

    def settled(self, step: int) -> bool:
        """Whether masked attention has faded out of all blocks."""
        return step / self.steps >= max(end for _, end in self.spans)

    def maps(self, batch: Batch) -> tuple[Maps, Batch]:
        """Return the predictions of all blocks, at the head's resolution, and the batch with pasted objects."""
        self.set_masking()
        if self.paste.probability:
            things = self.network.outputs["masks"].things
            if batch.segments is not None:
                batch = batch._replace(segments=tuple(one.of_things(things) for one in batch.segments))
            batch = copy_paste(batch, self.paste.probability, self.paste.scale)
        return self.network.decode(self.features(batch)[0]), batch

    def losses(self, maps: Maps, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the losses of all predictions, and the parts of the last one."""
        places = [*(f".{i}" for i in range(self.network.head.blocks)), ""]
        predictions = [(maps[f"mask_logits{i}"], maps[f"class_logits{i}"]) for i in places]
        found = self.targets(batch)
        valid = torch.stack([segments.valid for segments in found])
        masks, labels = [s.masks for s in found], [s.classes for s in found]
        return self.loss(predictions, masks, labels, None if bool(valid.all()) else valid, self.mean)

    def mean(self, counts: Tensor) -> Tensor:
        """Average counts over the processes."""
        return self.trainer.strategy.reduce(counts, reduce_op="mean")

    def targets(self, batch: Batch) -> list[Segments]:
        """Return the segments of each image that queries are matched with; crowds are unknown."""
        if self.kind == "semantic":
            return [regions(labels) for labels in self.labels(batch)]
        found = []
        for segments in batch.segments or ():
            wanted = ~segments.crowd & segments.masks.flatten(1).any(1)
            if self.kind == "instance" and (things := self.network.outputs["masks"].things) is not None:
                wanted &= torch.tensor(things, device=wanted.device)[segments.classes]
            crowd = segments.masks[segments.crowd].any(0)
            found.append(segments.take(wanted)._replace(valid=segments.valid & ~crowd))
        return found

    def labels(self, batch: Batch) -> Tensor:
        """Return the class of each pixel, (B, H, W)."""
        return batch.labels if batch.labels is not None else torch.stack([label_map(s) for s in batch.segments or ()])

    # ---- validation

    def build_metrics(self) -> nn.Module:
        names = self.network.classes or ()
        if self.kind == "semantic":
            return SegmentationMetrics(len(names), names=names)
        if self.kind == "instance":
            return MaskAP(names)
        return PanopticQuality(self.network.outputs["masks"].things or (True,) * len(names), names)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.set_masking()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Compare masks or classes with the targets, at the targets' own size, as `dense evaluate` does."""
        assert batch.images is not None
        if self.kind != "semantic" and (batch.cached is None or self.working_size(batch.images) is not None):
            self.count(self.metrics, [self.found_in(image, batch) for image in batch.images], batch)
            return
        if batch.cached is not None:
            maps = self.network.decode(self.features(batch)[0])
        else:
            network, window = queries.as_classes(self.network.maps), self.inference.window
            network = network if window is None else slid(network, window, self.inference.step)
            maps = network(self.network.backbone.normalise(batch.images))
        self.update_metrics(self.metrics, maps, batch)
        if self.comparing is not None:
            self.update_metrics(self.comparing[1], self.comparing[0](batch), batch)

    def working_size(self, images: Tensor) -> Size | None:
        """Return the size at which objects are searched for, where it is not that of the images (..., h, w)."""
        height, width = images.shape[-2:]
        size = new_size(whole_size(self.inference, (height, width)), height, width)
        return None if size == (height, width) else size

    def found_in(self, image: Tensor, batch: Batch) -> Any:
        """Return the instances or segments of a uint8 image (N, h, w), at the targets' size."""
        network, things = self.network, self.network.outputs["masks"].things
        if (size := self.working_size(image)) is not None:
            small = resize_image(image.permute(1, 2, 0).cpu().numpy(), size)
            image = torch.from_numpy(small).permute(2, 0, 1).to(image.device)
        find, size = finder(network), target_size(batch)
        return best(search(network.maps_of_pixels, image, size, self.inference, find, things), 0.0, queries.TOP)

    def update_metrics(self, metrics: Any, maps: Maps, batch: Batch) -> None:
        if self.kind == "semantic":
            labels = self.labels(batch)
            size = (labels.shape[-2], labels.shape[-1])
            if "labels" in maps:
                scores = resize(maps["labels"], size, align_corners=False)
            else:
                scores = queries.semantic(maps["mask_logits"], maps["class_logits"], size, batch.size)
            metrics.update(scores.argmax(1), labels)
            return
        masks, classes, size = maps["mask_logits"], maps["class_logits"], target_size(batch)
        if self.kind == "panoptic":
            found: Any = queries.panoptic(masks, classes, size, metrics.things, through=batch.size)
        else:
            found = queries.instances(masks, classes, size, through=batch.size)
        self.count(metrics, found, batch)

    def count(self, metrics: Any, found: Sequence[Any], batch: Batch) -> None:
        """Compare the instances or segments of each image with its targets, on their device."""
        segments = batch.segments or ()
        if self.kind == "instance":
            segments = tuple(one.of_things(self.network.outputs["masks"].things) for one in segments)
        on_device = (type(one)(*(values.to(self.device) for values in one)) for one in found)
        metrics.update(list(on_device), segments)

    def baseline(self, train: LabelledSource) -> Callable[[Batch], Maps] | None:
        """Return the most frequent class of the training images everywhere, where labels are measured."""
        if self.kind != "semantic" or train.read(0).labels is None:
            return None
        return constant_class(train, len(self.network.classes or ()))


def target_size(batch: Batch) -> Size:
    """Return height and width of the segments of a batch."""
    height, width = (batch.segments or ())[0].valid.shape
    return height, width


def drops(module: nn.Module) -> bool:
    """Whether a network in training drops values or blocks at random."""
    return any(getattr(one, "drop_prob", 0) or (isinstance(one, nn.Dropout) and one.p) for one in module.modules())


def regions(labels: Tensor) -> Segments:
    """Return one segment per class of a map of labels (H, W)."""
    masks, classes = masks_of(labels)
    return Segments(masks, classes, torch.zeros_like(classes, dtype=torch.bool), labels != IGNORE)
