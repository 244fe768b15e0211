"""An import of timm that leaves out torch.compile's front end, which takes as long to import as torch itself."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"


def _import_timm() -> None:
    """Import timm before anything else imports it.

    torchvision imports torch.compile's front end for a check in RoI pooling, and timm to mark methods of NaFlexViT.
    Both get functions that import it when they are called.
    """
    if "timm" in sys.modules or COMPILER in sys.modules:
        return
    package: Any = ModuleType(COMPILER)
    utils: Any = ModuleType(f"{COMPILER}.utils")
    package.disable, utils.is_compile_supported = _disable, _is_compile_supported
    left_out = {COMPILER: package, f"{COMPILER}.utils": utils}
    sys.modules |= left_out
    try:
        with contextlib.suppress(ImportError, AttributeError):  # another release that needs more of it imports it all
            importlib.import_module("timm")
    finally:
        for name, module in left_out.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _disable(function: Callable[..., Any], *options: Any, **named: Any) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        real = importlib.import_module(COMPILER)
        return real.disable(function, *options, **named)(*args, **kwargs)

    return run


def _is_compile_supported(device_type: Any) -> Any:
    return importlib.import_module(f"{COMPILER}.utils").is_compile_supported(device_type)


_import_timm()
