"""Callbacks that bring snapshots from elsewhere, before a run looks for one to go on from."""

from __future__ import annotations

from collections.abc import Callable

from ..view.view import View

__all__ = ["find_search"]


def find_search(view: View) -> Callable[[str], None] | None:
    """Returns what calls `on_snapshot_search`, with the id of the run in the output directory; None
    where nobody implements it. A callback that refuses the run there has all of them closed.
    """
    callbacks = view.manager
    if "on_snapshot_search" not in callbacks.used:
        return None

    def search(run_id: str) -> None:
        view.run_id = run_id
        try:
            callbacks.hook.on_snapshot_search(trainer=view)
        except BaseException:
            callbacks.close()
            raise

    return search
