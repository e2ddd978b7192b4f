"""Whose it is that a hook of torch has failed, which somebody registered on the model."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Final

import torch

from trainer_callback import CallbackError, UsageError
from trainer_callback.calls.identity import Plugin
from trainer_callback.errors import text_of

__all__ = ["blame_hook"]

_TORCH: Final = f"{Path(torch.__file__).parent}/"


def blame_hook(error: BaseException, plugins: Sequence[Plugin]) -> BaseException:
    """Returns a `CallbackError` that names the callback in whose code, called by torch, `error` was
    raised; else `error`. Code is a callback's if it is a method of it, or of its distribution.
    """
    if not isinstance(error, Exception) or isinstance(error, (CallbackError, UsageError)):
        return error
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for caller, frame in itertools.pairwise(frames):
        if not caller.f_code.co_filename.startswith(_TORCH):
            continue
        plugin = next((each for each in plugins if _owns(each, frame)), None)
        if plugin is None or isinstance(error, plugin.passes):
            continue
        blamed = CallbackError(
            f"{plugin.label} failed in a hook of torch, {frame.f_code.co_name}: "
            f"{type(error).__name__}: {text_of(error)}"
        )
        blamed.__cause__ = error
        return blamed
    return error


def _owns(plugin: Plugin, frame: FrameType) -> bool:
    if frame.f_locals.get("self") is plugin.callback:
        return True
    room = type(plugin.callback).__module__.partition(".")[0]
    is_other = not plugin.distribution or plugin.distribution == "trainer-core"
    called = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return not is_other and frame.f_code.co_name != "forward" and called == room
