"""The numbers of README on the backbones of the package, beside random initialisation.

Probes of patches, object discovery and tracking on held-out scenes. DPT heads on scenes_tiny are in scene_heads.

    python benchmarks/shipped.py --seeds 3
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from _claims import record
from _measure import arguments, spread


def numbers(backbone: str, *words: str) -> dict[str, float]:
    """Return the numbers of a backbone by one verb of `dense evaluate`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "dense", "evaluate", *words, "--backbone", backbone, "--baselines"]
        subprocess.run([*command, "--output", folder], check=True, stdout=sys.stderr)
        found = json.loads((Path(folder) / "results.json").read_text())["numbers"]
    inner = {f"{name} {k}": v for name, row in found.items() if isinstance(row, dict) for k, v in row.items()}
    return {name: value for name, value in found.items() if not isinstance(value, dict)} | inner


def compare(title: str, key: str, other: str, found: list[dict[str, float]], lower: bool = False) -> None:
    """Record mean and range over seeds of the backbone and of random initialisation."""
    peer = "random initialisation"
    all_ours, all_theirs = ([each[name] for each in found] for name in (key, other))
    ours, theirs = statistics.mean(all_ours), statistics.mean(all_theirs)
    better, worse = (theirs, ours) if lower else (ours, theirs)
    ratio = better / worse if worse else float("inf")  # few scenes may give an accuracy of zero
    print(f"{title}: {spread(all_ours)}, {peer} {spread(all_theirs)}", flush=True)
    record(title, peer=peer, ours=spread(all_ours), theirs=spread(all_theirs), ratio=ratio, least=1)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="of probes and clips; discovery uses one")
    parser.add_argument("--train", type=int, default=600, help="training scenes of the probes")
    parser.add_argument("--val", type=int, default=400, help="evaluation scenes of the probes")
    parser.add_argument("--found", type=int, default=200, help="scenes of object discovery")
    parser.add_argument("--clips", type=int, default=20, help="clips of tracking")
    options = parser.parse_args()
    seeds = [str(seed) for seed in range(options.seeds)]
    sizes = ["--train-scenes", str(options.train), "--val-scenes", str(options.val)]
    found = ["--scenes", str(options.found), "--method", "attention", "maskcut"]
    for name in ("scenes_tiny", "photos_tiny"):
        probed = [numbers(name, "probe", *sizes, "--seed", seed) for seed in seeds]
        compare(f"{name}: linear patch mIoU", "segmentation_miou", "random/segmentation_miou", probed)
        compare(f"{name}: ridge depth abs_rel", "depth_abs_rel", "random/depth_abs_rel", probed, lower=True)
        compare(f"{name}: k-NN of the largest object's class", "knn_class", "random/knn_class", probed)
        sought = [numbers(name, "discovery", "--data", "scenes", *found)]
        compare(f"{name}: attention, CorLoc", "attention corloc", "random attention corloc", sought)
        compare(f"{name}: MaskCut, Jaccard", "maskcut jaccard", "random maskcut jaccard", sought)
        clips = ["--data", "scenes", "--clips", str(options.clips)]
        followed = [numbers(name, "video", *clips, "--seed", seed) for seed in seeds]
        compare(f"{name}: objects followed, J&F", "j_and_f", "random initialisation j_and_f", followed)


if __name__ == "__main__":
    main()
