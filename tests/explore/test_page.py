"""The page of `dense explore` in a real browser: clicks give the maps that Python gives, and nothing breaks out."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import dense
from dense.backbone import Backbone
from dense.data.labelled.open import open_labelled
from dense.data.scenes import Scenes
from dense.discover import PCA, default_source, similarity
from dense.explore.encode import BYTES
from dense.explore.run import Page
from dense.media.inputs import resize_for_backbone, stack_normalised
from dense.predict import Predictor
from tests.explore.browser import CHROMIUM, Browser
from tests.predict.models import model

NAMES = ["a.png", "Bär 'n' \"b\" & <b>.png", "x</script><script>window.broken=1</script>.png"]
SIDE = 96  # of the images; 12 x 12 patches

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    scenes = Scenes("val", len(NAMES), SIDE, seed=0)
    for i, name in enumerate(NAMES):
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(scenes[i].image).save(root / name)
    return root


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return dense.load_backbone("scenes_tiny", frozen=True)


@pytest.fixture(scope="module")
def written(folder: Path, backbone: Backbone) -> tuple[Path, Page]:
    output = folder / "page.html"
    return output, dense.explore(folder, output, backbone=backbone, size=0)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, written: tuple[Path, Page]) -> Iterator[Browser]:
    """The page, fresh from disk."""
    browser.errors.clear()
    browser.open(written[0])
    yield browser
    assert browser.errors == []


def raw(folder: Path, backbone: Backbone) -> list[Tensor]:
    """The features of the images, in the order of the page."""
    paths = sorted(path for path in folder.rglob("*.png"))
    source = default_source(backbone.spec, across=True)
    found = []
    for path in paths:
        image = resize_for_backbone(np.asarray(Image.open(path)), path, 0, backbone.spec.patch)
        with torch.inference_mode():
            found.append(source(backbone, stack_normalised([image], backbone)))
    return found


def view(page: Browser, name: str) -> None:
    """Choose a view and wait for it."""
    page.value(f"state.view = {json.dumps(name)}, show()")


def maps(page: Browser) -> list[NDArray[np.float64]]:
    return [np.array(one) for one in page.value("images.map((i) => [...i.map])")]


def canvas(page: Browser, image: int) -> NDArray[np.uint8]:
    """The pixels that an image's canvas holds, (h, w, 4)."""
    expression = f"images[{image}].canvas.toDataURL().split(',')[1]"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(page.value(expression)))))


def test_a_click_gives_the_map_of_python(
    page: Browser, folder: Path, backbone: Backbone, written: tuple[Path, Page]
) -> None:
    """In every image, up to the error that the page states; ranked by the best patch."""
    page.click(1, 3, 8)
    features = raw(folder, backbone)
    query = features[1][0, :, 3, 8]
    expected = [similarity(one, query)[0].numpy() for one in features]
    found = [one.reshape(12, 12) for one in maps(page)]
    mean, most = written[1].cosine_error
    assert mean <= 0.02
    errors = np.abs(np.stack(found) - np.stack(expected))
    assert errors.mean() <= 2 * mean + 1e-3
    assert np.quantile(errors, 0.9) <= most
    assert found[1][3, 8] == pytest.approx(1, abs=1e-4)
    scores = [float(text) for text in page.value("[...get('matches').children].map((b) => b.textContent)")]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == 1
    assert f"{mean:.3f} on average" in page.value("get('about').textContent")
    assert all(len(image["features"]["text"]) <= BYTES * 12 * 12 for image in written[1].images)


def test_several_points(page: Browser) -> None:
    """The nearest of the points, minus the nearest of those to avoid; a drag moves the last one; Escape clears."""
    single = []
    for row, column in ((2, 2), (9, 5), (6, 10)):
        page.click(0, row, column)
        single.append(maps(page))
    page.click(0, 2, 2)
    page.click(0, 9, 5, modifiers=8)
    page.click(0, 6, 10, modifiers=1)
    for got, a, b, c in zip(maps(page), *single, strict=True):
        np.testing.assert_allclose(got, np.maximum(a, b) - c, atol=1e-5)
    page.value("ask(images[0], 2 * 12 + 2, 'set'); ask(images[0], 9 * 12 + 5, 'set', true)")
    assert page.value("state.points.length") == 1
    np.testing.assert_allclose(maps(page)[2], single[1][2], atol=1e-6)
    page.key("Escape")
    assert page.value("state.points.length") == 0


def test_the_keyboard(page: Browser) -> None:
    """Arrows move a cursor from the middle, Enter sets a point there, + adds one, digits choose the view."""
    page.value("images[2].frame.focus()")
    for key in ("ArrowLeft", "ArrowUp", "Enter", "ArrowDown", "+", "ArrowDown", "-"):
        page.key(key)
    assert page.value("state.points.map((p) => [images.indexOf(p.image), p.patch, p.sign])") == [
        [2, 5 * 12 + 5, "plus"], [2, 6 * 12 + 5, "plus"], [2, 7 * 12 + 5, "minus"],
    ]  # fmt: skip
    page.key("4")
    assert page.value("state.view") == "regions"


def test_pca_has_the_colours_of_python(page: Browser, folder: Path, backbone: Backbone) -> None:
    """Of all images together, and of each by itself."""
    features = [torch.nn.functional.normalize(one, dim=1) for one in raw(folder, backbone)]
    for scope, pca in (("shared", [PCA.fit(features)] * 3), ("each", [PCA.fit([one]) for one in features])):
        page.value(f"get('scope').value = '{scope}'")
        view(page, "pca")
        for i in range(3):
            expected = pca[i](features[i])[0].permute(1, 2, 0).numpy() * 255
            got = canvas(page, i)[..., :3].astype(float)
            for channel in range(3):  # the sign of a component is free
                both = (expected[..., channel], 255 - expected[..., channel])
                differences = [np.abs(got[..., channel] - one).mean() for one in both]
                assert min(differences) < 12, (scope, i, channel)


def test_attention_of_the_class_token_and_of_a_patch(page: Browser, folder: Path, backbone: Backbone) -> None:
    """Per head, as Python computes it, up to the rank that is kept."""
    image = resize_for_backbone(np.asarray(Image.open(folder / "a.png")), Path("a.png"), 0, 8)
    number = page.value("images.findIndex((i) => i.name === 'a.png')")
    pixels = stack_normalised([image], backbone)
    for query, name in ((None, "class"), ((4, 7), (4, 7))):
        with torch.inference_mode():
            expected = backbone.attention(pixels, query=name)[0].flatten(1).numpy()  # type: ignore[arg-type]
        patch = "null" if query is None else query[0] * 12 + query[1]
        for head in range(4):
            got = np.array(page.value(f"[...attention(images[{number}], {patch}, {head})]"))
            assert got.sum() == pytest.approx(1, abs=1e-4)
            assert np.corrcoef(got, expected[head])[0, 1] > 0.8, (query, head)
    view(page, "attention")
    page.click(number, 4, 7)
    assert page.value("state.queries.size") == 1
    assert canvas(page, number).shape == (12, 12, 4)


def test_regions_follow_the_slider(page: Browser) -> None:
    """As many colours as regions; every patch has the nearest centre."""
    for count in (2, 6):
        page.value(f"get('count').value = {count}")
        view(page, "regions")
        colours = {tuple(c) for i in range(3) for c in canvas(page, i).reshape(-1, 4).tolist()}
        assert len(colours) == count
    assert page.value(
        "(() => { const c = centresOf(sampled(images, 4000), 3), near = (o, i) => dot(o, unit(images[0], i));"
        "return regions(images[0], c).every((k, i) => c.every((o) => near(o, i) <= near(c[k], i) + 1e-5)); })()"
    )


def test_a_mask_is_saved_as_png(page: Browser, tmp_path: Path) -> None:
    """At the image's size, white where similarity exceeds the threshold."""
    page("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.click(0, 5, 5)
    page.value("get('masked').checked = true; get('threshold').value = 0.7; show()")
    page.value("images[0].save.click()")
    limit = time.monotonic() + 20
    while not (saved := list(tmp_path.glob("*_mask.png"))) and time.monotonic() < limit:  # Chromium changes its name
        page.value("new Promise((done) => setTimeout(done, 50))")
    mask = np.asarray(Image.open(saved[0]).convert("L"))
    expected = np.kron(maps(page)[0].reshape(12, 12) >= 0.7, np.ones((8, 8)))
    assert np.array_equal(mask > 127, expected > 0)


def test_dark_and_light(page: Browser) -> None:
    """By the reader's setting, and by the button."""
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.value(colour)
    page("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    dark = page.value(colour)
    assert light != dark
    page.value("get('theme').click()")
    assert page.value(colour) == light
    page("Emulation.setEmulatedMedia", features=[])


def test_names_stay_text(page: Browser, written: tuple[Path, Page]) -> None:
    """Quotes, umlauts, markup and the end of a script."""
    assert sorted(page.value("images.map((i) => i.figure.querySelector('.name').textContent)")) == sorted(NAMES)
    assert page.value("window.broken") is None
    assert page.value("document.querySelectorAll('script').length") == 2
    assert page.value("document.querySelector('figcaption b')") is None
    text = written[0].read_text()
    assert "http://" not in text
    assert "https://" not in text
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", text)


def test_a_phone(written: tuple[Path, Page]) -> None:
    """A tap sets a point; nothing is wider than the screen."""
    with Browser(390, 844, touch=True) as phone:
        phone.open(written[0])
        phone.click(1, 3, 8)
        phone.value("new Promise((done) => setTimeout(done, 400))")
        assert phone.value("state.points.map((p) => p.patch)") == [3 * 12 + 8]
        assert phone.value("document.documentElement.scrollWidth") <= 390
        ends = phone.value("[...get('views').children].map((b) => b.getBoundingClientRect().right)")
        assert max(ends) <= 390
        assert phone.value("getComputedStyle(get('tools')).display") == "flex"  # hidden until the page is ready
        assert phone.errors == []


@pytest.mark.parametrize("names", [("labels",), ("depth",), ("depth", "labels")])
def test_a_model_on_labelled_images(browser: Browser, tmp_path: Path, names: tuple[str, ...]) -> None:
    """Predictions, uncertainty, ground truth and errors, the worst image first."""
    network = model(*names, **({"count": 14} if "labels" in names else {}))
    source = open_labelled("scenes", "val", length=3, size=64)
    output = tmp_path / "model.html"
    result = dense.explore(source, output, model=Predictor(network))
    badness = [image["badness"] for image in result.images]
    assert badness == sorted(badness, reverse=True)
    browser.errors.clear()
    browser.open(output)
    views = browser.value("[...get('views').children].map((b) => b.dataset.view)")
    kinds = ["class ", "depth "] if len(names) == 2 else [""]
    layers = [f"{kind}{what}" for kind in kinds for what in ("prediction", "uncertainty", "ground truth", "error")]
    assert set(views) == {"similarity", "pca", "attention", "regions", *layers}
    for name in layers:
        view(browser, name)
        assert canvas(browser, 0).shape == (64, 64, 4)
    assert browser.errors == []
