"""Training of queries: three kinds, how much of the backbone, exact continuation, several processes."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dense.backbone import load_backbone
from dense.data.labelled.sample import IGNORE, Batch, Labelled, Segments, collate, label_map
from dense.data.scenes import render
from dense.data.transforms import EvalTransform
from dense.evaluate.dense import find_protocol, measure
from dense.evaluate.masks import find_mask_protocol, measure_masks
from dense.model.network import DenseModel, Inference
from dense.model.queries import panoptic
from dense.predict import Instances, Panoptic, Predictor, Segmentation
from dense.tasks import MasksTask
from dense.tasks.data import DataFacts
from dense.tasks.masks import regions
from dense.tasks.options import BackboneOptions, OptimOptions, PasteOptions, TargetOptions, TuneOptions
from tests.predict.models import queries
from tests.runs import Forked, assert_same, call, in_processes, weights
from tests.tasks.test_continue import end_after_step_6
from tests.tasks.test_train import BACKBONE, argv, write

HEAD = {"name": "eomt", "queries": 12, "blocks": 2, "outputs": {"masks": {"name": "masks"}}}


def changes_of(kind: str, tune: dict[str, Any] | None = None, **inner: Any) -> dict[str, Any]:
    """Changes that make the recipe of the tests one of masks."""
    arguments = {"kind": kind, "backbone": BACKBONE, "head": HEAD, "loss": {"points": 100}, "steps": 4} | inner
    arguments |= {"optim": {"lr": 0.001, "warmup_steps": 1}} | ({"tune": tune} if tune else {})
    return {"model": {"class_path": "dense.tasks.MasksTask", "init_args": arguments}, "val_every": 2}


RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "instances, frozen": ("instance", "val/ap", {}),
    "panoptic, last blocks": ("panoptic", "val/pq", {"tune": {"unfreeze": 2}}),
    "semantic, LoRA": ("semantic", "val/miou", {"tune": {"lora_rank": 2}}),
    "instances, all": (
        "instance", "val/ap",
        {"tune": {"unfreeze": "all", "layer_decay": 0.8, "warmup_steps": 1}, "inference": {"square": True}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_runs(name: str, tmp_path: Path) -> None:
    """A run leaves a model of its task without masked attention; `tune` decides which tensors change."""
    kind, metric, inner = RUNS[name]
    changes = changes_of(kind, **inner) | ({"data.targets": ["labels"]} if kind == "semantic" else {})
    changes |= {"val_every": 4}  # not before masked attention has ended
    done = call(argv(write(tmp_path, **changes), tmp_path / "run"))
    if "inference" in inner:
        assert "square pads images at a corner; set data.augment.pad corner" in done.stderr
        changes |= {"data.augment": {"pad": "corner"}, "data.crop_size": 32}
        done = call(argv(write(tmp_path, **changes), tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert metric in json.loads((tmp_path / "run/results.json").read_text())["numbers"]
    model = DenseModel.from_pretrained(tmp_path / "run/model")
    assert model.task == {"semantic": "segmentation"}.get(kind, kind)
    assert model.outputs["masks"].kind == kind
    assert model.config()["head"]["masking"] == [0, 0]
    with torch.no_grad():
        found = model(torch.randn(1, 3, 37, 50))
    assert found["class_logits"].shape == (1, 12, 15)
    torch.manual_seed(0)
    task = MasksTask(kind=kind, backbone=BackboneOptions(**BACKBONE), head=HEAD)  # type: ignore[arg-type]
    facts = DataFacts(model.classes, val_targets=("labels", "masks"), things=model.outputs["masks"].things)
    before, after = task.build(facts).backbone.state_dict(), model.backbone.state_dict()
    changed = {k for k, v in before.items() if not torch.equal(v, after[k])}
    if name == "semantic, LoRA":
        assert changed == {k for k in before if k.endswith(("attn.qkv.weight", "attn.proj.weight"))}
        return
    last = ("model.blocks.2.", "model.blocks.3.", "model.norm.")
    trained = {"instances, frozen": (), "panoptic, last blocks": last}.get(name, ("model.blocks.0.", *last))
    for part in trained:
        own = {k for k in before if k.startswith(part)}
        assert len(changed & own) > len(own) / 2, part
    assert name == "instances, all" or all(k.startswith(trained) for k in changed)


def test_continued_exactly(tmp_path: Path) -> None:
    """With random points, masked attention that is annealed, and pasted objects."""
    inner = {"copy_paste": {"probability": 0.5}, "steps": 8, "tune": {"unfreeze": "all"}}
    changes = changes_of("instance", **inner) | {"checkpoint": {"every_minutes": 0, "every_steps": 3}, "val_every": 8}
    config = write(tmp_path, **changes)
    assert call(argv(config, tmp_path / "whole")).returncode == 0
    assert Forked(argv(config, tmp_path / "run"), tmp_path, end_after_step_6).status() == 9
    done = call(argv(config, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "run", tmp_path / "whole")
    assert (tmp_path / "run/metrics.csv").read_text() == (tmp_path / "whole/metrics.csv").read_text()


def test_two_processes_are_one(tmp_path: Path) -> None:
    """Two of half the batch learn what one learns, where nothing is drawn at random."""
    inner = {"loss": {"points": 0}, "annealing": [], "tune": {"unfreeze": "all"}}
    changes = changes_of("instance", **inner) | {"checkpoint": {"every_minutes": 0, "every_steps": 4}}
    assert call(argv(write(tmp_path / "a", **changes), tmp_path / "a/run")).returncode == 0
    changes |= {"data.batch_size": 2, "trainer.devices": 2, "trainer.strategy": "ddp"}
    in_processes(argv(write(tmp_path / "b", **changes), tmp_path / "b/run"), tmp_path)
    one, two = weights(tmp_path / "a/run"), weights(tmp_path / "b/run")
    differences = torch.cat([(one[k] - two[k]).abs().flatten() for k in one if "qkv.bias" not in k])
    assert float(differences.median()) < 1e-6
    assert float((differences > 1e-5).float().mean()) < 0.01  # Adam enlarges gradients that are nearly zero


def test_annealing_follows_its_schedule() -> None:
    """Step by step, block after block; [] is without masked attention."""
    half, quarter, most = 0.535887, 0.287175, 0.771890  # 0.5, 0.25 and 0.75 to the power of 0.9
    expected: dict[int, tuple[float, float]]
    for spans, expected in (
        (None, {0: (1, 1), 10: (1, 1), 15: (half, 1), 25: (0, half), 40: (0, 0)}),
        ([(0.0, 0.5), (0.5, 1.0)], {0: (1, 1), 10: (half, 1), 15: (quarter, 1), 25: (0, most), 40: (0, 0)}),
        ([], dict.fromkeys((0, 40), (0, 0))),
    ):
        task = MasksTask(head=HEAD, annealing=spans, steps=40)
        task.network = SimpleNamespace(head=SimpleNamespace(blocks=2, masking=None))  # type: ignore[assignment]
        for step, masking in expected.items():
            trainer = SimpleNamespace(global_step=step)
            task.trainer = trainer  # type: ignore[assignment]
            task.set_masking()
            assert task.network.head.masking == pytest.approx(masking, abs=1e-6)
    task = MasksTask(head=HEAD, annealing=[(0.0, 1.0)])
    task.network, trainer = SimpleNamespace(head=SimpleNamespace(blocks=2)), SimpleNamespace(global_step=0)  # type: ignore[assignment]
    task.trainer = trainer  # type: ignore[assignment]
    with pytest.raises(ValueError, match="a start and an end for each of 2 blocks"):
        task.set_masking()


def test_the_backbone_warms_up_later(tmp_path: Path) -> None:
    """It stays for the head's warm-up, then has its own; the layer decay of EoMT is a scale of 1 / decay."""
    optim = OptimOptions(lr=1.0, warmup_steps=4, schedule="poly")
    tune = TuneOptions(unfreeze="all", layer_decay=0.8, lr_scale=1.25, warmup_steps=3)
    task = MasksTask(head=HEAD, backbone=BackboneOptions(**BACKBONE), optim=optim, tune=tune, steps=20)
    task.build_for(DataFacts(("a", "b"), val_targets=("masks",), things=(True, True)))
    optimizer = task.configure_optimizers()
    rates = {}
    for step in (0, 3, 4, 5, 6, 12):
        trainer = SimpleNamespace(global_step=step)
        task.trainer = trainer  # type: ignore[assignment]
        with contextlib.suppress(AttributeError):  # of the loop's precision plugin, which makes the step itself
            task.optimizer_step(0, 0, optimizer)
        rates[step] = {bool(g["backbone"]): g["lr"] for g in sorted(optimizer.param_groups, key=lambda g: g["lr"])}
    assert rates[0] == {True: 0.0, False: pytest.approx(1 / 4)}
    assert rates[3] == {True: 0.0, False: 1.0}
    assert rates[4][True] == pytest.approx(1 / 3)
    assert rates[6][True] == 1.0
    assert rates[12][True] == pytest.approx((1 - 5 / 13) ** 0.9)
    assert rates[12][False] == pytest.approx((1 - 8 / 16) ** 0.9)


@pytest.mark.parametrize(
    ("options", "arguments", "why"),
    [
        ({}, {"drop_path_rate": 0.5}, ""),  # the backbone stays in evaluation mode
        ({"tune": TuneOptions(unfreeze=2)}, {"drop_path_rate": 0.0}, ""),
        ({"tune": TuneOptions(unfreeze=3)}, {}, "model.tune trains it"),
        ({"tune": TuneOptions(lora_rank=2)}, {}, "model.tune trains it"),
        ({"tune": TuneOptions(unfreeze=2)}, {"drop_path_rate": 0.5}, "stochastic depth or dropout"),
        ({"tune": TuneOptions(unfreeze=2)}, {"proj_drop_rate": 0.5}, "stochastic depth or dropout"),
        (
            {"tune": TuneOptions(unfreeze=2), "copy_paste": PasteOptions(probability=0.5)},
            {},
            "model.copy_paste changes",
        ),
    ],
)
def test_features_that_a_cache_may_keep(
    options: dict[str, Any], arguments: dict[str, Any], why: str, tmp_path: Path
) -> None:
    """Also of a saved backbone, whose spec has the rates."""
    spec = BACKBONE | {"arguments": BACKBONE["arguments"] | arguments}  # type: ignore[operator]
    load_backbone(spec["name"], **spec["arguments"]).save_pretrained(tmp_path)
    for backbone in (BackboneOptions(**spec), BackboneOptions(name=str(tmp_path))):
        task = MasksTask(head=HEAD, backbone=backbone, **options)
        task.build_for(DataFacts(("a", "b"), val_targets=("masks",), things=(True, False)))
        assert task.fixed_features == (not why)
        assert task.feature_change.startswith(why)
        task.trainer = SimpleNamespace(datamodule=SimpleNamespace(cache="cache"))  # type: ignore[assignment]
        if why:
            with pytest.raises(ValueError, match=f"features of a frozen backbone, and {why}.*; drop one"):
                task.on_fit_start()


@pytest.mark.parametrize("kind", ["instance", "panoptic"])
def test_validation_sees_windows_as_prediction(kind: str) -> None:
    inference = Inference(window=16, stride=8)
    task = MasksTask(kind=kind, head=HEAD, backbone=BackboneOptions(**BACKBONE), inference=inference)  # type: ignore[arg-type]
    task.build_for(DataFacts(("a", "b"), val_targets=("masks",), things=(True, False)))
    network, task.metrics = task.network.eval(), task.new_metrics()
    sizes, features = list[Any](), network.features
    network.features = lambda images: (sizes.append(tuple(images.shape)), features(images))[1]  # type: ignore[method-assign]
    masks = torch.zeros(2, 48, 48, dtype=torch.bool)
    masks[0, :20], masks[1, 20:] = True, True
    segments = Segments(masks, torch.tensor([0, 1]), torch.zeros(2).bool(), torch.ones(48, 48).bool())
    with torch.no_grad():
        task.validation_step(Batch(torch.zeros(1, 3, 24, 24, dtype=torch.uint8), segments=(segments,)), 0)
    assert sizes == [(1, 3, 16, 16)] * 4
    assert task.monitor.removeprefix("val/") in task.numbers()


class OneImage:
    """An image and what a network finds in it, moved by a pixel."""

    classes, things, depth_kind = ("sky", "cup", "dog"), (False, True, True), None

    def __init__(self, network: DenseModel) -> None:
        image = render(0, 1, (40, 60)).image
        found = Predictor(network, **({"score": 0} if network.task == "instance" else {}))(image)
        if isinstance(found, Segmentation):
            self.sample = Labelled(image, np.roll(found.labels, 1, 1), None, "one")
            return
        assert isinstance(found, Instances | Panoptic)
        masks = torch.from_numpy(found.masks).roll(1, 2)
        crowd = torch.zeros(len(masks), dtype=torch.bool)
        segments = Segments(masks, torch.from_numpy(found.labels), crowd, torch.ones(40, 60).bool())
        self.sample = Labelled(image, None, None, "one", segments=segments)

    def __len__(self) -> int:
        return 1

    def name(self, index: int) -> str:
        return "one"

    def read(self, index: int) -> Labelled:
        return self.sample


def doubtful(
    masks: Any, classes: Any, size: Any, things: Any, least: Any = 0, overlap: Any = 0, through: Any = None,
    part: Any = None,
) -> Any:  # fmt: skip
    """Find panoptic segments of which a network is not certain."""
    return panoptic(masks, classes, size, things, 0.1, 0.1, through, part)


@pytest.mark.parametrize("kind", ["instance", "panoptic", "semantic"])
@pytest.mark.parametrize(
    "options", [{}, {"resize": 16}, {"window": 16, "stride": 8}, {"longer": 32}, {"square": True}], ids=str
)
def test_validation_is_evaluation(kind: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of images above the size at which they are shrunk, in many tiles, and with features from the cache."""
    if kind == "semantic" and options.keys() & {"square", "longer"}:
        pytest.skip("of objects alone")
    monkeypatch.setattr("dense.model.inference.WHOLE", 1000)
    network = queries(kind, OneImage.classes, **options)
    torch.manual_seed(1)
    torch.nn.init.normal_(network.head.class_head.weight, std=2)
    torch.nn.init.zeros_(network.head.class_head.bias)
    for module in ("queries", "tiles"):
        monkeypatch.setattr(f"dense.model.{module}.panoptic", doubtful)
    source: Any = OneImage(network)
    if kind == "semantic":
        expected = measure(network, source, find_protocol("plain")).numbers
    else:
        expected = measure_masks(network, source, find_mask_protocol("plain"), kind).numbers
    task = MasksTask(kind=kind, head=HEAD, inference=Inference(**options))
    task.network = network
    task.metrics = task.new_metrics()
    batch = collate([EvalTransform(options.get("resize"))(source.read(0))])
    assert batch.images is not None
    batches = [batch]
    if not options.keys() & {"window", "square"}:
        features = network.features(network.backbone.normalise(batch.images))
        cached = (*features.maps, *features.prefix)
        batches.append(batch._replace(cached=cached, size=(batch.images.shape[-2], batch.images.shape[-1])))
    for one in batches:
        task.metrics.reset()
        with torch.no_grad():
            task.validation_step(one, 0)
        numbers = task.numbers()
        assert 0 < numbers[task.monitor.removeprefix("val/")] < 1
        assert numbers == pytest.approx({name: expected[name] for name in numbers}, rel=1e-4, nan_ok=True)


def batch_of(kind: str = "instance") -> tuple[MasksTask, Batch]:
    """Two overlapping objects, a region of stuff and a crowd."""
    task = MasksTask(kind=kind, head=HEAD)  # type: ignore[arg-type]
    masks = torch.zeros(5, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1, 1:3], masks[2, 3], masks[3, :, 3] = True, True, True, True  # the last one is empty
    valid = torch.ones(4, 4, dtype=torch.bool)
    valid[0, 0] = False
    segments = Segments(masks, torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 0, 0, 1, 0]).bool(), valid)
    task.network = SimpleNamespace(outputs={"masks": SimpleNamespace(things=(True, True, False))})  # type: ignore[assignment]
    return task, Batch(segments=(segments,))


def test_targets() -> None:
    """Crowds are unknown, stuff is not for instances, and empty masks are no objects."""
    task, batch = batch_of()
    (found,) = task.targets(batch)
    assert found.classes.tolist() == [0, 1]
    assert not found.valid[:, 3].any()
    assert not found.valid[0, 0]
    assert int(found.valid.sum()) == 11
    task, batch = batch_of("panoptic")
    assert task.targets(batch)[0].classes.tolist() == [0, 1, 2]
    task, batch = batch_of("semantic")
    (found,) = task.targets(batch)
    assert found.classes.tolist() == [0, 1, 2]
    assert found.masks.sum(0).max() == 1
    labels = label_map(batch.segments[0])  # type: ignore[index]
    assert labels[0].tolist() == [IGNORE, 0, 0, IGNORE]
    assert labels[1].tolist() == [1, 1, 1, IGNORE]
    assert torch.equal(label_map(regions(labels)), labels)


def test_stuff_is_not_pasted() -> None:
    """A region of stuff that fills another image covers nothing; batches of one image have nothing to paste."""
    task = MasksTask(head=HEAD, copy_paste=PasteOptions(probability=1.0))
    outputs = {"masks": SimpleNamespace(things=(True, False))}
    task.network = SimpleNamespace(outputs=outputs, head=SimpleNamespace(blocks=2), decode=lambda _: {})  # type: ignore[assignment]
    task.trainer = SimpleNamespace(global_step=0, datamodule=SimpleNamespace(batch_size=1))  # type: ignore[assignment]
    task.features = lambda _: (None, None)  # type: ignore[assignment, method-assign, return-value]
    masks, valid = torch.zeros(1, 8, 8).bool(), torch.ones(8, 8).bool()
    masks[0, 2:4, 2:4] = True
    segments = Segments(masks, torch.tensor([0]), torch.tensor([False]), valid)
    ground = Segments(torch.ones_like(masks), torch.tensor([1]), torch.tensor([False]), valid)
    images = torch.stack([torch.zeros(3, 8, 8), torch.full((3, 8, 8), 200)]).byte()
    _, found = task.maps(Batch(images, segments=(segments, ground)))
    assert found.images is not None
    assert found.segments is not None
    assert torch.equal(found.images[0], images[0])
    assert [one.classes.tolist() for one in found.segments] == [[0], [0]]
    with pytest.raises(ValueError, match=r"set data\.batch_size to 2 at least"):
        task.setup("fit")


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave layers out"):
        MasksTask(head=HEAD, backbone=BackboneOptions(layers="even4"))
    options: dict[str, Any]
    for options, message in (
        ({"backbone": BackboneOptions(norm="last")}, "backbone.norm='last': the head applies the final norm itself"),
        ({"target": TargetOptions(size="grid4")}, "target.size='grid4' has no meaning for masks of queries"),
        ({"target": TargetOptions(max_depth=3)}, "target.max_depth=3 has no meaning for masks of queries"),
        ({"inference": Inference(refine="guided")}, "inference.refine='guided': masks of queries are not refined"),
    ):
        with pytest.raises(ValueError, match=message):
            MasksTask(head=HEAD, **options)
    with pytest.raises(ValueError, match="needs a head of queries"):
        MasksTask(head={"name": "linear"})
    with pytest.raises(ValueError, match="needs kind instance"):
        MasksTask(kind="panoptic", head=HEAD, copy_paste=PasteOptions(probability=0.5))
    with pytest.raises(ValueError, match="expected a probability"):
        PasteOptions(probability=2)
    with pytest.raises(ValueError, match="no masks of objects"):
        MasksTask(head=HEAD).complete_outputs({}, DataFacts(("a",), val_targets=("labels",)))
    with pytest.raises(ValueError, match="leave count out"):
        MasksTask(head=HEAD).complete_outputs({"masks": {"count": 3}}, DataFacts(("a",), val_targets=("masks",)))
    objects = DataFacts(("a",), val_targets=("masks",), things=(True,), covers=False)
    assert MasksTask(head=HEAD).complete_outputs({}, objects)
    with pytest.raises(ValueError, match="objects alone, and the background has no class; give masks of classes"):
        MasksTask(kind="semantic", head=HEAD).complete_outputs({}, objects)
    with pytest.raises(ValueError, match=r"data\.partial=True: kind panoptic needs the objects of each image"):
        MasksTask(kind="panoptic", head=HEAD).complete_outputs(
            {}, DataFacts(("a",), val_targets=("masks",), partial=True)
        )
    done = call(argv(write(tmp_path, **changes_of("instance", loss={"point": 3})), tmp_path / "run"))
    assert done.returncode != 0
    assert "point" in done.stderr


@pytest.mark.slow
def test_eight_scenes_are_learnt_by_heart(tmp_path: Path) -> None:
    """AP above .9 on the images of the training."""
    inner = {
        "backbone": {"name": "scenes_tiny"},
        "head": HEAD | {"queries": 20, "blocks": 3, "upscales": 2},
        "loss": {"points": 1024},
        "steps": 80,
        "tune": {"unfreeze": "all", "layer_decay": 0.8},
    }
    changes = changes_of("instance", **inner)
    changes["model"]["init_args"]["optim"] = {"lr": 0.002, "weight_decay": 0.05, "warmup_steps": 12, "clip": 1.0}
    data = {"root": "scenes", "scenes": [8, 8], "scene_size": 48, "batch_size": 8, "workers": 0}
    changes |= {"data": data, "val_every": 80, "trainer": {"accelerator": "cpu", "precision": "32-true"}}
    config = write(tmp_path, **changes)
    assert call(argv(config, tmp_path / "run")).returncode == 0
    from dense.data.labelled.scenes import SceneSource
    from dense.metrics import MaskAP
    from dense.model import queries

    model, source = DenseModel.from_pretrained(tmp_path / "run/model"), SceneSource("train", 8, 48, segments=True)
    metric, things = MaskAP(source.classes), torch.tensor(source.things)
    for index in range(8):
        sample = source.read(index)
        assert sample.segments is not None
        images = model.backbone.normalise(torch.from_numpy(sample.image)[None])
        with torch.no_grad():
            found = queries.instances(*model(images).values(), (48, 48))
        metric.update(found, [sample.segments.take(things[sample.segments.classes])])
    assert metric.compute()["ap"] > 0.9
