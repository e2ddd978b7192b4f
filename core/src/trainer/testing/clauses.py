"""What the clauses of the contract have in common: what an author says of the callback, the
settings of the runs, and which clauses do not count.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

import pytest

from trainer_callback import UsageError
from trainer_callback.errors import closest

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Clauses"]

_SETTINGS: Final[Mapping[str, Any]] = {
    "epochs": 4,  # 12 updates: what a callback does every 10 is done
    "batches": 5,
    "gradient_accumulation_steps": 2,  # 3 updates an epoch, the last one of a single batch
    "max_grad_norm": 1.0,
    "eval_interval": 2,
    "log_interval": 2,
    "keep_snapshots": 9,
    "snapshot_sync": True,
}


class Clauses:
    """See `CallbackContract`, whose attributes these are."""

    passive: ClassVar[bool] = False
    changes_batches: ClassVar[bool] = False
    entry_point: ClassVar[str | None] = None
    flags: ClassVar[Sequence[str]] = ()
    settings: ClassVar[Mapping[str, Any]] = {}
    varying: ClassVar[Sequence[str]] = ()
    waived_clauses: ClassVar[Mapping[str, str]] = {}
    beside: ClassVar[Sequence[str]] = ()

    def __init_subclass__(cls) -> None:
        """Replaces each clause that is waived by one that skips, with the reason.

        Raises:
            UsageError: there is no such clause, or no reason.
        """
        super().__init_subclass__()
        for clause, reason in cls._read_waived(vars(cls).get("waived_clauses", {})).items():
            setattr(cls, clause, _waive(getattr(cls, clause), reason))

    def read_waived(self) -> dict[str, str]:
        """Returns the waived clauses by the names of their tests.

        Raises:
            UsageError: there is no such clause, or no reason.
        """
        return self._read_waived(self.waived_clauses)

    @classmethod
    def _read_waived(cls, waived: Mapping[str, str]) -> dict[str, str]:
        known = [each for each in dir(cls) if each.startswith("test_")]
        found = {}
        for name, reason in waived.items():
            clause = name if name.startswith("test_") else f"test_{name}"
            if clause not in known:
                raise UsageError(
                    f"{cls.__name__}.waived_clauses names {name!r}, and there is no such clause."
                    f"{closest(clause, known)} The clauses are {', '.join(known)}."
                )
            if not isinstance(reason, str) or not reason.strip():
                raise UsageError(
                    f"{cls.__name__}.waived_clauses has no reason for {name!r}. Say in a sentence "
                    "why it does not hold for this callback."
                )
            found[clause] = reason
        return found

    def make(self) -> object:
        """Returns a new callback, or the module with the hooks."""
        raise NotImplementedError(
            f"{type(self).__name__} has no make(). Write `def make(self): return MyCallback()`."
        )

    def make_model(self) -> nn.Module | None:
        """Returns the model of the runs, which makes (B, 1) of (B, 4), for a callback that needs
        certain modules; None for two linear layers with dropout.
        """
        return None

    def _settings(self, **settings: Any) -> dict[str, Any]:
        """Returns the contract's settings, below the author's, below those that a clause needs."""
        own = {name: value for name, value in self.settings.items() if name != "output_dir"}
        parts = {"beside": self.beside, "make_model": self.make_model}
        return {**_SETTINGS, **own, **parts, **settings}

    def _entry_point(self) -> str:
        if self.entry_point is None:
            pytest.skip("entry_point is not set, so this callback is not an installed plugin")
        return self.entry_point


def _waive(clause: Callable[..., None], reason: str) -> Callable[..., None]:
    @functools.wraps(clause)
    def waived(*values: Any, **named: Any) -> None:
        pytest.skip(f"waived: {reason}")

    return waived
