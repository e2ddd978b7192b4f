"""The loaders of a run, each as the run goes through it: seeded by epoch, and shared by the
processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias, cast

from trainer_callback import option_text

from ..config import ConfigError
from ..data.loader_check import warn_used_up
from ..data.loaders import EpochLoader
from ..data.shares import count_batches
from ..step.validation import ValidationBatches
from .accelerated import PreparedLoader, is_prepared
from .alike import check_alike_loader
from .assembly import Setup

__all__ = ["Loader", "RunLoaders"]

Loader: TypeAlias = Iterable[Any] | EpochLoader


class RunLoaders:
    """Knows every loader that the run has been handed; one that comes again is the same."""

    def __init__(self, setup: Setup) -> None:
        """Keeps references."""
        self._setup, self._config = setup, setup.view.config
        self._known: dict[tuple[int, str], EpochLoader] = {}

    def for_training(self, loader: Loader, limit: int | None = None) -> EpochLoader:
        """Returns `loader` as the run goes through it, `limit` batches an epoch."""
        used = self._wrap(loader, "train")
        used.limit = None
        own = count_batches(self._config.max_train_batches, used.length, "max_train_batches")
        used.limit = min((each for each in (limit, own) if each is not None), default=None)
        self._setup.view.training = used
        self._setup.checkpoint.use(used)
        return used

    def for_validation(self, loader: Loader, name: str = "validation") -> EpochLoader:
        """Returns `loader` as a validation goes through it.

        Args:
            name: how messages call it.

        Raises:
            ConfigError: `max_val_batches` is a share of nobody knows how many, or leaves a process
                of a sharded model without any.
        """
        used, ranks, most = self._wrap(loader, name), self._setup.ranks, "max_val_batches"
        used.limit = None
        given = count_batches(self._config.max_val_batches, used.whole_length, most)
        if given is None:
            return used
        if ranks.is_sharded and given < ranks.world_size:
            raise ConfigError(
                f"{option_text(most)} is {given}, and a forward pass of a sharded model takes all "
                f"{ranks.world_size} processes. Use {option_text(most, ranks.world_size)} or more."
            )
        used.limit = len(range(ranks.rank, given, ranks.world_size))
        return used

    def validation_batches(self, loader: Iterable[Any]) -> ValidationBatches:
        """Returns the batches of `loader` for a validation, on the device; a signal cuts them."""
        setup = self._setup
        is_cut = setup.decider.is_signalled
        return ValidationBatches(
            self.for_validation(loader), device=setup.view.device, is_cut=is_cut
        )

    def _wrap(self, loader: Loader, name: str) -> EpochLoader:
        used = loader if isinstance(loader, EpochLoader) else self._known.get((id(loader), name))
        if used is None:
            given = cast("Iterable[Any]", loader)
            warn_used_up(given, name, self._config)
            used = self.wrap_once(given, name, in_step=name == "train")
            self._known[id(loader), name] = used
        return used

    def wrap_once(self, loader: Iterable[Any], name: str, *, in_step: bool = False) -> EpochLoader:
        """Returns `loader` as something goes through it that messages call `name`; nothing of it is
        kept here. For `in_step` see `EpochLoader`.
        """
        setup, seed = self._setup, self._setup.view.config.seed
        check_alike_loader(loader, name, setup.ranks)
        given = PreparedLoader(loader) if is_prepared(loader) else loader
        return EpochLoader(given, seed, name, setup.ranks, in_step=in_step)
