"""All that a run of `train-lm` was told, resolved: where each value came from, and as a file. No
torch.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import Any, Final

from trainer.config import ConfigError, TrainerConfig
from trainer_callback.calls.manager import Plugin
from trainer_callback.command_line.options import Option, add_options, collect_options, read_options
from trainer_callback.plugins import InstalledPlugin

from .config_file import owner_comment, write_value
from .options import ModelOptions, OptimizerOptions, SampleOptions, TextOptions
from .parser import Parser

__all__ = ["Settings"]

_DEFAULTS: Final[Mapping[str, Any]] = {
    "epochs": 3,
    "max_grad_norm": 1.0,
    "precision": "auto",
    "snapshot_interval": 500,
}
"""Where the command's defaults differ from those of `TrainerConfig`."""

_COMMAND: Final = frozenset(
    {
        "config", "recipe", "no_plugin", "callback", "strict_plugins", "resume", "print_config",
        "quiet", "sample", "prompt", "sample_tokens", "plugin_costs", "trace_hooks",
    }
)  # fmt: skip
"""What tells the command what to do, and is no setting of a run."""

_FIXED: Final = frozenset({"scheduler_interval", "scheduler_monitor"})
"""What `TrainerConfig` leaves open and the command does not: its schedule counts updates."""

_HELPS: Final[Mapping[str, str]] = {
    "output_dir": "where the run writes; without it, to a fresh runs/NAME-NUMBER",
    "max_steps": "end after this many updates, over all resumes; the schedule of the learning "
    "rate ends there too",
}
"""Where the command means more than `TrainerConfig`."""

_GROUPS: Final[Mapping[str, type]] = {
    "text": TextOptions,
    "model": ModelOptions,
    "optimizer": OptimizerOptions,
    "training": TrainerConfig,
    "samples": SampleOptions,
}


@dataclass(frozen=True)
class Settings:
    """A run's options, checked.

    Attributes:
        text, model, optimizer, training, samples: the groups of the command's own options.
        plugins: the callbacks that the options ask for, live ones included.
        values: flag -> value, of every option of the command and of the plugins in use.
        origins: flag -> where the value came from.
        owners: flag of a plugin -> its comment in a file.
        is_fresh: the output directory was not named: it is the next number that is free, and is
            taken by `reserve`.
        resume: what `Trainer.train` takes.
        quiet: print the summary only.
        plugin_costs: print what each plugin cost at the end.
        trace_hooks: as `Trainer` takes it.
        notes: a sentence for each thing that a person may not expect.
    """

    text: TextOptions
    model: ModelOptions
    optimizer: OptimizerOptions
    training: TrainerConfig
    samples: SampleOptions
    plugins: list[Plugin]
    values: Mapping[str, Any]
    origins: Mapping[str, str]
    owners: Mapping[str, str]
    is_fresh: bool
    resume: bool | str
    quiet: bool
    plugin_costs: bool
    trace_hooks: str | bool
    notes: Sequence[str] = ()

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        """Adds the command's own options, a group for each part."""
        for title, options in _own_options().items():
            add_options(parser.add_argument_group(title), options)

    @classmethod
    def read(
        cls, namespace: argparse.Namespace, plugins: Sequence[InstalledPlugin], parser: Parser
    ) -> Settings:
        """Returns the settings that `namespace` means, which `parser` has made.

        Raises:
            UsageError: a value is out of range; a plugin refuses its options.
        """
        values: dict[str, Any] = {}
        parts: dict[str, Any] = {}
        is_fresh = False
        resume = namespace.resume
        for title, options in _own_options().items():
            known = {option.parameter: option.default for option in options}
            known.update(collect_options(namespace, options))
            if known.get("output_dir", "") is None:
                known["output_dir"], is_fresh = _find_place(parts["text"].dataset, resume)
            parts[title] = _GROUPS[title](**known)
            values.update({o.flag: getattr(parts[title], o.parameter) for o in options})
            if "output_dir" in known:  # as it was given: the trainer makes it absolute
                values["output_dir"] = known["output_dir"]
        made = {plugin: plugin.make_callbacks(namespace) for plugin in plugins}
        notes = _give_way(made, namespace)
        for plugin, callbacks in made.items():
            if callbacks and plugin.kind == "flag":
                values.update(_read_values(plugin, namespace))
        derived = {option.flag for plugin in plugins for option in plugin.options}
        derived |= {plugin.entry.flag for plugin in plugins}
        values.update(parser.as_given(vars(namespace).keys() - derived - _COMMAND - values.keys()))
        repeated = {name: getattr(namespace, name) for name in ("callback", "no_plugin")}
        values.update({name: given for name, given in repeated.items() if given})
        return cls(
            **parts,
            plugins=[*chain(*made.values())],
            values=values,
            origins={flag: parser.origin(flag) for flag in values},
            owners={
                flag.lstrip("-"): owner_comment(plugin.entry.distribution, plugin.entry.version)
                for plugin in plugins
                for flag in plugin.group.flags
            },
            is_fresh=is_fresh,
            resume={None: False, "newest": True}.get(resume, resume),
            quiet=namespace.quiet,
            plugin_costs=namespace.plugin_costs,
            trace_hooks=namespace.trace_hooks,
            notes=notes,
        )

    def with_precision(self, precision: Any) -> Settings:
        """Returns the same settings with `auto` resolved, so that they are those of the run."""
        return dataclasses.replace(
            self,
            training=dataclasses.replace(self.training, precision=precision),
            values={**self.values, "precision": precision},
        )

    def reserve(self) -> Settings:
        """Makes a fresh output directory, with the next number that nobody else has taken in the
        meantime. Returns the same settings with it.
        """
        place = self.training.output_dir
        while self.is_fresh and place is not None:
            try:
                place.mkdir(parents=True)
                break
            except FileExistsError:
                stem, _, number = place.name.rpartition("-")
                place = place.with_name(f"{stem}-{int(number) + 1}")
            except OSError:
                break  # the trainer says what is wrong with it
        return dataclasses.replace(
            self, training=dataclasses.replace(self.training, output_dir=place)
        )

    @property
    def hyperparameters(self) -> dict[str, object]:
        """The command's own options for trackers, those of the trainer left out."""
        own = {option.flag for options in _own_options().values() for option in options}
        trainer = {field.name for field in dataclasses.fields(TrainerConfig)}
        return {name: _plain(self.values[name]) for name in self.values if name in own - trainer}

    def as_yaml(self, *, with_origin: bool = False) -> str:
        """Returns a file that `--config` reads back to the same run, without its place; with the
        origin of each value as a comment.
        """
        lines = []
        for flag, value in self.values.items():
            if flag == "output_dir" and not with_origin:
                continue
            comment = self.owners.get(flag, "")
            if with_origin:
                comment = f"  # {self.origins[flag]}"
            lines.append(f"{flag}: {write_value(_plain(value))}{comment}\n")
        return "".join(lines)


def _own_options() -> dict[str, list[Option]]:
    return {
        title: [
            dataclasses.replace(
                option,
                default=_DEFAULTS.get(option.flag, option.default),
                help=_HELPS.get(option.flag, option.help),
            )
            for option in read_options(target, skip=_FIXED)
        ]
        for title, target in _GROUPS.items()
    }


def _give_way(
    made: Mapping[InstalledPlugin, list[Plugin]], namespace: argparse.Namespace
) -> list[str]:
    """Takes out what a live plugin has made and the user has said yes or no to by a flag of its
    own; returns a sentence for each.
    """
    notes = []
    said = [each for each in made if each.kind == "flag" and hasattr(namespace, each.entry.flag)]
    for plugin, callbacks in made.items():
        for own in [*callbacks] if plugin.kind == "live" else ():
            rival = next((each for each in said if each.target is type(own.callback)), None)
            if rival is not None:
                callbacks.remove(own)
                notes.append(
                    f"{plugin.label} makes its own {type(own.callback).__name__}, which gives way "
                    f"to what was said of --{rival.entry.flag}."
                )
    return notes


def _read_values(plugin: InstalledPlugin, namespace: argparse.Namespace) -> dict[str, Any]:
    """Returns flag -> value of the derived options of a plugin in use. A default that no file can
    hold is left out, and is then the constructor's own again.
    """
    given = collect_options(namespace, plugin.options)
    values: dict[str, Any] = {}
    if hasattr(namespace, plugin.entry.flag):
        values[plugin.entry.flag] = True
    for option in plugin.options:
        value = _as_word(given.get(option.parameter, option.default), option)
        if _is_plain(_plain(value)):
            values[option.flag] = value
    return values


def _as_word(value: Any, option: Option) -> Any:
    """Returns a choice such as True as the word that is read as it."""
    is_plain = value is None or (isinstance(value, (str, int)) and not isinstance(value, bool))
    if option.reader.choices is None or option.reader.container is not None or is_plain:
        return value
    return value if isinstance(value, Enum) else str(value)


def _plain(value: object) -> Any:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(item) for item in value), key=repr)
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _find_place(dataset: str, resume: str | None) -> tuple[Path, bool]:
    """Returns the output directory, that of the run to resume or a fresh `runs/NAME-NUMBER`, and
    whether it is fresh.

    Raises:
        ConfigError: nothing to resume.
    """
    if resume not in (None, "newest", "auto"):
        return Path(str(resume)).absolute().parent.parent, False
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(dataset).name)
    stem = (name.strip(".") or "text")[:80] + "-"
    runs = Path("runs")
    tails = [path.name.removeprefix(stem) for path in runs.glob(f"{stem}*")]
    taken = [int(tail) for tail in tails if tail.isdecimal()]
    if resume is not None and taken:
        return runs / f"{stem}{max(taken)}", False
    if resume == "newest":
        raise ConfigError(
            f"there is nothing to resume: no run {stem}NUMBER in {str(runs)!r}. "
            "Name one with --output_dir, or start without --resume."
        )
    return runs / f"{stem}{max(taken, default=0) + 1}", True
