"""The loaders of a run, each as the run goes through it: seeded by epoch, and shared by the
processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias, cast

from ..data.loaders import EpochLoader
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
        self._setup = setup
        self._known: dict[tuple[int, str], EpochLoader] = {}

    def for_training(self, loader: Loader, limit: int | None = None) -> EpochLoader:
        """Returns `loader` as the run goes through it, `limit` batches an epoch."""
        used = self._wrap(loader, "train")
        used.limit = limit
        self._setup.checkpoint.use(used)
        return used

    def for_validation(self, loader: Loader) -> EpochLoader:
        """Returns `loader` as a validation goes through it."""
        return self._wrap(loader, "validation")

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
            given, setup = cast("Iterable[Any]", loader), self._setup
            check_alike_loader(given, name, setup.ranks)
            given = PreparedLoader(given) if is_prepared(given) else given
            seed = setup.view.config.seed
            used = EpochLoader(given, seed, name, setup.ranks, in_step=name == "train")
            self._known[id(loader), name] = used
        return used
