"""What stands around a loop: the output directory, resuming, saving, and the one way a run ends."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from trainer_callback import CallbackError, SnapshotError, UsageError, option_text
from trainer_callback.errors import text_of

from ..processes.rng import seed_rng
from ..processes.sharding import gather_state, gather_weights
from ..result import ModelWeights, Stop, TrainResult
from ..snapshots.agreement import (
    check_same,
    keep_own_states,
    match_sharded,
    pick_own_states,
)
from ..snapshots.checkpoint import Checkpoint
from ..snapshots.durable import save_bytes
from ..snapshots.facts import describe_run, log_differences
from ..snapshots.final import describe_unsaveable, save_safetensors
from ..snapshots.place import Place, Resume, check_fresh, reading, refusing
from ..snapshots.state_table import CallbackStates, load_states
from ..snapshots.store import Found
from ..step.losses import NonFiniteError
from ..view.view import View
from .changes import describe_changes, naming_changes
from .final_weights import describe_weights, noting_changes
from .outcome import make_result
from .search import find_search

__all__ = ["Resume", "Session"]

logger: logging.Logger = logging.getLogger("trainer")


class Session:
    """One run outside its loop.

    Attributes:
        place: where it writes, and what it goes on from.
        is_open: a run has begun, and is not over with all that its end does.
        result: how the last run ended, also where it failed; None before its end.
    """

    def __init__(self, view: View, checkpoint: Checkpoint, artifacts: Mapping[str, bytes]) -> None:
        self._view = view
        self._callbacks = view.manager
        self._store = view.store
        self._ranks = view.ranks
        self._checkpoint = checkpoint
        self.place: Place = Place(view.config, view.store, checkpoint, artifacts, self._ranks)
        self._files = {name: save_bytes(content) for name, content in artifacts.items()}
        self._states = CallbackStates()
        self._saved: tuple[int, bool, bool] | None = None
        self._report_resumed: Callable[[], None] | None = None
        self.is_open: bool = False
        self.result: TrainResult | None = None

    @contextlib.contextmanager
    def open(self, resume: Resume) -> Iterator[None]:
        """Holds the output directory while the run lasts, and closes the callbacks at its end; see
        `Place.open`.
        """
        self.is_open, place = True, self.place.open(resume, find_search(self._view))
        try:
            with self._ranks.run(), place, contextlib.closing(self._callbacks):
                self._view.run_id = self.place.run_id
                yield
        finally:
            self._store.end()
            self.is_open, self._report_resumed = False, None

    def find(self, resume: Resume) -> Found | None:
        """Returns the snapshot that `resume` means, at whose position the run is then; None for a
        fresh start.

        Raises:
            ConfigError: there is nothing to resume.
            SnapshotError: the snapshot cannot be trusted.
            PluginError: a callback cannot read its state.
        """
        view = self._view
        view.queue.start()
        self._states = CallbackStates()
        self._saved = self._report_resumed = self.result = None
        with refusing():
            found = self.place.find(resume)
            check_same(found, self._ranks)
        if self._callbacks.plugins:
            names = ", ".join(plugin.label for plugin in self._callbacks.plugins)
            logger.info("callbacks in call order: %s.", names)
        if found is None:
            check_fresh(view.config, resume)
            own = (each.state_key for each in self._callbacks.plugins if each.state_per_process)
            self._own = {*own}
            view.position.load()
            view.journal.start({})
        else:
            self._go_to(found)
        seed_rng(view.config.seed + view.rank)  # as for dropout, not twice the same
        return found

    def _go_to(self, found: Found) -> None:
        view, (path, state, manifest) = self._view, found
        with reading(path):
            view.position.load(state["progress"])
            saved, self._own = pick_own_states(state, self._callbacks.plugins, self._ranks)
        writers = manifest.get("plugins", {})
        self._states = load_states(saved, writers, self._callbacks, view.step)
        view.journal.start(saved)
        if "events" not in state["progress"]:  # of an older version
            view.position.events = self._ranks.on_main(view.journal.count, "log events")

    def set_up(self, found: Found | None) -> bool:
        """Lets callbacks change the structure of what is trained; returns whether one may have, in
        any process.
        """
        used = "on_setup" in self._callbacks.used
        if used:
            checkpoint = None if found is None else self._describe(found)
            hook, states = self._callbacks.hook.on_setup, self._states.loaded
            with self._ending():
                hook(trainer=self._view, checkpoint=checkpoint, state=states)
        return bool(self._ranks.highest(used, "on_setup"))

    def restore(self, found: Found | None) -> None:
        """Loads a snapshot, and lets every callback load its state.

        Raises:
            SnapshotError: it does not fit.
            PluginError: a callback refuses its state.
        """
        view = self._view
        if found is not None:
            self._load(found)
        self._store.finite.start(view.model, self._checkpoint.optimizer_state(), self._ranks)
        self._checkpoint.check_schedule(view.position)
        if found is not None:
            self._load_callbacks(found)

    def _load(self, found: Found) -> None:
        """Puts the objects of the run into the state of a snapshot."""
        position, (path, state, manifest) = self._view.position, found
        with reading(path), naming_changes(manifest):
            self._checkpoint.load(state, path)
        self._checkpoint.change_rate(state)
        self._checkpoint.check_optimizer_devices()
        logger.info(
            "resumed from %s: %d epochs done, update %d.", path, position.epochs_done, position.step
        )

    def _describe(self, found: Found) -> dict[str, Any]:
        """Returns a snapshot as callbacks see it."""
        position = self._view.position
        own = {"epoch": position.epoch, "step": position.step}
        return {**found[1], **own, "callback_state": self._states.loaded}

    def _load_callbacks(self, found: Found) -> None:
        """Gives the callbacks their states of a snapshot."""
        view, position, (path, _, manifest) = self._view, self._view.position, found
        log_differences(manifest, view.config, self._callbacks.plugins, position, view.model)
        hook, loaded = self._callbacks.hook.on_snapshot_load, self._states.loaded
        with self._ending():
            hook(trainer=view, checkpoint=self._describe(found), state=loaded)
        self.place.note_resume(position.step)
        if self.place.found_is_own:
            self._saved = position.boundary
            if view.is_main_process:  # the killed run may not have come to report it
                report = partial(self._report_saved, position.epoch, position.step, path)
                self._report_resumed = report
                self._store.remove_oldest(path)

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """Ends the run where a callback fails before `on_train_start`: the others have begun."""
        try:
            yield
        except BaseException as error:
            self.end(None, error)
            raise

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
        if self._report_resumed is not None:
            report, self._report_resumed = self._report_resumed, None
            report()
        if not due:
            return
        view.check_replicas()
        state = self.collect()
        facts = describe_run(position, view.config, self._callbacks.plugins, view.model)
        facts["plugins"] = {**facts["plugins"], **self._states.carried_writers}
        facts.update(describe_changes(self._checkpoint.changed, self._callbacks.plugins))
        if view.is_main_process:
            report = partial(self._report_saved, position.epoch, position.step)
            self._store.save(position.step, state, facts, report, self._files)
        self._saved = position.boundary

    def _report_saved(self, epoch: int, step: int, path: Path) -> None:
        """Tells every callback that the snapshot of an update is durable."""
        self.place.note_snapshot()
        hook = self._callbacks.hook.on_snapshot_saved
        hook(trainer=self._view, path=path, epoch=epoch, step=step)

    def end(
        self, stop: Stop | None, error: BaseException | None, *, final: bool = True
    ) -> BaseException | None:
        """Tells every callback how the run ended, waits for the disk, writes the final model and
        tells of that. Returns what is to be raised: KeyboardInterrupt after Ctrl-C.

        Args:
            stop: why it ends; None: the epochs are over.
            error: what ends it, if that is an exception.
            final: the finished model may be written.
        """
        view, hook = self._view, self._callbacks.hook
        view.queue.check_process()
        late = undone = unsent = None
        try:
            unsent = self._attempt(view.queue.open)
            error = self._finish_write(stop, error or unsent)
            if error is None:
                error = self._attempt(self._check_finite)
            result = make_result(view, self._callbacks, stop, error)
            with noting_changes(view) if error is None else contextlib.nullcontext():
                late = self._attempt(lambda: hook.on_train_end(trainer=view, result=result))
            undone = self._attempt(view.senders.wait)
            unsent = self._attempt(view.queue.close)
            result = replace(result, weights=describe_weights(view.position))
            error = error or late or undone or unsent
            if error is None and result.exit_code == 0 and final and self._store.can_write:
                error = self._attempt(partial(self._save_final, result.weights))
                undone = self._attempt(view.senders.wait)  # what was submitted in on_final_saved
                error = error or undone
            self.result = replace(result, switched_off=tuple(self._callbacks.switched_off))
            return error
        finally:
            del error, late, undone, unsent  # whose tracebacks lead to this frame

    def _finish_write(self, stop: Stop | None, error: BaseException | None) -> BaseException | None:
        """Tells the callbacks of an exception, and waits for the write; returns what ends the run.
        One that is to go on later fails where its snapshot was not written.
        """
        hook = self._callbacks.hook
        decided = error is None  # by all processes; an exception is one's own
        if error is None and stop is not None and stop.status == "interrupted":
            error = KeyboardInterrupt()
        if error is not None:
            raised = error
            self._attempt(lambda: hook.on_exception(trainer=self._view, exception=raised))
        resumable = stop is not None and stop.status in ("terminated", "interrupted")
        write = partial(self._store.collect, wait=True, must_succeed=resumable)
        unsaved = self._attempt(partial(self._ranks.on_main, write, "end") if decided else write)
        try:
            return unsaved if error is None or (resumable and unsaved is not None) else error
        finally:
            del unsaved, error

    def collect(self) -> dict[str, Any]:
        """Returns the state of everything now; all processes have to call it."""
        position = self._view.position
        self._checkpoint.check_rates(self._view.step)
        state = self._checkpoint.read(position)
        state["progress"] = position.state()
        states = self._states.collect(self._callbacks, self._view)
        self._ranks.meet("the states of the callbacks")  # where the others hear of a failure
        state["callback_state"] = states
        keep_own_states(state, self._own, self._ranks)
        if self._ranks.is_sharded:
            off = self._callbacks.switched_off
            failed = {each.state_key for each in self._callbacks.plugins if each.name in off}
            match_sharded(states, failed, self._ranks)
        return cast(dict[str, Any], gather_state(state, keep=self._ranks.is_main))

    def _check_finite(self) -> None:
        """Refuses to call a run finished whose weights, or learning rates, have become NaN or
        infinite.

        Raises:
            NonFiniteError: they have; in all processes, where one of them has such a part.
        """
        self._checkpoint.check_rates(self._view.step)
        state = {"model": self._view.model.state_dict()}
        faults = self._ranks.gather(self._store.finite.describe_fault(state), "end")
        fault = next(filter(None, faults), None)
        if fault is not None:
            raise NonFiniteError(
                f"{fault} at the end of the run, and was not at its start. Lower the learning "
                f"rate, or clip with {option_text('max_grad_norm')}."
            )

    def _save_final(self, described: ModelWeights) -> None:
        weights = gather_weights(self._view.model, keep=self._ranks.is_main)
        path = self._ranks.on_main(partial(self._write_final, weights, described), "final")
        if self._ranks.is_main:
            self._callbacks.hook.on_final_saved(trainer=self._view, path=path)

    def _write_final(self, weights: Mapping[str, Any], described: ModelWeights) -> Path:
        """Returns where it stands."""
        view, files = self._view, dict(self._files)
        if describe_unsaveable(weights) is None:
            files["model.safetensors"] = save_safetensors(weights)
        facts = describe_run(view.position, view.config, self._callbacks.plugins, view.model)
        facts["weights"] = asdict(described)
        return self._store.save_final(weights, view.position.state(), files, facts)

    def _attempt(self, call: Callable[[], object]) -> BaseException | None:
        """Calls and returns what it raises, logged: at the end of a run one failure must not hide
        another.
        """
        known = (CallbackError, UsageError, NonFiniteError, SnapshotError, KeyboardInterrupt)
        try:
            call()
        except BaseException as error:
            if not isinstance(error, known) and self._callbacks.passed_by(error) is None:
                raise
            logger.error("%s", text_of(error))
            return error
        return None
