"""The places at which a trainer's own methods tell a session what happens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor

from .checkpoints import mark_of
from .evaluations import Evaluations
from .events import Events
from .private import put_best_metric
from .session import Session
from .wrapping import WrappedMethods, ZeroGrad

__all__ = ["watch"]

logger: logging.Logger = logging.getLogger("trainer")


def watch(
    trainer: transformers.Trainer, session: Session, methods: WrappedMethods, events: Events
) -> None:
    """Puts what tells `session` over the methods of `trainer`, and its event callback behind all
    others.
    """

    def make_loader(original: Callable[..., Any]) -> Callable[..., Any]:
        def get_train_dataloader(*values: Any, **named: Any) -> Any:
            loader = original(*values, **named)
            session.note_loader(loader)
            return loader

        return get_train_dataloader

    def open_behind(original: Callable[..., Any]) -> Callable[..., Any]:
        def create_optimizer(*values: Any, **named: Any) -> Any:
            optimizer = original(*values, **named)
            if session.run is None:
                session.open()
                trainer.add_callback(events)
                # Not before: a search for hyperparameters makes an accelerator for each trial.
                _wrap_accelerator(trainer.accelerator, session, methods)
            return optimizer

        return create_optimizer

    def wrap_zero_grad() -> None:
        model = trainer.model_wrapped
        methods.put(
            model, "zero_grad", lambda original: ZeroGrad(model, original, session.end_step)
        )

    events.on_begin = wrap_zero_grad
    methods.put(trainer, "get_train_dataloader", make_loader)
    methods.put(trainer, "create_optimizer", open_behind)
    _wrap_step(trainer, session, methods)
    _wrap_loss(trainer, session, methods)
    _wrap_rest(trainer, session, methods)


def _wrap_step(trainer: transformers.Trainer, session: Session, methods: WrappedMethods) -> None:
    def fetch(original: Callable[..., Any]) -> Callable[..., Any]:
        def get_batch_samples(*values: Any, **named: Any) -> Any:
            if session.is_ended_at_start:
                return [], None
            samples, items = original(*values, **named)
            session.start_window(len(samples), items)
            return samples, items

        return get_batch_samples

    def step(original: Callable[..., Any]) -> Callable[..., Any]:
        def training_step(model: Any, inputs: Any, *values: Any, **named: Any) -> Any:
            session.start_batch(inputs)
            loss = original(model, inputs, *values, **named)
            session.end_batch()
            return loss

        return training_step

    methods.put(trainer, "get_batch_samples", fetch)
    methods.put(trainer, "training_step", step)


def _wrap_loss(trainer: transformers.Trainer, session: Session, methods: WrappedMethods) -> None:
    window, evaluations = session.window, Evaluations(trainer, session)

    def compute(original: Callable[..., Any]) -> Callable[..., Any]:
        def compute_loss(model: Any, inputs: Any, *values: Any, **named: Any) -> Any:
            if not window.is_in_step:
                answer = original(model, inputs, *values, **named)
                evaluations.end_batch(inputs, answer)
                return answer
            if session.asks_outputs and not values and not named.get("return_outputs"):
                loss, outputs = _compute_with_outputs(session, original, model, inputs, named)
                window.note_loss(loss, inputs, outputs)
                return loss
            answer = original(model, inputs, *values, **named)
            loss, outputs = answer if isinstance(answer, tuple) else (answer, None)
            window.note_loss(loss, inputs, outputs)
            return answer

        return compute_loss

    methods.put(trainer, "compute_loss", compute)
    methods.put(trainer, "evaluate", evaluations.wrap)


def _compute_with_outputs(
    session: Session,
    compute: Callable[..., Any],
    model: Any,
    inputs: Any,
    named: Mapping[str, Any],
) -> tuple[Tensor, Any]:
    """Returns loss and outputs of `compute_loss`; of a trainer that has no outputs None for them,
    which is said once.
    """
    try:
        loss, outputs = compute(model, inputs, return_outputs=True, **named)
        return loss, outputs
    except ValueError as error:
        if "output" not in str(error):
            raise
        session.asks_outputs = False
        logger.warning("the trainer has no outputs (%s): plugins get None for them.", error)
        return compute(model, inputs, **named), None


def _wrap_accelerator(accelerator: Any, session: Session, methods: WrappedMethods) -> None:
    def backward(original: Callable[..., Any]) -> Callable[..., Any]:
        def run_backward(loss: Any, **named: Any) -> Any:
            if session.window.is_in_step:
                session.end_forward(loss)
            return original(loss, **named)

        return run_backward

    def unscale(original: Callable[..., Any]) -> Callable[..., Any]:
        def unscale_gradients(*values: Any, **named: Any) -> Any:
            answer = original(*values, **named)
            session.end_backward()
            return answer

        return unscale_gradients

    def clip(original: Callable[..., Any]) -> Callable[..., Any]:
        def clip_grad_norm_(parameters: Any, max_norm: float, *values: Any, **named: Any) -> Any:
            norm = original(parameters, max_norm, *values, **named)
            session.end_clipping(norm, float(max_norm))
            return norm

        return clip_grad_norm_

    methods.put(accelerator, "backward", backward)
    methods.put(accelerator, "unscale_gradients", unscale)
    methods.put(accelerator, "clip_grad_norm_", clip)


def _wrap_rest(trainer: transformers.Trainer, session: Session, methods: WrappedMethods) -> None:
    def save(original: Callable[..., Any]) -> Callable[..., Any]:
        def save_model(output_dir: Any = None, *values: Any, **named: Any) -> Any:
            if output_dir is not None and session.is_live:
                session.save(Path(output_dir), mark_of(trainer.state.log_history))
            return original(output_dir, *values, **named)

        return save_model

    methods.put(trainer, "save_model", save)
    put_best_metric(methods, trainer, lambda: session.wants_save)
