"""Checks that all processes of a run were given the same: they train one model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from torch import Tensor, nn
from torch.utils.data import DataLoader

from trainer_callback import option_text
from trainer_callback.calls.manager import CallbackManager
from trainer_callback.state import to_plain

from ..config import ConfigError, TrainerConfig
from ..data.shares import is_divided
from ..processes.ranks import Ranks
from ..snapshots.facts import describe_callback, describe_data, describe_indices
from ..snapshots.model_state import describe_form
from ..step.parameters import name_parameters
from ..step.schedules import describe_schedule, name_schedule
from ..step.update import Updater
from ..view.view import View

__all__ = ["check_alike", "check_alike_loader"]

logger: logging.Logger = logging.getLogger("trainer")

_OWN: Final = frozenset(
    {"output_dir", "overwrite", "keep_snapshots", "snapshot_sync", "device", "max_time"}
)
"""Options that the main process alone reads, a device of its own, and time, of which the first that
is up ends all."""
_ADVICE: Final = "The processes train one model: give all of them the same."


def check_alike(view: View, updaters: Sequence[Updater]) -> None:
    """Compares what all processes were given; all of them have to call this. A callback may be in
    some only. One whose own options differ, and one that has a state and is not in the main
    process, gets a warning.

    Raises:
        ConfigError: in all of them, with the first thing that differs and both values.
    """
    ranks = view.ranks
    if ranks.is_alone:
        return
    own = (_describe(view, updaters), _describe_callbacks(view.manager))
    callbacks = [each for _, each in _gather_differing(own, ranks)]
    if callbacks:
        _compare_callbacks(callbacks, is_main=ranks.is_main)


def check_alike_loader(loader: Any, name: str, ranks: Ranks) -> None:
    """Compares a loader, and its data, with those of the other processes, as `check_alike`."""
    if not ranks.is_alone:
        found = {f"the {name} loader": type(loader).__name__}
        found.update({f"{key} of the {name} loader": v for key, v in _describe_data(loader)})
        _gather_differing((found, {}), ranks)


def _gather_differing(own: tuple[dict[str, str], Any], ranks: Ranks) -> list[Any]:
    """Returns what each process was given, or nothing where all have the same."""
    digest = hashlib.sha256(json.dumps(own).encode()).hexdigest()
    if len({*ranks.gather(digest, "options")}) == 1:
        return []
    everything = ranks.gather(own, "options")
    for difference in _compare([given for given, _ in everything]):
        raise ConfigError(f"{difference}. {_ADVICE}")
    return everything


def _compare(given: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yields what differs from the main process, with its value there, and in the first other."""
    for name in dict.fromkeys(name for each in given for name in each):
        values = [_cut(each.get(name, "not there")) for each in given]
        full = [each.get(name) for each in given]
        other = next((rank for rank, value in enumerate(full) if value != full[0]), None)
        if other is not None:
            yield f"{name} is {values[0]} in process 0 and {values[other]} in process {other}"


def _compare_callbacks(found: Sequence[Mapping[str, Any]], *, is_main: bool) -> None:
    """Compares those that several processes have.

    Raises:
        ConfigError: one state key is of two classes, or they are called in another order.
    """
    main = found[0]
    for rank, other in enumerate(found[1:], 1):
        for key in (key for key in main if key in other):
            labels = [each[key]["label"] for each in (main, other)]
            if labels[0] != labels[1]:
                raise ConfigError(
                    f"the callback {key} is {labels[0]} in process 0 and {labels[1]} in process "
                    f"{rank}. {_ADVICE}"
                )
        orders = [[key for key in one if key in two] for one, two in ((main, other), (other, main))]
        while orders[0] and orders[0][-1] == orders[1][-1]:  # behind those that differ
            orders = [order[:-1] for order in orders]
        if orders[0]:
            raise ConfigError(
                f"the callbacks are called in the order {', '.join(orders[0])} in process 0 and "
                f"{', '.join(orders[1])} in process {rank}. {_ADVICE}"
            )
    for key in dict.fromkeys(key for each in found for key in each) if is_main else ():
        if key in main:
            _warn_options(key, [each.get(key, main[key])["options"] for each in found])
        elif any(each[key]["keeps"] for each in found if key in each):
            logger.warning(
                "%s is not in the main process, so no snapshot keeps its state. Give it to all "
                "processes.",
                key,
            )


def _warn_options(key: str, options: Sequence[Mapping[str, str]]) -> None:
    for difference in _compare(options):
        logger.warning("%s.%s: each process goes by its own.", key, difference)


def _describe(view: View, updaters: Sequence[Updater]) -> dict[str, str]:
    """Returns what has to be the same everywhere: name -> value, as text."""
    found = _describe_options(view.config)
    for updater in updaters:
        of = f" {updater.name!r}" if updater.name else ""
        optimizer, scheduler = updater.optimizer, updater.scheduler
        found[f"the optimizer{of}"] = type(optimizer).__name__
        for number, group in enumerate(optimizer.param_groups):
            for name, value in group.items():
                is_one = isinstance(value, Tensor) and value.numel() == 1
                setting = float(value) if is_one else value
                if _is_plain(setting) and name not in ("params", "param_names"):
                    found[f"{name} of the optimizer's{of} group {number}"] = repr(to_plain(setting))
        found[f"the scheduler{of}"] = name_schedule(scheduler)
        if scheduler is not None:
            for kind, settings in describe_schedule(scheduler):
                found.update({f"{key} of {kind}{of}": repr(v) for key, v in settings.items()})
    found.update(_describe_model(view.model, updaters))
    return found


def _describe_options(config: TrainerConfig) -> dict[str, str]:
    names = [field.name for field in dataclasses.fields(config) if field.name not in _OWN]
    return {option_text(name): repr(getattr(config, name)) for name in names}


def _describe_model(model: nn.Module, updaters: Sequence[Updater]) -> Iterator[tuple[str, str]]:
    ignored = getattr(model, "_ddp_params_and_buffers_to_ignore", ())
    places: dict[str, str] = {}
    for updater in updaters:
        of = f" of {updater.name!r}" if updater.name else ""
        for number, names in enumerate(name_parameters(model, updater.optimizer)):
            places.update(dict.fromkeys(names, f", in group {number}{of}"))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name not in ignored:
            more = "" if tensor.requires_grad else ", not trained"
            yield f"model.{name}", describe_form(tensor) + more + places.get(name, "")


def _describe_data(loader: Any) -> Iterator[tuple[str, str]]:
    """Yields what is known of the data of a loader that is divided over the processes here: each of
    them has to be given all of it.
    """
    if not isinstance(loader, DataLoader) or is_divided(loader):
        return
    for name, value in describe_data(loader).items():
        if name not in ("workers", "batches"):
            yield name, repr(value)
    data: Any = loader.dataset
    while hasattr(data, "dataset") and hasattr(data, "indices"):  # through each Subset
        yield f"the {type(data).__name__}'s indices", str(describe_indices(data.indices))
        data = data.dataset


def _describe_callbacks(callbacks: CallbackManager) -> dict[str, dict[str, Any]]:
    keeping = callbacks.implementers("on_snapshot_save")
    return {
        plugin.state_key: {
            "label": f"{type(plugin.callback).__name__} of {plugin.label}",
            "options": {k: repr(v) for k, v in describe_callback(plugin)["options"].items()},
            "keeps": plugin.name in keeping and not plugin.state_per_process,
        }
        for plugin in callbacks.plugins
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
