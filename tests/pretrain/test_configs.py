"""Every shipped config builds its module on the meta device, with the published numbers."""

from __future__ import annotations

import functools
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser

from dense.recipes import config_folder
from pretrain.masking import VIEWS
from pretrain.module import DINO
from pretrain.network import check_crops
from pretrain.views import MultiCrop

FOLDER = config_folder() / "pretrain"
DISTILLING = ("distill", "photos_tiny")
NAMES = sorted(p.stem for p in FOLDER.glob("*.yaml"))


def base_of(name: str) -> list[str]:
    """Return the configs of a stage: that of the first stage and its own."""
    first = name.removesuffix("_gram").removesuffix("_high_res")
    return [first] if first == name else [first, name]


@functools.cache
def parser_of(part: str) -> LightningArgumentParser:
    """Return the parser of the model or of the views of a config, which takes longer to build than to use."""
    parser = LightningArgumentParser()
    if part == "model":
        parser.add_class_arguments(DINO, "model")
    else:
        parser.add_argument("--views", type=MultiCrop)
    parser.add_argument("-c", "--config", action="config")
    return parser


def parse(part: str, names: list[str], folder: Path) -> Any:
    """Parse one part of several configs, in order, as the command does."""
    parser, argv = parser_of(part), []
    for name in names:
        content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
        content = content["model"] if part == "model" else content.get("data", {}).get("views")
        if part == "model" and name != names[-1]:  # the config of the first stage builds the whole network
            content["backbone"] = {**content["backbone"], "arguments": {**content["backbone"]["arguments"], "depth": 2}}
        if content is not None:
            path = folder / f"{name}-{part}.yaml"
            path.write_text(yaml.safe_dump({part: content}))
            argv.append(f"--config={path}")
    if part == "model" and len(names) > 1:
        argv.append("--model.start_from=RUN")
    if part == "model" and names[0] in DISTILLING:
        argv += ["--model.teacher.name=RUN", "--model.backbone.init_from=null"]
    return parser.instantiate(parser.parse_args(argv))[part]


@functools.cache
def built(name: str) -> DINO:
    """Return the module of a config on the meta device, without a run of the stage before."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        for function in ("load_run", "check_start", "load_start"):
            patch.setattr(f"pretrain.module.{function}", lambda *_: None)
        patch.setattr("pretrain.module.frozen_teachers", lambda _: [])
        patch.setattr("pretrain.module.distillation_teacher", lambda *_: None)
        return parse("model", base_of(name), Path(folder))


@pytest.mark.parametrize("name", NAMES)
def test_a_config_builds(name: str, tmp_path: Path) -> None:
    """There is a header; module, views and objective fit together."""
    header = (FOLDER / f"{name}.yaml").read_text()
    assert header.startswith("# ")
    module = built(name)
    crops = parse("views", base_of(name), tmp_path)
    for choice in getattr(crops, "choices", [crops]):
        check_crops(module.recipe, module.student, choice, 64, 64)
        crop = torch.empty(2, 3, choice.sizes[0], choice.sizes[0], device="meta", dtype=torch.uint8)
        assert module.student.grid(crop)[0] > 1
    assert len(crops.sizes) >= VIEWS
    assert module.plan(images=10**7, total_batch=2048).steps > 0
    assert ("features" if name in DISTILLING else "dino") in module.terms


def test_published_numbers() -> None:
    """Numbers of parameters, schedules and temperatures are the published ones."""

    def parameters(network: torch.nn.Module) -> int:
        return sum(p.numel() for p in network.parameters())

    short = built("dinov2_vitl16_short")
    plan = short.plan(images=1_281_167, total_batch=2048)
    assert (plan.steps, plan.steps_per_epoch) == (125_000, 1250)
    assert plan.lr(12_499) == pytest.approx(4e-3 * 2**0.5)
    term: Any = short.terms["dino"]
    assert [round(term.targets.temperature(s, 1250), 4) for s in (0, 37_499, 10**5)] == [0.04, 0.07, 0.07]
    assert short.student.patch_head is None
    large: Any = built("dinov2_vitl14")
    assert large.student.backbone.model.blocks[0].mlp.fc2.weight.shape == (1024, 2736)
    assert large.student.head.last_layer.out_features == large.student.patch_head.last_layer.out_features == 131072
    assert large.student.head.mlp[-1].out_features == 384
    giant = built("dinov2_vitg14")
    table = (37 * 37 - 16 * 16) * 1536  # the published position table is that of 518 pixels
    assert parameters(giant.student.backbone) + table == 1_136_480_768
    huge: Any = built("dinov3_vit7b16")
    assert parameters(huge.student.backbone) + parameters(huge.student.local_norm) == 6_716_043_264
    assert huge.student.head.last_layer.weight.shape == (262144, 512)
    assert huge.student.patch_head.last_layer.weight.shape == (98304, 384)
    plan = huge.plan(images=10**9, total_batch=4096)
    assert plan.steps == 1_000_000
    assert [plan.lr(s) for s in (99_999, 500_000, 999_999)] == pytest.approx([4e-4] * 3)
    assert {round(plan.momentum(s), 6) for s in (0, 10**6)} == {0.994}
    gram: Any = built("dinov3_vit7b16_gram")
    assert gram.plan(images=10**9, total_batch=4096).steps == 200_000
    assert (gram.terms["gram"].weight(0), gram.terms["dino"].local_weight) == (2.0, 0.5)
    ibot: Any = built("ibot_vits16")
    assert [round(ibot.terms[n].targets.temperature(10**6, 100), 4) for n in ("dino", "ibot")] == [0.04, 0.07]
