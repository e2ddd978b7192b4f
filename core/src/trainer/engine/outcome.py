"""How a run has ended, as its caller hears of it."""

from __future__ import annotations

from trainer_callback.calls.manager import CallbackManager
from trainer_callback.errors import text_of

from ..result import Stop, TrainResult
from ..view.view import View
from .final_weights import describe_weights
from .uncalled import explain_uncalled

__all__ = ["make_result"]


def make_result(
    view: View,
    callbacks: CallbackManager,
    stop: Stop | None,
    error: BaseException | None,
) -> TrainResult:
    """Returns the result of a run that ends where `view` is.

    Args:
        stop: why it ends; None: the epochs are over.
        error: what ends it, if that is an exception.
    """
    position = view.position
    stop = stop or Stop("finished", "epochs")
    if isinstance(error, KeyboardInterrupt):
        stop = Stop("interrupted", "SIGINT")
    elif (plugin := callbacks.passed_by(error)) is not None:
        assert error is not None
        stop = Stop("stopped", type(error).__name__, text_of(error), plugin.name)
    elif error is not None:
        stop = Stop("failed", type(error).__name__, text_of(error))
    return TrainResult(
        status=stop.status,
        stop_reason=stop.reason,
        stop_detail=stop.detail,
        stopped_by=stop.by,
        epochs=position.epochs_done,
        steps=position.step,
        train_loss=position.metrics.get("train_loss"),
        val_loss=position.metrics.get("val_loss"),
        history=[dict(entry) for entry in position.history],
        callback_costs=callbacks.costs(),
        uncalled_hooks=explain_uncalled(view, callbacks),
        switched_off=tuple(callbacks.switched_off),
        weights=describe_weights(position),
    )
