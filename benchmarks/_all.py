"""Run every benchmark, print one table of their claims and write it to a Markdown file.

    python benchmarks/_all.py [NAME ...]

A benchmark that fails is named, and the others run all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _claims import WHERE, Claim

HERE = Path(__file__).parent
HEADER = ("claim", "peer", "ours", "theirs", "ratio", "target", "met")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="benchmarks, such as views; all if left out")
    parser.add_argument("--folder", type=Path, default=HERE, help="where they are")
    parser.add_argument("--output", type=Path, default=HERE / "results.md", help="file for the table")
    options = parser.parse_args()
    known = {path.stem: path for path in sorted(options.folder.glob("[a-z]*.py"))}
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}")
    names = options.names or list(known)
    facts, sections, failed = machine(), [], []
    for number, name in enumerate(names, 1):
        print(f"== {name} ({number} of {len(names)})", flush=True)
        claims, seconds, status = run(known[name])
        if status:
            failed.append(name)
        sections.append((name, claims, seconds, status))
        options.output.write_text(page(facts, sections, len(known)))  # what is measured stays, whatever comes next
    rows = [row(claim) for _, claims, _, _ in sections for claim in claims]
    print(f"\n{table(rows)}\n")
    print(f"wrote {options.output}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run(path: Path) -> tuple[list[Claim], float, int]:
    """Claims of a benchmark, its seconds and its exit status; what it prints is shown."""
    with tempfile.TemporaryDirectory() as folder:
        collected = Path(folder) / "claims.jsonl"
        collected.touch()
        paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, str(path)], env=os.environ | {WHERE: str(collected), "PYTHONPATH": paths}, check=False
        )
        claims = [Claim(**json.loads(line)) for line in collected.read_text().splitlines()]
    return claims, time.monotonic() - start, done.returncode


def row(claim: Claim) -> tuple[str, ...]:
    """Cells of a claim."""
    ratio = "" if claim.ratio is None else f"{claim.ratio:.2f}"
    met = {None: "", True: "yes", False: "NO"}[claim.met]
    return (claim.claim, claim.peer, claim.ours, claim.theirs, ratio, claim.target, met)


def table(rows: list[tuple[str, ...]]) -> str:
    """Aligned columns for a terminal."""
    widths = [max(len(r[i]) for r in [HEADER, *rows]) for i in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in [HEADER, *rows]
    )


def page(facts: dict[str, Any], sections: list[tuple[str, list[Claim], float, int]], known: int) -> str:
    """The table as Markdown, with the machine it was measured on."""
    names = [name for name, *_ in sections]
    made = "make bench" if len(names) == known else f"python benchmarks/_all.py {' '.join(names)}"
    lines = ["# Benchmarks", "", f"Made by `{made}`. Medians of paired runs that alternate in one run.", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", f"| benchmark | {' | '.join(HEADER)} |", "|---" * (len(HEADER) + 1) + "|"]
    for name, claims, _, status in sections:
        lines += [f"| {name} | {' | '.join(row(claim))} |" for claim in claims]
        if status:
            lines.append(f"| {name} | FAILED with status {status} |{' |' * (len(HEADER) - 1)}")
    lines += [
        "",
        "A ratio says how many times better ours is: theirs / ours in time and in memory.",
        "",
        "Seconds each took: ",
    ]
    lines[-1] += ", ".join(f"{name} {seconds:.0f}" for name, _, seconds, _ in sections)
    return "\n".join(lines) + "\n"


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    import torch

    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": f"{models[0] if models else platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "load before": ", ".join(f"{value:.1f}" for value in os.getloadavg()),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "torch": torch.__version__,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


if __name__ == "__main__":
    sys.exit(main())
