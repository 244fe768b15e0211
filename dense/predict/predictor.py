"""From an image of any size to a typed prediction of the same size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from dense.data.labelled.sample import Labelled
from dense.data.transforms import EvalTransform
from dense.model.inference import Maps, augmented, slid, slide
from dense.model.network import DenseModel, Inference
from dense.predict.predictions import Depth, Joint, Prediction, Restoration, Segmentation

Picture = NDArray[np.uint8]
WHOLE = 1_000_000  # pixels above which an image is not seen as it is, even if the model says nothing of that
WINDOW = 512  # side of the windows through which it is seen then, brought to a multiple of the patch
ROWS = 256  # rows of an image for which all classes are kept at once
KEPT = 512_000_000  # bytes up to which the maps of a resized image are kept whole

torch_precision = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Predictor:
    """``predictor("photo.jpg")``: a `Depth`, a `Segmentation` or both (`Joint`), of the image's own size.

    `model` is the network alone. inference: how images meet it, by default as it was saved. flip, scales: average
    over the mirror image and over sizes of each view. precision: fp32, bf16 or fp16. batch: windows at once.

    If nobody says how, a large image is seen through windows for its classes; for its depth it is made smaller, since
    depth is told from the whole scene and windows would disagree. An image to restore keeps its size, always.
    """

    OPTIONS = ("resize", "window", "stride", "flip", "scales", "precision", "batch")

    def __init__(
        self,
        model: DenseModel,
        *,
        inference: Inference | None = None,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        precision: str = "fp32",
        batch: int = 1,
    ) -> None:
        if precision not in torch_precision:
            raise ValueError(f"precision={precision!r}: expected one of {', '.join(torch_precision)}")
        if batch < 1:
            raise ValueError(f"batch={batch}: expected at least 1 window at once")
        labels = model.outputs.get("labels")
        if labels is not None and labels.count > 255:
            raise ValueError(
                f"the model knows {labels.count} classes; predictions hold 255 at most, for labels are bytes"
            )
        self.model, self.precision, self.batch = model.eval(), precision, batch
        self.inference = inference or model.inference
        if "restored" in model.outputs and self.inference.resize is not None:
            raise ValueError(f"resize={self.inference.resize}: a restored image keeps its size; leave it out")
        if "restored" in model.outputs and tuple(scales) != (1.0,):
            raise ValueError(f"scales={tuple(scales)}: a restored image keeps its size; leave them out")
        self._augmented = augmented(self._maps, scales, flip)

    @classmethod
    def open(cls, folder: str | Path, device: str | torch.device = "cpu", **options: Any) -> Predictor:
        """From a directory that `dense train` wrote; see `of`."""
        return cls.of(DenseModel.from_pretrained(folder), device, **options)

    @classmethod
    def of(cls, model: DenseModel, device: str | torch.device = "cpu", **options: Any) -> Predictor:
        """Of a model, on a device; options replace what was saved with it: resize, window, stride."""
        model = model.to(device)
        given = {k: options.pop(k, None) for k in ("resize", "window", "stride")}
        changed = {k: v for k, v in given.items() if v is not None}
        return cls(model, inference=replace(model.inference, **changed), **options)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes."""
        return self.model.classes

    # ---- use

    def __call__(self, source: str | Path | Picture | Image.Image) -> Prediction:
        """The prediction for a file, which is turned as its EXIF data say, an array (H, W, 3) uint8 RGB or a PIL image, both
        of which are taken as they lie."""
        image = as_array(source)
        return self._prediction(self.reduced(image), image.shape[:2])

    def many(self, sources: Iterable[str | Path | Picture | Image.Image]) -> Iterator[tuple[Picture, Prediction]]:
        """Images with their predictions; the next file is read while this one is computed."""
        with ThreadPoolExecutor(1) as reader:
            waiting = None
            for source in sources:
                coming = reader.submit(as_array, source)
                if waiting is not None:
                    image = waiting.result()
                    yield image, self(image)
                waiting = coming
            if waiting is not None:
                image = waiting.result()
                yield image, self(image)

    # ---- how

    @torch.inference_mode()
    def reduced(self, image: Picture) -> dict[str, Tensor]:
        """Name -> finished values (H, W): "depth", "labels" and "scores", or "restored" (H, W, 3). Logits are kept for a
        band of rows alone."""
        height, width = image.shape[:2]
        pixels = self._seen(image).to(next(self.model.parameters()).device)  # 3, h, w
        size = (pixels.shape[1], pixels.shape[2])
        sink = _Sink((height, width))
        window, stride = self._window(size)
        if window is None:
            maps = {name: values[0] for name, values in self._network(pixels[None]).items()}
        elif size == (height, width):
            slide(self._network, pixels, window, stride, sink, batch=self.batch)
            return sink.values
        elif 4 * size[0] * size[1] * sum(output.channels for output in self.model.outputs.values()) <= KEPT:
            whole = slid(self._network, window, stride, "even", self.batch)(pixels[None])
            maps = {name: values[0] for name, values in whole.items()}
        else:  # too many classes to keep until they are resized
            small = _Sink(size)
            slide(self._network, pixels, window, stride, small, batch=self.batch)
            return small.resized((height, width))
        for name, values in maps.items():
            _bands(values, (height, width), lambda rows, top, name=name: sink(name, rows, top, 0))
        return sink.values

    def _seen(self, image: Picture) -> Tensor:
        """The image at the size at which it is seen, (3, h, w) uint8, resized as for validation."""
        size: int | tuple[int, int] | None = self.inference.resize
        pixels = image.shape[0] * image.shape[1]
        if size is None and self.inference.window is None and pixels > WHOLE and "depth" in self.model.outputs:
            factor = math.sqrt(WHOLE / pixels)
            size = (max(1, int(image.shape[0] * factor)), max(1, int(image.shape[1] * factor)))
        return EvalTransform(size)(Labelled(image, None, None, "")).image

    def _window(self, size: tuple[int, ...]) -> tuple[int | None, int]:
        window, stride = self.inference.window, self.inference.stride
        if window is None:
            if size[0] * size[1] <= WHOLE:
                return None, 0
            patch = self.model.backbone.spec.patch
            window = max(patch, WINDOW // patch * patch)
        return window, stride or max(1, window * 2 // 3)

    def _network(self, images: Tensor) -> Maps:
        """uint8 images to maps in fp32."""
        return self._augmented(self.model.backbone.normalise(images))

    def _maps(self, images: Tensor) -> Maps:
        """Normalised images to maps in fp32; those smaller than a patch are stretched to one."""
        dtype = torch_precision[self.precision]
        context = torch.autocast(images.device.type, dtype) if dtype else nullcontext()
        patch, (height, width) = self.model.backbone.spec.patch, images.shape[-2:]
        if min(height, width) < patch and "restored" not in self.model.outputs:
            images = _interpolated(images, (max(height, patch), max(width, patch)))
        with context:
            maps = self.model.decode(self.model.features(images), images=images)
        return {name: _interpolated(values.float(), (height, width)) for name, values in maps.items()}

    def _prediction(self, values: dict[str, Tensor], size: tuple[int, ...]) -> Prediction:
        found: dict[str, Any] = {}
        if "restored" in values:
            return Restoration(values["restored"].cpu().numpy())
        if "depth" in values:
            found["depth"] = Depth.of(values["depth"].cpu().numpy(), self.model.depth_kind)  # type: ignore[arg-type]
        if "labels" in values:
            classes = self.model.classes or tuple(map(str, range(self.model.outputs["labels"].count)))
            labels, scores = values["labels"].cpu().numpy(), values["scores"].cpu().numpy()
            found["segmentation"] = Segmentation(labels, scores, classes)
        return Joint(**found) if len(found) == 2 else next(iter(found.values()))


class _Sink:
    """Takes finished logits block by block and keeps what predictions need: one number a pixel, or two."""

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
        """At another size: labels to the nearest, the rest bilinearly."""
        result = {}
        for name, values in self.values.items():
            nearest = name == "labels"
            mode: dict[str, Any] = (
                {"mode": "nearest-exact"} if nearest else {"mode": "bilinear", "align_corners": False}
            )
            result[name] = F.interpolate(values[None, None].float(), size=size, **mode)[0, 0].to(values.dtype)
        return result


def _bands(values: Tensor, size: tuple[int, int], finish: Any) -> None:
    """A map (K, h, w) resized to `size` bilinearly and handed out in bands of rows, so that it never exists as a whole."""
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
        band = F.interpolate(band[None], size=(band.shape[1], size[1]), mode="bilinear", align_corners=False)[0]
        finish(band, top)


def _interpolated(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def as_array(image: str | Path | Picture | Image.Image) -> Picture:
    """(H, W, 3) uint8 RGB of a file, an array or a PIL image."""
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"expected a path, a PIL image or a uint8 array (H, W, 3) in RGB, got {what}")
    if 0 in image.shape:
        raise ValueError(f"the image is empty: {image.shape}")
    return image
