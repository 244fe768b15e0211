"""Restoration from end to end: trained, continued, evaluated, predicted, exported, and refused where it cannot be."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image

import dense
import heads
from dense.backbone import WeightsError, load_backbone
from dense.data.degrade import KINDS, Degrade, degrade
from dense.data.labelled.check import check
from dense.data.labelled.open import open_labelled
from dense.data.labelled.sample import Batch, DataError, Labelled
from dense.data.labelled.scenes import SceneSource
from dense.data.scenes import render
from dense.evaluate.restoration import evaluate_restoration
from dense.export import export
from dense.model.network import Inference
from dense.recipes import config_folder, find_config
from dense.tasks import DenseData, DenseModel, RestorationTask
from dense.tasks.degraded import DegradedImages, DegradedPatches, Stage, StagedSampler, check_stages
from dense.tasks.options import BackboneOptions, OptimOptions, PerceptionOptions, TuneOptions
from dense.training.checkpoints import Checkpoints
from heads.restoration import BODIES, Restormer
from tests.predict.models import BACKBONE
from tests.runs import assert_same, call

TINY = {"dim": 8, "blocks": [1, 1, 1, 1], "heads": [1, 1, 2, 2], "refinement": 1, "expansion": 2.0}
SHORT = [
    "--config=restoration/scenes_tiny", "--model.init_args.steps=4", "--data.scenes=[6,2]", "--data.scene_size=32",
    "--data.patches=[[0,16,2],[2,24,1]]", "--data.degrade.kinds={noise: [25], haze: []}", "--trainer.accelerator=cpu",
    "--model.init_args.perception.weight=0.01", "--val_every=4", "--checkpoint.every_steps=2",
    "--model.init_args.head.body={dim: 8, blocks: [1,1,1,1], heads: [1,1,2,2], refinement: 1, expansion: 2.0}",
]  # fmt: skip


def model(guidance: str = "channels", **options: Any) -> DenseModel:
    torch.manual_seed(0)
    backbone = load_backbone("vit_tiny_patch16_224", **BACKBONE).freeze()
    spec = {
        "name": "restoration",
        "in_channels": [16, 16],
        "body": TINY,
        "width": 8,
        "guidance": guidance,
        "tokens": 16,
    }
    head = heads.build(spec | options | {"outputs": {"restored": {"name": "image"}}})
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return DenseModel(backbone, head, (0, 1), True, "restoration").eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, save = tmp_path_factory.mktemp("restoration") / "run", Checkpoints.save

    def keep(self: Checkpoints, trainer: Any, path: Path) -> None:
        save(self, trainer, path)
        shutil.copy(path, path.with_name(f"step_{trainer.global_step}.ckpt"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", keep)
        done = call(["train", *SHORT, f"--output={folder}"])
    assert done.returncode == 0, done.stderr
    for word in ("val/psnr:", "val/ssim_y:", "val/psnr/noise_unseen:", "val/psnr/haze:", "(degraded input "):
        assert word in done.stdout
    return folder


def test_a_run_leaves_what_every_run_does(run: Path) -> None:
    for name in ("model/config.json", "model/README.md", "results.json", "predictions.png", "curves.png"):
        assert (run / name).is_file()
    text = (run / "metrics.csv").read_text()
    assert "loss/l1" in text
    assert "loss/perception" in text


def test_a_run_continues_exactly(run: Path, tmp_path: Path) -> None:
    """From where the stage of patches changes."""
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(run / "checkpoints/step_2.ckpt", tmp_path / "checkpoints/last.ckpt")
    done = call(["train", *SHORT, f"--output={tmp_path}"])
    assert done.returncode == 0, done.stderr
    assert "continuing" in done.stdout + done.stderr
    assert_same(run, tmp_path)


def test_evaluated(run: Path, tmp_path: Path) -> None:
    options = ["--data", "scenes", "--scenes", "2", "--size", "32", "--output", str(tmp_path)]
    done = call(["evaluate", "restoration", str(run / "model"), *options, "--degrade", "noise=25", "haze"])
    assert done.returncode == 0, done.stderr
    for word in ("noise 25 ", "noise 35, unseen", "haze 0.05", "all "):
        assert word in done.stdout
    assert (tmp_path / "results.json").is_file()
    done = call(["evaluate", "restoration", str(run / "model"), *options, "--degrade", "nois=25"])
    assert done.returncode != 0
    assert "unknown degradation 'nois'" in done.stderr
    done = call(["evaluate", "restoration", str(run / "model"), *options, "--degrade", "noise=strong"])
    assert done.returncode == 2
    assert "noise=strong: expected KIND=LEVELS with numbers" in done.stderr
    done = call(["evaluate", "restoration", str(run / "model"), *options, "--degrade", "noise=35", "--unseen", "jpeg"])
    assert done.returncode == 0, done.stderr
    for word in ("noise 35 ", "jpeg 15, unseen", "jpeg 30, unseen"):
        assert word in done.stdout


def test_evaluated_on_the_share_that_was_not_trained_on(run: Path, tmp_path: Path) -> None:
    """Not on more of the folder."""
    for i in range(20):
        Image.fromarray(render(0, i, (24, 24)).image).save(tmp_path / f"{i}.png")
    count = len(open_labelled(tmp_path, "val", layout="images", val_ratio=0.3))
    assert count > len(open_labelled(tmp_path, "val", layout="images"))
    options = ["--degrade", "noise=25", "--val-ratio", "0.3", "--output", str(tmp_path / "out")]
    done = call(["evaluate", "restoration", str(run / "model"), "--data", str(tmp_path), *options])
    assert done.returncode == 0, done.stderr
    assert f"({count} images)" in (tmp_path / "out/results.json").read_text()


def test_predicted(run: Path, tmp_path: Path) -> None:
    Image.fromarray(render(0, 1, (33, 50)).image).save(tmp_path / "photo.png")
    done = call(["predict", str(run / "model"), str(tmp_path / "photo.png"), "--output", str(tmp_path / "out")])
    assert done.returncode == 0, done.stderr
    restored = np.asarray(Image.open(tmp_path / "out/photo_restored.png"))
    prediction = dense.load(run / "model")(tmp_path / "photo.png")
    assert np.array_equal(prediction.values, restored)
    assert restored.shape == (33, 50, 3)


def test_windows_and_tiny_images() -> None:
    """One window is the whole; images smaller than a patch are restored as they are; no resizing."""
    from dense.predict import Predictor

    network, image = model(), render(0, 1, (40, 24)).image
    whole = Predictor.of(network)(image).values  # type: ignore[union-attr]
    assert np.array_equal(Predictor.of(network, window=64, stride=32)(image).values, whole)  # type: ignore[union-attr]
    assert Predictor.of(network, window=16, stride=8)(image).values.shape == image.shape  # type: ignore[union-attr]
    assert Predictor.of(network)(image[:3, :5]).values.shape == (3, 5, 3)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="keeps its size"):
        Predictor.of(network, resize=20)
    with pytest.raises(ValueError, match=r"scales=\(1\.0, 0\.5\): a restored image keeps its size"):
        Predictor.of(network, scales=[1.0, 0.5])


def test_validated_and_measured_through_the_saved_windows() -> None:
    """As predicted: the network never sees more than a window."""
    network, source, plan = model(), SceneSource("val", 2, 40), Degrade({"noise": [25]}, unseen={})
    whole = evaluate_restoration(network, source, plan)
    network.inference = Inference(window=24, stride=16)
    sides: list[int] = []
    network.head.body.register_forward_pre_hook(lambda _, given: sides.append(max(given[0].shape[-2:])))  # type: ignore[union-attr, operator]
    found = evaluate_restoration(network, source, plan)
    assert max(sides) == 24
    assert found["psnr"] != whole["psnr"]
    assert evaluate_restoration(network, source, plan, Inference())["psnr"] == whole["psnr"]
    assert max(sides) == 40
    sides.clear()
    task = RestorationTask(inference=network.inference)
    task.network, task.degradations = network, ("noise",)
    task.metrics = task.build_metrics()
    for sample in map(DegradedImages(source, plan).__getitem__, range(2)):
        assert sample.clean is not None
        task.validation_step(Batch(sample.image[None], clean=sample.clean[None], degradations=(sample.degradation,)), 0)
    assert max(sides) == 24
    assert task.numbers()["psnr"] == pytest.approx(found["psnr"])


def test_saved_and_opened(tmp_path: Path) -> None:
    network, images = model("windows"), torch.randn(1, 3, 30, 44)
    network.save_pretrained(tmp_path)
    assert torch.equal(DenseModel.from_pretrained(tmp_path)(images), network(images))


def test_plain_body_reads_no_features(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = model("none"), torch.rand(1, 3, 20, 20)
    monkeypatch.setattr(network.backbone, "forward", None)
    expected = network.head.body(images)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(network(network.normalise_pixels(images)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", ["channels", "windows"])
def test_exported(guidance: str, tmp_path: Path) -> None:
    """The file computes what the model does, with windows cut off at the edge and a resized input of the backbone."""
    network, pixels = model(guidance), torch.randint(0, 256, (1, 3, 44, 52), dtype=torch.uint8)
    done = export(network, tmp_path / "model.onnx", (44, 52), raw=True)
    assert done.metadata["outputs"] == ["restored"]
    session = onnxruntime.InferenceSession(done.path, providers=["CPUExecutionProvider"])
    (target,) = session.run(None, {session.get_inputs()[0].name: pixels.float().numpy()})
    with torch.no_grad():
        expected = network(network.backbone.normalise(pixels))
    assert (expected - pixels / 255).std() > 1e-3  # the shortcut alone would prove nothing
    assert np.abs(target - expected.numpy()).max() < 1e-4 * float(expected.abs().max())
    with pytest.raises(ValueError, match="one file per size"):
        export(network, tmp_path / "model.onnx", (40, 56), dynamic=True)


def test_published_weights(tmp_path: Path) -> None:
    """By their names, alone or with a guidance that changes nothing yet."""
    torch.manual_seed(0)
    body, images = Restormer(**TINY), torch.rand(1, 3, 24, 24)  # type: ignore[arg-type]
    torch.save({"params": body.state_dict()}, tmp_path / "deraining.pth")
    opened = dense.load(tmp_path / "deraining.pth").model
    assert opened.head.body.config == body.config  # type: ignore[union-attr]
    torch.testing.assert_close(opened(opened.normalise_pixels(images)), body(images), atol=1e-5, rtol=1e-4)
    guided = dense.load(tmp_path / "deraining.pth", guidance="channels").model
    torch.testing.assert_close(guided(guided.normalise_pixels(images)), body(images), atol=1e-5, rtol=1e-4)
    for odd in ({**TINY, "dim": 16, "heads": [1, 1, 2, 2], "expansion": 2.7}, {**TINY, "dim": 98, "expansion": 0.011}):
        torch.save(Restormer(**odd).state_dict(), tmp_path / "odd.pth")  # type: ignore[arg-type]
        assert dense.load(tmp_path / "odd.pth").model.head.body.dims[0] == odd["dim"]  # type: ignore[union-attr]
    state = body.state_dict()
    state.pop("latent.0.ffn.dwconv.weight")
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(WeightsError, match="nothing was loaded"):
        dense.load(tmp_path / "broken.pth")


def test_published_weights_on_the_command_line(tmp_path: Path) -> None:
    """Predicted as they are, and converted to a directory that targets the same."""
    torch.manual_seed(0)
    body = Restormer(**TINY)  # type: ignore[arg-type]
    torch.save({"params": body.state_dict()}, tmp_path / "deraining.pth")
    image = render(0, 1, (30, 41)).image
    Image.fromarray(image).save(tmp_path / "photo.png")
    done = call(["convert", str(tmp_path / "deraining.pth"), str(tmp_path / "mine")])
    assert done.returncode == 0, done.stderr
    targets = []
    for number, name in enumerate(("deraining.pth", "mine")):
        out = tmp_path / str(number)
        done = call(["predict", str(tmp_path / "photo.png"), "--model", str(tmp_path / name), "--output", str(out)])
        assert done.returncode == 0, done.stderr
        targets.append(np.asarray(Image.open(out / "photo_restored.png")))
    with torch.no_grad():
        expected = body(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)[0].clamp(0, 1) * 255
    assert np.array_equal(*targets)
    assert np.abs(targets[0] - expected.permute(1, 2, 0).numpy()).max() <= 0.51


def test_perception_loss_moves_the_head_alone() -> None:
    task = RestorationTask(perception=PerceptionOptions(weight=1.0, layers=[0, 1]))
    task.network, task.contrast_layers = model(), (0, 1)
    clean = torch.randint(0, 255, (2, 3, 24, 24), dtype=torch.uint8)
    batch = Batch(clean // 2, clean=clean, degradations=("noise", "noise"))
    loss, parts = task.losses(*task.maps(batch))
    loss.backward()
    assert set(parts) == {"l1", "perception"}
    assert float(loss.detach()) == pytest.approx(float(parts["l1"] + parts["perception"]), rel=1e-5)
    assert all(p.grad is None for p in task.network.backbone.parameters())
    assert task.network.head.body.output.weight.grad is not None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "guidance", ["channels", *(pytest.param(name, marks=pytest.mark.slow) for name in ("addition", "windows"))]
)
def test_guided_models_learn_some_images(guidance: str) -> None:
    """All of it together, PSF and fusions too: some dB above the degraded images, and the guide counts."""
    torch.manual_seed(0)
    degraded = DegradedImages(SceneSource("train", 2, 32), Degrade({"noise": [50]}, unseen={}))
    samples = [degraded[i] for i in range(2)]
    pixels = torch.stack([sample.image for sample in samples])
    images, clean = pixels / 255, torch.stack([sample.clean for sample in samples if sample.clean is not None]) / 255
    backbone: Any = load_backbone("scenes_tiny", frozen=True)
    spec = {"name": "restoration", "in_channels": [128, 128], "body": TINY, "width": 8, "guidance": guidance}
    head: Any = heads.build(spec | {"outputs": {"restored": {"name": "image"}}})
    features = backbone(head.backbone_input(backbone.normalise(pixels), 8), layers=(0, 5))
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3)
    for _ in range(40):
        loss = (head(features, images)["restored"] - clean).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def decibels(found: torch.Tensor) -> float:
        return float(-10 * (found - clean).square().mean().log10())

    with torch.no_grad():
        restored, alone = head(features, images)["restored"], head.body(images)
    assert decibels(restored) > decibels(images) + 3
    assert decibels(restored) > decibels(alone)


def test_patches_grow_with_the_step() -> None:
    """From any step on as from the first, and every (epoch, image) once."""
    stages = (Stage(0, 16, 4), Stage(3, 24, 2))
    steps = zip(range(6), StagedSampler(10, 4, 0, stages=stages), strict=False)
    whole = [batch for _, batch in steps]
    assert [(len(b), {d.side for d in b}) for b in whole] == [(4, {16})] * 3 + [(2, {24})] * 3
    later = StagedSampler(10, 4, 0, stages=stages, start_step=4)
    assert [batch for _, batch in zip(range(2), later, strict=False)] == whole[4:]
    drawn = [(d.epoch, d.image) for b in whole for d in b]
    assert len(set(drawn)) == len(drawn)


def test_degradation_is_mixed_within_a_batch_and_repeats() -> None:
    from dense.data.transforms import Augment

    patches = DegradedPatches(SceneSource("train", 8, 32), Augment(flip=0.5), [16], Degrade(), 0)
    first = [patches[(0, i)] for i in range(8)]
    assert len({s.degradation for s in first}) > 1
    for i, sample in enumerate(first):
        again = patches[(0, i)]
        assert torch.equal(again.image, sample.image)
        assert again.clean is not None
        assert torch.equal(again.clean, sample.clean)
        assert sample.image.shape == (3, 16, 16)


class Holes(SceneSource):
    """Scenes of which the depth of one pixel is known."""

    def read(self, index: int) -> Labelled:
        known = super().read(index)
        depth = np.full(known.image.shape[:2], np.nan, np.float32)
        depth[0, 0] = 7
        return replace(known, depth=depth)


@pytest.mark.parametrize("rotate", [0.0, 90.0])
def test_haze_where_no_depth_is_known(rotate: float) -> None:
    """A patch takes the nearest known depth of its image, also from outside the patch; outside the image is none."""
    from dense.data.transforms import Augment

    augment = Augment(rotate=rotate, rotate_probability=1.0)
    patches = DegradedPatches(Holes("train", 4, 32), augment, [4], Degrade({"haze": [0.1]}, unseen={}), 0)
    for draw in [(epoch, index) for epoch in range(25) for index in range(4)]:
        sample = patches[draw]
        assert sample.clean is not None
        clean = sample.clean.permute(1, 2, 0).numpy()
        hazy = degrade(clean, {"haze": 0.1}, (0, *draw), np.full((4, 4), 7, np.float32))
        found = sample.image.permute(1, 2, 0).numpy()
        assert np.array_equal(found, hazy) or (rotate and np.array_equal(found, clean))


def pairs(root: Path) -> None:
    for i in range(10):
        clean = render(0, i, (24, 24)).image
        for folder, values in (("input", clean // 2), ("target", clean)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(root / folder / f"{i}.png")


def test_pairs(tmp_path: Path) -> None:
    pairs(tmp_path)
    source = open_labelled(tmp_path, "all", layout="paired")
    sample = source.read(1)
    assert sample.clean is not None
    assert np.array_equal(sample.image, sample.clean // 2)
    found = evaluate_restoration(model(), source, None)
    assert found["per_degradation"]["paired"]["images"] == 10
    data = DenseData(str(tmp_path), layout="paired", val_ratio=0.4, crop_size=16, workers=0)
    assert data.facts.degradations == ("paired",)
    patch = data.train_set[(0, 0)]
    assert torch.equal(patch.image, patch.clean // 2)  # the same crop of both
    (tmp_path / "target/2.png").unlink()
    with pytest.raises(DataError, match=r"input/2\.png has no clean image"):
        DenseData(str(tmp_path), layout="paired", val_ratio=0.4, crop_size=16)
    Image.fromarray(render(0, 3, (20, 24)).image).save(tmp_path / "target/3.png")
    assert any(
        "every clean image must have its image's size" in line
        for line in check(open_labelled(tmp_path, "all", layout="paired"))
    )


def test_pairs_of_several_kinds(tmp_path: Path) -> None:
    """Each kind in a folder of its own: measured alone, and one image of several kinds stays on one side."""
    for kind in ("rain", "haze"):
        pairs(tmp_path / kind)
    source = open_labelled(tmp_path, "all", layout="paired")
    assert len(source) == 20
    found = evaluate_restoration(model(), source, None)
    assert {kind: row["images"] for kind, row in found["per_degradation"].items()} == {"haze": 10, "rain": 10}
    data = DenseData(str(tmp_path), layout="paired", val_ratio=0.4, crop_size=16, workers=0)
    assert data.facts.degradations == ("haze", "rain")
    sides = [{Path(source.name(i)).stem for i in range(len(source))} for source in (data.train, data.val)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    kinds = {Path(data.train.name(i)).parts[-3]: data.train_set[(0, i)].degradation for i in range(len(data.train))}
    assert kinds == {"haze": "haze", "rain": "rain"}
    with pytest.raises(ValueError, match=r"holds pairs, input/ and target/; .* give layout paired"):
        open_labelled(tmp_path, "all", layout="images")
    shutil.rmtree(tmp_path / "haze/target")
    with pytest.raises(FileNotFoundError, match=r"expected .*haze/target, or folders of several kinds"):
        open_labelled(tmp_path, "all", layout="paired")


def test_any_folder_of_images(tmp_path: Path) -> None:
    for i in range(6):
        Image.fromarray(render(0, i, (24, 30)).image).save(tmp_path / f"{i}.png")
    plan = Degrade({"noise": [25]})
    data = DenseData(str(tmp_path), layout="images", degrade=plan, val_ratio=0.4, crop_size=16, workers=0)
    assert len(data.train) + len(data.val) == 6
    assert data.facts.degradations == ("noise", "noise_unseen")
    with pytest.warns(FutureWarning, match="layout 'pictures' is now called 'images'"):
        assert DenseData(str(tmp_path), layout="pictures", degrade=plan, val_ratio=0.4).layout == "images"
    with pytest.raises(ValueError, match="haze needs metric depth"):
        DenseData(str(tmp_path), layout="images", degrade=Degrade(), val_ratio=0.4)
    with pytest.raises(ValueError, match=r"data\.cache and model\.inference\.resize"):
        DenseData(str(tmp_path), layout="images", degrade=plan, val_ratio=0.4, val_size=20)
    with pytest.raises(ValueError, match="steps that begin with 0"):
        DenseData(str(tmp_path), layout="images", degrade=plan, val_ratio=0.4, patches=[(5, 16, 2)])
    for i in range(6, 12):
        Image.fromarray(render(0, i, (30, 24)).image).save(tmp_path / f"{i}.png")
    with pytest.raises(DataError, match=r"images of 2 sizes.* form no batch; set data\.crop_size"):
        DenseData(str(tmp_path), layout="images", degrade=plan, val_ratio=0.4)
    for split, name in (("train", "a.png"), ("val", "b.png"), ("train", "c.png")):
        (tmp_path / "split" / split).mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / ("1.png" if name == "c.png" else "2.png"), tmp_path / "split" / split / name)
    with pytest.raises(DataError, match=r"val has copies of train's images: 1 image: .*b\.png"):
        DenseData(str(tmp_path / "split"), layout="images", degrade=plan, crop_size=16)
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0\.png"):
        DenseData(str(tmp_path), layout="images", degrade=plan, val_ratio=0.4)


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a folder"):
        open_labelled(tmp_path / "nowhere", "train", layout="images")
    with pytest.raises(FileNotFoundError, match="no images"):
        open_labelled(tmp_path, "train", layout="images")
    with pytest.raises(FileNotFoundError, match=r"expected .*input"):
        open_labelled(tmp_path, "all", layout="paired")
    with pytest.raises(ValueError, match="needs the head 'restoration'"):
        RestorationTask(head={"name": "linear"})
    with pytest.raises(ValueError, match=r"perception\.weight=-1"):
        PerceptionOptions(weight=-1)
    with pytest.raises(ValueError, match=r"perception\.weight=0\.1 needs a frozen backbone"):
        RestorationTask(perception=PerceptionOptions(weight=0.1), tune=TuneOptions(unfreeze="all"))
    task = RestorationTask(backbone=BackboneOptions("scenes_tiny", layers="even4"), optim=OptimOptions())
    data = DenseData("scenes", scenes=(2, 2), scene_size=24)
    with pytest.raises(ValueError, match="no degradation to undo"):
        task.build(data.facts)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("--data.degrade={kinds: {nois: [25]}}", "unknown degradation 'nois': known are rain, noise"),
        ("--data.degrade={kinds: {noise: [-5]}}", "noise=-5.0: expected a level of 0.1 to 255"),
        ("--data.degrade={kinds: {noise: []}, kinde: 3}", "Did you mean data.degrade.kinds?"),
        ("--data.patches=[[0,16]]", "data.patches: Expected a tuple with 3 elements"),
        ("--data.degrade=null", "which needs data.degrade"),
    ],
)
def test_a_wrong_degradation_raises_one_line(wrong: str, message: str, tmp_path: Path) -> None:
    done = call(["train", *SHORT[:4], wrong, f"--output={tmp_path}", "--data.check=1"])
    assert done.returncode in (1, 2)
    assert message in done.stderr.splitlines()[0]
    assert done.stderr.count("\n") <= done.returncode  # wrong usage may also say where the options are listed


@pytest.mark.parametrize("path", sorted((config_folder() / "restoration").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_recipe_builds(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    assert path.read_text().startswith("# ")
    inner, data = config["model"]["init_args"], config["data"]
    RestorationTask(
        head=inner["head"], perception=PerceptionOptions(**inner["perception"]), optim=OptimOptions(**inner["optim"])
    )
    body = inner["head"]["body"]
    assert heads.build({**inner["head"], "in_channels": [16] * 3}).spec()["body"] == Restormer(**BODIES[body]).config
    assert Degrade(**data["degrade"]).labels()
    assert check_stages(data["patches"])[-1].step < inner["steps"]


def test_the_page_names_what_there_is() -> None:
    """The table of degradations is that of the code, and the recipes exist."""
    page = (config_folder().parent / "docs/restoration.md").read_text()
    for name, kind in KINDS.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| {name} |")).split("|")
        assert [float(n) for n in row[3].split(",")] == list(kind.seen)
        assert [float(n) for n in row[4].split(",")] == list(kind.unseen)
    for recipe in re.findall(r"--config (\S+)", page):
        assert find_config(recipe).is_file()
