"""An image of any size to a typed prediction of the same size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dense.data.image import read_image, to_rgb
from dense.data.transforms import resize_image
from dense.memory.anomaly import detect
from dense.model.inference import Maps, augmented, slid, slide
from dense.model.network import DenseModel, Inference
from dense.predict.predictions import Anomaly, Depth, Joint, Prediction, Restoration, Segmentation
from heads.layers import resize

RGB = NDArray[np.uint8]  # H, W, 3
Source = str | Path | RGB | Image.Image
WHOLE = 1_000_000  # pixels above which an image is windowed or resized although no inference is configured
WINDOW = 512  # side of these windows, rounded down to a multiple of the patch
ROWS = 256  # rows of an image for which the logits of all classes are in memory at once
KEPT = 512_000_000  # bytes up to which the maps of a resized image are kept whole

torch_precision = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Predictor:
    """``predictor("photo.jpg")``: a `Depth`, `Segmentation`, `Joint`, `Restoration` or `Anomaly`, of its size.

    Without a configured window or size, an image of more than `WHOLE` pixels goes through windows for its classes. For
    depth it is resized to `WHOLE` pixels instead, since depth depends on the whole scene and windows would disagree.
    An image to restore always keeps its size. Depth is in metres, also where the head predicts its logarithm.

    Args:
        model: the network; `predictor.model` gives it back.
        inference: how the network is applied; by default as saved with the model.
        flip: average over the image and its mirror image.
        scales: average over these sizes of the image, or of each window.
        precision: fp32, bf16 or fp16.
        batch: windows in one forward pass.
        raw_depth: keep depth as the head predicts it, such as its logarithm.
        focal: focal length of the images in pixels; they are resized to as many pixels per degree as in training.
    """

    OPTIONS = ("resize", "window", "stride", "refine", "flip", "scales", "precision", "batch", "raw_depth", "focal")

    def __init__(
        self,
        model: DenseModel,
        *,
        inference: Inference | None = None,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        precision: str = "fp32",
        batch: int = 1,
        raw_depth: bool = False,
        focal: float | None = None,
    ) -> None:
        if precision not in torch_precision:
            raise ValueError(f"precision={precision!r}: expected one of {', '.join(torch_precision)}")
        if batch < 1:
            raise ValueError(f"batch={batch}: expected at least 1 window at once")
        labels = model.outputs.get("labels")
        if labels is not None and labels.count > 255:
            raise ValueError(
                f"the model has {labels.count} classes; a prediction stores labels as bytes, which holds at most 255"
            )
        self.model, self.precision, self.batch, self.raw_depth = model.eval(), precision, batch, raw_depth
        self.inference, self.focal = inference or model.inference, focal
        if focal is not None and (self.inference.focal is None or not focal > 0):
            expected = "a positive number of pixels" if self.inference.focal else "none"
            reason = "" if self.inference.focal else ", since depth.yaml of the training images declared none"
            raise ValueError(f"focal={focal}: expected {expected}{reason}; leave it out")
        if "restored" in model.outputs and self.inference.resize is not None:
            raise ValueError(f"resize={self.inference.resize}: a restored image keeps its size; leave it out")
        if "restored" in model.outputs and tuple(scales) != (1.0,):
            raise ValueError(f"scales={tuple(scales)}: a restored image keeps its size; leave them out")
        if "anomaly" in model.outputs and (flip or tuple(scales) != (1.0,) or self.inference.window is not None):
            raise ValueError("flip, scales and windows do not apply to scores of anomalies; leave them out")
        self._augmented = augmented(self._maps, scales, flip)

    @classmethod
    def open(cls, folder: str | Path, device: str | torch.device = "cpu", **options: Any) -> Predictor:
        """Open a directory that `dense train` wrote; options are those of `of`."""
        return cls.of(DenseModel.from_pretrained(folder), device, **options)

    @classmethod
    def of(cls, model: DenseModel, device: str | torch.device = "cpu", **options: Any) -> Predictor:
        """Move a model to a device and wrap it; resize, window, stride and refine replace what was saved with it."""
        model = model.to(device)
        given = {k: options.pop(k, None) for k in ("resize", "window", "stride", "refine")}
        changed = {k: v for k, v in given.items() if v is not None}
        return cls(model, inference=replace(model.inference, **changed), **options)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names of the model."""
        return self.model.classes

    # ---- use

    def __call__(self, source: Source) -> Prediction:
        """Return the prediction for a file, an array (H, W, 3) of uint8 RGB or a PIL image.

        Only a file is rotated by its EXIF orientation.
        """
        image = as_array(source)
        if "anomaly" in self.model.outputs:
            with self._autocast():
                score, values = detect(self.model, image, self.inference.resize)
            return Anomaly(values, score, self.model.head.threshold)
        return self._prediction(self.reduced(image))

    def many(self, sources: Iterable[Source]) -> Iterator[tuple[RGB, Prediction]]:
        """Yield images with their predictions; the next file is read while one is computed."""
        with ThreadPoolExecutor(1) as reader:
            waiting: Future[RGB] | None = None
            for source in sources:
                coming = reader.submit(as_array, source)
                if waiting is not None:
                    image = waiting.result()
                    yield image, self(image)
                waiting = coming
            if waiting is not None:
                image = waiting.result()
                yield image, self(image)

    # ---- from pixels to values

    @torch.inference_mode()
    def reduced(self, image: RGB) -> dict[str, Tensor]:
        """Return values per pixel by name: "depth", "labels" and "scores" (H, W), or "restored" (H, W, 3).

        Logits of the full size exist for a band of rows only.
        """
        height, width = image.shape[:2]
        small = np.ascontiguousarray(self._resized(image).transpose(2, 0, 1))
        pixels = torch.from_numpy(small).to(next(self.model.parameters()).device)  # 3, h, w
        size = (pixels.shape[1], pixels.shape[2])
        sink = _Sink((height, width))
        inference = self._windows(size)
        window, stride = inference.window, inference.step
        if window is None:
            maps = {name: values[0] for name, values in self._network(pixels[None]).items()}
        elif size == (height, width):
            slide(self._network, pixels, window, stride, sink, batch=self.batch)
            return sink.values
        elif 4 * size[0] * size[1] * sum(output.channels for output in self.model.outputs.values()) <= KEPT:
            whole = slid(self._network, window, stride, "even", self.batch)(pixels[None])
            maps = {name: values[0] for name, values in whole.items()}
        else:  # the logits of all classes do not fit into memory until they are resized
            unresized = _Sink(size)
            slide(self._network, pixels, window, stride, unresized, batch=self.batch)
            return unresized.resized((height, width))
        for name, values in maps.items():
            _bands(values, (height, width), lambda rows, top, name=name: sink(name, rows, top, 0))
        return sink.values

    def _resized(self, image: RGB) -> RGB:
        """Resize an image as `inference` says; for depth, also one of more than `WHOLE` pixels."""
        size = self.inference.size_of((image.shape[0], image.shape[1]), self.focal)
        pixels = image.shape[0] * image.shape[1]
        if size is None and self.inference.window is None and pixels > WHOLE and "depth" in self.model.outputs:
            factor = math.sqrt(WHOLE / pixels)
            size = (max(1, int(image.shape[0] * factor)), max(1, int(image.shape[1] * factor)))
        return resize_image(image, size)

    def _windows(self, size: tuple[int, int]) -> Inference:
        """Return the windows for an image of `size`."""
        if self.inference.window is not None or size[0] * size[1] <= WHOLE:
            return self.inference
        patch = self.model.backbone.spec.patch
        return replace(self.inference, window=max(patch, WINDOW // patch * patch))

    def _network(self, images: Tensor) -> Maps:
        """Return fp32 maps of uint8 images (B, 3, H, W)."""
        return self._augmented(self.model.backbone.normalise(images))

    def _maps(self, images: Tensor) -> Maps:
        """Return fp32 maps of normalised images; images smaller than a patch are resized to one first."""
        patch, (height, width) = self.model.backbone.spec.patch, images.shape[-2:]
        if min(height, width) < patch and "restored" not in self.model.outputs:
            images = resize(images, (max(height, patch), max(width, patch)), align_corners=False)
        with self._autocast():
            maps = self.model.maps(images, refine=self.inference.refine)
        return {name: resize(values.float(), (height, width), align_corners=False) for name, values in maps.items()}

    def _autocast(self) -> Any:
        """Return the context of the network's precision."""
        dtype = torch_precision[self.precision]
        return torch.autocast(next(self.model.parameters()).device.type, dtype) if dtype else nullcontext()

    def _prediction(self, values: dict[str, Tensor]) -> Prediction:
        found: dict[str, Any] = {}
        if "restored" in values:
            return Restoration(values["restored"].cpu().numpy())
        if "depth" in values:
            depth = Depth.of(values["depth"].cpu().numpy(), self.model.depth_kind)  # type: ignore[arg-type]
            found["depth"] = depth.to_metric() if depth.kind == "log" and not self.raw_depth else depth
        if "labels" in values:
            classes = self.model.classes or tuple(map(str, range(self.model.outputs["labels"].count)))
            labels, scores = values["labels"].cpu().numpy(), values["scores"].cpu().numpy()
            found["segmentation"] = Segmentation(labels, scores, classes)
        return Joint(**found) if len(found) == 2 else next(iter(found.values()))


class _Sink:
    """Receives mean maps block by block and keeps per pixel what a prediction holds: one number, or label and score."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.values: dict[str, Tensor] = {}

    def __call__(self, name: str, block: Tensor, top: int, left: int) -> None:
        if name == "labels":
            score, label = block.max(0)  # h, w
            self._put("labels", label.to(torch.uint8), top, left)
            self._put("scores", (score - block.logsumexp(0)).exp_(), top, left)
        elif name == "restored":
            self._put(name, (block.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0), top, left)
        else:
            self._put(name, block[0], top, left)

    def _put(self, name: str, block: Tensor, top: int, left: int) -> None:
        if name not in self.values:
            self.values[name] = torch.empty((*self.size, *block.shape[2:]), dtype=block.dtype, device="cpu")
        self.values[name][top : top + block.shape[0], left : left + block.shape[1]] = block.cpu()

    def resized(self, size: tuple[int, int]) -> dict[str, Tensor]:
        """Return the values at another size: labels by nearest neighbour, the rest bilinearly."""
        result = {}
        for name, values in self.values.items():
            maps = values[None, None].float()
            if name == "labels":
                maps = F.interpolate(maps, size=size, mode="nearest-exact")
            else:
                maps = resize(maps, size, align_corners=False)
            result[name] = maps[0, 0].to(values.dtype)
        return result


def _bands(values: Tensor, size: tuple[int, int], finish: Any) -> None:
    """Resize a map (K, h, w) to `size` bilinearly and pass it on in bands of rows; the whole never exists."""
    if tuple(values.shape[-2:]) == size:
        for top in range(0, size[0], ROWS):
            finish(values[:, top : top + ROWS], top)
        return
    rows = ((torch.arange(size[0], device=values.device) + 0.5) * (values.shape[1] / size[0]) - 0.5).clamp(min=0)
    above = rows.long().clamp(max=values.shape[1] - 1)
    below, share = (above + 1).clamp(max=values.shape[1] - 1), (rows - above)[:, None]
    for top in range(0, size[0], ROWS):
        part = slice(top, min(top + ROWS, size[0]))
        band = torch.lerp(values[:, above[part]], values[:, below[part]], share[part])  # K, rows, w
        finish(resize(band[None], (band.shape[1], size[1]), align_corners=False)[0], top)


def as_array(image: Source) -> RGB:
    """Return a file, an array or a PIL image as an array (H, W, 3) of uint8 RGB."""
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        given = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"expected a path, a PIL image or a uint8 array (H, W, 3) in RGB, got {given}")
    if 0 in image.shape:
        raise ValueError(f"the image is empty: {image.shape}")
    return image
