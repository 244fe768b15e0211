"""What the guidance is worth: Restormer alone, with DINO features by addition, by D-R attention, and with the perception loss.

The tiny body and the shipped backbone on embedded scenes, at equal steps, damage and seeds; PSNR and SSIM by kind of damage, on levels that were
trained on and on others. Each variant is kept in --folder as soon as it is done, and the same command goes on with the others.

    python benchmarks/restoration_table.py --steps 4000 --markdown docs/restoration_table.md
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from _claims import record

from dense.data.degrade import Degrade
from dense.data.scene_source import SceneSource
from dense.evaluate.restoration import INPUT, evaluate_restoration
from dense.tasks import DenseModel

VARIANTS = {  # name -> guidance, weight of the perception loss
    "plain body": ("none", 0.0),
    "+ addition": ("addition", 0.0),
    "+ D-R attention": ("channels", 0.0),
    "+ perception loss": ("channels", 0.01),
}
Rows = dict[str, dict[str, float]]


def train(name: str, folder: Path, options: argparse.Namespace) -> Path:
    """A run of the recipe restoration/scenes_tiny; one that was stopped goes on."""
    guidance, weight = VARIANTS[name]
    init = "--model.init_args."
    command = [
        sys.executable, "-m", "dense", "train", "--config=restoration/scenes_tiny", f"--output={folder}",
        f"{init}head.guidance={guidance}", f"{init}perception.weight={weight}", f"{init}steps={options.steps}",
        f"{init}seed={options.seed}", f"--data.seed={options.seed}", f"--data.scenes=[{options.train},4]",
        f"--data.scene_size={options.side}", f"--data.patches=[[0,{options.patch},{options.batch}]]",
        f"--val_every={options.steps}", "--trainer.accelerator=cpu",
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return folder / "model"


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Numbers of a variant, from its file if it is there."""
    keys = ("steps", "seed", "train", "val", "side", "patch", "batch")
    settings = {key: getattr(options, key) for key in keys}
    folder = options.folder / "_".join(name.strip("+ ").lower().split())
    target = folder / "numbers.json"
    if target.is_file() and (kept := json.loads(target.read_text()))["settings"] == settings:
        return kept["numbers"]
    model = DenseModel.from_pretrained(train(name, folder, options))
    found = evaluate_restoration(model, SceneSource("val", options.val, options.side), Degrade())
    target.write_text(json.dumps({"settings": settings, "numbers": found}))
    return found


def means(found: dict[str, Any]) -> Rows:
    """PSNR and SSIM by kind, seen and unseen levels apart, and of all kinds."""
    groups: dict[str, list[dict[str, float]]] = {}
    for label, row in found["per_degradation"].items():
        where = "unseen" if label.endswith("unseen") else "seen"
        for kind in (label.split()[0], "all"):
            groups.setdefault(f"{kind}, {where}", []).append(row)
    return {
        name: {key: sum(row[key] for row in rows) / len(rows) for key in ("psnr", "ssim")}
        for name, rows in groups.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="of each variant")
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=1000, help="scenes to train on")
    parser.add_argument("--val", type=int, default=24, help="scenes to judge by, each with every damage")
    parser.add_argument("--side", type=int, default=96, help="of the scenes")
    parser.add_argument("--patch", type=int, default=64, help="side of training patches")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=Path("runs/restoration_table"))
    parser.add_argument("--markdown", type=Path, default=None, help="file for the table")
    options = parser.parse_args()
    found = {name: measured(name, options) for name in options.variants}
    columns = {"damaged": means(next(iter(found.values()))[INPUT])} | {n: means(f) for n, f in found.items()}
    for name, rows in columns.items():
        if name in VARIANTS and "plain body" in columns:
            gain = rows["all, seen"]["psnr"] - columns["plain body"]["all, seen"]["psnr"]
            ours, theirs = (f"{c['all, seen']['psnr']:.2f} dB" for c in (rows, columns["plain body"]))
            record(f"restoration of scenes, {name}, {gain:+.2f} dB", peer="plain body", ours=ours, theirs=theirs)
    lines = [f"| PSNR / SSIM | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    for row in columns["damaged"]:
        cells = [f"{rows[row]['psnr']:.2f} / {rows[row]['ssim']:.3f}" for rows in columns.values()]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if options.markdown is not None:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()
