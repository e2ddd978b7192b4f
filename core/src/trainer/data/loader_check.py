"""What is handed over as a loader: refused where it is none, or known to have too little."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import numpy
import torch
from torch.utils.data import DataLoader, Dataset

from trainer_callback import option_text

from ..config import ConfigError, TrainerConfig
from ..processes.signals import WorkerShield
from .shares import dividing_sampler, samplers_of

__all__ = ["check_loader", "check_order", "check_undivided", "check_whole", "warn_used_up"]

logger: logging.Logger = logging.getLogger("trainer")


def check_loader(loader: object, name: str, least: int) -> None:
    """Checks that `loader` gives batches, and at least `least` where it says how many.

    Args:
        name: how messages call it.
        least: batches that it has to have.

    Raises:
        ConfigError: it is something else, or has fewer.
    """
    _check_kind(loader, name)
    _warn_generator(loader, name)
    try:
        length = len(loader)  # type: ignore[arg-type]
    except TypeError:
        return
    if length < least:
        sizes = ""
        if isinstance(loader, DataLoader):
            sizes = f" (batch size {loader.batch_size}, drop_last={loader.drop_last})"
            if isinstance(loader.dataset, Sized):
                sizes = f" ({len(loader.dataset)} items, {sizes[2:]}"
        what = "is empty" if length == 0 else f"has {length} batches for {least} processes"
        raise ConfigError(
            f"the {name} loader {what}{sizes}. Give it more data or a smaller batch size."
        )


def _warn_generator(loader: object, name: str) -> None:
    """Says that a generator which somebody has given has no effect; one of an earlier run over the
    same loader is none.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.worker_init_fn, WorkerShield):
        return
    samplers = [each for each in samplers_of(loader) if not hasattr(each, "set_epoch")]
    if any(getattr(each, "generator", None) is not None for each in (loader, *samplers)):
        logger.warning(
            "the generator of the %s loader is not used: its numbers are drawn from %s and the "
            "epoch, so that a resume finds its place. Leave it out, and set the seed.",
            name,
            option_text("seed"),
        )


def warn_used_up(loader: object, name: str, config: TrainerConfig) -> None:
    """Says of an iterator, which can be gone through once, that the run wants more."""
    validates = name != "train"
    several = config.epochs > 1 or (validates and config.eval_interval is not None)
    ends = config.max_steps is not None or config.max_time is not None
    if isinstance(loader, Iterator) and several and (validates or not ends):
        logger.warning(
            "the %s loader is an iterator (%s), which can be gone through once, and the run has %s."
            " If it ends, so does the run. Pass what can be started again each time, such as a "
            "DataLoader or a list.",
            *(name, type(loader).__name__),
            "several validations" if validates else f"{config.epochs} epochs",
        )


def check_whole(loader: Iterable[Any], name: str, world_size: int) -> None:
    """Checks that nobody has divided `loader` so that items are counted twice, or left out.

    Raises:
        ConfigError: a DistributedSampler has, or one like it.
    """
    sampler = dividing_sampler(loader)
    if sampler is None:
        return
    what = f"the {name} loader has a {type(sampler).__name__}, which"
    way = "Leave the sampler out: each process gets its share by itself, and every item counts once"
    data, parts = getattr(sampler, "dataset", None), sampler.num_replicas
    if isinstance(data, Sized):
        items, visits = len(data), getattr(sampler, "total_size", len(sampler) * parts)
        if items != visits:
            raise ConfigError(
                f"{what} makes {visits} items of {items} so that {parts} processes get as many. "
                f"The mean would be that of other data. {way}."
            )
    if parts != world_size:
        raise ConfigError(
            f"{what} divides the items over {parts} processes, and there are {world_size}: not "
            f"each would be seen once. {way}."
        )


def check_undivided(loader: Iterable[Any], name: str) -> None:
    """Checks that each process gets its share of `loader` here, and nowhere else.

    Raises:
        ConfigError: somebody else has divided it.
    """
    if getattr(loader, "is_divided", False):
        raise ConfigError(
            f"the {name} loader was prepared by Accelerate, which repeats items so that processes "
            "get as many. Pass the DataLoader that it was made of: each process gets its share by "
            "itself, and every item counts once."
        )


def check_order(loader: Iterable[Any]) -> None:
    """Checks that a loader gives all its items in their order, for outputs that stand for them.

    Raises:
        ConfigError: it shuffles, leaves some out, or somebody has divided it.
    """
    check_undivided(loader, "predict")
    if not isinstance(loader, DataLoader):
        return
    way = "outputs come in the order of the data, one for each item"
    own = f"Pass DataLoader(dataset, batch_size={loader.batch_size}) to predict."
    for sampler in samplers_of(loader):
        kind = type(sampler).__name__
        if sampler is dividing_sampler(loader):
            raise ConfigError(
                f"the predict loader has a {kind}, and each process gets its share by itself: "
                f"{way}. {own}"
            )
        if hasattr(sampler, "generator"):
            raise ConfigError(f"the predict loader shuffles ({kind}), and {way}. {own}")
    if not getattr(loader, "in_order", True):
        raise ConfigError(f"the predict loader has in_order=False, and {way}. {own}")
    if loader.drop_last and isinstance(loader.dataset, Sized) and loader.batch_size:
        left = len(loader.dataset) % loader.batch_size
        if left:
            raise ConfigError(
                f"the predict loader has drop_last=True, which leaves out the last {left} of "
                f"{len(loader.dataset)} items, and {way}. {own}"
            )


def _check_kind(loader: object, name: str) -> None:
    kind = type(loader).__name__
    if isinstance(loader, Mapping) or (
        isinstance(loader, (list, tuple)) and any(isinstance(each, DataLoader) for each in loader)
    ):
        raise ConfigError(
            f"the {name} loader is a {kind} of {len(loader)}, and has to be one loader. Join the "
            "data with torch.utils.data.ConcatDataset. Of validation sets, val_loader takes a "
            "mapping of names to loaders; trainer.evaluate takes one a call."
        )
    if isinstance(loader, (torch.Tensor, numpy.ndarray)):
        raise ConfigError(
            f"the {name} loader is a {kind} of shape {tuple(loader.shape)}, whose rows would be "
            "taken for batches. Wrap it: DataLoader(TensorDataset(tensor), batch_size=32)."
        )
    if isinstance(loader, Dataset) or hasattr(loader, "__getitems__"):
        raise ConfigError(
            f"the {name} loader is the data set {kind}, whose items are no batches. Wrap it in a "
            "DataLoader: DataLoader(dataset, batch_size=32), or batch_size=None if each of its "
            "items is a batch."
        )
    if isinstance(loader, (type, str, bytes)) or not isinstance(loader, Iterable):
        what = f"the class {loader.__name__}" if isinstance(loader, type) else f"a {kind}"
        raise ConfigError(
            f"the {name} loader is {what}, which cannot be iterated over batches. Pass a "
            "DataLoader, or an iterable of batches that can be started again."
        )
