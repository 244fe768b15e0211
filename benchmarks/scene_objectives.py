"""The gain from each term of the objective: pretraining on embedded scenes by one objective after the other.

All runs are equal in steps, network, crops and optimiser. They are evaluated by k-NN, linear segmentation and linear
depth on held-out scenes. The recipe is scenes_tiny_dinov2; each objective changes what its name says. "+ Gram" anchors
the last part of the same number of steps to the teacher at its beginning. Without options a few steps only show that it
runs. The table takes many hours on a small machine, and the same command continues it:

    python benchmarks/scene_objectives.py --steps 3200 --scenes 20000 --seeds 3 --train 600 --val 400 \\
        --output runs/objectives --markdown docs/results.md
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _claims import record
from _measure import arguments, prose, spread, write_section

from dense.backbone import load_backbone
from dense.evaluate.probe import SceneProbe

CONFIG = "pretrain/scenes_tiny_dinov2"
NUMBERS = {
    "segmentation_miou": ("linear segmentation, mIoU", 1),
    "depth_abs_rel": ("linear depth, abs_rel", -1),
    "knn_class": ("k-NN, class token", 1),
    "knn_average": ("k-NN, mean patch", 1),
    "knn_object": ("k-NN, object's patches", 1),
}
LEAST_STEPS = 800  # of a claim
GRAM_START = 0.75  # of the steps
CENTERING = ["--model.teacher.centering", "center"]
NO_IBOT, NO_KOLEO = ["--model.ibot.weight", "0"], ["--model.koleo.weight", "0"]


def objectives(steps: int) -> dict[str, list[str]]:
    """Return the options of each objective, added to the recipe."""
    gram = ["--model.gram.weight", "2", "--model.gram.start", str(round(GRAM_START * steps))]
    return {
        "DINO": [*CENTERING, *NO_IBOT, *NO_KOLEO],
        "DINO, Sinkhorn": [*NO_IBOT, *NO_KOLEO],
        "DINO + iBOT": [*CENTERING, *NO_KOLEO],
        "DINO + iBOT, Sinkhorn": [*NO_KOLEO],
        "DINO + iBOT + KoLeo, Sinkhorn": [],
        "DINO + iBOT + KoLeo + Gram, Sinkhorn": gram,
    }


def train(options: argparse.Namespace, name: str, changes: list[str], seed: int) -> Path:
    """Pretrain, unless the run is complete, and return the folder of the backbone."""
    words = "".join(c if c.isalnum() else "-" for c in name.lower())
    folder = options.output / f"{words}-{seed}"
    if not (folder / "facts.json").is_file():
        command = [sys.executable, "-m", "dense", "pretrain", "--config", options.config, "--output", str(folder)]
        command += ["--model.steps", str(options.steps), "--model.seed", str(seed), "--data.seed", str(seed)]
        command += ["--data.batch_size", str(options.batch), "--data.scenes", str(options.scenes)]
        command += ["--knn.train", "null", "--knn.val", "null", *changes]
        subprocess.run([*command, "--checkpoint.keep_every", "0"], check=True)
    return folder / "backbone"


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """Return means and ranges over seeds as Markdown."""
    heads = [title for title, _ in NUMBERS.values()]
    lines = ["| objective | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(spread(v[k]) for k in NUMBERS) + " |" for name, v in found.items()]
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64, help="images per step")
    parser.add_argument("--scenes", type=int, default=256, help="pretraining scenes")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=None, help="objectives by name; all if left out")
    parser.add_argument("--train", type=int, default=60, help="training scenes of the probes")
    parser.add_argument("--val", type=int, default=40, help="evaluation scenes of the probes")
    parser.add_argument("--output", type=Path, default=None, help="folder of the runs; a temporary one without")
    parser.add_argument("--markdown", type=Path, default=None, help="file for the table")
    options = parser.parse_args()
    chosen = objectives(options.steps)
    unknown = [name for name in options.only or [] if name not in chosen]
    if unknown:
        raise SystemExit(f"no objective {unknown[0]!r}; there are {', '.join(chosen)}")
    with tempfile.TemporaryDirectory() as scratch:
        options.output = options.output or Path(scratch)
        found: dict[str, dict[str, list[float]]] = {}
        start = time.perf_counter()
        for seed in range(options.seeds):
            probe = SceneProbe(options.train, options.val, seed=seed)
            for name in options.only or chosen:
                backbone = load_backbone(train(options, name, chosen[name], seed), frozen=True)
                numbers = probe(backbone)
                for key in NUMBERS:
                    found.setdefault(name, {}).setdefault(key, []).append(numbers[key])
                print(f"seed {seed} {name}: {json.dumps({k: round(numbers[k], 4) for k in NUMBERS})}", flush=True)
            fresh = probe.baselines(backbone)
            for key in NUMBERS:
                found.setdefault("random initialisation", {}).setdefault(key, []).append(fresh[f"random/{key}"])
    text = table(found)
    print(text)
    first, *others = [name for name in found if name != "random initialisation"]
    for name in others if options.steps >= LEAST_STEPS else []:
        for key, (title, sign) in NUMBERS.items():
            ours, theirs = (statistics.mean(found[n][key]) for n in (name, first))
            gain = f"{sign * (ours - theirs):+.3f}"
            record(f"{name}: {title}, {gain} better", peer=first, ours=f"{ours:.3f}", theirs=f"{theirs:.3f}")
    if options.markdown is not None:
        about = (
            f"{options.steps} steps of {options.batch} images, {options.config}, {options.scenes} scenes, "
            f"{options.seeds} seeds of pretraining and of probes, {options.train} scenes to train the probes and "
            f"{options.val} to evaluate; mean (least to most)."
        )
        write_section(options.markdown, "scene_objectives", f"{prose(about)}\n\n{text}")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
