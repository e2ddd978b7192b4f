"""Callbacks that look at what another one does to the batch and to the modes of the model."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Final

import torch

from trainer.snapshots.model_state import same_bits
from trainer_callback import TrainerCallback, TrainerProtocol, hookimpl
from trainer_callback.hookspecs import SPECS

__all__ = ["ChangeWatch", "KeptWatch", "ModeWatch"]


def _find_tensors(batch: object) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for each in batch.values():
            yield from _find_tensors(each)
    elif isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        for each in batch:
            yield from _find_tensors(each)


class ChangeWatch(TrainerCallback):
    """Compares each batch before and after the others have been handed it.

    Attributes:
        change: the first change, in words, or None.
    """

    def __init__(self) -> None:
        self.change: str | None = None


def _watch_batch(hook: str) -> Callable[..., Any]:
    @hookimpl(wrapper=True, specname=hook)
    def watch(self: ChangeWatch, batch: Any, batch_idx: int) -> Generator[None, Any, Any]:
        before = [(tensor, tensor.clone()) for tensor in _find_tensors(batch)]
        answer = yield
        if any(not same_bits(tensor, kept) for tensor, kept in before):
            self.change = self.change or f"{hook}, batch {batch_idx}"
        return answer

    return watch


for _hook in ("on_batch_start", "on_validation_batch_end"):
    setattr(ChangeWatch, f"watch_{_hook}", _watch_batch(_hook))


class KeptWatch(TrainerCallback):
    """Counts the batches, and the outputs of the model with their graphs, that are still there at
    the end of an epoch.

    Attributes:
        seen: batches of the epoch.
        alive: what was kept -> of how many batches.
    """

    def __init__(self) -> None:
        self.seen: int = 0
        self.alive: dict[str, int] = {}
        self._found: dict[str, list[weakref.ref[torch.Tensor]]] = {"batch": [], "graph": []}
        self._handle: Any = None

    @hookimpl(tryfirst=True)
    def on_train_start(self, trainer: TrainerProtocol) -> None:  # type: ignore[override]
        graphs = self._found["graph"]

        def note(module: Any, inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.requires_grad:
                graphs.append(weakref.ref(output))

        self._handle = trainer.model.register_forward_hook(note)

    @hookimpl(tryfirst=True)
    def on_batch_start(self, batch: Any) -> None:  # type: ignore[override]
        self.seen += 1
        first = next(_find_tensors(batch), None)
        if first is not None:
            self._found["batch"].append(weakref.ref(first))

    @hookimpl(trylast=True)
    def on_epoch_end(self) -> None:  # type: ignore[override]
        gc.collect()
        for what, found in self._found.items():
            self.alive[what] = sum(each() is not None for each in found)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.remove()


_FREE: Final = ("on_setup", "on_train_start", "on_epoch_start")
"""Where a callback may set a part of the model to another mode, for the epoch or for the run."""


class ModeWatch(TrainerCallback):
    """Compares the mode of each part of the model before and after each hook, and what has
    gradients.

    Attributes:
        mode: the first change of a mode, in words, or None.
        frozen: the first parameter that had its gradient switched on or off, in words, or None.
    """

    def __init__(self) -> None:
        self.mode: str | None = None
        self.frozen: str | None = None

    def compare(self, hook: str, before: tuple[Any, Any], after: tuple[Any, Any]) -> None:
        """Notes what is another one in `after`."""
        modes, needs = ({**old, **new} for old, new in zip(before, after, strict=True))
        for name, value in modes.items() if hook not in _FREE else ():
            if before[0].get(name, value) != value and self.mode is None:
                part = repr(name) if name else "the model"
                self.mode = f"{hook} leaves {part} in {'training' if value else 'evaluation'} mode"
        for name, value in needs.items():
            if before[1].get(name, value) != value and self.frozen is None:
                self.frozen = f"{hook} leaves {name!r} with requires_grad={value}"


def _read_modes(trainer: TrainerProtocol) -> tuple[dict[str, bool], dict[str, bool]]:
    modes = {name: module.training for name, module in trainer.model.named_modules()}
    needs = {name: each.requires_grad for name, each in trainer.model.named_parameters()}
    return modes, needs


def _watch_modes(hook: str) -> Callable[..., Any]:
    @hookimpl(wrapper=True, specname=hook)
    def watch(self: ModeWatch, trainer: TrainerProtocol) -> Generator[None, Any, Any]:
        before = _read_modes(trainer)
        answer = yield
        self.compare(hook, before, _read_modes(trainer))
        return answer

    return watch


for _hook, _spec in SPECS.items():
    if "trainer" in _spec.arguments:  # the others belong to the command line
        setattr(ModeWatch, f"watch_{_hook}", _watch_modes(_hook))
