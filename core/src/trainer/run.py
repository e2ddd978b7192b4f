"""What stands around the loop: the output directory, resuming, saving, and the one way a run
ends.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trainer_callback import (
    CallbackError,
    SaveError,
    SnapshotError,
    TrainerCallback,
    option_text,
)
from trainer_callback.errors import text_of

from .agreement import check_same, match_parts
from .checkpoint import Checkpoint
from .facts import read_facts, tell_differences
from .final import describe_unsaveable, save_safetensors
from .losses import NonFiniteError
from .parts import check_place, describe_bad_rate
from .place import Place, Resume, refusing
from .progress import Progress
from .result import Stop, TrainResult
from .rng import seed_rng
from .sharding import gather_state, gather_weights, holds_sharded
from .snapshot import save_bytes
from .state_table import Deal, collect_states, deal_out

if TYPE_CHECKING:
    from .host import Host

__all__ = ["Resume", "Run"]

logger: logging.Logger = logging.getLogger("trainer")


class Run:
    """One trainer's run outside its loop."""

    def __init__(
        self, trainer: Host, checkpoint: Checkpoint, artifacts: Mapping[str, bytes]
    ) -> None:
        self._trainer = trainer
        self._callbacks = trainer.callbacks
        self._keeper = trainer.keeper
        self._ranks = trainer.ranks
        self._checkpoint = checkpoint
        self._place = Place(trainer.config, trainer.keeper, checkpoint, artifacts, self._ranks)
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
        trainer = self._trainer
        trainer.queue.start()
        self._deal = Deal()
        self._saved, self._untold = None, None
        with refusing():
            found = self._place.find(resume)
            check_same(found, self._ranks)
        if self._callbacks.plugins:
            names = ", ".join(plugin.label for plugin in self._callbacks.plugins)
            logger.info("callbacks in call order: %s.", names)
        if found is None:
            trainer.progress = Progress()
            self._checkpoint.check_schedule(trainer.progress, trainer.config)
            seed_rng(trainer.config.seed + trainer.rank)  # as for dropout, not twice the same
            self._keeper.finite.start(trainer.model, trainer.optimizer, self._ranks)
            return False
        path, state, manifest = found
        with refusing():
            trainer.progress = progress = self._load(path, state)
        check_place(trainer.optimizer)  # whose settings are those of the snapshot now
        self._keeper.finite.start(trainer.model, trainer.optimizer, self._ranks)
        logger.info(
            "resumed from %s: %d epochs done, update %d.", path, progress.epochs_done, progress.step
        )
        self._checkpoint.check_schedule(progress, trainer.config)
        tell_differences(manifest, trainer.config, self._callbacks.plugins, progress)
        self._deal = deal_out(
            state["callback_state"],
            manifest.get("plugins", {}),
            self._callbacks,
            progress.step,
        )
        checkpoint = {**state, "epoch": progress.epoch, "step": progress.step}
        checkpoint["callback_state"] = self._deal.states
        try:
            self._hook.on_snapshot_load(
                trainer=trainer, checkpoint=checkpoint, state=self._deal.states
            )
        except BaseException as error:  # the others have loaded, and must hear of the end
            self.end(None, error)
            raise
        if self._place.holds_found:
            self._saved = progress.position
            if trainer.is_main_process:
                self._untold = self._make_report(progress, path)
                self._keeper.retain(path)
        return True

    def _load(self, path: Path, state: Mapping[str, Any]) -> Progress:
        """Puts the objects of the run into `state`; returns its counters."""
        progress = Progress.from_state(state["progress"])
        try:
            self._checkpoint.load(state, path)
            return progress
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise SnapshotError(f"{path} is no snapshot of such a run: {error!r}.") from error

    def keep(self, progress: Progress | None) -> None:
        """Hears of the write that has ended; collects the state of everything and starts the next
        write.

        Args:
            progress: None where no snapshot is due. A step that is saved already is not saved
                again.

        Raises:
            CallbackError: a callback failed, or its state cannot be saved.
            SnapshotError: the third failed write in a row; in all processes.
            NonFiniteError: what was to be written is not finite; in all processes.
        """
        if not self._keeper.can_write:
            return
        self._trainer.queue.check_process()
        due = progress is not None and progress.position != self._saved
        # Waited for, so that no state depends on how fast the disk was. Callbacks are told of the
        # write here, outside the point at which all processes hear of its failure.
        self._keeper.collect(wait=due, may_raise=self._ranks.is_alone)
        if due:
            self._ranks.on_main(self._keeper.collect, "snapshot")
        if self._untold is not None:
            report, self._untold = self._untold, None
            report()
        if progress is None or not due:
            return
        self._trainer.check_replicas()
        state = self._collect(progress)
        facts = read_facts(progress, self._trainer.config, self._callbacks.plugins)
        facts["plugins"] = {**facts["plugins"], **self._deal.carried_writers}
        if self._trainer.is_main_process:
            report = self._make_report(progress)
            self._keeper.save(progress.step, state, facts, report, self._files)
        self._saved = progress.position

    def _make_report(self, progress: Progress, path: Path | None = None) -> Callable[..., None]:
        """Returns what tells every callback that the snapshot of `progress` is durable. A resumed
        run tells it again of the one it resumed from: the killed one may not have come to it.
        """
        epoch, step = progress.epoch, progress.step

        def report(path: Path | None = path) -> None:
            assert path is not None
            self._place.note_snapshot()
            self._hook.on_snapshot_saved(trainer=self._trainer, path=path, epoch=epoch, step=step)

        return report

    def end(self, stop: Stop | None, error: BaseException | None) -> TrainResult:
        """Tells every callback how the run ended, writes the final model, waits for the disk.

        Raises:
            BaseException: what ended the run, if it was an exception; KeyboardInterrupt after
                Ctrl-C.
        """
        self._trainer.queue.check_process()
        result, error = self._close(stop, error)
        if error is None:
            return result
        try:
            if isinstance(error, SnapshotError):
                raise SaveError(str(error)) from error
            raise error
        finally:
            del error  # it holds this frame and the loop's, and so the loader's workers

    def _close(
        self, stop: Stop | None, error: BaseException | None
    ) -> tuple[TrainResult, BaseException | None]:
        """Does what `end` says, and returns the result and what is to be raised."""
        trainer, hook = self._trainer, self._hook
        unsent = self._tell(trainer.queue.open)
        error = error or unsent
        decided = error is None  # by all processes; an exception is one's own
        resumable = stop is not None and stop.status in ("terminated", "interrupted")
        if error is None and stop is not None and stop.status == "interrupted":
            error = KeyboardInterrupt()
        if error is not None:
            raised = error
            self._tell(lambda: hook.on_exception(trainer=trainer, exception=raised))
        write = partial(self._keeper.collect, wait=True, must_succeed=resumable)
        unsaved = self._tell(partial(self._ranks.on_main, write, "end") if decided else write)
        if error is None or (resumable and unsaved is not None):
            error = unsaved
        if error is None:
            error = self._tell(self._check_finite)
        result = self._conclude(stop, error)
        late = self._tell(lambda: hook.on_train_end(trainer=trainer, result=result))
        unsent = self._tell(trainer.queue.close)
        late = late or unsent
        result = replace(result, switched_off=tuple(self._callbacks.switched_off))
        if error is None and late is None and result.exit_code == 0 and self._keeper.can_write:
            late = self._tell(self._save_final)
        return result, error or late

    def _collect(self, progress: Progress) -> dict[str, Any]:
        self._check_rates()
        state = self._checkpoint.read(mid_epoch=progress.is_mid_epoch)
        state["progress"] = progress.state()
        states = collect_states(self._callbacks, self._deal, self._trainer)
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
        progress = self._trainer.progress
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
            epochs=progress.epochs_done,
            steps=progress.step,
            train_loss=progress.metrics.get("train_loss"),
            val_loss=progress.metrics.get("val_loss"),
            history=[dict(entry) for entry in progress.history],
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
        state = {"model": self._trainer.model.state_dict()}
        faults = self._ranks.gather(self._keeper.finite.describe_fault(state), "end")
        fault = next(filter(None, faults), None)
        if fault is not None:
            raise NonFiniteError(
                f"{fault} at the end of the run, and was not at its start. Lower the learning "
                f"rate, or clip with {option_text('max_grad_norm')}."
            )

    def _check_rates(self) -> None:
        fault = describe_bad_rate(self._trainer.optimizer)
        if fault is not None:
            raise NonFiniteError(f"{fault}. That was found behind update {self._trainer.step}.")

    def _save_final(self) -> None:
        weights = gather_weights(self._trainer.model, keep=self._ranks.is_main)
        self._ranks.on_main(partial(self._write_final, weights), "final")

    def _write_final(self, weights: Mapping[str, Any]) -> None:
        trainer = self._trainer
        files = dict(self._files)
        if describe_unsaveable(weights) is None:
            files["model.safetensors"] = save_safetensors(weights)
        facts = read_facts(trainer.progress, trainer.config, self._callbacks.plugins)
        path = self._keeper.save_final(weights, trainer.progress.state(), files, facts)
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
