"""What is wrong with the installed plugins, and what to do about it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final

from trainer_callback import PluginError
from trainer_callback.calls.order import arrange
from trainer_callback.command_line.describing import describe, describe_apart
from trainer_callback.discovery import canonical, find_distribution, find_version, read_names
from trainer_callback.errors import closest
from trainer_callback.plugins import InstalledPlugin, explain_slow
from trainer_lm.cli import read_flags
from trainer_lm.config_file import read_config_file

from .commands import find_added

__all__ = ["examine"]

_CORE: Final = "trainer-core"


def examine(plugins: Sequence[InstalledPlugin], config: str | None = None) -> list[dict[str, str]]:
    """Returns what is wrong, each with `plugin`, `problem` and `advice`.

    Args:
        config: a YAML file of options for `train-lm`, to be searched for unknown ones.

    Raises:
        UsageError: `config` cannot be read.
    """
    findings = [*_find_broken(plugins), *_find_wrong_core(plugins), *_find_slow(plugins)]
    usable = [plugin for plugin in plugins if plugin.problem is None]
    flags = read_flags(usable)
    findings += [*_find_wrong_flags(usable), *_find_cycle(plugins), *_find_unknown_names(plugins)]
    findings += [*_find_wrong_commands(), *_find_oddities(plugins)]
    if config is not None:
        findings += _find_unknown_options(config, plugins, flags)
    return findings


def _finding(plugin: str, problem: str, advice: str) -> dict[str, str]:
    return {"plugin": plugin, "problem": problem, "advice": advice}


def _find_broken(plugins: Sequence[InstalledPlugin]) -> Iterator[dict[str, str]]:
    for plugin in plugins:
        if plugin.kind == "broken":
            entry = plugin.entry
            advice = f"TRAINER_DISABLE_PLUGINS={entry.flag}"
            if entry.is_ambiguous:
                advice = f"pip uninstall {entry.distribution}, or leave this one out: "
                advice += f"TRAINER_DISABLE_PLUGINS={entry.full_name}"
            elif entry.distribution:
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


def _find_slow(plugins: Sequence[InstalledPlugin]) -> Iterator[dict[str, str]]:
    """What a plugin's import costs a command, or would have changed."""
    for plugin in plugins:
        if plugin.problem is None and explain_slow(plugin) is not None:
            yield _time_import(plugin)
    for plugin in plugins:
        if plugin.changed:
            problem = f"{plugin.label}: its import {', '.join(plugin.changed)}."
            advice = "what it set was put back; its author can do that in on_train_start, or in "
            yield _finding(plugin.entry.name, problem, advice + "the constructor")


def _time_import(plugin: InstalledPlugin) -> dict[str, str]:
    """Imports the plugin in a process of its own, where nothing has been imported before it."""
    found = next(describe_apart([plugin.entry])).description
    what = "imports torch, which" if found.brings_torch else "has an import that"
    problem = (
        f"{plugin.label} {what} takes {found.seconds:.1f} s of every command that uses it, and of "
        "the first one behind each change of it, --help included."
    )
    advice = "its author can move slow imports into the hooks, or under `if TYPE_CHECKING:`"
    return _finding(plugin.entry.name, problem, advice)


def _find_wrong_flags(admitted: Sequence[InstalledPlugin]) -> Iterator[dict[str, str]]:
    for plugin in admitted:
        if plugin.problem is not None:
            advice = f"leave it out: --no_plugin {plugin.entry.flag}; its author can change that"
            yield _finding(plugin.entry.name, plugin.problem, advice)


def _find_wrong_commands() -> Iterator[dict[str, str]]:
    for entry in find_added():
        if entry.problem is not None:
            advice = f"trainer {entry.distribution}:{entry.name} runs it"
            yield _finding(entry.name, f"{entry.label}: {entry.problem}.", advice)


def _find_oddities(plugins: Sequence[InstalledPlugin]) -> Iterator[dict[str, str]]:
    for plugin in plugins:
        for problem, advice in describe(plugin).oddities:
            yield _finding(plugin.entry.name, problem, advice)


def _find_cycle(plugins: Sequence[InstalledPlugin]) -> Iterator[dict[str, str]]:
    try:
        arrange([plugin.record for plugin in plugins if plugin.problem is None])
    except PluginError as error:
        yield _finding("", str(error), "TRAINER_DISABLE_PLUGINS=NAME leaves one out")


def _find_unknown_names(plugins: Sequence[InstalledPlugin]) -> Iterator[dict[str, str]]:
    installed = {plugin.entry.flag for plugin in plugins}
    for variable in ("TRAINER_DISABLE_PLUGINS", "TRAINER_PLUGINS"):
        for name in read_names(variable):
            if not any(plugin.entry.is_called(name) for plugin in plugins):
                hint = closest(canonical(name), installed)
                problem = f"{variable} names {name!r}, which is not installed.{hint}"
                yield _finding("", problem, f"installed: {', '.join(sorted(installed)) or 'none'}")


def _find_unknown_options(
    path: str, plugins: Sequence[InstalledPlugin], known: Collection[str]
) -> Iterator[dict[str, str]]:
    names = [flag.removeprefix("--") for flag in known]
    for option in (each.name for each in read_config_file(path)):
        if f"--{option}" in known:
            continue
        problem = f"{path}: there is no option {option!r}.{closest(option, names)}"
        owner = next((p for p in plugins if p.problem and option.startswith(p.entry.flag)), None)
        if owner is None:
            advice = "correct it, or install the plugin that it belongs to"
            yield _finding("", problem, advice)
        else:
            yield _finding(owner.entry.name, problem, str(owner.problem))
