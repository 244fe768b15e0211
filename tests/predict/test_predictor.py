"""From images of any size to predictions of that size: whole, resized, through windows, mirrored, at several scales."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dense.data.image import ImageError
from dense.data.scenes import render
from dense.model.inference import bands
from dense.model.network import Inference
from dense.predict import Depth, Joint, Predictor, Segmentation
from dense.predict import predictor as module
from tests.predict.models import model
from tests.runs import environment


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def plain(network: torch.nn.Module, image: np.ndarray) -> dict[str, Tensor]:
    """What the network alone says."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    with torch.no_grad():
        return network.decode(network.features(network.backbone.normalise(pixels)))  # type: ignore[operator, union-attr]


def check(prediction: object, size: tuple[int, int]) -> None:
    """A whole prediction of this size."""
    assert isinstance(prediction, Joint)
    assert (
        prediction.depth.values.shape
        == prediction.segmentation.labels.shape
        == prediction.segmentation.scores.shape
        == size
    )
    assert np.isfinite(prediction.depth.values).all()
    assert (prediction.segmentation.labels < 3).all()
    assert ((prediction.segmentation.scores > 0.3) & (prediction.segmentation.scores <= 1.00001)).all()


SIZES = [(1, 1), (1, 40), (7, 5), (8, 8), (33, 50), (64, 31)]
WAYS = {
    "whole": {},
    "resized": {"inference": Inference(resize=24)},
    "windows": {"inference": Inference(window=16, stride=10)},
    "resized windows": {"inference": Inference(resize=40, window=16)},
    "flip and scales": {"flip": True, "scales": (0.5, 1.0, 1.5)},
    "windows, batched, flipped": {"inference": Inference(window=16, stride=10), "batch": 3, "flip": True},
    "bf16": {"precision": "bf16"},
}


@pytest.mark.parametrize("way", WAYS)
def test_any_size_in_same_size_out(way: str) -> None:
    predictor = Predictor(model("depth", "labels"), **WAYS[way])  # type: ignore[arg-type]
    for size in SIZES:
        check(predictor(random_image(*size)), size)


def test_whole_is_what_the_network_says() -> None:
    network, image = model("depth", "labels"), random_image(33, 50)
    maps, prediction = plain(network, image), Predictor(network)(image)
    assert isinstance(prediction, Joint)
    np.testing.assert_allclose(prediction.depth.values, maps["depth"][0, 0].numpy(), rtol=1e-5)
    scores, labels = maps["labels"].softmax(1)[0].max(0)
    assert (prediction.segmentation.labels == labels.numpy()).all()
    np.testing.assert_allclose(prediction.segmentation.scores, scores.numpy(), atol=1e-5)


def test_a_window_larger_than_the_image_equals_whole() -> None:
    network, image = model("depth", "labels"), random_image(33, 50)
    whole, windowed = Predictor(network)(image), Predictor(network, inference=Inference(window=64, stride=32))(image)
    assert isinstance(whole, Joint)
    assert isinstance(windowed, Joint)
    np.testing.assert_allclose(windowed.depth.values, whole.depth.values, rtol=1e-5)
    assert (windowed.segmentation.labels == whole.segmentation.labels).all()


def test_resized_logits_are_resized_back_before_they_become_labels() -> None:
    """As `dense evaluate` does, with and without windows."""
    network, image = model("labels"), random_image(24, 36)
    small = F.interpolate(plain(network, image)["labels"], size=(48, 72), mode="bilinear", align_corners=False)
    large = np.repeat(np.repeat(image, 2, 0), 2, 1)  # which areas bring back to `image` exactly
    for inference in (Inference(resize=24), Inference(resize=24, window=99)):
        prediction = Predictor(network, inference=inference)(large)
        assert isinstance(prediction, Segmentation)
        assert (prediction.labels == small[0].argmax(0).numpy()).all()


def test_too_many_logits_to_keep_become_labels_first(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(model("depth", "labels"), inference=Inference(resize=24, window=16))
    kept = predictor(random_image(50, 70))
    monkeypatch.setattr(module, "KEPT", 0)
    reduced = predictor(random_image(50, 70))
    check(reduced, (50, 70))
    assert isinstance(kept, Joint)
    assert isinstance(reduced, Joint)
    assert (kept.segmentation.labels == reduced.segmentation.labels).mean() > 0.8
    np.testing.assert_allclose(reduced.depth.values, kept.depth.values, rtol=1e-4)


@pytest.mark.parametrize("size", [(600, 37), (11, 90), (300, 300), (5, 3)])
def test_bands_are_a_bilinear_resize(size: tuple[int, int]) -> None:
    values, found = torch.randn(3, 23, 41), torch.full((3, *size), torch.nan)

    def finish(rows: Tensor, top: int) -> None:
        found[:, top : top + rows.shape[1]] = rows

    bands(values, size, finish)
    expected = F.interpolate(values[None], size=size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_flip_makes_predictions_mirror_alike() -> None:
    predictor, image = Predictor(model("depth"), flip=True), random_image(32, 48)
    there, back = predictor(image), predictor(np.ascontiguousarray(image[:, ::-1]))
    assert isinstance(there, Depth)
    assert isinstance(back, Depth)
    np.testing.assert_allclose(there.values[:, ::-1], back.values, rtol=1e-4)


def test_scales_resize_the_normalised_image() -> None:
    """Not its bytes, which would be rounded."""
    network, image = model("depth"), random_image(32, 48)
    pixels = network.backbone.normalise(torch.from_numpy(image).permute(2, 0, 1)[None])
    half = F.interpolate(pixels, size=(16, 24), mode="bilinear", align_corners=False)
    with torch.no_grad():
        expected = F.interpolate(network.decode(network.features(half))["depth"], size=(32, 48), mode="bilinear")
    prediction = Predictor(network, scales=(0.5,))(image)
    assert isinstance(prediction, Depth)
    np.testing.assert_allclose(prediction.values, expected[0, 0].numpy(), rtol=1e-5)


def test_large_images_are_windowed_for_classes_and_shrunk_for_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (module.__name__, "dense.model.inference"):
        monkeypatch.setattr(f"{place}.WHOLE", 1000)
    monkeypatch.setattr("dense.model.inference.WINDOW", 27)  # 24 is the next multiple of the patch
    seen: list[tuple[int, ...]] = []
    for names in (("depth",), ("labels",), ("depth", "labels")):
        network = model(*names)
        features = network.features
        network.features = lambda x, f=features: seen.append(tuple(x.shape[-2:])) or f(x)  # type: ignore[method-assign]
        Predictor(network)(random_image(40, 100))
    assert [size for size in seen if size != (24, 24)] == [(20, 50), (20, 50)]


def test_bf16_is_near_fp32() -> None:
    network, image = model("depth"), random_image(32, 48)
    full, half = Predictor(network)(image), Predictor(network, precision="bf16")(image)
    assert isinstance(full, Depth)
    assert isinstance(half, Depth)
    assert half.values.dtype == np.float32
    assert 0 < np.abs(full.values - half.values).mean() / full.values.mean() < 0.05


def test_paths_arrays_and_pil_images(tmp_path: Path) -> None:
    predictor, image = Predictor(model("depth")), render(0, 1, (24, 40)).image
    Image.fromarray(image).save(tmp_path / "a.png")
    inputs = (tmp_path / "a.png", str(tmp_path / "a.png"), image, Image.fromarray(image), image[:, ::-1][:, ::-1])
    first, *others = [predictor(i) for i in inputs]
    assert isinstance(first, Depth)
    for other in others:
        assert isinstance(other, Depth)
        assert (first.values == other.values).all()


def test_files_are_turned_as_their_exif_data_say(tmp_path: Path) -> None:
    image, exif = render(0, 1, (24, 40)).image, Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
    prediction = Predictor(model("depth"))(tmp_path / "turned.png")
    assert isinstance(prediction, Depth)
    assert prediction.values.shape == (40, 24)


def test_many_are_as_one_by_one(tmp_path: Path) -> None:
    predictor, images = Predictor(model("depth")), [random_image(20, 30), random_image(31, 17), random_image(8, 8)]
    found = list(predictor.many(images))
    assert [image.shape for image, _ in found] == [image.shape for image in images]
    for image, prediction in found:
        alone = predictor(image)
        assert isinstance(prediction, Depth)
        assert isinstance(alone, Depth)
        assert (prediction.values == alone.values).all()
    assert list(predictor.many([])) == []
    with pytest.raises(ImageError, match="no such image"):
        list(predictor.many([tmp_path / "absent.png"]))


def test_what_is_no_image_is_named() -> None:
    predictor = Predictor(model("depth"))
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), torch.zeros(3, 4, 4)):
        with pytest.raises(ValueError, match=r"uint8 array|expected 3 channels"):
            predictor(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="empty"):
        predictor(np.zeros((0, 4, 3), np.uint8))


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="fp32, bf16, fp16"):
        Predictor(model("depth"), precision="fp8")
    with pytest.raises(ValueError, match="positive"):
        Predictor(model("depth"), scales=(0.0,))
    with pytest.raises(ValueError, match="batch=0"):
        Predictor(model("depth"), batch=0)
    with pytest.raises(ValueError, match="255"):
        Predictor(model("labels", count=300))


def test_options_replace_what_was_saved(tmp_path: Path) -> None:
    model("labels", inference=Inference(resize=40, window=16, stride=8)).save_pretrained(tmp_path)
    assert Predictor.open(tmp_path).inference == Inference(40, 16, 8)
    assert Predictor.open(tmp_path, window=32).inference == Inference(40, 32, 8)
    with pytest.raises(ValueError, match="stride=8"):
        Predictor.open(tmp_path, window=4)


def test_refined_depth_steps_where_the_image_does() -> None:
    """Within the range of what the head predicts, and the same alone and in a batch; `refine` of the call wins."""
    network = model("depth", inference=Inference(refine="guided"))
    pixels = torch.zeros(2, 3, 32, 48)
    pixels[0, :, :, 20:] = 1
    pixels[1] = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0))
    images = network.normalise_pixels(pixels)
    with torch.no_grad():
        plain, refined = (network.maps(images, refine=how)["depth"] for how in ("none", None))
        alone = network.maps(images[:1])["depth"]
    torch.testing.assert_close(alone, refined[:1])
    assert plain.amin() <= refined.amin() <= refined.amax() <= plain.amax()
    across = (refined[0, 0, :, 20] - refined[0, 0, :, 19]).abs().mean()
    beside = (refined[0, 0, :, 19] - refined[0, 0, :, 18]).abs().mean()
    assert across > 4 * beside
    assert across > 2 * (plain[0, 0, :, 20] - plain[0, 0, :, 19]).abs().mean()


MEMORY = """
import resource, torch
torch.set_num_threads(1)
import numpy as np
from dense.predict import Predictor
from tests.predict.models import model
predictor = Predictor(model("labels", count=150))
predictor(np.zeros((64, 64, 3), np.uint8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prediction = predictor(np.zeros((1200, 2000, 3), np.uint8))
assert prediction.labels.shape == (1200, 2000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_large_image_with_150_classes_takes_little_memory() -> None:
    """2.4 megapixels, whose logits alone would be 1.4 GB; benchmarks/sliding.py does 40 megapixels under 2 GB."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=False, env=environment(PYTHONPATH=".")
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.7
