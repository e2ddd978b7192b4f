"""What `gpu.py` trains: a GPT over random tokens, and the clock of a turn, which is its loader."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from nanogpt import NanoGPT
from torch import Tensor

from trainer_lm.model import GPT, make_optimizer
from trainer_lm.options import ModelOptions, OptimizerOptions

WARM = 3
"""Updates of a turn that do not count."""


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        plain, model: the GPT, and what to call in its place.
        nano: nanoGPT's model, compiled where the other is.
        batches: on the host, pinned where there is a card.
        tokens: for nanoGPT's way, which draws its own batches from them.
    """

    device: torch.device
    options: ModelOptions
    optimizer: OptimizerOptions
    plain: GPT
    model: Any
    nano: Any
    batches: Sequence[Mapping[str, Tensor]]
    tokens: Any

    @property
    def batch_size(self) -> int:
        return len(self.batches[0]["input_ids"])

    def make_optimizer(self) -> torch.optim.AdamW:
        self.plain.to(self.device)  # Lightning moves it to the host when it is done
        self.plain.train()
        return make_optimizer(self.plain, self.optimizer)

    def move(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: each.to(self.device, non_blocking=True) for name, each in batch.items()}

    def flops(self) -> float:
        """Of an update, by nanoGPT's formula: positions do not count as parameters."""
        options = self.options
        n = sum(each.numel() for each in self.plain.parameters())
        n -= self.plain.position_embedding.weight.numel()
        attention = 12 * options.n_layer * options.n_embd * options.block_size
        return (6 * n + attention) * self.batch_size * options.block_size


class Clock:
    """The batches of a turn, and the time that they took.

    Attributes:
        seconds: of an update, by the clock, the device idle at both ends.
        waits: warnings of torch that something waits for the card; None where nobody looked.
    """

    def __init__(self, task: Task, updates: int, *, watch: bool = False) -> None:
        self._task, self._updates, self._watch = task, updates, watch
        self._ticks, self._began = 0, 0.0
        self._held = contextlib.ExitStack()
        self._seen: list[warnings.WarningMessage] | None = None
        self.seconds = 0.0
        self.waits: int | None = None

    def __len__(self) -> int:
        return WARM + self._updates + 2  # some trainers look one batch ahead

    def set_epoch(self, epoch: int) -> None:
        """Says that the order depends on nothing else, as a list of batches does."""

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        batches = self._task.batches
        for number in range(len(self)):
            if number:
                self.tick()
            yield batches[number % len(batches)]

    def tick(self) -> None:
        """An update is over."""
        self._ticks += 1
        if self._ticks == WARM:
            self._wait()
            if self._watch and self._task.device.type == "cuda":
                self._seen = self._held.enter_context(warnings.catch_warnings(record=True))
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
            self._began = time.perf_counter()
        elif self._ticks == WARM + self._updates:
            self.stop_watching()
            self._wait()
            self.seconds = (time.perf_counter() - self._began) / self._updates

    def stop_watching(self) -> None:
        """Counts the warnings, where it has watched; also where the turn was cut short."""
        if self._seen is None:
            return
        torch.cuda.set_sync_debug_mode("default")
        self.waits = sum("called a synchronizing" in str(each.message) for each in self._seen)
        self._seen = None
        self._held.close()

    def _wait(self) -> None:
        if self._task.device.type == "cuda":
            torch.cuda.synchronize()


def loss_of(model: Any, batch: Mapping[str, Tensor]) -> Any:
    return model(batch["input_ids"], batch["labels"])


def make_task(
    device: torch.device,
    batch_size: int,
    options: ModelOptions,
    *,
    vocabulary: int,
    compiled: bool,
    shared: Task | None = None,
) -> Task:
    """Returns a task over random tokens, with the models of another one where that is `shared`."""
    torch.manual_seed(0)
    tokens = [torch.randint(vocabulary, (batch_size, options.block_size + 1)) for _ in range(8)]
    batches = []
    for each in tokens:
        batch = {"input_ids": each[:, :-1].contiguous(), "labels": each[:, 1:].contiguous()}
        pin = device.type == "cuda"
        batches.append({name: part.pin_memory() if pin else part for name, part in batch.items()})
    stream = torch.cat([each.flatten() for each in tokens]).numpy().astype("uint16")
    if shared is not None:
        return replace(shared, batches=batches, tokens=stream)
    plain, nano = GPT(vocabulary, options).to(device), NanoGPT(vocabulary, options).to(device)
    called = [torch.compile(each, dynamic=False) if compiled else each for each in (plain, nano)]
    rates = OptimizerOptions(learning_rate=6e-4, warmup_steps=100, beta2=0.95)
    return Task(device, options, rates, plain, *called, batches, stream)
