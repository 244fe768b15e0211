"""The backbone that is used where none is named: explicit, the environment's, published, in the package."""

from __future__ import annotations

import io
import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from dense.backbone import WeightsError
from dense.backbone.at_hand import BEST, SHIPPED, at_hand
from dense.cli import main
from dense.console import voice

REPOSITORY = "models--timm--vit_small_patch14_reg4_dinov2.lvd142m"


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No environment, empty caches, and no network."""
    monkeypatch.delenv("DENSE_BACKBONE", raising=False)
    monkeypatch.delenv("DENSE_WEIGHTS", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))

    def refuse(*args: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path


def put(cache: Path, file: str = "model.safetensors") -> Path:
    """A file of weights in the hub's cache, as the hub's own client leaves it."""
    root = cache / "hub" / REPOSITORY
    path = root / "snapshots" / "abc" / file
    path.parent.mkdir(parents=True)
    path.touch()
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("abc")
    return path


def test_a_name_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DENSE_BACKBONE", "scenes_tiny")
    assert at_hand("dino_vits16", "file.pth") == ("dino_vits16", "file.pth")
    assert at_hand("dino_vits16") == ("dino_vits16", None)
    with pytest.raises(ValueError, match=r"weights x\.pth without a backbone"):
        at_hand(None, "x.pth")


def test_then_the_environment(monkeypatch: pytest.MonkeyPatch, empty: Path) -> None:
    put(empty)
    monkeypatch.setenv("DENSE_BACKBONE", "scenes_tiny")
    assert at_hand() == ("scenes_tiny", None)
    monkeypatch.setenv("DENSE_BACKBONE", "dino_vits16")
    with pytest.raises(ValueError, match="not in the hub's cache; add --download, or offline set DENSE_WEIGHTS"):
        at_hand()
    for typed, near in (("dinov2_vits41", "dinov2_vits14"), ("photo_tiny", "photos_tiny")):
        monkeypatch.setenv("DENSE_BACKBONE", typed)
        with pytest.raises(ValueError, match=f"DENSE_BACKBONE={typed}: .* Did you mean {near}"):
            at_hand(download=True)
    monkeypatch.setenv("DENSE_BACKBONE", "dino_vits16")
    monkeypatch.setenv("DENSE_WEIGHTS", "mine.pth")
    assert at_hand() == ("dino_vits16", "mine.pth")
    monkeypatch.delenv("DENSE_BACKBONE")
    with pytest.raises(ValueError, match=r"DENSE_WEIGHTS=mine\.pth without DENSE_BACKBONE"):
        at_hand()


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_then_published_weights_in_the_cache(empty: Path, file: str) -> None:
    path = put(empty, file)
    assert at_hand() == (BEST, str(path))


def test_or_those_of_torch_hub(empty: Path) -> None:
    path = empty / "torch" / "checkpoints" / "dinov2_vits14_reg4_pretrain.pth"
    path.parent.mkdir(parents=True)
    path.touch()
    assert at_hand() == (BEST, str(path))


def test_else_the_one_in_the_package_with_advice(capsys: pytest.CaptureFixture[str]) -> None:
    assert at_hand() == (SHIPPED, None)
    told = capsys.readouterr().err
    assert "--download" in told
    assert "--weights FILE" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(("answer", "fetched"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_a_terminal_is_asked(monkeypatch: pytest.MonkeyPatch, answer: str, fetched: bool) -> None:
    """Only inside a verb, only at a terminal; anything but yes is no."""
    asked = []

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(answer))
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a: asked.append(a) or "/got")
    assert at_hand() == (SHIPPED, None)
    assert not asked
    with voice(quiet=False):
        assert at_hand() == ((BEST, "/got") if fetched else (SHIPPED, None))
    assert bool(asked) == fetched


def test_download_without_the_network_names_the_offline_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any) -> None:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(WeightsError, match="offline"):
        at_hand(download=True)


def test_a_verb_without_a_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It runs with the one in the package."""
    from PIL import Image

    Image.new("RGB", (40, 32), "red").save(tmp_path / "a.png")
    assert main(["features", str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]) == 0
    assert "no published backbone is at hand" in capsys.readouterr().err
