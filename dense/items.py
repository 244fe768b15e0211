"""The items of a run, such as its images: shared among processes, continued after a stop, joined once at the end."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dense.console import say
from dense.files import RunFolder
from dense.ranks import ALONE


class Items:
    """What was made of each of several named items, by this process, by others, or by a run that was stopped.

    Of N processes, number r makes the items r, r + N, r + 2 N, ... that no earlier run of the same command has made.
    None waits for another: the one that ends last joins what all of them made.

        items = Items(names, run)
        for index in items.todo:
            items.done(index, facts)
        with items.joining() as found:  # the facts of all items in order, or None for all but the last process
            ...

    run: the folder that records the items; without one, this process makes all of them.
    versions: what else each item depends on, such as `version` of its file; one that was changed since is made again.
    group: so many consecutive items are made by one process, and are made again together.
    """

    def __init__(
        self, names: Sequence[str], run: RunFolder | None = None, versions: Sequence[str] | None = None, group: int = 1
    ) -> None:
        self.names, self.run, self.group = list(names), run, group
        self.versions = [""] * len(names) if versions is None else list(versions)
        self.ranks = ALONE if run is None else run.ranks
        self._made: dict[str, Any] = {}  # without a run
        made = self._facts()
        groups = [range(first, min(first + group, len(names))) for first in range(0, len(names), group)]
        self.mine = [index for one in groups[self.ranks.rank :: self.ranks.world] for index in one]
        unmade = {index // group for index, name in enumerate(self.names) if name not in made}
        self.todo = [index for index in self.mine if index // group in unmade]

    def done(self, index: int, facts: Any = None) -> None:
        """Record what was made of an item, once all of its files are written. facts: as JSON holds them."""
        if self.run is None:
            self._made[self.names[index]] = facts
        else:
            self.run.add_item(self.names[index], self.versions[index], facts)

    def _facts(self) -> dict[str, Any]:
        """Return what was made of each item, by name."""
        if self.run is None:
            return self._made
        expected = dict(zip(self.names, self.versions, strict=True))
        return {
            line["item"]: line["facts"] for line in self.run.items() if expected.get(line["item"]) == line["version"]
        }

    @contextlib.contextmanager
    def joining(self) -> Iterator[list[Any] | None]:
        """Yield the facts of all items, in their order, to the process that ends last; None to the others."""
        with contextlib.nullcontext() if self.run is None else self.run.one_process():
            found = self._facts()
            missing = [index for index, name in enumerate(self.names) if name not in found]
            if not missing:
                yield [found[name] for name in self.names]
                if self.run is not None:
                    self.run.close_items()
                return
            if found and all(self.names[index] in found for index in self.mine):
                of = sorted({self._owner(index) for index in missing})
                say(
                    f"process {self.ranks.rank} of {self.ranks.world} has ended its share; {len(missing)} of "
                    f"{len(self.names)} are still to be done, by process {', '.join(map(str, of[:8]))}. The one that "
                    "ends last joins the results; if one was stopped, the same command continues"
                )
            yield None  # or another process has joined them already

    def _owner(self, index: int) -> int:
        return index // self.group % self.ranks.world


def digest(value: Any) -> str:
    """Return a short name of what JSON can hold."""
    return hashlib.blake2b(json.dumps(value).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def version(*paths: Path) -> str:
    """Return size and time of files, or of the files of folders, which tell whether they were changed."""
    with contextlib.suppress(OSError):
        files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
        stats = [file.stat() for file in files]
        return json.dumps([[one.st_size, one.st_mtime_ns] for one in stats])
    return ""
