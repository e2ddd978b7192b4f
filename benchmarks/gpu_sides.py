"""The ways to train one GPT that `gpu.py` compares: by hand, nanoGPT's, ours, and the trainers of
others. Each is a function of a task and a clock, and trains the task's model for a turn.

All share one compiled model, so that it is compiled once; each turn has a fresh optimizer. All
compute in bf16, clip by a norm of 1, and read the loss every 10 updates, but for nanoGPT's way,
which reads it each time, and Lightning, which reads none here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from gpu_peers import READ_EVERY, by_accelerate, by_lightning, by_transformers
from gpu_task import Clock, Task, loss_of
from measure import is_installed
from nanogpt import train as train_nanogpt
from torch import nn

from trainer import Trainer, TrainerConfig
from trainer_callback import TrainerCallback
from trainer_early_stopping import EarlyStoppingCallback
from trainer_ema import EMACallback
from trainer_gradient_monitor import GradientMonitorCallback
from trainer_throughput import ThroughputCallback

Train = Callable[[Task, Clock], object]


def by_hand(task: Task, clock: Clock) -> None:
    optimizer = task.make_optimizer()
    total = torch.zeros((), device=task.device)
    for number, batch in enumerate(clock, 1):
        moved = task.move(batch)
        with torch.autocast(task.device.type, torch.bfloat16):
            loss = loss_of(task.model, moved)
        loss.backward()
        nn.utils.clip_grad_norm_(task.plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total += loss.detach()
        if number % READ_EVERY == 0:
            total.item()
            total.zero_()


def by_nanogpt(task: Task, clock: Clock) -> None:
    train_nanogpt(
        task.nano,
        task.tokens,
        task.batch_size,
        len(clock),
        task.optimizer,
        bf16=True,
        compile=False,  # it is compiled
        update_done=clock.tick,
    )


def by_trainer(task: Task, clock: Clock, make: Callable[[], Sequence[TrainerCallback]]) -> None:
    Trainer(
        task.model,
        task.make_optimizer(),
        clock,
        loss_fn=loss_of,
        config=TrainerConfig(
            epochs=1,
            device=task.device.type,
            precision="bf16",
            max_grad_norm=1.0,
            log_interval=READ_EVERY,
        ),
        callbacks=make(),
        discover=False,
        progress=False,
    ).train()


def _monitor(every: int) -> GradientMonitorCallback:
    return GradientMonitorCallback(monitor_interval=every, report=False)


def _stop_early() -> EarlyStoppingCallback:
    return EarlyStoppingCallback(patience=3, monitor="train_loss")


def _all() -> list[TrainerCallback]:
    return [_stop_early(), _monitor(100), EMACallback(), ThroughputCallback()]


@dataclass(frozen=True)
class Side:
    """A way to train.

    Attributes:
        updates: of a turn; where something happens every 100, one has as many.
        needs: the module without which it is left out.
    """

    train: Train
    updates: int = 30
    needs: str = "trainer"

    @property
    def is_there(self) -> bool:
        return is_installed(self.needs)


def ours(*make: Callable[[], TrainerCallback], updates: int = 30) -> Side:
    return Side(partial(by_trainer, make=lambda: [each() for each in make]), updates)


BASE = "by hand, loss read every 10 updates"
PLAIN = "Trainer, no callbacks"
EACH, TENTH = "Trainer, monitor every update", "Trainer, monitor every 10"
FULL = "Trainer, all plugins (monitor every 100)"
SIDES: dict[str, Side] = {
    BASE: Side(by_hand),
    "nanoGPT's model and loop": Side(by_nanogpt),
    PLAIN: ours(),
    "Trainer, early stopping, monitor every 100": ours(
        _stop_early, partial(_monitor, 100), updates=100
    ),
    TENTH: ours(partial(_monitor, 10)),
    EACH: ours(partial(_monitor, 1)),
    "Trainer, EMA": ours(EMACallback),
    FULL: Side(partial(by_trainer, make=_all), 100),
    "Lightning": Side(by_lightning, needs="lightning"),
    "Hugging Face": Side(by_transformers, needs="transformers"),
    "Accelerate": Side(by_accelerate, needs="accelerate"),
}
