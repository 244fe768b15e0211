"""Names that load on first use."""

from __future__ import annotations

import importlib
import multiprocessing
import sys

import pytest

import dense
from dense import tasks
from dense.suggest import lazily


def test_names_come_from_their_modules() -> None:
    """All that are public, and only when they are asked for."""
    process = multiprocessing.get_context("fork").Process(target=_import_again)
    process.start()
    process.join()
    assert process.exitcode == 0
    for name in tasks.__all__:
        assert getattr(tasks, name).__name__ == name
    assert dense.discover is sys.modules["dense.discover"]


def _import_again() -> None:
    """Import dense.tasks as if for the first time."""
    for name in [name for name in sys.modules if name.startswith("dense.tasks")]:
        del sys.modules[name]
    vars(dense).pop("tasks", None)
    from dense import tasks
    from dense.model.network import DenseModel

    assert "dense.tasks.data" not in sys.modules
    assert tasks.DenseModel is DenseModel
    from dense.tasks import DenseData

    assert DenseData is sys.modules["dense.tasks.data"].DenseData


def test_what_is_not_there_is_named() -> None:
    """With the nearest name that is."""
    with pytest.raises(AttributeError, match=r"no attribute 'DensData'\. Did you mean DenseData"):
        _ = tasks.DensData
    with pytest.raises(AttributeError, match=r"'room' has no attribute '__path__'$"):
        lazily("room", {"path": "os"})("__path__")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("dense.evaluate.views", "CenterCrop"),
        ("dense.predict.video", "Film"),
        ("dense.tracking", "overlays"),
        ("dense.visual", "label_picture"),
        ("dense.tasks.model", "DenseModel"),
        ("dense.tasks.inference", "slide"),
        ("pretrain.cli", "run"),
    ],
)
def test_former_paths_still_lead_there(path: str, name: str) -> None:
    """They warn and name the new module."""
    sys.modules.pop(path, None)
    with pytest.warns(FutureWarning, match=f"{path} is now "):
        module = importlib.import_module(path)
    assert callable(getattr(module, name))
    with pytest.raises(AttributeError):
        _ = module.nothing
