"""What is wrong with the installed plugins, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from trainer_callback import PluginError, UsageError
from trainer_callback.discovery import canonical, find_distribution, find_version
from trainer_callback.implementation import closest
from trainer_callback.manager import Plugin
from trainer_callback.order import arrange
from trainer_callback.plugins import InstalledPlugin

from .command_flags import read_command_flags

__all__ = ["examine"]

_CORE: Final = "trainer-core"


def examine(plugins: Sequence[InstalledPlugin], config: str | None = None) -> list[dict[str, str]]:
    """Returns what is wrong, each with `plugin`, `problem` and `advice`.

    Args:
        config: a YAML file of options for `train-lm`, to be searched for unknown ones.

    Raises:
        UsageError: `config` cannot be read.
    """
    findings = [
        *_find_broken(plugins),
        *_find_wrong_core(plugins),
        *_find_wrong_flags(plugins),
        *_find_cycle(plugins),
        *_find_unknown_names(plugins),
    ]
    if config is not None:
        findings += _find_unknown_options(Path(config), plugins)
    return findings


def _finding(plugin: str, problem: str, advice: str) -> dict[str, str]:
    return {"plugin": plugin, "problem": problem, "advice": advice}


def _find_broken(plugins: Sequence[InstalledPlugin]) -> Iterator[dict[str, str]]:
    for plugin in plugins:
        if plugin.kind == "broken":
            entry = plugin.entry
            advice = f"TRAINER_DISABLE_PLUGINS={entry.flag}"
            if entry.distribution:
                advice = (
                    f"pip install --upgrade {entry.distribution}, or pip uninstall "
                    f"{entry.distribution}; to go on without it: {advice}"
                )
            yield _finding(entry.name, str(plugin.problem), advice)


def _find_wrong_core(plugins: Sequence[InstalledPlugin]) -> Iterator[dict[str, str]]:
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    installed = find_version(_CORE)
    for plugin in plugins:
        found = find_distribution(plugin.entry.distribution)
        for text in found.requires if found is not None and installed else ():
            try:
                needed = Requirement(text)
            except InvalidRequirement:
                continue
            if canonicalize_name(needed.name) != _CORE or (
                needed.marker is not None and not needed.marker.evaluate({"extra": ""})
            ):
                continue
            if not needed.specifier.contains(installed, prereleases=True):
                wanted = f"{needed.name}{needed.specifier}"
                problem = f"{plugin.label} needs {wanted}; {installed} is installed."
                advice = (
                    f'pip install "{wanted}", or another version of {plugin.entry.distribution}'
                )
                yield _finding(plugin.entry.name, problem, advice)


class _Flags:
    """A parser that only listens to which flags are added."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.required: list[str] = []

    def add_argument(self, *names: str, **settings: Any) -> object:
        self.names += [name for name in names if name.startswith("-")]
        if settings.get("required") or not names[0].startswith("-"):
            self.required.append(names[0])
        return None


def _find_wrong_flags(plugins: Sequence[InstalledPlugin]) -> Iterator[dict[str, str]]:
    owners: dict[str, InstalledPlugin] = {}
    own = {f"--{name}" for name in read_command_flags(plugins=False)} if plugins else set()
    for plugin in plugins:
        problem = _judge_flags(plugin, own, owners) if plugin.problem is None else None
        if problem is not None:
            advice = f"leave it out: --no_plugin {plugin.entry.flag}; its author can change that"
            yield _finding(plugin.entry.name, problem, advice)


def _judge_flags(
    plugin: InstalledPlugin, own: Collection[str], owners: dict[str, InstalledPlugin]
) -> str | None:
    """Returns what is wrong with the flags of `plugin`, or None.

    Args:
        own: the flags of the command itself.
        owners: flag -> plugin, of the plugins before this one; this one's are added.
    """
    flags = _Flags()
    try:
        plugin.add_options(flags)
    except PluginError as error:
        return str(error)
    if reserved := [flag for flag in flags.names if flag in own]:
        return f"{plugin.label} adds {reserved[0]}, which is an option of train-lm itself."
    if flags.required:
        return f"{plugin.label} adds {flags.required[0]!r}, which every run would have to give."
    if taken := [flag for flag in flags.names if owners.setdefault(flag, plugin) is not plugin]:
        return f"{plugin.label} and {owners[taken[0]].label} both add {taken[0]}."
    return None


def _find_cycle(plugins: Sequence[InstalledPlugin]) -> Iterator[dict[str, str]]:
    usable = [plugin for plugin in plugins if plugin.problem is None]
    entries = [plugin.entry for plugin in usable]
    try:
        arrange(
            [
                Plugin(plugin.target, entry.name, entry.distribution, entry.version)
                for plugin, entry in zip(usable, entries, strict=True)
            ]
        )
    except PluginError as error:
        yield _finding("", str(error), "TRAINER_DISABLE_PLUGINS=NAME leaves one out")


def _find_unknown_names(plugins: Sequence[InstalledPlugin]) -> Iterator[dict[str, str]]:
    installed = {plugin.entry.flag for plugin in plugins}
    for variable in ("TRAINER_DISABLE_PLUGINS", "TRAINER_PLUGINS"):
        for name in filter(str.strip, os.environ.get(variable, "").split(",")):
            if canonical(name) not in installed:
                hint = closest(canonical(name), installed)
                problem = f"{variable} names {name.strip()!r}, which is not installed.{hint}"
                yield _finding("", problem, f"installed: {', '.join(sorted(installed)) or 'none'}")


def _find_unknown_options(
    path: Path, plugins: Sequence[InstalledPlugin]
) -> Iterator[dict[str, str]]:
    import yaml

    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"--config {path} cannot be read: {error}") from error
    if not isinstance(options, dict):
        raise UsageError(f"--config {path} is no list of options. Write lines such as `epochs: 3`.")
    try:
        known = read_command_flags(plugins=True)
    except UsageError as error:
        yield _finding("", f"{path} cannot be checked: {error}", "mend what is above first")
        return
    for option in map(str, options):
        if option.removeprefix("no_") in known:
            continue
        problem = f"{path}: there is no option {option!r}.{closest(option, known)}"
        owner = next((p for p in plugins if p.problem and option.startswith(p.entry.flag)), None)
        if owner is None:
            advice = "correct it, or install the plugin that it belongs to"
            yield _finding("", problem, advice)
        else:
            yield _finding(owner.entry.name, problem, str(owner.problem))
