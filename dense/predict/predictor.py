"""An image of any size to a typed prediction of the same size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dense.backbone.spec import RGB as RED_GREEN_BLUE
from dense.backbone.spec import BackboneSpec, check_channels
from dense.console import warn
from dense.data.image import read_image, report_dark, to_rgb
from dense.data.large import LARGE, Pixels, Windows, open_if_large, open_windows
from dense.data.levels import PHOTOGRAPHS, Reading
from dense.data.transforms import new_size, resize_image
from dense.memory.anomaly import detect
from dense.model.inference import WHOLE, Maps, augmented, bands, slid, slide, whole_size, window_of
from dense.model.network import DenseModel, Inference
from dense.model.queries import Partition, as_classes
from dense.model.tiles import FLOOR, Finder, finder, in_tiles, joined_instances, number_partitions, search
from dense.predict.objects import Coco, Instances, Panoptic
from dense.predict.predictions import Anomaly, Depth, Joint, Prediction, Restoration, Segmentation
from dense.predict.sinks import Sink, TiledSink
from heads.layers import resize

RGB = NDArray[np.uint8]  # H, W, 3, or as many channels as the model reads
Source = str | Path | RGB | Image.Image
SCORE = 0.5  # least score of an instance
THRESHOLD = 0.8  # of panoptic segments, as published
SHRUNK = 4  # times that a large image is larger than the working size, above which prediction warns
KEPT = 512_000_000  # bytes up to which the maps of a resized image are kept whole

torch_precision = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Predictor:
    """``predictor("photo.jpg")``: a `Depth`, `Segmentation`, `Instances`, `Panoptic`, ... of its size.

    Without a configured window or size, an image of more than `WHOLE` pixels goes through windows for its classes. For
    depth and objects it is resized to `WHOLE` pixels instead: depth depends on the whole scene, and objects are
    recognised at the size of training. With a window, objects of its tiles are merged, see `dense.model.tiles`.
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
        score: least score of an instance.
        mask_threshold, overlap_threshold: of panoptic segments, see `dense.model.queries.panoptic`; by default 0.8.
        large: megapixels above which the windows of an image are read one by one, from a TIFF in tiles or strips or
            from .npy; `write` then also writes predictions in tiles.
    """

    OPTIONS = (
        "resize", "window", "stride", "refine", "flip", "scales", "precision", "batch", "raw_depth", "focal", "score",
        "mask_threshold", "overlap_threshold", "large",
    )  # fmt: skip

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
        score: float = SCORE,
        mask_threshold: float | None = None,
        overlap_threshold: float | None = None,
        large: float = LARGE,
    ) -> None:
        if precision not in torch_precision:
            raise ValueError(f"precision={precision!r}: expected one of {', '.join(torch_precision)}")
        if batch < 1:
            raise ValueError(f"batch={batch}: expected at least 1 window at once")
        labels = model.outputs.get("labels") or (model.outputs.get("masks") if model.task == "segmentation" else None)
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
        if "anomaly" in model.outputs and large != LARGE:
            raise ValueError(f"large={large:g}: scores of anomalies are those of whole images; leave it out")
        self.threshold, self.unjudged = self._threshold() if "anomaly" in model.outputs else (None, "")
        self.objects = model.task in ("instance", "panoptic")
        if self.objects and (flip or tuple(scales) != (1.0,)):
            raise ValueError("flip and scales average maps, and queries of two images are not the same; leave them out")
        if "masks" in model.outputs and self.inference.refine != "none":
            raise ValueError(f"refine={self.inference.refine!r}: masks of queries are not refined; leave it out")
        thresholds = {"mask_threshold": mask_threshold, "overlap_threshold": overlap_threshold}
        for name, value in {"score": score, **thresholds}.items():
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: expected 0 to 1")
            if name != "score" and value is not None and model.task != "panoptic":
                raise ValueError(
                    f"{name}={value} is of panoptic segments, which the model does not predict; leave it out"
                )
        if model.task != "instance" and score != SCORE:
            instead = "for panoptic segments give mask_threshold instead"
            instead = instead if model.task == "panoptic" else "the model predicts none, so leave it out"
            raise ValueError(f"score={score} is of instances; {instead}")
        self.thresholds: dict[str, Any] = {
            name: THRESHOLD if value is None else value for name, value in thresholds.items()
        }
        self.score, self.large = score, large
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
        changed: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        if "resize" in changed:
            changed["longer"] = None
        return cls(model, inference=replace(model.inference, **changed), **options)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names of the model."""
        return self.model.classes

    # ---- use

    def __call__(self, source: Source | Windows) -> Prediction:
        """Return the prediction for a file, a PIL image or an array (H, W, N) of uint8, of the model's channels.

        Only a file is rotated by its EXIF orientation.
        """
        image = self.opened(source)
        if isinstance(image, np.ndarray) and "anomaly" in self.model.outputs:
            with self._autocast():
                score, values = detect(self.model, image, self.inference.resize)
            return Anomaly(values, score, self.threshold)
        if self.objects:
            return self._found(image)
        return self._prediction(self.reduced(image))

    def _threshold(self) -> tuple[float | None, str]:
        """Return the threshold of scores of anomalies, or why there is none."""
        own = self.model.inference.resize
        if self.model.head.threshold is None:
            return None, str(self.model.facts.get("threshold", "none was saved with the model"))
        if self.inference.resize == own:
            return self.model.head.threshold, ""
        why = f"none at resize {self.inference.resize}, since the model's was chosen at {own}; leave resize out"
        warn(f"threshold: {why}")
        return None, why

    def opened(self, source: Source | Windows) -> RGB | Windows:
        """Return an image as an array, or a file of more than `large` megapixels as windows, if it has such."""
        if isinstance(source, Windows):
            return source
        if isinstance(source, str | Path) and "anomaly" not in self.model.outputs:
            windows = open_if_large(source, self.inference.reading, self.large)
            return self._array(source) if windows is None else self.windows(source)
        return self._array(source)

    def windows(self, path: str | Path) -> Windows:
        """Return a file as windows of the channels of the model; raise `NotWindowed` for one that is read whole."""
        windows = open_windows(path, self.inference.reading)
        if windows.image.dtype.itemsize > 1:
            report_dark(windows.numbers(), str(path), self.inference.reading)
        spec = self.model.backbone.spec
        check_channels(windows.shape[2], spec.channels, f" in {path}")
        return windows

    def write(self, source: str | Path | Windows, stem: str | Path, overview: bool = True) -> list[Path]:
        """Predict a large image window by window, and write the prediction as tiled TIFF; return the paths.

        That is STEM_labels.tif and STEM_scores.tif, STEM_depth.tif, STEM_restored.tif, STEM_instances.tif (numbers)
        and STEM_instances.json, or STEM_panoptic.tif (ids as colours) and STEM_panoptic.json; and STEM_overview.png.
        Pixels of damaged tiles are 255, NaN or black, and STEM_damaged.json lists these tiles.
        """
        image = source if isinstance(source, Windows) else self.windows(source)
        log = self.model.depth_kind == "log" and not self.raw_depth
        with TiledSink(image.shape[:2], Path(stem), "masks" in self.model.outputs, log) as sink:
            if self.objects:
                self._write_objects(image, sink)
            else:
                self.reduced(image, sink)
            kind = "metric" if log else self.model.depth_kind
            return sink.write(image.damaged, self._classes, kind, overview)

    def _write_objects(self, image: Windows, sink: TiledSink) -> None:
        """Find the instances or segments of an image in tiles, and write their JSON file."""
        pixels = self._pixels(self._resized(image))
        size = (pixels.shape[1], pixels.shape[2])
        places, found = in_tiles(self._searched, pixels, self.inference, self._finder(), self.score)
        things: tuple[bool, ...] | None = None
        if self.model.task == "panoptic":
            output = self.model.outputs["masks"]
            things = output.things or (True,) * output.count
            numbered = number_partitions(places, found, things, sink.put_tile(size))
            rows = sink.put_segments(numbered, image.damaged, self._ids)
        else:
            rows = sink.put_objects(joined_instances(places, list(found), self.score), size, self._ids)
        file = Coco()
        name = sink.stem.name
        file.describe(
            f"{name}{image.image.path.suffix}", image.shape, rows, self._classes, things, f"{name}_panoptic.tif",
            self._ids,
        )  # fmt: skip
        file.write(Path(f"{sink.stem}_{file.name}.json"))

    def many(self, sources: Iterable[Source]) -> Iterator[tuple[RGB, Prediction]]:
        """Yield images with their predictions; the next file is read while one is computed."""
        with ThreadPoolExecutor(1) as reader:
            waiting: Future[RGB] | None = None
            for source in sources:
                coming = reader.submit(self._array, source)
                if waiting is not None:
                    image = waiting.result()
                    yield image, self(image)
                waiting = coming
            if waiting is not None:
                image = waiting.result()
                yield image, self(image)

    def _array(self, source: Source) -> RGB:
        """Return an image of the channels of the model, or raise."""
        return as_array(source, self.model.backbone.spec, self.inference.reading)

    # ---- from pixels to values

    @torch.inference_mode()
    def _found(self, image: RGB | Windows) -> Instances | Panoptic:
        """Return the instances or segments of an image."""
        output = self.model.outputs["masks"]
        pixels = self._pixels(self._resized(image))
        size = (image.shape[0], image.shape[1])
        found = search(self._searched, pixels, size, self.inference, self._finder(), output.things, self.score)
        labels, scores, classes = found.classes.cpu().numpy(), found.scores.cpu().float().numpy(), self._classes
        if isinstance(found, Partition):
            segments = found.segments.cpu().numpy().astype(np.int32)
            return Panoptic(segments, labels, scores, classes, output.things or (True,) * output.count, self._ids)
        return Instances(found.masks.cpu().numpy(), labels, scores, classes, self._ids)

    def _finder(self) -> Finder:
        """Return what turns logits into instances or segments; parts of instances in tiles may have a lower score."""
        least = self.score if self.inference.window is None else min(self.score, FLOOR)
        return finder(self.model, least=least, **self.thresholds)

    @torch.inference_mode()
    def _searched(self, images: Tensor) -> Maps:
        """Return logits of the queries of uint8 images (B, N, H, W)."""
        return self._queries(self.model.backbone.normalise(images))

    def _queries(self, images: Tensor) -> Maps:
        """Return fp32 logits of the queries of normalised images."""
        with self._autocast():
            return {name: values.float() for name, values in self.model.maps(_at_least(images, self._patch)).items()}

    @property
    def _classes(self) -> tuple[str, ...]:
        """Names of the classes, their numbers where they have none; empty without classes."""
        output = self.model.outputs.get("labels") or self.model.outputs.get("masks")
        return self.model.classes or (tuple(map(str, range(output.count))) if output else ())

    @property
    def _ids(self) -> tuple[int, ...]:
        """Ids of the classes in the JSON file of the training, where they are not 1, 2, ..."""
        return tuple(self.model.facts.get("category ids", ()))

    @property
    def _patch(self) -> int:
        return self.model.backbone.spec.patch

    @torch.inference_mode()
    def reduced(self, image: RGB | Windows, sink: Sink | None = None) -> dict[str, Any]:
        """Return values per pixel by name: "depth", "labels" and "scores" (H, W), or "restored" (H, W, N).

        Logits of the full size exist for a band of rows only. sink: where the values go; memory by default.
        """
        height, width = image.shape[:2]
        pixels = self._pixels(self._resized(image))  # N, h, w
        size = (pixels.shape[1], pixels.shape[2])
        shares = "masks" in self.model.outputs
        sink = Sink((height, width), shares) if sink is None else sink
        inference = self._windows(size)
        window, stride = inference.window, inference.step
        if window is None:
            maps = {name: values[0] for name, values in self._network(pixels[:, : size[0], : size[1]][None]).items()}
        elif size == (height, width):
            slide(self._network, pixels, window, stride, sink, batch=self.batch)
            return sink.values
        elif 4 * size[0] * size[1] * sum(output.channels for output in self.model.outputs.values()) <= KEPT:
            whole = slid(self._network, window, stride, "even", self.batch)(pixels[:, : size[0], : size[1]][None])
            maps = {name: values[0] for name, values in whole.items()}
        else:  # the logits of all classes do not fit into memory until they are resized
            unresized = Sink(size, shares)
            slide(self._network, pixels, window, stride, unresized, batch=self.batch)
            unresized.resized(sink)
            return sink.values
        for name, values in maps.items():
            bands(values, (height, width), lambda rows, top, name=name: sink(name, rows, top, 0))
        return sink.values

    def _pixels(self, image: RGB | Windows) -> Tensor | Pixels:
        """Return an image as a tensor (3, H, W) on the network's device, or as slices of one."""
        device = next(self.model.parameters()).device
        if isinstance(image, Windows):
            return image.pixels(device)
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(device)

    def _resized(self, image: RGB | Windows) -> RGB | Windows:
        """Resize an image as `inference` says; for depth and objects, also one of more than `WHOLE` pixels."""
        full = (image.shape[0], image.shape[1])
        whole = self.objects or "depth" in self.model.outputs
        size = (whole_size if whole else Inference.size_of)(self.inference, full, self.focal)
        if isinstance(image, Windows):
            new = new_size(size, *image.shape[:2])
            if size == self.model.inference.resize and SHRUNK * min(new) < min(image.shape[:2]):
                warn(
                    f"{image.image.path} of {image.shape[0]}x{image.shape[1]} pixels is shrunk to {new[0]}x{new[1]}, "
                    "the working size of the model; give --resize for the scale at which it was trained"
                )
            return image if new == image.shape[:2] else image.shrunk(new)
        return resize_image(image, size)

    def _windows(self, size: tuple[int, int]) -> Inference:
        """Return the windows for an image of `size`."""
        if self.inference.window is not None or size[0] * size[1] <= WHOLE:
            return self.inference
        return replace(self.inference, window=window_of(self._patch))

    def _network(self, images: Tensor) -> Maps:
        """Return fp32 maps of uint8 images (B, N, H, W)."""
        return self._augmented(self.model.backbone.normalise(images))

    def _maps(self, images: Tensor) -> Maps:
        """Return fp32 maps of normalised images; images smaller than a patch are resized to one first."""
        height, width = images.shape[-2:]
        if "masks" in self.model.outputs:
            maps = as_classes(self._queries)(images)
        else:
            if "restored" not in self.model.outputs:
                images = _at_least(images, self._patch)
            with self._autocast():
                maps = self.model.maps(images, refine=self.inference.refine)
        return {name: resize(values.float(), (height, width), align_corners=False) for name, values in maps.items()}

    def _autocast(self) -> Any:
        """Return the context of the network's precision."""
        dtype = torch_precision[self.precision]
        return torch.autocast(next(self.model.parameters()).device.type, dtype) if dtype else contextlib.nullcontext()

    def _prediction(self, values: dict[str, Tensor]) -> Prediction:
        found: dict[str, Any] = {}
        if "restored" in values:
            return Restoration(values["restored"].cpu().numpy())
        if "depth" in values:
            depth = Depth.of(values["depth"].cpu().numpy(), self.model.depth_kind)  # type: ignore[arg-type]
            found["depth"] = depth.to_metric() if depth.kind == "log" and not self.raw_depth else depth
        if "labels" in values:
            labels, scores = values["labels"].cpu().numpy(), values["scores"].cpu().numpy()
            found["segmentation"] = Segmentation(labels, scores, self._classes)
        return Joint(**found) if len(found) == 2 else next(iter(found.values()))


def _at_least(images: Tensor, patch: int) -> Tensor:
    """Return images (B, N, H, W), resized to a patch where they are smaller."""
    height, width = images.shape[-2:]
    return resize(images, (max(height, patch), max(width, patch)), align_corners=False)


def as_array(image: Source, spec: BackboneSpec | None = None, reading: Reading = PHOTOGRAPHS) -> RGB:
    """Return a file, an array or a PIL image as an array (H, W, N) of uint8: RGB, or the channels of a backbone.

    reading: what the numbers of a file, or of an array that is not uint8, mean
    """
    if isinstance(image, str | Path):
        image = read_image(image, reading=reading)
    elif isinstance(image, Image.Image):
        image = to_rgb(image) if reading == PHOTOGRAPHS else reading.to_bytes(np.asarray(image))
    elif isinstance(image, np.ndarray) and image.dtype != np.uint8 and reading != PHOTOGRAPHS:
        image = reading.to_bytes(image, "the array")
    channels = RED_GREEN_BLUE if spec is None else spec.channels
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3:
        given = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(
            f"expected a path, a PIL image or a uint8 array (H, W, {len(channels)}) of {', '.join(channels)}, "
            f"got {given}"
        )
    if 0 in image.shape:
        raise ValueError(f"the image is empty: {image.shape}")
    check_channels(image.shape[2], channels, f" in {image.shape}")
    return image
