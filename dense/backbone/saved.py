"""The format of a saved model: a directory of config.json, model.safetensors and a model card, loaded strictly."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors.torch import save_file
from torch import Tensor

from dense._version import __version__
from dense.backbone.weights.checkpoint import read_checkpoint
from dense.backbone.weights.names import IDS, directory, on_this_machine, title_of
from dense.backbone.weights.report import WeightsError
from dense.console import warn
from dense.files import replacing, write
from dense.suggest import did_you_mean

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PATIENCE = 5.0  # seconds of a download before it is announced


class SavedModel(ModelHubMixin, library_name="dino-dense", license="apache-2.0", tags=["dino-dense"]):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for a module that defines the four methods below.

    huggingface_hub's own loading is not strict and falls back to pickle, so this class saves and loads itself.
    """

    title: str | None = None  # the name by which it was opened, for people

    def config(self) -> dict[str, Any]:
        """Return plain data from which `from_config` builds the module."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Build a module with random initialisation."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Return the contents of model.safetensors."""
        raise NotImplementedError

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Load what `tensors` returned; a partial match raises."""
        raise NotImplementedError

    def save_pretrained(
        self, save_directory: str | Path, dtype: torch.dtype | None = None, **options: Any
    ) -> str | None:
        """Write config.json, model.safetensors and a README.md; existing files are replaced atomically.

        dtype: of stored floats, such as torch.float16 for half the size; loading converts them to fp32 again.
        """
        repo_id, push = options.pop("repo_id", None), options.pop("push_to_hub", False)
        card = options.pop("model_card_kwargs", None) or {}
        options.pop("config", None)  # huggingface_hub's own; `config()` is what is written
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self._save_pretrained(folder, dtype)
        if not (folder / "README.md").exists():
            write(folder / "README.md", str(self.generate_model_card(**card)))
        return self.push_to_hub(repo_id=repo_id or folder.name, model_card_kwargs=card, **options) if push else None

    def _save_pretrained(self, save_directory: Path, dtype: torch.dtype | None = None) -> None:
        config = {"format": f"dino-dense/{type(self).__name__.lower()}", "version": __version__} | self.config()
        tensors = {
            k: v.detach().to(dtype if v.is_floating_point() else None).contiguous().cpu()
            for k, v in self.tensors().items()
        }
        with replacing(save_directory / CONFIG, sum(tensor.nbytes for tensor in tensors.values())) as file:
            file.write_text(json.dumps(config, indent=2) + "\n")
            save_file(tensors, file.with_name(WEIGHTS), metadata={"format": "pt"})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Open a saved directory, or download one from the Hugging Face hub by its `owner/name`."""
        hub = ("revision", "token", "cache_dir", "force_download", "local_files_only")
        if wrong := [k for k in options if k not in hub]:
            raise TypeError(
                f"from_pretrained has no option {wrong[0]!r}; change a backbone with load_backbone(DIR, {wrong[0]}=...)"
            )
        source = str(pretrained_model_name_or_path)
        folder = Path(source)
        if not folder.is_dir():
            if folder.exists():
                raise ValueError(
                    f"{source} is a file; from_pretrained opens a saved directory. For a weight file use load_backbone"
                )
            if source.count("/") != 1 or source.startswith((".", "/", "~")):
                if directory(source) is not None:
                    raise FileNotFoundError(
                        f"{source} is a backbone in the package, not a directory; open it with load_backbone"
                    )
                raise FileNotFoundError(
                    f"no directory {source}; expected one written by save_pretrained, or a hub name owner/name"
                )
            with fetching(source):
                folder = Path(hf_hub_download(source, CONFIG, **options)).parent
                hf_hub_download(source, WEIGHTS, **options)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path, config: dict[str, Any] | None = None) -> Self:
        """Open a local directory; `config` replaces its own config.json."""
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                inside = next(
                    (f"; {f} has one" for f in (folder / "model", folder / "backbone") if (f / name).is_file()), ""
                )
                raise FileNotFoundError(f"{folder} has no {name}{inside}; a saved model is {CONFIG} + {WEIGHTS}")
        module = cls.from_config(read_json(folder / CONFIG) if config is None else config)
        module.load_tensors(read_checkpoint(folder / WEIGHTS))
        module.title = title_of(folder)
        return module.eval()


@contextmanager
def fetching(name: str) -> Iterator[None]:
    """Hide the hub's messages about retries during a download, and raise one clear error without a network.

    A download that takes longer than PATIENCE is announced, since the hub retries for a minute.
    """
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    said = f"waiting for {name} from the Hugging Face hub; without a network this ends within a minute"
    waiting = threading.Timer(PATIENCE, copy_context().run, (warn, said))  # which knows of --quiet
    waiting.daemon = True
    waiting.start()
    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        meant = did_you_mean(name, IDS) if "/" in name and name not in IDS else ""
        raise WeightsError(
            f"{name} is not in the local cache and the Hugging Face hub cannot be reached; check the network, or work "
            "offline: fetch its file or directory on another machine and give its path as weights (--weights, of dense "
            "train --model.backbone.weights), or use a backbone that is on this machine: "
            f"{', '.join(on_this_machine())} (of dense train --model.backbone.name NAME --model.backbone.weights null)"
            f"{meant and '.'}{meant}"
        ) from None
    finally:
        waiting.cancel()
        log.setLevel(level)


def read_json(path: Path) -> dict[str, Any]:
    """Return the contents of a JSON file that holds an object."""
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}; expected names and values, {{...}}")
    return content
