"""What a run keeps in the checkpoints of Accelerate, which has its own way to save models,
optimizers, schedulers and loss scales: all the rest. Accelerate is handed an object for it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ..snapshots.facts import describe_run
from ..snapshots.optimizer_state import read_updaters
from ..snapshots.store import Found
from .assembly import Setup
from .call_order import RunOrderError
from .lifetime import Lifetime
from .passes import Passes

__all__ = ["AcceleratedState"]

logger: logging.Logger = logging.getLogger("trainer")

_SOURCE: Final = Path("the checkpoint of Accelerate")


class AcceleratedState:
    """What `accelerator.save_state` and `load_state` are told of a run."""

    def __init__(self, accelerator: Any, setup: Setup, passes: Passes, lifetime: Lifetime) -> None:
        """Registers itself with `accelerator`, where there is one."""
        self._setup, self._passes, self._lifetime = setup, passes, lifetime
        if accelerator is not None:
            accelerator.register_for_checkpointing(self)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state behind the update that was done last; what the end of its micro-batch
        calls is called now. Empty outside a run. All processes have to call it.

        Raises:
            RunOrderError: it is inside an update.
        """
        if not self._lifetime.is_open:
            return {}
        setup, passes, position = self._setup, self._passes, self._setup.view.position
        if passes.in_batch:
            if passes.loss is None or position.step != position.update:
                raise RunOrderError(
                    f"accelerator.save_state() is called inside update {position.update}, from "
                    "which no run can go on. Call it behind the run.step() that ends an update, or "
                    "behind an epoch."
                )
            passes.end_batch()
        state = {**setup.session.collect()}
        for name in self._read_own():
            state.pop(name, None)
        view = setup.view
        facts = describe_run(position, view.config, view.manager.plugins, view.model)
        return {"state": state, "facts": json.dumps(facts, default=str)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Lets the next start of the run go on from `saved`.

        Raises:
            RunOrderError: a run is under way.
        """
        if self._lifetime.is_open:
            raise RunOrderError(
                "accelerator.load_state() is called inside a run, which is at another place. Call "
                "it before run.start(), which goes on from there."
            )
        place = self._setup.session.place
        if saved:
            place.handed = lambda: self._complete(saved)
            return
        place.handed = None
        logger.warning(
            "%s was saved outside the run, and says nothing of it: epochs and the states of "
            "plugins start fresh. Call accelerator.save_state() inside `with run.start():`.",
            _SOURCE,
        )

    def _complete(self, saved: Mapping[str, Any]) -> Found:
        """Returns a snapshot of `saved` and of what Accelerate has loaded itself."""
        state = {**saved["state"], **self._read_own()}
        digest = hashlib.sha256(saved["facts"].encode()).hexdigest()
        return _SOURCE, state, {**json.loads(saved["facts"]), "digest": digest}

    def _read_own(self) -> dict[str, Any]:
        """Returns what Accelerate saves and loads."""
        setup, model = self._setup, self._setup.view.model
        return {
            "model": model.state_dict(),
            "left_out": {},
            **read_updaters(setup.updaters, model),
            "scaler": setup.precision.state(),
        }
