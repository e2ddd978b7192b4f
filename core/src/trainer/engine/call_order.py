"""The refusal of calls that have no meaning where they stand in a loop."""

from __future__ import annotations

from collections.abc import Mapping

from trainer_callback import UsageError

from ..config import TrainerConfig
from ..step.update import Updater

__all__ = ["RunOrderError", "check_stepped", "check_turns", "refuse"]


class RunOrderError(UsageError, RuntimeError):
    """A method of `Run` was called where it has no meaning."""


def refuse(is_wrong: bool, what: str, way: str) -> None:
    """Raises a RunOrderError where `what` is called and `is_wrong`; `way` says what to do."""
    if is_wrong:
        raise RunOrderError(f"run.{what} has no meaning here: {way}.")


def check_stepped(updaters: Mapping[str, Updater], update: int) -> None:
    """Refuses the end of an update that would drop what backward passes gave an optimizer.

    Raises:
        RunOrderError: one has gradients left, for its step was not taken.
    """
    for name, updater in updaters.items():
        if any(parameter.grad is not None for parameter in updater.gradients.own):
            raise RunOrderError(
                f"update {update} ends with gradients of {name!r} and without run.step({name!r}). "
                "Call it in the batch that ends an update, or name in run.backward what the loss "
                "is for."
            )


def check_turns(config: TrainerConfig, *, by_epoch: bool) -> None:
    """Refuses options that mean nothing in a loop without a loader and epochs."""
    counts = config.max_train_batches is not None and not config.dry_run
    way = "use max_steps: it has no loader whose batches max_train_batches counts"
    refuse(counts, "updates()", way)
    way = (
        "it has no epochs to step a scheduler by; use scheduler_interval='update', and a metric of "
        "a validation for scheduler_monitor"
    )
    refuse(by_epoch, "updates()", way)
