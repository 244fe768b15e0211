"""Section: denoising by a tiny Restormer that the frozen backbone guides."""

from __future__ import annotations

import torch

from dense.data.degrade import degrade
from dense.data.scenes import Scenes
from dense.demo.heads import Plan
from dense.demo.report import Command, Gallery, Section, Table, section, thumbnail
from dense.media.draw import Picture
from dense.metrics import RestorationMetrics
from dense.predict import Predictor, Restoration

NOISE = 50  # standard deviation, of 255
PATCHES = (48, 4)  # side, patches per step


def restoration(plan: Plan, source: str) -> Section:
    """Train for some seconds, then restore noisy scenes of the test split."""
    with section("Restoration") as part:
        folder = plan.folder / "restoration"
        part.run([
            "train", "--config", "restoration/scenes_tiny", "--output", str(folder), "--model.backbone.name", source,
            "--model.steps", str(plan.steps), "--model.seed", str(plan.seed), "--val_every", str(plan.steps),
            "--data.scene_size", str(plan.side), f"--data.scenes=[{plan.scenes[0]},{plan.scenes[1]}]",
            f"--data.patches=[[0,{PATCHES[0]},{PATCHES[1]}]]",
            f"--data.degrade={{kinds: {{noise: [{NOISE}]}}, unseen: {{}}}}",
        ])  # fmt: skip
        rows, metrics = restore(plan, Predictor.open(folder / "model"))
        words = (
            f"A tiny Restormer, guided by the frozen backbone, after {plan.steps} steps on {plan.scenes[0]} scenes "
            f"with noise of standard deviation {NOISE} of 255, on test scenes. Training for seconds shows only that it "
            "works."
        )
        part.galleries = [Gallery("Denoising", words, rows)]
        cells = [(name, f"{values['psnr']:.2f}", f"{values['ssim']:.3f}") for name, values in metrics.items()]
        words = f"Means over the {plan.shown} scenes shown, {plan.side} px, 8-bit RGB, one seed ({plan.seed})."
        part.tables = [Table("Restoration", ("image", "PSNR, dB", "SSIM"), cells, words)]
        output = f"{plan.folder}/mine_restoration"
        lines = (
            f"dense train --config restoration/dino_ir --data.root IMAGES --output {output}\n"
            f"dense predict {output}/model PHOTOS --output restored"
        )
        part.own = [Command("Train restoration on your own clean images, degraded on the fly, and use it:", lines)]
    return part


def restore(plan: Plan, predictor: Predictor) -> tuple[list[dict[str, Picture]], dict[str, dict[str, float]]]:
    """Return noisy, restored and clean scenes with their PSNR, and the mean metrics."""
    scenes = Scenes("test", plan.shown, plan.side, seed=plan.seed)
    rows: list[dict[str, Picture]] = []
    metrics = RestorationMetrics(("noisy", "restored"))
    for number in range(plan.shown):
        clean = scenes[number].image
        noisy = degrade(clean, {"noise": NOISE}, (plan.seed, number))
        prediction = predictor(noisy)
        assert isinstance(prediction, Restoration)
        captions: dict[str, Picture] = {}
        for name, image in (("noisy", noisy), ("restored", prediction.values)):
            of_image = RestorationMetrics((name,))
            for metric in (metrics, of_image):
                metric.update(to_unit(image), to_unit(clean), [name])
            captions[f"{name}, {of_image.compute()['psnr']:.1f} dB"] = thumbnail(image)
        rows.append({**captions, "clean": thumbnail(clean)})
    return rows, metrics.compute()["per_degradation"]


def to_unit(image: Picture) -> torch.Tensor:
    """Convert (H, W, 3) of 0 to 255 to (1, 3, H, W) of 0 to 1."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
