"""Plugins on a Hugging Face trainer, exactly: by what it calls, and not by its events alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import transformers
from transformers.trainer_utils import get_last_checkpoint

from trainer.config import read_path
from trainer.hosting import make_callbacks
from trainer_callback import UsageError

from .checkpoints import check_complete
from .events import Events
from .places import watch
from .plugins import Plugins
from .refusals import check_entries, check_trainer
from .session import Options, Session
from .wrapping import WrappedMethods

__all__ = ["attach", "detach"]

_Trainer = TypeVar("_Trainer", bound=transformers.Trainer)


def attach(
    trainer: _Trainer,
    entries: Sequence[object],
    *,
    discover: bool = True,
    output_dir: str | Path | None = None,
    strict: bool = False,
) -> _Trainer:
    """Lets plugins take part in each `train` of a Hugging Face trainer, and returns it.

    Args:
        trainer: a `transformers.Trainer`, or one of TRL.
        entries: callbacks, names of installed plugins, and mappings of such names to their options:
            `[EarlyStoppingCallback(patience=3), "throughput", {"ema": {"decay": 0.99}}]`.
        discover: use the installed plugins that are live in every run, too.
        output_dir: where plugins write; None: the folder `plugins` in the trainer's own.
        strict: refuse to resume from a checkpoint that has no sound state of plugins, which start
            fresh otherwise, with a warning.

    Raises:
        UsageError: the trainer has plugins already, or does what they cannot follow.
        PluginError: an entry cannot be used.
    """
    check_entries(trainer)
    if isinstance(vars(trainer).get("train"), _Train):
        raise UsageError(
            "attach: this trainer has plugins already. Give all of them in one list, or call "
            "detach(trainer) first."
        )
    check_trainer(trainer)
    place = None if output_dir is None else read_path(output_dir, "output_dir")
    options = Options(make_callbacks(entries), discover, place, strict)
    methods = WrappedMethods()
    methods.put(trainer, "train", lambda original: _Train(trainer, original, options, methods))
    return trainer


def detach(trainer: transformers.Trainer) -> None:
    """Takes away what `attach` has put on a trainer.

    Raises:
        UsageError: it has no plugins, or is training.
    """
    train = vars(trainer).get("train")
    if not isinstance(train, _Train):
        raise UsageError("detach: this trainer has no plugins. Call attach(trainer, [...]) first.")
    if train.is_running:
        raise UsageError("detach: this trainer is training. Call it when train() has returned.")
    train.methods.restore()


class _Train:
    """`train` of a trainer with plugins.

    Attributes:
        is_running: between its start and its end.
        methods: what has put it there.
    """

    def __init__(
        self,
        trainer: transformers.Trainer,
        original: Callable[..., Any],
        options: Options,
        methods: WrappedMethods,
    ) -> None:
        self._trainer, self._original, self._options = trainer, original, options
        self.methods = methods
        self.is_running: bool = False

    def __call__(
        self, resume_from_checkpoint: str | bool | None = None, *values: Any, **named: Any
    ) -> Any:
        """Trains; see `transformers.Trainer.train`."""
        trainer = self._trainer
        check_trainer(trainer)
        if any(isinstance(each, Plugins) for each in trainer.callback_handler.callbacks):
            raise UsageError(
                "attach: this trainer has Plugins among its callbacks. Give all plugins in one "
                "list to attach, and take that callback away."
            )
        checkpoint: str | None = None
        if isinstance(resume_from_checkpoint, (str, Path)):
            checkpoint = str(resume_from_checkpoint)
        elif resume_from_checkpoint:
            checkpoint = get_last_checkpoint(trainer.args.output_dir)
        place = None if checkpoint is None else Path(checkpoint)
        if place is not None:
            check_complete(place)
        session = Session(trainer, self._options, place)
        methods, events = WrappedMethods(), Events(session)
        watch(trainer, session, methods, events)
        self.is_running = True
        try:
            output = self._original(resume_from_checkpoint, *values, **named)
            session.end()
            return output
        except BaseException as error:
            session.end(error)
            raise
        finally:
            self.is_running = False
            methods.restore()
            if events in trainer.callback_handler.callbacks:
                trainer.remove_callback(events)
