"""`dense completion`: completion of verbs, options, their choices and recipes in a shell, by argcomplete."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from dense.cli import VERBS
from dense.cli.parser import Parser

FOLDERS = {"bash": "~/.local/share/bash-completion/completions/dense", "fish": "~/.config/fish/completions/dense.fish"}


def parser(**options: bool) -> Parser:
    """The options."""
    examples = [(f"dense completion {shell} > {path}", "for every new shell") for shell, path in FOLDERS.items()]
    examples.append(('eval "$(dense completion zsh)"', "in ~/.zshrc, after compinit"))
    parser = Parser("dense completion", "Print a shell's completion script.", examples, **options)
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="the shell")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    options = parser().parse_args(argv)
    import argcomplete

    print(argcomplete.shellcode(["dense"], shell="bash" if options.shell == "zsh" else options.shell))
    return 0


def complete() -> None:
    """Answer a shell that asks for candidates, and leave the process; without such a question do nothing."""
    import argcomplete

    argcomplete.autocomplete(whole(), always_complete_options=False)


def whole() -> argparse.ArgumentParser:
    """The parsers of all verbs in one."""
    root = argparse.ArgumentParser("dense", allow_abbrev=False)
    verbs = root.add_subparsers()
    for verb, (module, line) in VERBS.items():
        of_verb = importlib.import_module(module)
        if hasattr(of_verb, "parsers"):
            measures = verbs.add_parser(verb, help=line).add_subparsers()
            for name, one in of_verb.parsers(add_help=False).items():
                measures.add_parser(name, parents=[one])
        else:
            verbs.add_parser(verb, help=line, parents=[of_verb.parser(add_help=False)])
    return root
