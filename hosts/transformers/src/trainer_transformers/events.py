"""What a trainer tells its callbacks, on its way to the plugins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers

from .session import Session

__all__ = ["Events"]


class Events(transformers.TrainerCallback):  # type: ignore[misc]
    """The last of the trainer's callbacks, so that it sees what all others have decided.

    Attributes:
        on_begin: called when everything is restored, before plugins are told.
    """

    def __init__(self, session: Session) -> None:
        """Keeps references."""
        self._session = session
        self.on_begin: Callable[[], None] = lambda: None

    def on_train_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self.on_begin()
        self._session.begin(control)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self._session.start_epoch()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self._session.unscale()

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self._session.end_update(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self._session.end_epoch(control)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **named: Any) -> None:
        self._session.log(logs or {})

    def on_save(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self._session.tell_saved()

    def on_train_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self._session.end()
