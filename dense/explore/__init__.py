"""Understanding a backbone by looking: a sheet of an image, and a page on which features are touched.

The package itself can be called: ``dense.explore(images, output)`` is `dense.explore.run.explore`.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dense.suggest import lazily

if TYPE_CHECKING:
    from dense.explore.run import Page

_PUBLIC = {"explore": "dense.explore.run", "look": "dense.explore.look", "Page": "dense.explore.run"}
__all__ = sorted(_PUBLIC)
__getattr__ = lazily(__name__, _PUBLIC)


class _Callable(ModuleType):
    def __call__(self, images: Any, output: str | Path, **options: Any) -> "Page":
        """Write a page on which features are explored; see `dense.explore.run.explore`."""
        return self.explore(images, output, **options)


sys.modules[__name__].__class__ = _Callable
