"""Which of the two packages of Lightning is used: `lightning`, or `pytorch_lightning`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any, Final

__all__ = ["Callback", "DummyLogger", "is_a", "package"]


def _choose() -> str:
    """Returns the name of the one that the program has imported, or else of the installed one."""
    first, second = "lightning.pytorch", "pytorch_lightning"
    for name in (first, second):
        if name in sys.modules:
            return name
    return first if importlib.util.find_spec("lightning") is not None else second


_NAME: Final = _choose()

package: Any = importlib.import_module(_NAME)
Callback: Any = package.Callback
DummyLogger: Any = importlib.import_module(f"{_NAME}.loggers.logger").DummyLogger


def is_a(value: object, name: str) -> bool:
    """Whether `value` is of Lightning's class `name`, whichever of the two packages it is from."""
    return any(each.__name__ == name for each in type(value).__mro__)
