"""Plugins that nobody has written into the program."""

from __future__ import annotations

from typing import Any

from .callback import Plugins

__all__ = ["EnvironmentPlugins"]


class EnvironmentPlugins(Plugins):
    """Plugins that the environment asks for. A trainer that has `Plugins` gets them added there."""

    @property
    def state_key(self) -> str:
        return "trainer_lightning.EnvironmentPlugins"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        found = [each for each in trainer.callbacks if isinstance(each, Plugins)]
        others = [each for each in found if not isinstance(each, EnvironmentPlugins)]
        if others:
            others[0].add(self._callbacks)
            trainer.callbacks = [each for each in trainer.callbacks if each is not self]
