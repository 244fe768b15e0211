"""The command line of every training: LightningCLI with recipes, dotted options and errors of one line."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

import lightning.pytorch as pl
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from dense.console import COMMON, say
from dense.data.domain import preset
from dense.files import check_writable
from dense.recipes import find_config
from dense.suggest import UsageError, as_question, nearest, wrong_name
from dense.training.precision import Choice, precision_of, probe, use_precision


class WrongKey(UsageError):
    """An error of a key, which is named as it must be typed, from the outermost part on."""

    given: ClassVar[Sequence[str]] = ()  # the command line

    def inside(self, outer: str) -> WrongKey:
        """Return the error for a parser of which `outer` is a key."""
        raise NotImplementedError

    @classmethod
    def outside(cls, key: str) -> str:
        """Return what the command line writes before a key of an inner parser: dashes, none in a YAML file."""
        options = {argument.split("=")[0].replace(".init_args.", ".") for argument in cls.given}
        if f"--{key}" in options:
            return "--"
        found = [option for option in options if option.startswith("--") and option.endswith(f".{key}")]
        return found[0].removesuffix(key) if len(found) == 1 else ""


class UnknownKey(WrongKey):
    """A key that no option has; the nearest options are named like it."""

    def __init__(self, key: str, near: Sequence[str], advice: str) -> None:
        self.key, self.near, self.advice = key, near, advice
        before = self.outside(key)
        super().__init__(f"unknown option {before}{key}.{as_question(before + name for name in near)} {advice}")

    def inside(self, outer: str) -> UnknownKey:
        return UnknownKey(f"{outer}.{self.key}", [f"{outer}.{name}" for name in self.near], self.advice)


class WrongValue(WrongKey):
    """A value that an option does not take."""

    def __init__(self, key: str, reason: str, advice: str) -> None:
        self.key, self.reason, self.advice = key, reason, advice
        super().__init__(f"{self.outside(key)}{key}: {reason} {advice}")

    def inside(self, outer: str) -> WrongValue:
        return WrongValue(f"{outer}.{self.key}", self.reason, self.advice)


class TrainingParser(LightningArgumentParser):
    """jsonargparse that suggests the nearest option for a wrong one, and shows examples below its help."""

    verb: ClassVar[str]  # parsers inside this one are named after the file that Python runs
    epilogue: ClassVar[str] = ""  # what stands below the help

    def format_help(self, formatter: Any = None) -> str:
        return super().format_help(formatter) + self.epilogue

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise UsageError with one line that names the nearest valid option."""
        inner: BaseException | None = ex
        while inner is not None:  # a parser inside this one has reported it already
            if isinstance(inner, UsageError):
                outer = re.search(r'Parser key "([\w.]+)"', str(message))
                raise inner.inside(outer[1]) if outer and isinstance(inner, WrongKey) else inner
            inner = inner.__cause__ or inner.__context__
        text = " ".join(of_union(str(message)).split())
        if "not expected" in text:
            text = re.sub(r"^.*?Parser key \"?(\w+)\"?: ", "", text)
        advice = f"(see {self.verb} --help, or --print_config for every key)"
        if (wrong := wrong_name(text)) is not None:
            raise UnknownKey(wrong.lstrip("-"), self.nearest_keys(wrong.lstrip("-")), advice) from ex
        if "required" in text and "model" in text.split():
            text += "; choose a recipe, --config NAME"
        if value := re.match(r'(?:Parser key "([\w.]+)"|([\w.]+)): (Expected .*)', text):
            raise WrongValue(value[1] or value[2], in_words(value[3]).rstrip("."), advice) from ex
        raise UsageError(f"{text.rstrip('.')} {advice}") from ex

    def nearest_keys(self, wrong: str) -> list[str]:
        """Return the options whose dotted names, or whose last parts, are most similar to a wrong one."""
        names = [a.dest for a in self._actions if a.dest and a.dest != "help"] + [c.lstrip("-") for c in COMMON]
        for action in self._actions:
            inner = getattr(action, "_parser", None) or getattr(getattr(action, "_typehint", None), "_parser", None)
            if inner is not None:
                names += [f"{action.dest}.{a.dest}" for a in inner._actions]
        names = [name for name in names if not wrong.startswith(f"{name}.")]
        last = {name.rsplit(".", 1)[-1]: name for name in reversed(names)}
        near = nearest(wrong, names) + [last[name] for name in nearest(wrong.rsplit(".", 1)[-1], last)]
        return list(dict.fromkeys(near))[:3]


class TrainingCLI(LightningCLI):
    """A LightningCLI that parses and instantiates but does not run.

    It adds the options of every run: its folder (`output` is the default) and its checkpoints. Lightning's own logging
    and checkpoints are off. epilogue: what stands below the help.
    """

    parsers: ClassVar[dict[tuple[Any, ...], LightningArgumentParser]] = {}  # of classes that were parsed for before
    output: ClassVar[str]
    choice: Choice | None = None  # of the precision, unless an option gave it

    def __init__(
        self,
        model: Any,
        data: Any,
        argv: Sequence[str],
        prog: str,
        description: str,
        epilogue: str = "",
        **options: Any,
    ) -> None:
        TrainingParser.verb, TrainingParser.epilogue, WrongKey.given = prog, epilogue, argv
        arguments = shipped_configs(argv)
        super().__init__(
            model,
            data,
            args=nulls_as_config(arguments, "model") if options.get("subclass_mode_model") else arguments,
            run=False,
            save_config_callback=None,
            seed_everything_default=False,
            auto_configure_optimizers=False,  # the recipe has its own
            parser_kwargs={"prog": prog, "description": description, "default_env": False},
            **options,
        )

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Take the parser of an earlier run in this process: building it takes longer than using it."""
        classes = (type(self), self.model_class, self.subclass_mode_model, self.datamodule_class, main_kwargs["prog"])
        if classes not in self.parsers:
            super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
            self.parsers[classes] = self.parser
        self.parser = self.parsers[classes]

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Add the options of every run."""
        parser.add_argument("--output", type=str, default=self.output, help="folder of the run")
        parser.add_argument("--checkpoint.every_minutes", type=float, default=5.0, help="minutes between checkpoints")
        parser.add_argument(
            "--checkpoint.every_steps", type=int, default=0, help="optimiser steps between checkpoints; 0 for none"
        )
        parser.set_defaults(
            {
                "trainer.max_epochs": -1,
                "trainer.precision": None,
                "trainer.logger": False,
                "trainer.enable_checkpointing": False,
                "trainer.enable_progress_bar": False,
                "trainer.enable_model_summary": False,
                "trainer.use_distributed_sampler": False,
            }
        )

    def before_instantiate_classes(self) -> None:
        """Raise for an unwritable folder before anything large is built; apply data.domain."""
        check_writable(Path(self.config.output))
        for line in apply_domain(self.config.data, WrongKey.given):
            say(line)
        self.config_dump: dict[str, Any] = {}  # Lightning's copy for `save_hyperparameters`, which no module calls

    def instantiate_classes(self) -> None:
        """Shorten the error of a value that may be null; name the options of the trainer that this machine refuses."""
        try:
            super().instantiate_classes()
        except MisconfigurationException as error:
            names = ("accelerator", "devices", "num_nodes", "strategy")
            given = [f"--trainer.{n} {v}" for n in names if (v := self.config.trainer[n]) not in (None, "auto", 1)]
            reason = str(error).strip().splitlines()[0].rstrip("!.")
            raise UsageError(f"{' '.join(given)}: {reason}; leave out what this machine does not have") from None
        except ValueError as error:
            raise ValueError(of_union(str(error))) from error

    def instantiate_trainer(self, **options: Any) -> pl.Trainer:
        """Return the trainer; without a given precision, with that of the run's checkpoint or what a probe chooses."""
        trainer_options: Any = self.config.trainer
        given = trainer_options.precision
        if given not in (None, "auto"):
            return super().instantiate_trainer(**options)
        trainer = super().instantiate_trainer(**{**options, "precision": None})
        self.choice = precision_of(Path(self.config.output)) or probe(*self.products(), trainer.strategy.root_device)
        use_precision(trainer, self.choice.precision)
        trainer_options.precision = self.choice.precision
        if trainer.is_global_zero:
            say(str(self.choice))
        return trainer

    def products(self) -> tuple[int, int]:
        """Return width and number of rows of the network's dominant matrix products."""
        raise NotImplementedError

    def settings(self) -> str:
        """Return what config.yaml holds: all options, and why the precision was chosen."""
        reason = f"# {self.choice}\n" if self.choice else ""
        return reason + self.parser.dump(self.config)

    def init_parser(self, **options: Any) -> LightningArgumentParser:
        """Return the parser, with --config and --print_config."""
        options.setdefault("dump_header", None)
        parser = TrainingParser(**options)
        parser.add_argument("-c", "--config", action="config", help="a YAML file, or the name of a shipped config")
        parser.add_argument("--help_all", action="help", help="show this help; --help shows what most runs need")
        return parser


def apply_domain(data: Any, argv: Sequence[str]) -> list[str]:
    """Change the augmentation in the options of data to that of data.domain; return a line for each change.

    Explicit options win: those of the command line, and if a file names the domain, those of this file and later ones.
    """
    kind: Literal["augment", "views"] = "augment" if "augment" in data else "views"
    if data.domain == "photographs":
        return []
    if kind == "views" and not hasattr(data.views, "init_args"):  # no recipe has views
        data.views = Namespace(class_path="pretrain.views.MultiCrop", init_args=Namespace())
    place = data.augment if kind == "augment" else data.views.init_args
    given = explicit_options(argv, kind)
    chosen = preset(data.domain, kind, given)
    if kind == "augment" and (data.degrade is not None or data.layout == "paired"):
        chosen.pop("noise", None)  # of restoration, it would be in the target
    lines = [f"data.domain: {data.domain}"]
    for name, value in chosen.items():
        if name in place and (before := place[name]) == value:
            continue
        lines.append(
            f"  data.{kind}.{name}: {value}, instead of {before}" if name in place else f"  data.{kind}.{name}: {value}"
        )
        place[name] = value
    lines += [f"  data.{kind}.{name}: {place[name]}, as given" for name in sorted(given) if name in place]
    return lines


def explicit_options(argv: Sequence[str], kind: str) -> set[str]:
    """Return the names of the options of data.KIND that the command line gives, or a file that names the domain."""
    files, given, on_line = list[Any](), set[str](), False
    for argument, following in pairwise([*argv, "--"]):
        option, equals, value = argument.partition("=")
        value = value if equals else following
        if option in ("-c", "--config"):
            files.append((yaml.safe_load(find_config(value).read_text()) or {}).get("data") or {})
        elif option == f"--data.{kind}":
            given |= _names(yaml.safe_load(value))
        elif option.startswith(f"--data.{kind}."):
            given.add(option.removeprefix(f"--data.{kind}.").removeprefix("init_args.").partition(".")[0])
        on_line |= option == "--data.domain"
    named = [number for number, data in enumerate(files) if "domain" in data]
    later = files[named[-1] :] if named and not on_line else []
    return given.union(*(_names(data.get(kind)) for data in later))


def _names(options: Any) -> set[str]:
    """Return the names of options in a mapping, or in the init_args of a class."""
    if not isinstance(options, Mapping):
        return set()
    return {*(options.get("init_args") or {})} if "class_path" in options else {*options}


def in_words(reason: str) -> str:
    """Return jsonargparse's reason with the names of types as they are written in Python."""
    reason = re.sub(r"(?:a )?<class '([\w.]+)'>", r"\1", reason).replace(". Got value:", ", got")
    return re.sub(r"typing\.Literal\[(.*?)\]", lambda choices: choices[1].replace(",", " or"), reason)


def of_union(message: str) -> str:
    """Shorten jsonargparse's message about a value of a union type to its first reason and the value."""
    reasons = re.findall(r"^ *- (?!Expected a <class)(.+(?:\n ++(?!- |Given value).+)*)", message, re.MULTILINE)
    if "Union subtypes" not in message or not reasons:
        return message
    key = re.search(r'Parser key "(.+?)"', message)
    reason = " ".join(reasons[0].split())
    given = re.search(r"^ *Given value: (.{1,60})$", message, re.MULTILINE)
    if given and reason.startswith("Expected a"):
        kinds = re.findall(r"^ *- Expected a <class '(?!NoneType)(\w+)'>$", message, re.MULTILINE)
        if kinds:
            reason = f"Expected {' or '.join([*kinds, reason.removeprefix('Expected a ')])}"
        reason += f", got {given[1]}"
    return f"{key[1]}: {reason}" if key else reason


def arguments_of(recipe: str, options: Mapping[str, Any]) -> list[str]:
    """Return the command line of a recipe and of options by dotted name, with any values that YAML can hold."""
    arguments = ["--config", recipe]
    for name, value in options.items():
        text = value if isinstance(value, str) else json.dumps(value, default=_plain)
        arguments += [f"--{name}", str(value) if isinstance(value, Path) else text]
    return arguments


def _plain(value: Any) -> Any:
    """A dataclass as a mapping, a number of NumPy or torch as a number, anything else as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value.item() if hasattr(value, "item") else str(value)


def shipped_configs(argv: Sequence[str]) -> list[str]:
    """Replace the names of shipped configs in argv by their paths."""
    resolved = list(argv)
    for i, argument in enumerate(resolved):
        if argument.startswith("--config="):
            resolved[i] = f"--config={find_config(argument.split('=', 1)[1])}"
        elif argument in ("-c", "--config") and i + 1 < len(resolved):
            resolved[i + 1] = str(find_config(resolved[i + 1]))
    return resolved


def nulls_as_config(argv: Sequence[str], key: str) -> list[str]:
    """Replace `--KEY.a.b null` in argv by a piece of config.

    jsonargparse reads an option of a class that is chosen by name twice, and its own None as 'None' the second time.
    """
    arguments: list[str] = []
    for argument in argv:
        if argument == "null" and arguments and arguments[-1].startswith(f"--{key}."):
            argument = f"{arguments.pop()}=null"
        if argument.startswith(f"--{key}.") and argument.endswith("=null"):
            names = argument.removeprefix(f"--{key}.").removesuffix("=null").removeprefix("init_args.").split(".")
            value: Any = None
            for name in reversed([key, "init_args", *names]):
                value = {name: value}
            argument = f"--config={json.dumps(value)}"
        arguments.append(argument)
    return arguments


def quiet() -> None:
    """Hide Lightning's notices about choices that are made on purpose."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning.*")
