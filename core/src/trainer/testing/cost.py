"""What a callback costs of an update, as a share: seconds mean little on a busy machine."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from trainer import Trainer, TrainerConfig
from trainer_callback import hookimpl

from .batch_watch import BatchWatch
from .runs import fresh, make_others, train

__all__ = ["measure_share"]

_UPDATES: Final = 14
_WARM_UP: Final = 4
_REPEATS: Final = 3

_WIDTH: Final = 192
_ROWS: Final = 2048
"""Items of a batch: with them the ratio of arithmetic to weights is that of a language model that
sees two thousand tokens in an update, which is few. With one thousand, to read the weights once
takes 0.6 % on a quiet machine, and over 1 % where other processes want the memory too.
"""


def measure_share(
    make: Callable[[], object],
    place: Path,
    make_model: Callable[[], nn.Module | None] = lambda: None,
    beside: Sequence[str] = (),
) -> tuple[float, str]:
    """Returns the share of an update that the callback takes, in hooks of the batch, in `on_log`
    and in hooks of the model, and where most of it goes. On one core; of each update the quickest
    of several runs counts, since what else the machine does only adds.

    Args:
        make_model: makes a part of the model, from which the callback finds what it needs.
        beside: names of plugins that are in the run, whose own share does not count.
    """
    share, where = _measure_share([make], place / "with", make_model, beside)
    if beside:
        share -= _measure_share([], place / "without", make_model, beside)[0]
    return share, where


def _measure_share(
    makes: Sequence[Callable[[], object]], place: Path, *others: Any
) -> tuple[float, str]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        watches = [_measure(makes, place / f"run-{n}", *others) for n in range(_REPEATS)]
    finally:
        torch.set_num_threads(threads)
    counted = range(_WARM_UP, min(watch.updates for watch in watches) - 1)  # the last has no end
    if not counted:
        pytest.skip(f"it ends the run at or before update {_WARM_UP + 1}")
    cost = sum(min(watch.costs[number] for watch in watches) for number in counted)
    rest = sum(min(watch.find_rest(number) for watch in watches) for number in counted)
    quickest = min(watches, key=lambda watch: sum(watch.seconds.values()))
    most = sorted(quickest.seconds, key=lambda hook: -quickest.seconds[hook])
    return cost / rest, ", ".join(most[:2])


class _CostWatch(BatchWatch):
    """Times the others, and the updates.

    Attributes:
        seconds: hook -> seconds, behind the warm-up.
        costs: number of an update -> seconds of all hooks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.costs: defaultdict[int, float] = defaultdict(float)
        self._moments: list[float] = []

    @property
    def updates(self) -> int:
        """Of this run."""
        return len(self._moments)

    def find_rest(self, number: int) -> float:
        """Returns the seconds of an update without the callback."""
        return self._moments[number + 1] - self._moments[number] - self.costs[number]

    def start_batch(self) -> None:
        self._moments.append(time.perf_counter())

    def on_train_end(self) -> None: ...  # type: ignore[override]

    @contextlib.contextmanager
    def around(self, place: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self.costs[len(self._moments) - 1] += seconds
            if len(self._moments) > _WARM_UP:
                self.seconds[place] += seconds

    @hookimpl(wrapper=True)
    def on_log(self) -> Generator[None, Any, Any]:  # type: ignore[override]
        with self.around("on_log"):
            answer = yield
        return answer


class _Joined(nn.Module):
    """A large model, and one that a callback needs, behind each other."""

    def __init__(self, large: nn.Module, needed: nn.Module) -> None:
        super().__init__()
        self.large, self.needed = large, needed

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, width) -> (B, width)."""
        found: Tensor = self.large(inputs)
        return found + self.needed(found[:, :4])  # type: ignore[no-any-return]


def _measure(
    makes: Sequence[Callable[[], object]],
    place: Path,
    make_model: Callable[[], nn.Module | None],
    beside: Sequence[str],
) -> _CostWatch:
    watch = _CostWatch()
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Linear(_WIDTH, _WIDTH) for _ in range(6)]
    model: nn.Module = nn.Sequential(*(part for layer in layers for part in (layer, nn.GELU())))
    if (needed := make_model()) is not None:
        model = _Joined(model, needed)
    data = TensorDataset(torch.randn(_ROWS, _WIDTH, generator=generator))
    batch = next(iter(DataLoader(data, batch_size=_ROWS)))
    trainer = Trainer(
        model,
        torch.optim.AdamW(model.parameters(), lr=1e-4),
        [batch] * _UPDATES,
        [batch],
        loss_fn=lambda model, batch: (model(batch[0]) - batch[0]).square().mean(),
        config=TrainerConfig(
            epochs=1, device="cpu", output_dir=place, log_interval=10, max_grad_norm=1.0
        ),
        callbacks=[watch, *map(fresh, makes), *make_others(beside)],
        discover=False,
        progress=False,
    )
    train(trainer)
    return watch
