"""What stands around the loop: the output directory, resuming, saving, and the one way a run
ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from trainer_callback import CallbackError, SnapshotError, StateError, TrainerCallback
from trainer_callback.discovery import find_version
from trainer_callback.state import to_plain

from .checkpoint import Checkpoint
from .config import ConfigError
from .final import save_safetensors
from .progress import Progress
from .result import Stop, TrainResult
from .rng import seed_rng
from .rundir import RunDirectory
from .snapshot import load_state, read_manifest, save_bytes, save_state

if TYPE_CHECKING:
    from .host import Host

__all__ = ["Resume", "Run"]

logger = logging.getLogger("trainer")

Resume: TypeAlias = bool | Literal["auto"] | str | Path


class Run:
    """One trainer's run outside its loop."""

    def __init__(
        self, trainer: Host, checkpoint: Checkpoint, artifacts: Mapping[str, bytes]
    ) -> None:
        self._trainer = trainer
        self._callbacks = trainer.callbacks
        self._keeper = trainer.keeper
        self._checkpoint = checkpoint
        self._artifacts = artifacts
        self._carried: dict[str, Any] = {}
        self._carried_plugins: dict[str, Any] = {}
        self._saved_step = -1

    @property
    def _hook(self) -> TrainerCallback:
        return self._callbacks.table.plain

    @contextlib.contextmanager
    def open(self, resume: Resume) -> Iterator[None]:
        """Holds the output directory while the run lasts.

        Raises:
            ConfigError: it cannot be used, another run uses it, or it holds a run that this one
                would overwrite.
        """
        config = self._trainer.config
        if config.output_dir is None:
            yield
            return
        if resume is True and not config.output_dir.exists():
            self._find(resume)  # which says that there is nothing
        elif not isinstance(resume, bool) and resume != "auto":
            read_manifest(Path(resume))  # before anything is made
        with RunDirectory(config.output_dir) as directory:
            if resume is False and directory.holds_run:
                if not config.overwrite:
                    raise ConfigError(
                        f"the output directory {str(directory.path)!r} holds a run already. Use "
                        "--resume to go on with it, --overwrite to start afresh, or another one."
                    )
                directory.clear()
            self._keeper.clean()
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
        self._carried, self._carried_plugins, self._saved_step = {}, {}, -1
        found = self._find(resume)
        if self._callbacks.plugins:
            names = ", ".join(plugin.label for plugin in self._callbacks.plugins)
            logger.info("callbacks in call order: %s.", names)
        if found is None:
            trainer.progress = Progress()
            seed_rng(trainer.config.seed)
            return False
        path, state, manifest = found
        if "optimizer" not in state:
            raise SnapshotError(
                f"{path} holds a finished model, which cannot be resumed. Name a directory of "
                "snapshots/."
            )
        self._checkpoint.load(state, path)
        trainer.progress = progress = Progress.from_state(state["progress"])
        self._saved_step = progress.step
        self._carry(state["callback_state"], manifest["plugins"])
        logger.info(
            "resumed from %s: %d epochs done, update %d.", path, progress.epochs_done, progress.step
        )
        checkpoint = {**state, "epoch": progress.epoch, "step": progress.step}
        self._hook.on_snapshot_load(trainer=trainer, checkpoint=checkpoint)
        return True

    def keep(self, progress: Progress | None) -> None:
        """Hears of the write that has ended; collects the state of everything and starts the next
        write.

        Args:
            progress: None where no snapshot is due. A step that is saved already is not saved
                again.

        Raises:
            CallbackError: a callback failed, or its state cannot be saved.
            SnapshotError: the third failed write in a row.
        """
        if not self._keeper.can_write:
            return
        self._keeper.collect()
        if progress is None or self._saved_step == progress.step:
            return
        trainer, epoch, step = self._trainer, progress.epoch, progress.step

        def saved(path: Path) -> None:
            self._hook.on_snapshot_saved(trainer=trainer, path=path, epoch=epoch, step=step)

        state = self._collect(progress)
        self._keeper.save(step, state, self._facts(progress), saved)
        self._saved_step = step

    def end(self, stop: Stop | None, error: BaseException | None) -> TrainResult:
        """Tells every callback how the run ended, writes the final model, waits for the disk.

        Raises:
            BaseException: what ended the run, if it was an exception; KeyboardInterrupt after
                Ctrl-C.
        """
        trainer, hook = self._trainer, self._hook
        if error is None and stop is not None and stop.status == "interrupted":
            error = KeyboardInterrupt()
        if error is not None:
            raised = error
            self._tell(lambda: hook.on_exception(trainer=trainer, exception=raised))
        error = error or self._tell(lambda: self._keeper.collect(wait=True))
        result = self._conclude(stop, error)
        late = self._tell(lambda: hook.on_train_end(trainer=trainer, result=result))
        if error is None and late is None and result.exit_code == 0 and self._keeper.can_write:
            late = self._tell(self._save_final)
        error = error or late
        if error is not None:
            raise error
        return result

    def _find(self, resume: Resume) -> tuple[Path, dict[str, Any], dict[str, Any]] | None:
        if resume is False:
            return None
        if resume not in (True, "auto"):
            path = Path(str(resume))
            return path, *load_state(path)
        found = self._keeper.load_newest()
        if found is None and resume is True:
            where = self._trainer.config.output_dir
            raise ConfigError(
                f"there is nothing to resume in {str(where)!r}. Start without --resume, or use "
                "--resume auto."
                if where is not None
                else "there is nothing to resume without output_dir."
            )
        return found

    def _collect(self, progress: Progress) -> dict[str, Any]:
        state = self._checkpoint.read(mid_epoch=not progress.epoch_done)
        state["progress"] = progress.state()
        state["callback_state"] = dict(self._carried)
        answers = self._callbacks.table.ask_state(
            trainer=self._trainer, epoch=progress.epoch, step=progress.step
        )
        for plugin, answer in answers:
            try:
                state["callback_state"][plugin.state_key] = to_plain(answer, plugin.state_key)
            except StateError as error:
                self._callbacks.caught(plugin, "on_snapshot_save", error)
        self._callbacks.finish()
        return state

    def _facts(self, progress: Progress) -> dict[str, Any]:
        """Returns what the manifest says beside the files: plain JSON, no path of this machine."""
        config = dataclasses.asdict(self._trainer.config)
        del config["output_dir"]
        plugins = {
            plugin.state_key: {
                "name": plugin.name,
                "distribution": plugin.distribution,
                "version": plugin.version,
            }
            for plugin in self._callbacks.plugins
        }
        return {
            "step": progress.step,
            "epoch": progress.epoch,
            "batch_in_epoch": progress.batch_in_epoch,
            "metrics": dict(progress.metrics),
            "versions": {"torch": torch.__version__, "trainer-core": find_version("trainer-core")},
            "plugins": {**self._carried_plugins, **plugins},
            "options": config,
        }

    def _conclude(self, stop: Stop | None, error: BaseException | None) -> TrainResult:
        progress = self._trainer.progress
        stop = stop or Stop("finished", "epochs")
        if isinstance(error, KeyboardInterrupt):
            stop = Stop("interrupted", "SIGINT")
        elif error is not None:
            stop = Stop("failed", type(error).__name__, str(error))
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

    def _save_final(self) -> None:
        trainer = self._trainer
        state = {"model": dict(trainer.model.state_dict()), "progress": trainer.progress.state()}
        files = {
            "state.pt": save_state(state),
            "model.safetensors": save_safetensors(trainer.model),
            **{name: save_bytes(content) for name, content in self._artifacts.items()},
        }
        path = self._keeper.save_final(files, self._facts(trainer.progress))
        logger.info("wrote the finished model to %s.", path)

    def _tell(self, call: Callable[[], object]) -> BaseException | None:
        """Calls and returns what it raises, logged: at the end of a run one failure must not hide
        another.
        """
        try:
            call()
        except (CallbackError, SnapshotError, KeyboardInterrupt) as error:
            logger.error("%s", error)
            return error
        return None

    def _carry(self, states: Mapping[str, Any], plugins: Mapping[str, Any]) -> None:
        """Keeps the state of callbacks that are not in this run, for later snapshots."""
        present = {plugin.state_key for plugin in self._callbacks.plugins}
        self._carried = {key: value for key, value in states.items() if key not in present}
        for key in self._carried:
            self._carried_plugins[key] = plugins.get(key, {})
            logger.warning(
                "the snapshot has state of %s, which is not in this run: it is carried along.", key
            )
