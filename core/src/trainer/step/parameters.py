"""Whose state is whose in an optimizer: by the names that the model has for its parameters."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer_callback import SnapshotError

__all__ = ["match_parameters", "name_frozen", "name_parameters", "tell_frozen"]

logger: logging.Logger = logging.getLogger("trainer")


def name_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """Returns the names of the parameters of each group; of a tied one the first. One that the
    model has not is called by its place among such.
    """
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    places: dict[int, str] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in known:
                places.setdefault(id(parameter), f"<{len(places)}>")
    names = {**known, **places}
    return [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]


def name_frozen(model: nn.Module) -> list[str]:
    """Returns the names of the parameters that are not trained; of a tied one the first."""
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


def tell_frozen(saved: Sequence[str], now: Sequence[str]) -> None:
    """Warns where other parameters are frozen than at the start of the snapshot's run, each as
    `name_frozen` returned them before any callback was called.
    """
    for names, before, after in (
        ([name for name in saved if name not in now], "not trained", "trained"),
        ([name for name in now if name not in saved], "trained", "not trained"),
    ):
        if names:
            logger.warning(
                "the parameter %s%s was %s at the start of the snapshot's run and is %s from here "
                "on, unless a callback changes it. Set requires_grad as that run did to go on "
                "with it.",
                *(names[0], _count_others(names), before, after),
            )


def match_parameters(
    state: Mapping[str, Any],
    saved: Sequence[Sequence[str]] | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    path: Path,
) -> Mapping[str, Any]:
    """Returns an optimizer's `state` with its parameters in the order of `optimizer`.

    Args:
        saved: what `name_parameters` returned when it was saved; None leaves the order as it is.

    Raises:
        SnapshotError: it was another set of parameters, or they were grouped otherwise.
    """
    if saved is None:
        logger.info("%s has no names of parameters; the optimizer goes by their order.", path)
        return state
    own = name_parameters(model, optimizer)
    first: dict[int, str] = {}
    alias = {
        name: first.setdefault(id(parameter), name)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    theirs = [[alias.get(name, name) for name in names] for names in saved]
    if theirs == own:
        return state
    _check_groups(theirs, own, path)
    groups = []
    for group, old, new in zip(state["param_groups"], theirs, own, strict=True):
        keys = dict(zip(old, group["params"], strict=True))
        groups.append({**group, "params": [keys[name] for name in new]})
    for group, mine in zip(groups, optimizer.param_groups, strict=True):
        if "param_names" in mine:
            group["param_names"] = mine["param_names"]
    return {**state, "param_groups": groups}


def _check_groups(saved: Sequence[Sequence[str]], own: Sequence[Sequence[str]], path: Path) -> None:
    before = {name: index for index, names in enumerate(saved) for name in names}
    now = {name: index for index, names in enumerate(own) for name in names}
    gone = [name for name in before if name not in now]
    new = [name for name in now if name not in before]
    if gone or new:
        texts = []
        if gone:
            texts.append(f"{_quote(gone)} is not in this run's optimizer")
        if new:
            texts.append(f"{_quote(new)} was not in the optimizer of the snapshot's run")
        raise SnapshotError(
            f"{path} does not fit the optimizer: {', and '.join(texts)}. Build it over the same "
            "parameters as the run that wrote it."
        )
    moved = next((name for name, index in before.items() if now[name] != index), None)
    if moved is not None:
        raise SnapshotError(
            f"{path} does not fit the optimizer: {moved!r} was in group {before[moved]} of "
            f"{len(saved)} and is in group {now[moved]} of {len(own)}. Divide the parameters into "
            "groups as the run that wrote it did."
        )

    if len(saved) != len(own):  # some are empty
        raise SnapshotError(
            f"{path} does not fit the optimizer: it had {len(saved)} groups of parameters, and has "
            f"{len(own)} in this run, which is {len(own) - len(saved):+d} without a parameter. "
            "Divide the parameters into groups as the run that wrote it did."
        )


def _quote(names: Sequence[str]) -> str:
    return f"{names[0]!r}{_count_others(names)}"


def _count_others(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
