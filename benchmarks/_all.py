"""Run every benchmark, print one table of their claims and write it to a Markdown file.

    python benchmarks/_all.py [NAME ...]

The measurements of each benchmark are kept in its own file in results/, with the machine and the date. So some can run
again by name, and the page still shows all. A benchmark that fails is reported, and the others still run.
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
from dataclasses import asdict, dataclass
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
    kept = options.output.with_suffix("")
    kept.mkdir(parents=True, exist_ok=True)
    results = {path.stem: read(path) for path in kept.glob("*.json") if path.stem in known}
    for number, name in enumerate(names, 1):
        print(f"== {name} ({number} of {len(names)})", flush=True)
        results[name] = run(known[name])
        (kept / f"{name}.json").write_text(json.dumps(asdict(results[name]), indent=1) + "\n")
        options.output.write_text(page(dict(sorted(results.items())), list(known)))
    print(f"\n{table([row(claim) for name in names for claim in results[name].claims])}\n")
    print(f"wrote {options.output}")
    if failed := [name for name in names if results[name].status]:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


@dataclass(frozen=True)
class Result:
    """Claims of a benchmark, its machine, its seconds and its exit status."""

    claims: list[Claim]
    machine: dict[str, Any]
    seconds: float
    status: int


def read(path: Path) -> Result:
    """Read a kept result."""
    content = json.loads(path.read_text())
    return Result(**(content | {"claims": [Claim(**claim) for claim in content["claims"]]}))


def run(path: Path) -> Result:
    """Run a benchmark in a process of its own, with its output shown."""
    facts = machine()
    with tempfile.TemporaryDirectory() as folder:
        collected = Path(folder) / "claims.jsonl"
        collected.touch()
        paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, str(path)], env=os.environ | {WHERE: str(collected), "PYTHONPATH": paths}, check=False
        )
        claims = [Claim(**json.loads(line)) for line in collected.read_text().splitlines()]
    return Result(claims, facts, round(time.monotonic() - start), done.returncode)


def row(claim: Claim) -> tuple[str, ...]:
    """Return the cells of a claim."""
    ratio = "" if claim.ratio is None else f"{claim.ratio:.2f}"
    met = {None: "", True: "yes", False: "NO"}[claim.met]
    return (claim.claim, claim.peer, claim.ours, claim.theirs, ratio, claim.target, met)


def table(rows: list[tuple[str, ...]]) -> str:
    """Align the columns for a terminal."""
    widths = [max(len(r[i]) for r in [HEADER, *rows]) for i in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in [HEADER, *rows]
    )


def page(results: dict[str, Result], known: list[str]) -> str:
    """Return the table as Markdown, with the machine and the date of each benchmark."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `make bench`, or a part at a time by `python benchmarks/_all.py NAME ...`. Medians of paired runs",
        "that alternate in one run. A ratio says how many times better ours is: theirs / ours in time and in memory.",
        "",
    ]
    if missing := [name for name in known if name not in results]:
        lines += [f"Not run yet: {', '.join(missing)}.", ""]
    lines += [f"| benchmark | {' | '.join(HEADER)} |", "|---" * (len(HEADER) + 1) + "|"]
    for name, result in results.items():
        lines += [f"| {name} | {' | '.join(row(claim))} |" for claim in result.claims]
        if not result.claims and not result.status:
            words = f"works; its claims want a longer run: `python benchmarks/{name}.py --help`"
            lines.append(f"| {name} | {words} |{' |' * (len(HEADER) - 1)}")
        if result.status:
            lines.append(f"| {name} | FAILED with status {result.status} |{' |' * (len(HEADER) - 1)}")
    facts = list(dict.fromkeys(fact for result in results.values() for fact in result.machine))
    head = f"| benchmark | seconds | {' | '.join(facts)} |"
    lines += ["", "## On what", "", head, "|---" * (len(facts) + 2) + "|"]
    for name, result in results.items():
        cells = " | ".join(str(result.machine.get(fact, "")) for fact in facts)
        lines.append(f"| {name} | {result.seconds:.0f} | {cells} |")
    return "\n".join(lines) + "\n"


def machine() -> dict[str, Any]:
    """Return the facts that the numbers depend on."""
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
