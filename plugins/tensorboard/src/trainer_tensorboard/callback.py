"""The callback: what is written when, and what is taken back when a run resumes."""

from __future__ import annotations

import html
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from trainer_callback import (
    TrainerCallback,
    TrainerProtocol,
    UsageError,
    hookimpl,
)
from trainer_callback.checks import option_error
from trainer_callback.tensors import whole_tensor
from trainer_callback.values import check_types

from .event_files import SUFFIX, count_foreign, cut_files, measure_files, wait_for_later_name
from .histograms import add_histogram

if TYPE_CHECKING:
    import torch

__all__ = ["TensorBoardCallback"]

logger: Final = logging.getLogger("trainer.tensorboard")


class TensorBoardCallback(TrainerCallback):
    """Writes what the run logs to `OUTPUT_DIR/tensorboard`, for `tensorboard --logdir OUTPUT_DIR`.

    Scalars are whatever anybody logs: losses, learning rate, gradient statistics, throughput; texts
    too, such as samples of a language model, beside the configuration and the model. A resumed run
    has every point once.

    Args:
        histogram_epochs: epochs between two histograms of each weight and gradient; 0 for none
    """

    critical = False
    logs_metrics: tuple[str, ...] | None = ()
    contract: ClassVar[Mapping[str, object]] = {
        "passive": True,
        "varying": ("files", "self._lengths"),
    }

    def __init__(self, histogram_epochs: int = 0) -> None:
        """Keeps each option as the attribute of its name.

        Raises:
            OptionError: an option is out of range, or of another type.
        """
        check_types(TensorBoardCallback, locals(), "tensorboard_")
        if histogram_epochs < 0:
            raise option_error(
                *("TensorBoardCallback", "tensorboard_", "histogram_epochs", "at least 0"),
                histogram_epochs,
                use=1,
                effect="for one after each epoch",
            )
        self.histogram_epochs = histogram_epochs
        self._directory: Path | None = None
        self._lengths: Mapping[str, int] | None = None
        self._writer: Any = None
        self._left_out: set[str] = set()

    def on_snapshot_load(
        self,
        trainer: TrainerProtocol,
        checkpoint: Mapping[str, Any],
        state: Mapping[str, Any] | None,
    ) -> None:
        self._lengths = None if state is None else state.get("files")

    def on_train_start(self, trainer: TrainerProtocol, resumed: bool) -> None:
        self._close()
        if not trainer.is_main_process:
            return
        if trainer.output_dir is None:
            logger.info("tensorboard: no files, for there is no output directory.")
            return
        self._directory = trainer.output_dir / "tensorboard"
        if os.path.lexists(self._directory) and not self._directory.is_dir():
            raise UsageError(
                f"{str(self._directory)!r} is no folder, and the event files go there. Move it "
                "away, or use another output_dir."
            )
        foreign = count_foreign(self._directory)
        if foreign:
            text = "%s has %d event files that are not its own: they stay as they are."
            logger.info(text, self._directory, foreign)
        lengths = self._lengths if resumed else {}
        if lengths is not None:
            cut_files(self._directory, lengths)
        epochs = trainer.max_epochs
        if epochs is not None and self.histogram_epochs > epochs:
            text = "histogram_epochs %d has no effect in a run of %d epochs."
            logger.warning(text, self.histogram_epochs, epochs)
        self._open(self._directory, trainer.step if resumed else None)
        settings = {"output_dir": trainer.output_dir, **trainer.hyperparameters}
        self._writer.add_text("config", _describe(settings), trainer.step)
        self._writer.add_text("model", _indent(str(trainer.model)), trainer.step)

    def on_log(  # type: ignore[override]
        self, metrics: Mapping[str, float], step: int
    ) -> None:
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(_encodable(name), value, step)

    def on_log_text(self, name: str, text: str, step: int) -> None:  # type: ignore[override]
        if self._writer is not None:
            self._writer.add_text(_encodable(name), _indent(_encodable(text)), step)

    def on_backward_end(self, trainer: TrainerProtocol) -> None:
        if trainer.last_update_of_epoch and self._is_due(trainer):
            parameters = trainer.model.named_parameters()
            found = {name: p.grad for name, p in parameters if p.grad is not None}
            self._add_histograms("gradients", found, trainer.step + 1)

    def on_epoch_end(
        self,
        trainer: TrainerProtocol,
        epoch: int,
        train_loss: float,
        val_loss: float | None,
        metrics: Mapping[str, float],
    ) -> None:
        if self._is_due(trainer):
            found = dict(trainer.model.named_parameters())
            self._add_histograms("weights", found, trainer.step)
        if self._writer is not None:
            self._writer.flush()

    def on_snapshot_save(
        self, trainer: TrainerProtocol, epoch: int, step: int
    ) -> Mapping[str, object] | None:
        if self._writer is None or self._directory is None:
            return None
        self._writer.flush()
        return {"files": measure_files(self._directory)}

    @hookimpl(trylast=True)  # others may log something in the same event
    def on_train_end(self, trainer: TrainerProtocol, result: Any) -> None:
        self._close()

    def _is_due(self, trainer: TrainerProtocol) -> bool:
        """Whether this epoch has histograms; the same in all processes."""
        every = self.histogram_epochs
        return trainer.output_dir is not None and every > 0 and (trainer.epoch + 1) % every == 0

    def _add_histograms(self, kind: str, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        failure: OSError | None = None
        for name, tensor in tensors.items():
            # Of a sharded one each process gives its part, to the last.
            whole = whole_tensor(tensor)
            if self._writer is None or failure is not None:
                continue
            try:
                add_histogram(self._writer, _encodable(f"{kind}/{name}"), whole, step)
            except OSError as error:
                failure = error
            except Exception as error:
                self._leave_out(f"{kind}/{name}", error)
        try:
            if failure is not None:
                raise failure
        finally:
            del failure  # whose traceback has this frame

    def _leave_out(self, name: str, error: Exception) -> None:
        if name not in self._left_out:
            logger.warning("no histogram of %s: %s: %s", name, type(error).__name__, error)
        self._left_out.add(name)

    def _open(self, directory: Path, step: int | None) -> None:
        """Starts a file. A TensorBoard that is running hides what it has read beyond `step`."""
        from torch.utils.tensorboard import SummaryWriter

        wait_for_later_name(directory)
        purge_step = None if step is None else step + 1
        self._writer = SummaryWriter(str(directory), purge_step=purge_step, filename_suffix=SUFFIX)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = self._directory = None


def _describe(settings: Mapping[str, object]) -> str:
    """Returns a Markdown table."""
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in settings.items()]
    return "\n".join(["| option | value |", "| --- | --- |", *rows])


def _cell(value: object) -> str:
    """Returns `value` as a cell of a table in Markdown."""
    return html.escape(str(value), quote=False).replace("|", r"\|").replace("\n", r"\n")


def _encodable(text: str) -> str:
    """Returns `text` with an escape for what UTF-8 has no bytes for: half of a surrogate pair."""
    return text.encode("utf-8", "backslashreplace").decode()


def _indent(text: str) -> str:
    """Returns `text` as a block of code in Markdown."""
    return "\n".join(f"    {line}" for line in text.splitlines())
