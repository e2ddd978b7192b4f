"""The trainers of others, each on the training of `workload`: `(loader, callbacks) -> model`.

Each is used as its documentation has it, with what is on by default, less the things that print or
write files; `callbacks` do nothing at the start and end of each batch.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import tempfile
from collections.abc import Callable
from typing import Any

import peer_listeners as listeners
import torch
from torch import Tensor, nn
from workload import LEARNING_RATE, UPDATES, Batch, TimingLoader, build, loss_of

Train = Callable[[TimingLoader, int], nn.Module]


def by_ignite(loader: TimingLoader, callbacks: int) -> nn.Module:
    from ignite.engine import Engine, Events

    model, optimizer = build()
    model.train()

    def step(engine: object, batch: Batch) -> float:
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    engine = Engine(step)
    for _ in range(callbacks):
        engine.add_event_handler(Events.ITERATION_STARTED, lambda: None)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: None)
    engine.run(loader, max_epochs=1)
    return model


def by_accelerate(loader: TimingLoader, callbacks: int) -> nn.Module:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    own, own_optimizer = build()
    model, optimizer, batches = accelerator.prepare(own, own_optimizer, loader)
    model.train()
    for batch in batches:
        loss = loss_of(model, batch)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return own


def by_fabric(loader: TimingLoader, callbacks: int) -> nn.Module:
    from lightning.fabric import Fabric

    fabric = Fabric(
        accelerator="cpu",
        devices=1,
        callbacks=listeners.for_fabric(callbacks),
    )
    own, own_optimizer = build()
    model, optimizer = fabric.setup(own, own_optimizer)
    model.train()
    for index, batch in enumerate(loader):
        if callbacks:
            fabric.call("on_train_batch_start", batch=batch, batch_idx=index)
        loss = loss_of(model, batch)
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if callbacks:
            fabric.call("on_train_batch_end", outputs=loss, batch=batch, batch_idx=index)
    return own


def by_lightning(loader: TimingLoader, callbacks: int, **options: Any) -> nn.Module:
    import lightning

    own, _ = build()

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = own

        def training_step(self, batch: Batch) -> Tensor:
            return loss_of(self.model, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=LEARNING_RATE)

    lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=listeners.for_lightning(callbacks),
        **{"enable_model_summary": False, **options},
    ).fit(Module(), loader)
    return own


def by_lightning_defaults(loader: TimingLoader, callbacks: int) -> nn.Module:
    """With its progress bar, logger and checkpoint."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        return by_lightning(loader, callbacks, default_root_dir=folder)


def by_lightning_bare(loader: TimingLoader, callbacks: int) -> nn.Module:
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return by_lightning(loader, callbacks, **off)


def by_transformers(loader: TimingLoader, callbacks: int) -> nn.Module:
    import transformers

    class Trainer(transformers.Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> TimingLoader:
            return loader

        def compute_loss(self, model: nn.Module, inputs: Batch, *_: Any, **__: Any) -> Tensor:
            return loss_of(model, inputs)

    model, optimizer = build()
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=32,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(
            model,
            settings,
            train_dataset=[0] * 32,
            optimizers=(optimizer, None),
            callbacks=listeners.for_transformers(callbacks),
        )
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
    return model


def by_skorch(loader: TimingLoader, callbacks: int) -> nn.Module:
    import skorch

    class Net(skorch.NeuralNet):  # type: ignore[misc]
        def get_iterator(self, *_: Any, **__: Any) -> TimingLoader:
            return loader

    model, _ = build()
    net = Net(
        model,
        nn.MSELoss,
        optimizer=torch.optim.AdamW,
        lr=LEARNING_RATE,
        max_epochs=1,
        train_split=None,
        callbacks=listeners.for_skorch(callbacks),
        callbacks__print_log=None,
        verbose=0,
    )
    net.fit(torch.utils.data.TensorDataset(torch.zeros(32, 64), torch.zeros(32, 1)), None)
    trained: nn.Module = net.module_
    return trained


def by_torchtnt(loader: TimingLoader, callbacks: int) -> nn.Module:
    from torchtnt.framework.train import train
    from torchtnt.framework.unit import TrainUnit

    model, optimizer = build()

    class Unit(TrainUnit[Batch]):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model, self.optimizer = model, optimizer

        def train_step(self, state: object, data: Batch) -> None:
            loss = loss_of(self.model, data)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    train(Unit(), loader, max_epochs=1, callbacks=listeners.for_torchtnt(callbacks))
    return model


def by_fastai(loader: TimingLoader, callbacks: int) -> nn.Module:
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    class Loaders(list[Any]):
        train, valid, device = loader, [], torch.device("cpu")

    model, _ = build()
    learner = Learner(
        Loaders([loader, []]),
        model,
        loss_func=nn.functional.mse_loss,
        opt_func=functools.partial(OptimWrapper, opt=torch.optim.AdamW),
        cbs=listeners.for_fastai(callbacks),
    )
    with learner.no_bar(), learner.no_logging():
        learner.fit(1, lr=LEARNING_RATE)
    return model


def by_keras(loader: TimingLoader, callbacks: int) -> nn.Module:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    own, _ = build()
    model = keras.Sequential([keras.Input((64,)), keras.layers.TorchModuleWrapper(own)])
    optimizer = keras.optimizers.AdamW(LEARNING_RATE, weight_decay=0.01, epsilon=1e-8)
    model.compile(optimizer, loss="mse")
    model.fit(
        iter(loader),
        steps_per_epoch=UPDATES,
        verbose=0,
        callbacks=listeners.for_keras(callbacks),
    )
    return own


PEERS: dict[str, tuple[str, Train, tuple[int, ...]]] = {
    "ignite": ("ignite", by_ignite, (0, 1, 5, 20)),
    "skorch": ("skorch", by_skorch, (0, 1, 5, 20)),
    "torchtnt": ("torchtnt", by_torchtnt, (0, 1, 5, 20)),
    "accelerate": ("accelerate", by_accelerate, (0,)),
    "Lightning Fabric": ("lightning", by_fabric, (0, 1, 5, 20)),
    "Lightning Trainer, bare": ("lightning", by_lightning_bare, (0, 1, 5, 20)),
    "Lightning Trainer, defaults": ("lightning", by_lightning_defaults, (0,)),
    "Hugging Face Trainer": ("transformers", by_transformers, (0, 1, 5, 20)),
    "fastai": ("fastai", by_fastai, (0, 1, 5, 20)),
    "Keras on torch": ("keras", by_keras, (0, 1, 5, 20)),
}
"""Name -> the module to look for, how it trains, and with how many callbacks."""
