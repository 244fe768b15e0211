"""Claim: at least 100 embedded scenes per second on one core at 128 px. Prints medians over blocks of scenes."""

import os
import statistics
import time

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np  # noqa: E402
from _claims import record  # noqa: E402
from _measure import arguments  # noqa: E402

from dense.data.scenes import render, sample  # noqa: E402


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 224])
    parser.add_argument("--scenes", type=int, default=50, help="scenes per block")
    parser.add_argument("--blocks", type=int, default=9)
    options = parser.parse_args()
    print(f"numpy {np.__version__}, one thread, medians of {options.blocks} blocks of {options.scenes} scenes")
    cases = [
        ("world only", None, 1),
        *((f"{size} px", size, 1) for size in options.sizes),
        ("128 px, supersample 2", 128, 2),
    ]
    render(0, 0, 32)  # fills the tables of noise
    rates: dict[str, list[float]] = {case[0]: [] for case in cases}
    for block in range(options.blocks):
        for name, size, supersample in cases:
            start = time.perf_counter()
            for index in range(block * options.scenes, (block + 1) * options.scenes):
                if size is None:
                    sample(0, index)
                else:
                    render(0, index, size, supersample=supersample)
            rates[name].append(options.scenes / (time.perf_counter() - start))
    for name, values in rates.items():
        print(
            f"{name:24s} {statistics.median(values):7.0f} scenes/s  (least {min(values):.0f}, most {max(values):.0f})"
        )
        rate = statistics.median(values)
        least = 100 if name == "128 px" else None
        record(f"scenes, {name}, one core", ours=f"{rate:.0f} a second", value=rate, least=least)


if __name__ == "__main__":
    main()
