"""One step of distillation, with the teacher live and with its features cached, against the teacher's forward pass.

The student is a ViT-Ti/16, the teacher a ViT-S/14 with random initialisation, each image has two views of 224 px, in
fp32. Numbers are medians of paired runs, alternating; memory is the peak of resident memory of a process of its own,
networks included. The cached step does not include reading the features.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial

import torch
from _claims import record
from _measure import alternate, arguments, last_number, median_ratio, peak_memory, resident

import dense
from pretrain.data import ViewBatch
from pretrain.module import DINO
from pretrain.network import teacher_features
from pretrain.optim import build_optimizer, clip_gradients_, parameter_groups, set_hyperparameters
from pretrain.recipe import BackboneOptions, DINOOptions, FeatureOptions, TeacherOptions

WAYS = ("teacher", "live", "cached")


def build(way: str, batch: int) -> Callable[[], object]:
    """Return the teacher's forward pass, or a training step."""
    with tempfile.TemporaryDirectory() as folder:
        dense.load_backbone("dinov2_vits14").save_pretrained(folder)
        module = DINO(
            BackboneOptions("vit_tiny_patch16_224", drop_path=0.0),
            teacher=TeacherOptions(name=folder),
            dino=DINOOptions(weight=0.0),
            features=FeatureOptions(weight=1.0),
        )
    module.schedules = module.plan(10**4, batch)
    crops = [torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8) for _ in range(2)]
    (teacher,) = module.frozen
    forward = partial(teacher_features, teacher, torch.cat(crops))  # type: ignore[arg-type]
    if way == "teacher":
        return forward
    cached = [torch.randn(batch, 2, 384), torch.randn(batch, 2, 16, 16, 384)] if way == "cached" else []
    views = ViewBatch(crops, torch.arange(batch), torch.empty(0), [], cached)
    optimizer = build_optimizer("adamw", parameter_groups(module.student))
    set_hyperparameters(optimizer, 4e-4, 0.04)
    if way == "cached":
        module.frozen = torch.nn.ModuleList()

    def step() -> None:
        outputs = module.run_networks(views, 1, 0)
        torch.stack([term(outputs) for term in module.terms.values()]).sum().backward()
        clip_gradients_(module.student.parameters(), 1.0, "global")
        optimizer.step()
        optimizer.zero_grad()
        module.teacher.after_step(module.student, 0.99)

    return step


def main() -> None:
    """Print the comparison."""
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        before = resident("VmRSS")
        print(peak_memory(build(options.memory, options.batch), before))
        return
    times = dict(
        zip(WAYS, alternate([build(way, options.batch) for way in WAYS], options.repeats, warm_up=1), strict=True)
    )
    memory = {way: last_number(__file__, f"--batch={options.batch}", "--memory", way) for way in WAYS}
    print(f"batch {options.batch} of two views, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'way':<8} {'median s':>9} {'of teacher':>11} {'peak MB':>9}")
    for way in WAYS:
        share = 1 / median_ratio(times["teacher"], times[way])
        print(f"{way:<8} {statistics.median(times[way]):>9.2f} {share:>11.2f} {memory[way]:>9.0f}")
    seconds = {way: f"{statistics.median(times[way]):.2f} s" for way in WAYS}
    what = f"distillation step, ViT-S/14 to ViT-Ti/16, batch {options.batch}"
    ratio = median_ratio(times["live"], times["cached"])
    record(
        f"{what}, cached", peer="live teacher", ours=seconds["cached"], theirs=seconds["live"], ratio=ratio, least=1.2
    )
    ratio = median_ratio(times["teacher"], times["live"])
    record(f"{what}, live", peer="the teacher alone", ours=seconds["live"], theirs=seconds["teacher"], ratio=ratio)


if __name__ == "__main__":
    main()
