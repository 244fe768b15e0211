"""Part four: strong noise taken away by a tiny body that the frozen backbone guides."""

from __future__ import annotations

import torch

from dense.data.degrade import degrade
from dense.data.scenes import Scenes
from dense.demo.heads import Plan
from dense.demo.looking import framed
from dense.demo.report import Command, Gallery, Part, Table
from dense.demo.verbs import run, timed
from dense.media.draw import Picture
from dense.metrics import RestorationMetrics
from dense.predict import Predictor, Restoration

NOISE = 50  # its standard deviation, of 255
SIZE = 96  # pixels of the scenes
PATCHES = (48, 4)  # side, how many a step


def restore_images(plan: Plan, source: str) -> Part:
    """Some seconds of training, then noisy scenes of the test split, restored."""
    with timed("Restoration") as part:
        folder = plan.folder / "restoration"
        run(part, [
            "train", "--config", "restoration/scenes_tiny", "--output", str(folder), "--model.backbone.name", source,
            "--model.steps", str(plan.steps), "--model.seed", str(plan.seed), "--val_every", str(plan.steps),
            f"--data.scenes=[{plan.scenes[0]},{plan.scenes[1]}]", f"--data.patches=[[0,{PATCHES[0]},{PATCHES[1]}]]",
            f"--data.degrade={{kinds: {{noise: [{NOISE}]}}, unseen: {{}}}}",
        ])  # fmt: skip
        rows, found = images(plan, Predictor.open(folder / "model"))
        part.galleries = [
            Gallery(
                "Noise taken away",
                f"A tiny Restormer, guided by the frozen backbone, after {plan.steps} steps on {plan.scenes[0]} scenes with noise of "
                f"standard deviation {NOISE} of 255, on scenes that nothing was trained on. Seconds of training show that it "
                "works, not how good it gets.",
                rows,
            )
        ]
        part.tables = [
            Table(
                "Restoration",
                ("picture", "PSNR, dB", "SSIM"),
                [(name, f"{values['psnr']:.2f}", f"{values['ssim']:.3f}") for name, values in found.items()],
                f"Means over the {plan.shown} scenes shown, {SIZE} px, RGB of 8 bits, one seed ({plan.seed}).",
            )
        ]
        part.own = [
            Command("Train a restoration on clean images of your own, degraded on the fly, and use it:", f"dense train --config restoration/dino_ir --data.root IMAGES --output {plan.folder}/mine_restoration\ndense predict {plan.folder}/mine_restoration/model PHOTOS --output restored"),
        ]  # fmt: skip
    return part


def images(plan: Plan, predictor: Predictor) -> tuple[list[dict[str, Picture]], dict[str, dict[str, float]]]:
    """Noisy, restored and clean scenes with their PSNR, and the means of both."""
    scenes = Scenes("test", plan.shown, SIZE, seed=plan.seed)
    rows: list[dict[str, Picture]] = []
    metrics = RestorationMetrics(("noisy", "restored"))
    for number in range(plan.shown):
        clean = scenes[number].image
        noisy = degrade(clean, {"noise": NOISE}, (plan.seed, number))
        prediction = predictor(noisy)
        assert isinstance(prediction, Restoration)
        captions: dict[str, Picture] = {}
        for name, image in (("noisy", noisy), ("restored", prediction.values)):
            alone = RestorationMetrics((name,))
            for metric in (metrics, alone):
                metric.update(unit(image), unit(clean), [name])
            captions[f"{name}, {alone.compute()['psnr']:.1f} dB"] = framed(image)
        rows.append({**captions, "clean": framed(clean)})
    return rows, metrics.compute()["per_degradation"]


def unit(image: Picture) -> torch.Tensor:
    """(H, W, 3) of 0 to 255 to (1, 3, H, W) of 0 to 1."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
