"""`dense completion`: a script that lets a shell complete verbs, options, their choices and the names of configs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dense.cli import VERBS
from dense.cli.helps import help_of
from dense.cli.parser import COMMON, Parser
from dense.cli.trainings import TRAININGS
from dense.recipes import config_folder

NAMED = ("", "evaluate", "completion")  # where a name follows, of a verb, a measure or a shell
Words = dict[str, dict[str, list[str]]]  # "evaluate knn" -> option -> what may follow it


def main(argv: Sequence[str]) -> int:
    """The verb."""
    parser = Parser(prog="dense completion", description="Print a shell's completion script.")
    parser.add_argument("shell", choices=list(SHELLS), help="whose script")
    options = parser.parse_args(argv)
    print(SHELLS[options.shell](words()))
    return 0


def words() -> Words:
    """Options of every verb, as its help names them."""
    from dense.cli.evaluate import VERBS as MEASURES

    names: dict[str, list[str]] = dict(zip(NAMED, ([*VERBS], [*MEASURES], [*SHELLS]), strict=True))
    verbs = [verb for verb in VERBS if verb not in NAMED] + [f"evaluate {name}" for name in MEASURES]
    found: Words = {place: {name: [] for name in there} for place, there in names.items()}
    return found | {verb: options_for(verb) for verb in verbs}


def options_for(verb: str) -> dict[str, list[str]]:
    """Those of its help, and of a training those that its short help names: keys of a recipe's model are in no other."""
    short = TRAININGS[verb][2] if verb in TRAININGS else {}
    return {name.split()[0]: [] for name in short} | options_of(help_of(verb))


def options_of(text: str) -> dict[str, list[str]]:
    """Options that a help text lists, with the choices or the configs that may follow."""
    listed = re.findall(r"^ {2}(?:-\w(?: \S+)?, )?(--[\w.\-]+)(.*)$", text.partition("\nexamples:")[0], re.M)
    options: dict[str, list[str]] = {"--help": []}
    for option, rest in listed:
        choices = re.search(r"\{([^{}]+)\}", rest)
        options[option] = choices[1].split(",") if choices else []
    if "--config" in options:
        root = config_folder()
        options["--config"] = sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.yaml"))
    return options | {option: [] for option in COMMON}


def bash(known: Words) -> str:
    """Files are completed where nothing is known."""
    cases, values = [], []
    for verb, options in known.items():
        cases.append(f'    "{verb}") words="{" ".join(options)}" ;;')
        values += [f'    "{verb} {o}") words="{" ".join(c)}"; value=1 ;;' for o, c in options.items() if c]
    return f"""# bash completion of dense
_dense() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" verb="" words="" value=0
  [ "$COMP_CWORD" -gt 1 ] && verb="${{COMP_WORDS[1]}}"
  [ "$verb" = evaluate ] && [ "$COMP_CWORD" -gt 2 ] && verb="evaluate ${{COMP_WORDS[2]}}"
  case "$verb $previous" in
{chr(10).join(values)}
  esac
  if [ "$value" = 0 ]; then
    case "$verb" in
{chr(10).join("  " + case for case in cases)}
    esac
    [[ ! "$verb" =~ ^({"|".join(NAMED)})$ && "$current" != -* ]] && words=""
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _dense dense"""


def zsh(known: Words) -> str:
    """Files are completed where nothing is known."""
    cases, values = [], []
    for verb, options in known.items():
        cases.append(f'    "{verb}") choices=({" ".join(options)}) ;;')
        values += [f'    "{verb} {o}") compadd -- {" ".join(c)}; return ;;' for o, c in options.items() if c]
    return f"""#compdef dense
_dense() {{
  local verb=""
  local -a choices
  (( CURRENT > 2 )) && verb="${{words[2]}}"
  [[ "$verb" == evaluate ]] && (( CURRENT > 3 )) && verb="evaluate ${{words[3]}}"
  case "$verb ${{words[CURRENT-1]}}" in
{chr(10).join(values)}
  esac
  case "$verb" in
{chr(10).join(cases)}
  esac
  if [[ "$verb" =~ "^({"|".join(NAMED)})$" || "$PREFIX" == -* ]]; then
    compadd -- $choices
  else
    _files
  fi
}}
if [ "$funcstack[1]" = "_dense" ]; then _dense "$@"; else compdef _dense dense; fi"""


def fish(known: Words) -> str:
    """Files are completed where nothing is known."""
    lines = ["# fish completion of dense"]
    for verb, options in known.items():
        tokens = ["dense", *verb.split()]
        if verb in NAMED:
            where = f"test (count (commandline -opc)) -eq {len(tokens)}"
            if verb:
                where += f"; and test (commandline -opc)[2] = {verb}"
            lines += [f"complete -c dense -f -n '{where}' -a {word}" for word in options]
            continue
        where = f"test (count (commandline -opc)) -ge {len(tokens)}; and test (commandline -opc)[2] = {tokens[1]}"
        if len(tokens) > 2:
            where += f"; and test (commandline -opc)[3] = {tokens[2]}"
        for option, choices in options.items():
            take = f" -x -a '{' '.join(choices)}'" if choices else ""
            lines.append(f"complete -c dense -n '{where}' -l {option.removeprefix('--')}{take}")
    return "\n".join(lines)


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}
