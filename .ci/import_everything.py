"""Import every module with the network blocked: `python import_everything.py [FOLDER that they must come from]`."""

import importlib
import pkgutil
import socket
import sys
from pathlib import Path


def _blocked(*args: object, **kwargs: object) -> None:
    raise OSError("the network was touched at import")


def main() -> None:
    socket.socket.connect = _blocked  # type: ignore[method-assign, assignment]
    socket.getaddrinfo = _blocked  # type: ignore[assignment]
    count = 0
    for name in ("heads", "dense", "pretrain"):
        package = importlib.import_module(name)
        if len(sys.argv) > 1:
            assert Path(package.__file__ or "").is_relative_to(sys.argv[1]), f"{name} came from {package.__file__}"
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
                count += 1
    from dense.recipes import config_folder

    assert config_folder().is_dir(), config_folder()
    print(f"{count} modules imported without the network")


if __name__ == "__main__":
    main()
