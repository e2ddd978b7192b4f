"""A callback that records its calls. Imports no torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trainer_callback import HOOKS, TrainerCallback
from trainer_callback.hookspecs import SPECS

__all__ = ["Call", "Recorder"]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a hook.

    Attributes:
        hook: its name.
        arguments: what it was handed, by name, without `trainer`.
        step: `trainer.step` at that moment.
        epoch: `trainer.epoch` at that moment.
    """

    hook: str
    arguments: Mapping[str, Any]
    step: int
    epoch: int


class Recorder(TrainerCallback):
    """Keeps every call of every hook of a run, in order.

    Attributes:
        calls: the calls so far.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []

    @property
    def hooks(self) -> list[str]:
        """The names of the hooks that were called, in order."""
        return [call.hook for call in self.calls]

    def of(self, hook: str) -> list[Mapping[str, Any]]:
        """Returns the arguments of each call of `hook`, in order.

        Raises:
            ValueError: there is no such hook.
        """
        if hook not in HOOKS:
            raise ValueError(f"there is no hook {hook!r}. The hooks are {', '.join(HOOKS)}.")
        return [call.arguments for call in self.calls if call.hook == hook]


def _write_down(hook: str) -> Callable[..., None]:
    def record(self: Recorder, *values: Any, **named: Any) -> None:
        arguments = {**dict(zip(SPECS[hook].arguments, values, strict=False)), **named}
        trainer = arguments.pop("trainer")
        self.calls.append(Call(hook, arguments, trainer.step, trainer.epoch))

    record.__name__ = hook
    record.__signature__ = inspect.signature(  # type: ignore[attr-defined]
        getattr(TrainerCallback, hook)
    )
    return record


for _hook in HOOKS:
    if "trainer" in SPECS[_hook].arguments:  # the others belong to the command line
        setattr(Recorder, _hook, _write_down(_hook))
