"""The gain from guidance: Restormer alone, with DINO features added, with D-R attention, with the perception loss.

The tiny body and the backbone of the package on embedded scenes, at equal steps, degradations and seeds; PSNR and
SSIM per degradation, at levels seen in training and at others. Without options a few steps only show that it runs.
With --output each variant is kept in its folder, and the same command continues:

    python benchmarks/restoration_table.py --steps 1200 --val 12 --output runs/restoration --markdown docs/results.md
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _claims import record
from _measure import arguments, prose, write_section

from dense.data.degrade import Degrade
from dense.data.labelled.scenes import SceneSource
from dense.evaluate.restoration import INPUT, evaluate_restoration
from dense.tasks import DenseModel

PLAIN = "plain body"
VARIANTS = {  # name -> guidance, weight of the perception loss
    PLAIN: ("none", 0.0),
    "+ addition": ("addition", 0.0),
    "+ D-R attention": ("channels", 0.0),
    "+ perception loss": ("channels", 0.01),
}
LEAST_STEPS = 800  # of a claim
Rows = dict[str, dict[str, float]]


def train(name: str, folder: Path, options: argparse.Namespace) -> Path:
    """Run the recipe restoration/scenes_tiny, or continue it; return the folder of the model."""
    guidance, weight = VARIANTS[name]
    init = "--model.init_args."
    command = [
        sys.executable, "-m", "dense", "train", "--config=restoration/scenes_tiny", f"--output={folder}",
        f"{init}head.guidance={guidance}", f"{init}perception.weight={weight}", f"{init}steps={options.steps}",
        f"{init}seed={options.seed}", f"--data.seed={options.seed}", f"--data.scenes=[{options.train},1]",
        "--data.check=1",
        f"--data.scene_size={options.side}", f"--data.patches=[[0,{options.patch},{options.batch}]]",
        f"--val_every={options.steps}", "--trainer.accelerator=cpu",
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return folder / "model"


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the metrics of a variant and its seconds of training, from its file if it exists."""
    words = "-".join(name.strip("+ ").lower().split())
    folder = options.output / f"{words}-{options.steps}-{options.seed}"
    settings = {key: getattr(options, key) for key in ("train", "val", "side", "patch", "batch")}
    target = folder / "numbers.json"
    if target.is_file() and (kept := json.loads(target.read_text()))["settings"] == settings:
        return kept["numbers"]
    model = DenseModel.from_pretrained(train(name, folder, options))
    numbers = evaluate_restoration(model, SceneSource("val", options.val, options.side), Degrade())
    numbers["seconds"] = json.loads((folder / "results.json").read_text())["seconds of this session"]
    target.write_text(json.dumps({"settings": settings, "numbers": numbers}))
    return numbers


def means(found: dict[str, Any]) -> Rows:
    """Return PSNR and SSIM per degradation and of all, at seen and unseen levels."""
    groups: dict[str, list[dict[str, float]]] = {}
    for label, row in found["per_degradation"].items():
        where = "unseen" if label.endswith("unseen") else "seen"
        for kind in (label.split()[0], "all"):
            groups.setdefault(f"{kind}, {where}", []).append(row)
    ordered = sorted(groups.items(), key=lambda item: item[0].startswith("all"))
    return {
        name: {key: sum(row[key] for row in rows) / len(rows) for key in ("psnr", "ssim")} for name, rows in ordered
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=4, help="of each variant")
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=1000, help="training scenes")
    parser.add_argument("--val", type=int, default=1, help="evaluation scenes, each with every degradation")
    parser.add_argument("--side", type=int, default=96, help="of the scenes")
    parser.add_argument("--patch", type=int, default=48, help="side of training patches")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--output", type=Path, default=None, help="folder of the runs; a temporary one without")
    parser.add_argument("--markdown", type=Path, default=None, help="file for the table")
    options = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        options.output = options.output or Path(scratch)
        found = {name: measured(name, options) for name in options.variants}
    columns = {"degraded": means(next(iter(found.values()))[INPUT])} | {n: means(f) for n, f in found.items()}
    text = table(columns)
    print(text)
    if options.steps >= LEAST_STEPS and PLAIN in found:
        claim(columns)
    if options.markdown is not None:
        seconds = {name: f["seconds"] for name, f in found.items()}
        write_section(options.markdown, "restoration_table", page(text, columns, seconds, options))
    print(f"{time.perf_counter() - start:.0f} s")


def claim(columns: dict[str, Rows]) -> None:
    """Record the gain of each variant over the plain body."""
    for name in columns.keys() - {"degraded", PLAIN}:
        for row in ("all, seen", "all, unseen"):
            ours, theirs = columns[name][row]["psnr"], columns[PLAIN][row]["psnr"]
            record(
                f"restoration of scenes, {name}, {row} levels, {ours - theirs:+.2f} dB",
                peer=PLAIN, ours=f"{ours:.2f} dB", theirs=f"{theirs:.2f} dB",
            )  # fmt: skip


def table(columns: dict[str, Rows]) -> str:
    """Return Markdown with a row per degradation and a column per variant."""
    lines = [f"| PSNR / SSIM | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    for row in columns["degraded"]:
        cells = [f"{rows[row]['psnr']:.2f} / {rows[row]['ssim']:.3f}" for rows in columns.values()]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(text: str, columns: dict[str, Rows], seconds: dict[str, float], options: argparse.Namespace) -> str:
    """Return the table with its settings and the best variant per metric."""
    won = [
        f"{max(options.variants, key=lambda name: columns[name][row][key])} on {row.split()[1]} levels by {title}"
        for row in ("all, seen", "all, unseen")
        for key, title in (("psnr", "PSNR"), ("ssim", "SSIM"))
    ]
    took = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
    best = f"Best of one seed each: {'; '.join(won)}."
    about = (
        f"Recipe restoration/scenes_tiny, {options.steps} steps of {options.batch} patches of {options.patch} x "
        f"{options.patch} pixels per variant, {options.train} scenes to train on and {options.val} others of "
        f"{options.side} x {options.side} to evaluate, each with every level of every degradation, seed "
        f"{options.seed}. PSNR in dB and SSIM of RGB, 8 bits. Seconds of training beside other work: {took}."
    )
    return f"{prose(about)}\n\n{text}\n\n{prose(best)}"


if __name__ == "__main__":
    main()
