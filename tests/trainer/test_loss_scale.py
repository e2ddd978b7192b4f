"""The loss scale as callbacks see it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainer import Trainer, TrainerConfig
from trainer_callback import TrainerCallback


def steep(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).float().mean() * 3.0  # times 65536 it is more than fp16 has


class Scales(TrainerCallback):
    """The loss scale before each update and after it, and whether the update was skipped."""

    def __init__(self) -> None:
        self.before: list[float | None] = []
        self.after: list[float | None] = []
        self.skipped: list[bool] = []

    def on_backward_end(self, trainer: Any) -> None:
        self.before.append(trainer.loss_scale)

    def on_step_end(self, trainer: Any, skipped: bool) -> None:
        self.after.append(trainer.loss_scale)
        self.skipped.append(skipped)


def train(precision: str, scales: Scales, *, resume: bool = False, **config: Any) -> Trainer:
    model = nn.Linear(1, 1)
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        [torch.ones(1, 1)] * 4,
        loss_fn=steep,
        config=TrainerConfig(**{"epochs": 1, "device": "cpu", "precision": precision, **config}),
        callbacks=[scales],
        discover=False,
    )
    trainer.train(resume=resume)
    return trainer


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_that_are_not_scaled_have_no_scale(precision: str) -> None:
    scales = Scales()
    train(precision, scales)
    assert scales.before == scales.after == [None] * 4


def test_the_scale_is_that_of_the_update_until_the_step_and_then_that_of_the_next() -> None:
    scales = Scales()
    train("fp16", scales)
    assert scales.skipped == [True, True, False, False]
    assert scales.before == [65536.0, 32768.0, 16384.0, 16384.0]
    assert scales.after == [*scales.before[1:], 16384.0]


def test_a_resumed_run_goes_on_with_its_scale(tmp_path: Any) -> None:
    train("fp16", Scales(), output_dir=tmp_path)
    scales = Scales()
    train("fp16", scales, resume=True, output_dir=tmp_path, epochs=2)
    assert scales.before == [16384.0] * 4


class Fetches(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func.overloadpacket.__name__ == "_local_scalar_dense"
        return func(*args, **(kwargs or {}))


def test_asking_for_the_scale_copies_nothing_from_the_device() -> None:
    trainer = train("fp16", Scales())
    with Fetches() as fetches:
        assert trainer.run.view.loss_scale == 16384.0
    assert fetches.count == 0
