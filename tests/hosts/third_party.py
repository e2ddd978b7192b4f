"""Runs of plugins that others have built, and installed as wheels: they know of no trainer."""

from __future__ import annotations

from collections.abc import Sequence

from scenarios import Case

WHEELS = ("accuracy", "lookahead", "distance", "unfreeze")
"""Folders of `tests/wheels`."""


def _unfreezing() -> list[object]:
    return [{"unfreeze": {"prefix": "first", "epoch": 1, "lr": 0.02}}]


def _extending() -> list[object]:
    return ["lookahead", "distance"]


CASES: Sequence[Case] = (
    Case("accuracy", lambda: ["accuracy"], classes=3),
    Case("accuracy, killed", lambda: ["accuracy"], classes=3, lives=(8,), save_every=2),
    Case("hooks of another wheel", _extending),
    Case("hooks of another wheel, killed", _extending, lives=(8,), save_every=2),
    Case("unfreezing", _unfreezing),
    Case("unfreezing, killed before and behind it", _unfreezing, lives=(3, 8), save_every=2),
    Case("unfreezing, a schedule, killed", _unfreezing, linear=True, lives=(8,), save_every=2),
)
