"""What would have worked in place of an option that there is not, for a person. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from trainer_callback import PluginError
from trainer_callback.discovery import find_version
from trainer_callback.errors import closest
from trainer_callback.plugins import InstalledPlugin

from .parser import Parser
from .spelling import find_our_name

__all__ = ["explain_unknown"]

_KNOWN_PLUGINS: Final = {
    "early_stop": "trainer-plugin-early-stopping",
    "gradient_": "trainer-plugin-grad-monitor",
    "tensorboard": "trainer-plugin-tensorboard",
    "ema": "trainer-plugin-ema",
    "mirror": "trainer-plugin-mirror",
    "lr_finder": "trainer-plugin-lr-finder",
    "notify": "trainer-plugin-notify",
    "profiler": "trainer-plugin-profiler",
    "throughput": "trainer-plugin-throughput",
}
"""Start of a flag -> the distribution of this project that brings it."""


def _may_have(plugin: InstalledPlugin, flag: str) -> bool:
    """Whether `flag` is, or looks like, an option of a plugin that is not used."""
    own = f"{plugin.entry.flag}_"
    if f"{flag.removeprefix('--').removeprefix('no_')}_".startswith(own):
        return True
    try:
        return plugin.kind == "broken" and flag in plugin.group.flags
    except PluginError:
        return False


def _explain_owner(flag: str, owner: str, plugins: Sequence[InstalledPlugin]) -> str | None:
    """Returns why there is no `flag`, if it is one of a distribution that is not used here."""
    name = flag.lstrip("-").removeprefix("no_")
    ours = (each for start, each in _KNOWN_PLUGINS.items() if name.startswith(start))
    distribution = owner or next(ours, "")
    plugin = next((each for each in plugins if each.entry.distribution == distribution), None)
    if plugin is not None and plugin.problem is not None:
        return f"{flag} cannot be used: {plugin.label} is {plugin.problem}."
    if not distribution or plugin is not None or find_version(distribution):
        return None
    return f"{flag} belongs to a plugin that is not installed: pip install {distribution}"


def explain_unknown(
    argument: str, parser: Parser, plugins: Sequence[InstalledPlugin], owner: str = ""
) -> str:
    """Returns what would have worked in place of an unknown argument.

    Args:
        owner: the distribution that it belonged to in an earlier run, if that is known.
    """
    flag = argument.partition("=")[0]
    name = flag.lstrip("-")
    for plugin in plugins:
        if plugin.problem is not None and _may_have(plugin, flag):
            return f"{flag} cannot be used: {plugin.problem}"
        if plugin.kind == "live" and name == plugin.entry.flag:
            return (
                f"{flag} is no option: {plugin.label} is live in every run. Leave {flag} out; "
                f"--no_plugin {name} is a run without it."
            )
    if (gone := _explain_owner(flag, owner, plugins)) is not None:
        return gone
    flags = [text for action in parser._actions for text in action.option_strings]
    usual = f"--{find_our_name(name)}"
    if usual in flags:
        hint = f" Here it is {usual}."
    else:
        hint = closest(
            flag,
            [text for text in flags if not text.startswith("--no_") or flag.startswith("--no_")],
        )
    what = f"there is no option {flag}." if flag.startswith("-") else f"what is {argument!r}?"
    return f"{what}{hint} See train-lm --help, and trainer plugins for what is installed."
