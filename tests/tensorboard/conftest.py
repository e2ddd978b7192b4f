"""Small runs of the real Trainer, and their event files read back by TensorBoard itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer import Trainer, TrainerConfig


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def mean_square(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) - 1).square().mean()


def make_trainer(
    *callbacks: object,
    model: nn.Module | None = None,
    loss_fn: Callable[[nn.Module, Tensor], Tensor] = mean_square,
    **config: Any,
) -> Trainer:
    """Returns a Trainer of 2 epochs of 5 batches, with a validation set, that logs each update."""
    torch.manual_seed(0)
    model = model if model is not None else nn.Linear(4, 1)
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(3, 4, generator=generator) for _ in range(5)]
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        batches,
        batches[:1],
        loss_fn=loss_fn,
        config=TrainerConfig(**{"epochs": 2, "device": "cpu", "log_interval": 1, **config}),
        callbacks=callbacks,
        discover=False,
    )


class Events:
    """What TensorBoard reads from `OUTPUT_DIR/tensorboard`."""

    def __init__(self, output_dir: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        self._read = EventAccumulator(
            str(output_dir / "tensorboard"),
            size_guidance=dict.fromkeys(("scalars", "tensors", "histograms"), 0),
        )
        self._read.Reload()

    @property
    def scalars(self) -> dict[str, list[tuple[int, float]]]:
        return {
            tag: [(event.step, event.value) for event in self._read.Scalars(tag)]
            for tag in self._read.Tags()["scalars"]
        }

    @property
    def texts(self) -> dict[str, list[tuple[int, str]]]:
        return {
            tag.removesuffix("/text_summary"): [
                (event.step, event.tensor_proto.string_val[0].decode())
                for event in self._read.Tensors(tag)
            ]
            for tag in self._read.Tags()["tensors"]
        }

    @property
    def histograms(self) -> dict[str, list[tuple[int, float, float, float]]]:
        """Tag -> step, count, least, most."""
        return {
            tag: [
                (event.step, value.num, value.min, value.max)
                for event in self._read.Histograms(tag)
                for value in [event.histogram_value]
            ]
            for tag in self._read.Tags()["histograms"]
        }


@pytest.fixture
def make() -> Callable[..., Trainer]:
    return make_trainer


@pytest.fixture
def read() -> Callable[[Path], Events]:
    return Events
