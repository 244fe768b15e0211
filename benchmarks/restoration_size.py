"""Time and memory of restoration by image size: the tiny body, the body with D-R attention at each level, the backbone.

Square images, one at a time, fp32, as in prediction. The attention of the body and of the guidance runs between
channels, so time and memory must grow linearly with the pixels. The backbone receives at most 256 patches, whatever
the image size. Medians of runs that alternate (Linux with the GNU C library).

    python benchmarks/restoration_size.py
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable

import torch
from _claims import record
from _measure import arguments, peak_memory

import heads
from dense.backbone import load_backbone
from heads import Features, RestorationHead

TOKENS = 256
LAYERS = (0, 2, 3, 5)  # of six
GROWTH = 1.3  # most growth per pixel
SHARE = 0.5  # most time that guidance adds, of that of the body
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt
PARTS = ("body", "body with fusion", "backbone")


def head(guidance: str, dim: int) -> RestorationHead:
    """Return the tiny body with or without guidance."""
    torch.manual_seed(0)
    spec = {"name": "restoration", "in_channels": [dim] * 4, "body": "tiny", "width": 32, "guidance": guidance}
    built = heads.build({**spec, "tokens": TOKENS, "outputs": {"restored": {"name": "image"}}})
    assert isinstance(built, RestorationHead)
    return built.eval()


def parts_of(side: int) -> dict[str, Callable[[], object]]:
    """Return the calls that are measured for one image size."""
    backbone = load_backbone("scenes_tiny", frozen=True).eval()
    plain, guided = (head(guidance, backbone.spec.dim) for guidance in ("none", "channels"))
    image = torch.rand(1, 3, side, side)

    def see() -> Features:
        return backbone(guided.backbone_input(image, backbone.spec.patch), layers=LAYERS)

    with torch.inference_mode():
        features = see()
    runs = (lambda: plain(None, image), lambda: guided(features, image), see)
    return dict(zip(PARTS, (torch.inference_mode()(run) for run in runs), strict=True))


def memory(run: Callable[[], object]) -> float:
    """Return the peak MB of a second call, after all freed memory was returned to the system."""
    run()
    libc().malloc_trim(0)
    return peak_memory(run)


def keep_pages() -> None:
    """Keep allocated memory in this process, so that times do not include page faults."""
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1)):
        libc().mallopt(parameter, value)


def libc() -> ctypes.CDLL:
    """Return the GNU C library."""
    return ctypes.CDLL("libc.so.6")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--sides", type=int, nargs="+", default=[64, 128, 256, 384, 512], help="of images, in increasing order"
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sides = options.sides
    if len(sides) < 2 or sorted(set(sides)) != sides:
        parser.error(f"--sides {' '.join(map(str, sides))}: expected two or more, each larger than the one before")
    runs = {(side, name): run for side in sides for name, run in parts_of(side).items()}
    megabytes = {key: memory(run) for key, run in runs.items()}
    keep_pages()
    times: dict[tuple[int, str], list[float]] = {key: [] for key in runs}
    for number in range(options.rounds + 1):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            if number:  # the first round fetches the pages
                times[key].append(time.perf_counter() - start)
    seconds = {key: statistics.median(values) for key, values in times.items()}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, tiny body, {TOKENS} patches at most, fp32")
    print(f"{'side':>6}" + "".join(f"{name:>28}" for name in PARTS) + f"{'guidance / body':>18}")
    for side in sides:
        cells = "".join(f"{1000 * seconds[side, n]:>14.0f} ms {megabytes[side, n]:>7.0f} MB" for n in PARTS)
        print(f"{side:>6}{cells}{share(seconds, side):>18.2f}")
    claim(seconds, megabytes, sides)


def share(seconds: dict[tuple[int, str], float], side: int) -> float:
    """Return the time of fusion and backbone, divided by that of the body."""
    body, fused, backbone = (seconds[side, name] for name in PARTS)
    return (fused + backbone - body) / body


def claim(seconds: dict[tuple[int, str], float], megabytes: dict[tuple[int, str], float], sides: list[int]) -> None:
    """Record the growth per pixel up to the largest size, and the cost of the guidance there."""
    last = sides[-1]
    middle = min(sides[:-1], key=lambda side: abs(side - last / 2))
    for name in PARTS[:2]:
        for what, unit, found, factor in (("time", "us", seconds, 1e6), ("memory", "kB", megabytes, 1e3)):
            large, small = (factor * found[side, name] / side**2 for side in (last, middle))
            print(
                f"{name}, {what} per pixel: {large:.2f} {unit} at {last} px, {small:.2f} {unit} at {middle} px, "
                f"{large / small:.2f} times; target {GROWTH} at most"
            )
            record(
                f"restoration, {name}: {what} a pixel at {last} px against {middle} px", ours=f"{large:.2f} {unit}",
                peer=f"{middle} px", theirs=f"{small:.2f} {unit}", value=large / small, most=GROWTH,
            )  # fmt: skip
    body, fused, backbone = (1000 * seconds[last, name] for name in PARTS)
    record(
        f"restoration, {last} px: what guidance adds to the time of the body", peer="body", theirs=f"{body:.0f} ms",
        ours=f"fusion {fused - body:.0f} ms, backbone {backbone:.0f} ms", value=share(seconds, last), most=SHARE,
    )  # fmt: skip


if __name__ == "__main__":
    main()
