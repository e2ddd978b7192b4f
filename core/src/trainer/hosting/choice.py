"""Which plugins a hosted run has, as people name them in code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainer_callback import PluginError, TrainerCallback
from trainer_callback.errors import show
from trainer_callback.plugins import create

__all__ = ["make_callbacks"]


def make_callbacks(entries: object) -> list[object]:
    """Returns the callbacks that `entries` name, in their order.

    Args:
        entries: a list of callbacks, of names of installed plugins, and of mappings of such names
            to their options, as `{"early_stopping": {"patience": 3}}`.

    Raises:
        PluginError: it is no such list, or a plugin cannot be used.
    """
    if isinstance(entries, (str, Mapping, TrainerCallback)) or not isinstance(entries, Sequence):
        raise PluginError(
            f"plugins are given as a list, and not as {show(entries)}. Write "
            '[EarlyStoppingCallback(patience=3), "throughput", {"ema": {"decay": 0.99}}].'
        )
    found: list[object] = []
    for entry in entries:
        if isinstance(entry, str):
            found.append(create(entry))
        elif isinstance(entry, Mapping):
            found += [create(name, **_read_options(name, entry[name])) for name in entry]
        else:
            found.append(entry)
    return found


def _read_options(name: object, options: object) -> dict[str, object]:
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(each, str) for each in options):
        raise PluginError(
            f"the options of {name!r} are a mapping of their names to values, and not "
            f'{show(options)}. Write {{"early_stopping": {{"patience": 3}}}}.'
        )
    return dict(options)
