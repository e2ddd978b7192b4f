"""The states of a hosted run's callbacks: from a checkpoint of the host, and into one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer_callback import ResumeError

from ..snapshots.agreement import keep_own_states, pick_own_states
from ..snapshots.facts import describe_run
from ..snapshots.state_table import CallbackStates, load_states
from .losses import HostedLosses
from .state import SavedState
from .view import HostedView

__all__ = ["HostedStates"]


class HostedStates:
    """What becomes of the state of each callback.

    Attributes:
        checkpoint: that of `on_snapshot_load`; None where the run starts fresh, and when it has
            begun.
    """

    def __init__(self, view: HostedView, losses: HostedLosses) -> None:
        """Keeps references."""
        self._view, self._losses = view, losses
        self._states, self._own = CallbackStates(), set[str]()
        self.checkpoint: dict[str, Any] | None = None

    @property
    def loaded(self) -> dict[str, Any]:
        """State key -> state that was found."""
        return self._states.loaded

    def load(self, saved: SavedState | None, place: tuple[int, int, int] = (0, 0, 0)) -> None:
        """Goes to the place of `saved`, or to `place`: epoch, updates, batches of the epoch.

        Raises:
            ResumeError: it is no state of such a run.
            PluginError: a callback cannot read its state.
        """
        view, callbacks, ranks = self._view, self._view.manager, self._view.ranks
        if saved is None:
            self._states, self.checkpoint = CallbackStates(), None
            self._own = {each.state_key for each in callbacks.plugins if each.state_per_process}
            epoch, step, batch = place
            view.position.load({"epoch": epoch, "step": step, "batch_in_epoch": batch})
            view.journal.start({})
            return
        try:
            view.position.load(saved.state["progress"])
            self._losses.load_state(saved.state["losses"])
            states, self._own = pick_own_states(saved.state, callbacks.plugins, ranks)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            text = f"{saved.source} has no state of such plugins: {error!r}."
            raise ResumeError(text) from error
        self._states = load_states(states, saved.writers, callbacks, saved.step)
        here = {"epoch": view.epoch, "step": view.step}
        self.checkpoint = {**saved.state, **here, "callback_state": self._states.loaded}
        view.journal.start(states)

    def collect(self, found: Mapping[str, float] | None) -> SavedState:
        """Returns the states of this place; see `HostedRun.collect`.

        Args:
            found: by a validation whose epoch has not ended yet.
        """
        view, ranks = self._view, self._view.ranks
        states = self._states.collect(view.manager, view)
        ranks.meet("the states of the callbacks")
        others: list[dict[str, Any]] = [{} for _ in range(ranks.world_size - 1)]
        state = {
            "progress": view.position.state(),
            "losses": self._losses.state(),
            "callback_state": states,
            "other_ranks": others,
            **({} if found is None else {"found": dict(found)}),
        }
        keep_own_states(state, self._own, ranks)
        facts = describe_run(view.position, view.config, view.manager.plugins, view.model)
        return SavedState(view.step, state, {**facts["plugins"], **self._states.carried_writers})
