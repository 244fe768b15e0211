"""Command-line parsing that names the nearest valid option and exits with status 2."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from dense.examples import COMMON, epilogue
from dense.suggest import did_you_mean


def with_suggestion(message: str, valid: Iterable[str]) -> str:
    """An argument error with the nearest valid name behind it, where the message quotes a wrong one."""
    valid = list(valid)
    patterns = (
        r"unrecognized arguments?:? (\S+)",
        r"invalid choice: '([^']+)'",
        r"[Kk]ey ['\"]?([\w.\-]+)['\"]? is not expected",
        r"No action for key ['\"]?([\w.\-]+)['\"]? to",
        r"Option ['\"]?([\w.\-]+)['\"]? is not accepted",
        r"Unexpected keyword arguments?:? ['\"]?([\w.\-]+)",
        r"Group '([\w.\-]+)' does not accept option '([\w.\-]+)'",
    )
    for pattern in patterns:
        found = re.search(pattern, message, re.IGNORECASE)
        if found:
            wrong = ".".join(found.groups()).split("=")[0].lstrip("-")
            prefix = "--" if found.group(1).startswith("--") else ""
            hint = did_you_mean(wrong, [name.lstrip("-") for name in valid], prefix=prefix)
            return message.rstrip(".") + "." + hint if hint else message
    return message


class Parser(argparse.ArgumentParser):
    """argparse with suggestions, defaults and examples in the help, and no abbreviated options."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's, but a misspelt option is named before a missing one."""
        given = list(sys.argv[1:] if args is None else args)
        known = {option for action in self._actions for option in action.option_strings}
        for argument in given:
            if argument.startswith("--") and len(argument) > 2 and argument.split("=")[0] not in known:
                self.error(f"unrecognized arguments: {argument}")
        return super().parse_args(given, namespace)

    def format_help(self) -> str:
        """With examples."""
        return super().format_help() + epilogue(self.prog)

    def error(self, message: str) -> NoReturn:
        """Print the error with a suggestion in one line, and exit with status 2."""
        valid = [option for action in self._actions for option in action.option_strings]
        valid += [*COMMON, *(str(c) for action in self._actions for c in action.choices or ())]
        self.exit(2, f"{self.prog}: error: {with_suggestion(message, valid).rstrip('.')} (see {self.prog} --help)\n")


def key_value(text: str) -> tuple[str, Any]:
    """'depth=4' -> ("depth", 4), with YAML's idea of values."""
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise argparse.ArgumentTypeError(f"{value!r} is not a YAML value") from None


def device(text: str) -> str:
    """A device that this machine has: cpu, cuda, cuda:1, mps, ..."""
    import torch

    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"this machine has no device {text!r} ({reason}); use cpu") from None
    return text
