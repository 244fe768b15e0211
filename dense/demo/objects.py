"""Section: instances of the solids in embedded scenes, by queries in the last blocks of the backbone."""

from __future__ import annotations

import json

from dense.data.labelled.open import open_labelled
from dense.demo.heads import Plan
from dense.demo.report import Command, Gallery, Section, Table, section, thumbnail
from dense.media.draw import Picture
from dense.predict import Predictor
from dense.predict.objects import drawn, numbered

BLOCKS = 2  # that the queries of the recipe run through
SCORE = 0.3  # a short training is not certain
METRICS = {"ap": "mask AP", "ap50": "AP at IoU .5", "ar100": "recall"}


def objects(plan: Plan, source: str) -> Section:
    """Train for a minute or two, then find the solids of test scenes."""
    with section("Objects") as part:
        folder = plan.folder / "objects"
        part.run([
            "train", "--config", "instance/scenes_eomt", "--output", str(folder), "--model.backbone.name", source,
            "--model.steps", str(plan.steps), "--model.seed", str(plan.seed), "--val_every", str(plan.steps),
            "--data.scene_size", str(plan.side), f"--data.scenes=[{plan.scenes[0]},{plan.scenes[1]}]",
        ])  # fmt: skip
        words = (
            f"Queries in the last {BLOCKS} blocks of the backbone (EoMT) after {plan.steps} steps on {plan.scenes[0]} "
            f"scenes, on test scenes: names, and scores of at least {SCORE}. A recipe trains several times longer."
        )
        part.galleries = [Gallery("Instances", words, shown(plan, Predictor.open(folder / "model", score=SCORE)))]
        found = json.loads((folder / "results.json").read_text())["numbers"]
        cells = [tuple("-" if (v := found[f"val/{name}"]) is None else f"{v:.3f}" for name in METRICS)]
        words = f"{plan.scenes[1]} validation scenes, {plan.side} px, COCO's protocol, one seed ({plan.seed})."
        part.tables = [Table("Instances", tuple(METRICS.values()), cells, words)]
        own = (
            f"dense train --config instance/scenes_eomt --data.root LABELLED --output {plan.folder}/mine_objects\n"
            f"dense predict {plan.folder}/mine_objects/model PHOTOS --output found"
        )
        part.own = [Command("Train on your images, LABELLED/images with LABELLED/instances.json, and use it:", own)]
    return part


def shown(plan: Plan, predictor: Predictor) -> list[dict[str, Picture]]:
    """Return test scenes with their true and their predicted objects."""
    source = open_labelled(
        "scenes", "test", targets=("masks",), length=plan.shown, size=plan.side, seed=plan.seed, remember=False
    )  # fmt: skip
    assert source.classes is not None
    assert source.things is not None
    rows: list[dict[str, Picture]] = []
    for sample in (source.read(i) for i in range(plan.shown)):
        assert sample.segments is not None
        things = [i for i, label in enumerate(sample.segments.classes.tolist()) if source.things[label]]
        masks = sample.segments.masks[things].numpy()
        names = [source.classes[k] for k in sample.segments.classes[things].tolist()]
        rows.append({
            "scene": thumbnail(sample.image), "ground truth": drawn(sample.image, numbered(masks), names),
            "prediction": predictor(sample.image).overlay(sample.image),
        })  # fmt: skip
    return rows
