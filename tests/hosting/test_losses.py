"""The losses of a hosted run: when they are read, and what of."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from trainer.hosting.losses import HostedLosses


class OnDevice(Tensor):
    """A tensor that says it is on a device, as far as anybody can find out without a card."""

    reads = 0

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def item(self) -> float:
        raise AssertionError("this would wait for the device")

    def tolist(self) -> list[float]:
        OnDevice.reads += 1
        return self.as_subclass(Tensor).tolist()


def on_device(value: float) -> Tensor:
    return torch.tensor(value).as_subclass(OnDevice)


def test_an_update_does_not_wait_for_its_loss() -> None:
    losses, OnDevice.reads = HostedLosses(host="Here"), 0
    for step in range(1, 6):
        losses.add_batch(on_device(float(step)), 2)
        losses.end_update(step)
    assert OnDevice.reads == 0
    assert losses.take_interval() == {"": 3.0}
    assert OnDevice.reads == 1


def test_a_loss_that_the_device_overwrites_later_counts_as_it_was() -> None:
    losses, buffer = HostedLosses(host="Here"), on_device(0.0)
    for step in (1, 2):
        buffer.fill_(step)
        losses.add_batch(buffer, 1)
        losses.end_update(step)
    assert losses.epoch_means() == {"": 1.5}


def test_a_loss_that_is_not_finite_is_told_with_its_update_and_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    losses = HostedLosses(host="Here")
    for step, value in enumerate((1.0, float("nan"), float("inf"), 3.0), start=1):
        losses.add_batch(torch.tensor(value), 1)
        losses.end_update(step)
    with caplog.at_level(logging.WARNING, "trainer"):
        assert losses.epoch_means() == {"": 2.0}
    (record,) = caplog.records
    assert record.getMessage().startswith("the loss of update 2 is not finite")


def test_micro_batches_weigh_by_their_items() -> None:
    losses = HostedLosses(host="Here")
    losses.add_batch(torch.tensor(1.0), 3)
    losses.add_batch(torch.tensor(5.0), 1)
    losses.end_update(1)
    assert losses.take_interval() == {"": 2.0}
