"""Shows the DeprecationWarnings of plugins, which Python hides: their users can ask for a newer
version, and their authors hear of it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer_callback.discovery import Entry

__all__ = ["show_deprecations"]


def show_deprecations(entries: Sequence[Entry], show: Callable[[str], object]) -> None:
    """Calls `show` with a line for each DeprecationWarning of code of an installed plugin, once.
    Where Python was told by -W or PYTHONWARNINGS what to do with warnings, that is done.
    """
    if sys.warnoptions:
        return
    owners = {entry.value.partition(":")[0].strip().partition(".")[0]: entry for entry in entries}
    warnings.simplefilter("default", DeprecationWarning)  # a pattern of all modules costs 30 ms
    show_others: Any = warnings.showwarning
    said: set[str] = set()

    def show_warning(message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
        if not issubclass(category, DeprecationWarning):
            show_others(message, category, filename, lineno, *rest)
            return
        owner = _find_owner(owners, filename)
        if owner is None:  # of a library, which Python would not have shown
            return
        text = " ".join(str(message).split()).removeprefix(f"{owner.label}: ")
        line = f"{owner.label}: {text} ({Path(filename).name}, line {lineno})"
        if line not in said:
            said.add(line)
            show(line)

    warnings.showwarning = show_warning  # type: ignore[assignment]


def _find_owner(owners: Mapping[str, Entry], filename: str) -> Entry | None:
    """Returns the plugin whose module, or package, has the file."""
    for module, entry in owners.items():
        home = getattr(sys.modules.get(module), "__file__", None)
        if home is None:
            continue
        is_package = Path(home).stem == "__init__"
        if filename == home or (is_package and Path(home).parent in Path(filename).parents):
            return entry
    return None
