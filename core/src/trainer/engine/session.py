"""What stands around a loop: the output directory, resuming, saving, and the one way a run ends."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from trainer_callback import (
    CallbackError,
    SaveError,
    SnapshotError,
    TrainerCallback,
    option_text,
)
from trainer_callback.errors import text_of

from ..processes.rng import seed_rng
from ..processes.sharding import gather_state, gather_weights, holds_sharded
from ..result import Stop, TrainResult
from ..snapshots.agreement import check_same, match_parts
from ..snapshots.checkpoint import Checkpoint
from ..snapshots.facts import read_facts, tell_differences
from ..snapshots.final import describe_unsaveable, save_safetensors
from ..snapshots.place import Place, Resume, refusing
from ..snapshots.snapshot import save_bytes
from ..snapshots.state_table import Deal, collect_states, deal_out
from ..step.losses import NonFiniteError
from ..view import View

__all__ = ["Resume", "Session"]

logger: logging.Logger = logging.getLogger("trainer")


class Session:
    """One run outside its loop."""

    def __init__(self, view: View, checkpoint: Checkpoint, artifacts: Mapping[str, bytes]) -> None:
        """Keeps references."""
        self._view = view
        self._callbacks = view.callbacks
        self._store = view.store
        self._ranks = view.ranks
        self._checkpoint = checkpoint
        self._place = Place(view.config, view.store, checkpoint, artifacts, self._ranks)
        self._files = {name: save_bytes(content) for name, content in artifacts.items()}
        self._deal = Deal()
        self._saved: tuple[int, bool, bool] | None = None
        self._untold: Callable[[], None] | None = None

    @property
    def _hook(self) -> TrainerCallback:
        return self._callbacks.hook

    @contextlib.contextmanager
    def open(self, resume: Resume) -> Iterator[None]:
        """Holds the output directory while the run lasts, and closes the callbacks at its end; see
        `Place.open`.
        """
        with self._ranks.run(), self._place.open(resume), contextlib.ExitStack() as held:
            held.callback(self._callbacks.close)  # while the directory is still held
            yield

    def restore(self, resume: Resume) -> bool:
        """Loads the snapshot that `resume` means and lets every callback load its state.

        Returns:
            Whether there was one; a fresh start has its generators seeded.

        Raises:
            ConfigError: there is nothing to resume.
            SnapshotError: the snapshot cannot be trusted or does not fit.
            PluginError: a callback refuses its state.
        """
        view, position = self._view, self._view.position
        view.queue.start()
        self._deal = Deal()
        self._saved, self._untold = None, None
        with refusing():
            found = self._place.find(resume)
            check_same(found, self._ranks)
        if self._callbacks.plugins:
            names = ", ".join(plugin.label for plugin in self._callbacks.plugins)
            logger.info("callbacks in call order: %s.", names)
        if found is None:
            position.load()
            self._checkpoint.check_schedule(position)
            seed_rng(view.config.seed + view.rank)  # as for dropout, not twice the same
            self._store.finite.start(view.model, self._checkpoint.optimizer_state(), self._ranks)
            return False
        path, state, manifest = found
        with refusing():
            self._load(path, state)
        self._checkpoint.check_place()
        self._store.finite.start(view.model, self._checkpoint.optimizer_state(), self._ranks)
        logger.info(
            "resumed from %s: %d epochs done, update %d.", path, position.epochs_done, position.step
        )
        self._checkpoint.check_schedule(position)
        tell_differences(manifest, view.config, self._callbacks.plugins, position, view.model)
        self._deal = deal_out(
            state["callback_state"],
            manifest.get("plugins", {}),
            self._callbacks,
            position.step,
        )
        checkpoint = {**state, "epoch": position.epoch, "step": position.step}
        checkpoint["callback_state"] = self._deal.states
        try:
            self._hook.on_snapshot_load(
                trainer=view, checkpoint=checkpoint, state=self._deal.states
            )
        except BaseException as error:  # the others have loaded, and must hear of the end
            self.end(None, error)
            raise
        if self._place.holds_found:
            self._saved = position.boundary
            if view.is_main_process:
                self._untold = self._make_report(path)
                self._store.retain(path)
        return True

    def _load(self, path: Path, state: Mapping[str, Any]) -> None:
        """Puts the objects of the run, and its position, into `state`."""
        try:
            self._checkpoint.load(state, path)
            self._view.position.load(state["progress"])
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise SnapshotError(f"{path} is no snapshot of such a run: {error!r}.") from error

    def save(self, *, due: bool) -> None:
        """Reports a finished write; collects the state of everything and starts the next write.

        Args:
            due: a snapshot is to be taken here. A boundary that is saved already is not saved
                again.

        Raises:
            CallbackError: a callback failed, or its state cannot be saved.
            SnapshotError: the third failed write in a row; in all processes.
            NonFiniteError: what was to be written is not finite; in all processes.
        """
        if not self._store.can_write:
            return
        view, position = self._view, self._view.position
        view.queue.check_process()
        due = due and position.boundary != self._saved
        # Waited for, so that no state depends on how fast the disk was. Callbacks are told of the
        # write here, outside the point at which all processes hear of its failure.
        self._store.collect(wait=due, may_raise=self._ranks.is_alone)
        if due:
            self._ranks.on_main(self._store.collect, "snapshot")
        if self._untold is not None:
            report, self._untold = self._untold, None
            report()
        if not due:
            return
        view.check_replicas()
        state = self._collect()
        facts = read_facts(position, view.config, self._callbacks.plugins, view.model)
        facts["plugins"] = {**facts["plugins"], **self._deal.carried_writers}
        if view.is_main_process:
            self._store.save(position.step, state, facts, self._make_report(), self._files)
        self._saved = position.boundary

    def _make_report(self, path: Path | None = None) -> Callable[..., None]:
        """Returns what tells every callback that the snapshot of this place is durable. A resumed
        run tells it again of the one it resumed from: the killed one may not have come to it.
        """
        epoch, step = self._view.epoch, self._view.step

        def report(path: Path | None = path) -> None:
            assert path is not None
            self._place.note_snapshot()
            self._hook.on_snapshot_saved(trainer=self._view, path=path, epoch=epoch, step=step)

        return report

    def end(
        self, stop: Stop | None, error: BaseException | None, *, final: bool = True
    ) -> tuple[TrainResult, BaseException | None]:
        """Tells every callback how the run ended, writes the final model, waits for the disk.

        Args:
            stop: why it ends; None: the epochs are over.
            error: what ends it, if that is an exception.
            final: the finished model may be written.

        Returns:
            The result, and what is to be raised: KeyboardInterrupt after Ctrl-C.
        """
        view, hook = self._view, self._hook
        view.queue.check_process()
        unsent = self._tell(view.queue.open)
        error = error or unsent
        decided = error is None  # by all processes; an exception is one's own
        resumable = stop is not None and stop.status in ("terminated", "interrupted")
        if error is None and stop is not None and stop.status == "interrupted":
            error = KeyboardInterrupt()
        if error is not None:
            raised = error
            self._tell(lambda: hook.on_exception(trainer=view, exception=raised))
        write = partial(self._store.collect, wait=True, must_succeed=resumable)
        unsaved = self._tell(partial(self._ranks.on_main, write, "end") if decided else write)
        if error is None or (resumable and unsaved is not None):
            error = unsaved
        if error is None:
            error = self._tell(self._check_finite)
        result = self._conclude(stop, error)
        late = self._tell(lambda: hook.on_train_end(trainer=view, result=result))
        unsent = self._tell(view.queue.close)
        late = late or unsent
        result = replace(result, switched_off=tuple(self._callbacks.switched_off))
        error = error or late
        if error is None and result.exit_code == 0 and final and self._store.can_write:
            error = self._tell(self._save_final)
        if isinstance(error, SnapshotError):
            saving = SaveError(str(error))
            saving.__cause__ = error
            error = saving
        return result, error

    def _collect(self) -> dict[str, Any]:
        position = self._view.position
        self._check_rates()
        state = self._checkpoint.read(mid_epoch=position.is_mid_epoch)
        state["progress"] = position.state()
        states = collect_states(self._callbacks, self._deal, self._view)
        self._ranks.meet("the states of the callbacks")  # where the others hear of a failure
        state["callback_state"] = states
        if self._ranks.is_sharded:
            off = self._callbacks.switched_off
            failed = {each.state_key for each in self._callbacks.plugins if each.name in off}
            match_parts(states, failed, self._ranks)
            kept = {key: each for key, each in self._deal.carried.items() if key in failed}
            states.update({key: each for key, each in kept.items() if not holds_sharded(each)})
        return cast(dict[str, Any], gather_state(state, keep=self._ranks.is_main))

    def _conclude(self, stop: Stop | None, error: BaseException | None) -> TrainResult:
        position = self._view.position
        stop = stop or Stop("finished", "epochs")
        if isinstance(error, KeyboardInterrupt):
            stop = Stop("interrupted", "SIGINT")
        elif error is not None:
            stop = Stop("failed", type(error).__name__, text_of(error))
        return TrainResult(
            status=stop.status,
            stop_reason=stop.reason,
            stop_detail=stop.detail,
            stopped_by=stop.by,
            epochs=position.epochs_done,
            steps=position.step,
            train_loss=position.metrics.get("train_loss"),
            val_loss=position.metrics.get("val_loss"),
            history=[dict(entry) for entry in position.history],
            callback_costs=self._callbacks.costs(),
            switched_off=tuple(self._callbacks.switched_off),
        )

    def _check_finite(self) -> None:
        """Refuses to call a run finished whose weights, or learning rates, have become NaN or
        infinite.

        Raises:
            NonFiniteError: they have; in all processes, where one of them has such a part.
        """
        self._check_rates()
        state = {"model": self._view.model.state_dict()}
        faults = self._ranks.gather(self._store.finite.describe_fault(state), "end")
        fault = next(filter(None, faults), None)
        if fault is not None:
            raise NonFiniteError(
                f"{fault} at the end of the run, and was not at its start. Lower the learning "
                f"rate, or clip with {option_text('max_grad_norm')}."
            )

    def _check_rates(self) -> None:
        fault = self._checkpoint.describe_bad_rate()
        if fault is not None:
            raise NonFiniteError(f"{fault}. That was found behind update {self._view.step}.")

    def _save_final(self) -> None:
        weights = gather_weights(self._view.model, keep=self._ranks.is_main)
        self._ranks.on_main(partial(self._write_final, weights), "final")

    def _write_final(self, weights: Mapping[str, Any]) -> None:
        view = self._view
        files = dict(self._files)
        if describe_unsaveable(weights) is None:
            files["model.safetensors"] = save_safetensors(weights)
        facts = read_facts(view.position, view.config, self._callbacks.plugins, view.model)
        path = self._store.save_final(weights, view.position.state(), files, facts)
        logger.info("wrote the finished model to %s.", path)

    def _tell(self, call: Callable[[], object]) -> BaseException | None:
        """Calls and returns what it raises, logged: at the end of a run one failure must not hide
        another.
        """
        try:
            call()
        except (CallbackError, NonFiniteError, SnapshotError, KeyboardInterrupt) as error:
            logger.error("%s", str(error))
            return error
        return None
