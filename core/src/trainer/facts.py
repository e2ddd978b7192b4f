"""What the manifest of a snapshot says beside its files: plain JSON, no path of this machine."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch

from trainer_callback import TrainerCallback
from trainer_callback.discovery import find_version
from trainer_callback.manager import Plugin
from trainer_callback.saved_state import describe_writer

from .config import TrainerConfig
from .progress import Progress

__all__ = ["list_differences", "read_facts"]

_CORE: Final = "trainer-core"


def read_facts(
    progress: Progress, config: TrainerConfig, plugins: Sequence[Plugin]
) -> dict[str, Any]:
    """Returns step, epoch, metrics, versions, plugins and the options in force."""
    return {
        "step": progress.step,
        "epoch": progress.epoch,
        "epoch_done": progress.epoch_done,
        "batch_in_epoch": progress.batch_in_epoch,
        "metrics": dict(progress.metrics),
        "versions": {"torch": torch.__version__, _CORE: find_version(_CORE)},
        "plugins": {
            plugin.state_key: {**_describe(plugin), "update": progress.step} for plugin in plugins
        },
        "options": _options(config),
    }


def list_differences(
    manifest: Mapping[str, Any], config: TrainerConfig, plugins: Sequence[Plugin]
) -> Iterator[str]:
    """Yields a line for each option that the snapshot's run had otherwise. They are shown, never
    applied.
    """
    yield from _compare("", manifest.get("options", {}), _options(config))
    for plugin in plugins:
        saved = manifest.get("plugins", {}).get(plugin.state_key, {}).get("options", {})
        yield from _compare(f"{plugin.state_key}.", saved, _describe(plugin)["options"])


def _compare(prefix: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in saved.keys() & now.keys():
        if repr(saved[name]) != repr(now[name]):  # nan is nan
            yield f"{prefix}{name} was {saved[name]!r} in the snapshot's run and is {now[name]!r}."


def _options(config: TrainerConfig) -> dict[str, Any]:
    options = dataclasses.asdict(config)
    del options["output_dir"], options["overwrite"]
    return options


def _describe(plugin: Plugin) -> dict[str, Any]:
    """Returns identity and options of `plugin`: the constructor's parameters that are plain
    attributes of it.
    """
    options: dict[str, Any] = {}
    if isinstance(plugin.callback, TrainerCallback) and plugin.distribution != _CORE:
        for name in inspect.signature(type(plugin.callback)).parameters:
            value = getattr(plugin.callback, name, ...)
            if value is None or isinstance(value, (bool, int, float, str)):
                options[name] = value
    return {**describe_writer(plugin), "options": options}
