"""One hook call of the trainers of others, with a number of callbacks that do nothing:
`count -> a function that makes the call`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import peer_listeners as listeners
from torch import nn

Make = Callable[[int], Callable[[], object]]


def by_ignite(count: int) -> Callable[[], object]:
    from ignite.engine import Engine, Events

    engine = Engine(lambda engine, batch: None)
    for _ in range(count):
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: None)
    return lambda: engine.fire_event(Events.ITERATION_COMPLETED)


def by_skorch(count: int) -> Callable[[], object]:
    from skorch import NeuralNet

    net = NeuralNet(nn.Linear(1, 1), nn.MSELoss, callbacks=listeners.for_skorch(count))
    net.initialize()
    return lambda: net.notify("on_batch_end", batch=None, training=True)


def by_torchtnt(count: int) -> Callable[[], object]:
    from torchtnt.framework._callback_handler import CallbackHandler

    handler: Any = CallbackHandler(listeners.for_torchtnt(count))
    return lambda: handler.on_train_step_end(None, None)


def by_fabric(count: int) -> Callable[[], object]:
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1, callbacks=listeners.for_fabric(count))
    return lambda: fabric.call("on_train_batch_end", outputs=None, batch=None, batch_idx=0)


def by_lightning(count: int) -> Callable[[], object]:
    import lightning
    from lightning.pytorch.trainer import call

    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=listeners.for_lightning(count),
    )
    trainer.strategy.connect(lightning.LightningModule())
    return lambda: call._call_callback_hooks(trainer, "on_train_batch_end", None, None, 0)


def by_transformers(count: int) -> Callable[[], object]:
    from transformers import TrainerControl, TrainerState
    from transformers.trainer_callback import CallbackHandler

    handler = CallbackHandler(listeners.for_transformers(count), None, None, None, None)
    state, control = TrainerState(), TrainerControl()
    return lambda: handler.on_step_end(None, state, control)


def by_fastai(count: int) -> Callable[[], object]:
    from fastai.learner import Learner

    callbacks = listeners.for_fastai(count)
    learner = Learner([[], []], nn.Linear(1, 1), nn.functional.mse_loss, cbs=callbacks)
    learner.xb, learner.yb = (), ()
    return lambda: learner("before_batch")


def by_keras(count: int) -> Callable[[], object]:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    callbacks = keras.callbacks.CallbackList(listeners.for_keras(count))
    callbacks.on_train_begin()  # starts the thread that it calls them in
    return lambda: callbacks.on_train_batch_end(0, {})


PEERS: dict[str, tuple[str, Make]] = {
    "ignite": ("ignite", by_ignite),
    "skorch": ("skorch", by_skorch),
    "torchtnt": ("torchtnt", by_torchtnt),
    "Lightning Fabric": ("lightning", by_fabric),
    "Lightning Trainer": ("lightning", by_lightning),
    "Hugging Face Trainer": ("transformers", by_transformers),
    "fastai": ("fastai", by_fastai),
    "Keras": ("keras", by_keras),
}
"""Name -> the module to look for, and what makes its call."""
