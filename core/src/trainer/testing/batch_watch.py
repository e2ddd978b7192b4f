"""Callbacks that count the batches in which another one does what belongs nowhere near a batch:
waits for the device, prints.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

from torch import nn
from torch.overrides import TorchFunctionMode

from trainer_callback import TrainerCallback, TrainerProtocol, hookimpl

__all__ = ["BatchWatch", "OutputWatch", "SyncWatch"]

_WATCHED: Final = (
    "on_batch_start",
    "on_forward_end",
    "on_backward_end",
    "on_gradients_clipped",
    "on_step_end",
    "on_batch_end",
    "should_stop_training",
)

_WAITING: Final = frozenset(
    {
        "__array__",
        "__bool__",
        "__complex__",
        "__contains__",
        "__float__",
        "__format__",
        "__index__",
        "__int__",
        "__repr__",
        "allclose",
        "cpu",
        "equal",
        "is_nonzero",
        "item",
        "nonzero",
        "numpy",
        "tolist",
        "unique",
    }
)
"""Functions of tensors that have to wait until the device has computed the value."""

_MODULE_HOOKS: Final = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
)


class BatchWatch(TrainerCallback):
    """Counts the batches in which the other callbacks do something, in hooks of the batch and in
    hooks that they have registered with the model.

    Attributes:
        batches: batches seen.
        counts: what was done, as `hook: what` -> in how many batches.
        guilty: batches in which anything was done.
    """

    def __init__(self) -> None:
        self.batches: int = 0
        self.counts: Counter[str] = Counter()
        self.guilty: int = 0
        self._seen: set[str] = set()

    def around(self, place: str) -> AbstractContextManager[object]:
        """Returns the context in which the others are called; `place` is a hook, in words."""
        raise NotImplementedError

    def see(self, what: str) -> None:
        """Notes what was done in this batch."""
        self._seen.add(what)

    def start_batch(self) -> None:
        """Counts what the batch before this one did."""
        self.counts.update(self._seen)
        self.guilty += bool(self._seen)
        self._seen.clear()

    def describe(self) -> str | None:
        """Returns where it was done in more than half of the batches, or None."""
        if self.guilty <= self.batches / 2:
            return None
        where = ", ".join(f"{name} in {count}" for name, count in self.counts.most_common(3))
        return f"in {self.guilty} of {self.batches} batches ({where})"

    @hookimpl(wrapper=True, specname="on_batch_start")
    def watch_module_hooks(self, trainer: TrainerProtocol) -> Generator[None, Any, Any]:
        answer = yield
        for name, module in trainer.model.named_modules():
            for kind in _MODULE_HOOKS:
                hooks = getattr(module, kind)
                for key, hook in hooks.items():
                    if not hasattr(hook, "is_watched"):
                        place = f"{kind[1:-1].replace('_', ' ')} of {name or 'the model'}"
                        hooks[key] = self._listen_to(hook, place)
        return answer

    def on_train_end(self) -> None:  # type: ignore[override]
        self.start_batch()

    def _listen_to(self, hook: Callable[..., Any], place: str) -> Callable[..., Any]:
        def listening(module: nn.Module, *values: Any, **named: Any) -> Any:
            with self.around(place):
                return hook(module, *values, **named)

        with contextlib.suppress(AttributeError):
            functools.update_wrapper(listening, hook)
        listening.is_watched = True  # type: ignore[attr-defined]
        return listening


def _watch(hook: str) -> Callable[..., Any]:
    @hookimpl(wrapper=True, specname=hook)
    def watch(self: BatchWatch) -> Generator[None, Any, Any]:
        if hook == "on_batch_start":
            self.start_batch()
            self.batches += 1
        with self.around(hook):
            answer = yield
        return answer

    return watch


for _hook in _WATCHED:
    setattr(BatchWatch, f"watch_{_hook}", _watch(_hook))


class SyncWatch(BatchWatch):
    """Counts the batches in which the other callbacks wait for the device. It works on a CPU, where
    waiting costs nothing, by the names of the functions that are called.
    """

    def around(self, place: str) -> AbstractContextManager[object]:
        return _Listener(lambda function: self.see(f"{place}: {function}"))


class _Listener(TorchFunctionMode):
    def __init__(self, hear: Callable[[str], None]) -> None:
        super().__init__()
        self._hear = hear

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _WAITING or (name == "to" and "cpu" in map(str, args)):
            self._hear(name)
        return func(*args, **(kwargs or {}))


class OutputWatch(BatchWatch):
    """Counts the batches in which the other callbacks print, or log a message."""

    @contextlib.contextmanager
    def around(self, place: str) -> Iterator[None]:
        streams = sys.stdout, sys.stderr
        texts = sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
        handler = _Handler(lambda: self.see(f"{place}: logging"))
        logging.getLogger().addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(handler)
            sys.stdout, sys.stderr = streams
            for name, text in zip(("stdout", "stderr"), texts, strict=True):
                if text.getvalue():
                    self.see(f"{place}: {name}")


class _Handler(logging.Handler):
    """Notes that somebody has logged what people are to read."""

    def __init__(self, hear: Callable[[], None]) -> None:
        super().__init__(logging.INFO)
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self._hear()
