"""`dense completion`: completion of verbs, options, their choices and recipes in a shell, by argcomplete."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping, Sequence

from dense.cli.parser import Parser

FOLDERS = {"bash": "~/.local/share/bash-completion/completions/dense", "fish": "~/.config/fish/completions/dense.fish"}


def parser(**options: bool) -> Parser:
    examples = [(f"dense completion {shell} > {path}", "for every new shell") for shell, path in FOLDERS.items()]
    examples.append(('eval "$(dense completion zsh)"', "in ~/.zshrc, after compinit"))
    parser = Parser("dense completion", "Print a shell's completion script.", examples, **options)
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="the shell")
    return parser


def main(argv: Sequence[str]) -> int:
    options = parser().parse_args(argv)
    import argcomplete

    print(argcomplete.shellcode(["dense"], shell="bash" if options.shell == "zsh" else options.shell))
    return 0


def complete(verbs: Mapping[str, str]) -> None:
    """Answer a shell that asks for candidates, and leave the process. verbs: verb -> its module."""
    import argcomplete

    argcomplete.autocomplete(whole(verbs), always_complete_options=False)


def whole(verbs: Mapping[str, str]) -> argparse.ArgumentParser:
    """Return the parsers of all verbs in one."""
    root = argparse.ArgumentParser("dense", allow_abbrev=False)
    choices = root.add_subparsers()
    for verb, name in verbs.items():
        module = importlib.import_module(name)
        if hasattr(module, "parsers"):
            measures = choices.add_parser(verb).add_subparsers()
            for measure, parser in module.parsers(add_help=False).items():
                measures.add_parser(measure, parents=[parser])
        else:
            choices.add_parser(verb, parents=[module.parser(add_help=False)])
    return root
