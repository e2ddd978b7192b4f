"""What a snapshot says of its run beside the state: options, plugins, data. Plain, no path of this
machine; a resume logs what differs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import logging
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from trainer_callback import TrainerCallback
from trainer_callback.calls.manager import Plugin
from trainer_callback.calls.saved_state import describe_writer
from trainer_callback.discovery import find_version

from ..config import TrainerConfig
from ..counters import Position
from ..data.shares import samplers_of
from .manifest import to_json_data

__all__ = [
    "describe_callback",
    "describe_data",
    "describe_indices",
    "describe_options",
    "describe_run",
    "log_differences",
    "log_other_data",
]

logger: logging.Logger = logging.getLogger("trainer")

_CORE: Final = "trainer-core"
_NUMERIC: Final = frozenset(
    {
        *("seed", "gradient_accumulation_steps", "max_grad_norm", "precision", "compile"),
        *("scheduler_interval", "scheduler_monitor"),
    }
)
"""Options that change the numbers of a run from where they change."""
_SAMPLER_OPTIONS: Final[Mapping[type, Sequence[str]]] = {
    RandomSampler: ("replacement", "num_samples"),
    WeightedRandomSampler: ("replacement", "num_samples", "weights"),
    SubsetRandomSampler: ("indices",),
    DistributedSampler: ("shuffle", "seed"),
}
"""Of these classes, not of those made from them, whose options may change from epoch to epoch."""
_OPTION_NAMES: Final = frozenset(itertools.chain(*_SAMPLER_OPTIONS.values()))
_LISTS: Final = frozenset({"weights", "indices"})
_OTHER_ORDER: Final = (
    "The place in epoch %d is a number of batches (%d are done), so items of this epoch come again "
    "or are left out; the next epoch is whole."
)


_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")
"""Of an object in memory, such as a function that a module names."""
_MOST_TEXT: Final = 300


def describe_run(
    position: Position, config: TrainerConfig, plugins: Sequence[Plugin], model: nn.Module
) -> dict[str, Any]:
    """Returns step, epoch, metrics, versions, plugins, the options in force, and what the model is
    built of.
    """
    return {
        "step": position.step,
        "epoch": position.epoch,
        "epoch_done": position.epoch_done,
        "batch_in_epoch": position.batch,
        "metrics": dict(position.metrics),
        "versions": {"torch": torch.__version__, _CORE: find_version(_CORE)},
        "plugins": {
            plugin.state_key: {**describe_callback(plugin), "update": position.step}
            for plugin in plugins
        },
        "options": describe_options(config),
        "model": _describe_model(model),
    }


def log_differences(
    manifest: Mapping[str, Any],
    config: TrainerConfig,
    plugins: Sequence[Plugin],
    position: Position,
    model: nn.Module,
) -> None:
    """Logs a line for each option that the snapshot's run had otherwise, and for a model that is
    built otherwise: those of this run hold. A warning where it changes the numbers, so that the
    resume is not exact.
    """
    for name, text in _compare(manifest.get("options", {}), describe_options(config)):
        is_order = name == "seed" and position.is_mid_epoch
        more = " " + _OTHER_ORDER % (position.epoch, position.batch) if is_order else ""
        level = logging.WARNING if name in _NUMERIC else logging.INFO
        logger.log(level, "%s from here on.%s", text, more)
    for plugin in plugins:
        saved = manifest.get("plugins", {}).get(plugin.state_key, {}).get("options", {})
        for _, text in _compare(saved, describe_callback(plugin)["options"]):
            logger.info("%s.%s.", plugin.state_key, text)

    _log_other_model(manifest.get("model", {}), _describe_model(model))


def _describe_model(model: nn.Module) -> dict[str, Any]:
    """Returns how many modules without children there are of each kind and setting, as they say
    themselves, such as `Dropout(p=0.1, inplace=False)`, and a checksum of which is where.
    """
    modules = {name: _say(each) for name, each in model.named_modules()}
    leaves = {name: text for name, text in modules.items() if "(" in text}
    places = zlib.crc32("\n".join(map(" ".join, modules.items())).encode())
    return {"checksum": f"{places:08x}", "parts": dict(Counter(leaves.values()))}


def _say(module: nn.Module) -> str:
    """Returns what a module says of itself and its settings; of one with children, its class."""
    if next(module.children(), None) is None:
        with contextlib.suppress(Exception):  # somebody's own repr must not end a run
            return _ADDRESS.sub("", repr(module))
    return type(module).__name__


def _log_other_model(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if saved.get("checksum", now["checksum"]) == now["checksum"]:
        return
    before, after = Counter(saved["parts"]), Counter(now["parts"])
    gone, come = (
        ", ".join(f"{count} {part}" for part, count in sorted(each.items()))
        for each in (before - after, after - before)
    )
    what = f"{come or 'nothing'} where that had {gone or 'nothing'}"
    if before == after:
        what = "the same parts in another order"
    logger.warning(
        "the model is built otherwise than in the snapshot's run, whose weights fit: it has %s. "
        "The resume is not exact.",
        what if len(what) < _MOST_TEXT else f"{what[:_MOST_TEXT]}...",
    )


def _compare(saved: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in now.items():
        if name in saved and repr(to_json_data(saved[name])) != repr(to_json_data(value)):
            yield name, f"{name} was {saved[name]!r} in the snapshot's run and is {value!r}"


def describe_data(loader: Iterable[Any]) -> dict[str, Any]:
    """Returns what can be known of the data of an epoch and their order, of all processes together;
    what a loader does not tell is not there.
    """
    found: dict[str, Any] = {}
    if isinstance(loader, DataLoader):
        chain = samplers_of(loader)
        cuts = next((each for each in chain if hasattr(each, "batch_size")), loader)
        found["items"] = _length(loader.dataset)
        found["batch_size"] = cuts.batch_size
        found["drop_last"] = bool(getattr(cuts, "drop_last", False))
        inner = [each for each in chain if not hasattr(each, "sampler")]
        found["sampler"] = type(inner[-1]).__name__ if inner else None
        for name in _SAMPLER_OPTIONS.get(type(inner[-1]), ()) if inner else ():
            value = getattr(inner[-1], name, None)
            found[name] = describe_indices(value) if name in _LISTS else value
        found["workers"] = loader.num_workers
    found["batches"] = _length(loader)
    return {name: value for name, value in found.items() if value is not None}


def log_other_data(
    saved: Mapping[str, Any], now: Mapping[str, Any], progress: Mapping[str, Any]
) -> None:
    """Logs what of the training data differs (see `describe_data`), and of the `limit` of batches
    where that cuts the epoch under way elsewhere; a warning inside an epoch.
    """
    is_inside = progress["batch_in_epoch"] and not progress["epoch_done"]
    names = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
    if "limit" in names:
        names.remove("limit")
        if is_inside and "limit" in saved and "limit" in now:
            logger.warning(
                "batches: limit was %s in the snapshot's run and is %s, so that epoch %d, of which "
                "%d batches are done, ends elsewhere. Give it that of the snapshot's run, for an "
                "exact resume.",
                *(saved["limit"], now["limit"], progress["epoch"], progress["batch_in_epoch"]),
            )
    if "sampler" not in names:  # or an older version wrote none of its options
        names = [name for name in names if name in saved or name not in _OPTION_NAMES]
    if not names:
        return
    before, after = (
        ", ".join(f"{name}={each[name]!r}" for name in names if name in each) or "none of these"
        for each in (saved, now)
    )
    effect = "They are used from the next epoch on."
    if is_inside:
        effect = _OTHER_ORDER % (progress["epoch"], progress["batch_in_epoch"])
        effect += " For an exact resume give it the loader of the snapshot's run."
    logger.log(
        logging.WARNING if is_inside else logging.INFO,
        "the training loader had %s in the snapshot's run and has %s. %s",
        before,
        after,
        effect,
    )


def describe_indices(values: Any) -> str | None:
    """Returns how many numbers there are, and a checksum of them; None where they are none."""
    try:
        numbers = torch.as_tensor(values).cpu().contiguous().numpy()
        return f"{len(numbers)}, checksum {zlib.crc32(numbers.data):08x}"
    except (TypeError, ValueError, RuntimeError):
        return None


def _length(value: Any) -> int | None:
    try:
        return len(value)
    except TypeError:
        return None


def describe_options(config: TrainerConfig) -> dict[str, Any]:
    """Returns the settings that describe a run; its place and name are said elsewhere."""
    options = dataclasses.asdict(config)
    for name in ("output_dir", "overwrite", "resume_learning_rate", "run_name"):
        del options[name]
    return options


def describe_callback(plugin: Plugin) -> dict[str, Any]:
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
