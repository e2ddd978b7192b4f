"""The callback of a tracker: which hook is which moment. What a tracker is, a plugin says."""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from .errors import UsageError
from .hookspecs import TrainerCallback
from .outbox import Outbox, Tracker
from .protocol import TrainerProtocol
from .specs import hookimpl

__all__ = ["TrackerCallback"]


class TrackerCallback(TrainerCallback):
    """Sends what the run logs to a tracker, each event once, whatever became of the run meanwhile.

    A subclass has `make_tracker`. The main process alone calls it.

    Attributes:
        name: of the plugin, for messages.
        client: the library that it needs, as it is imported.
        requirement: what has to be installed for it.
        live: see `Outbox`.
        artifacts: whether the tracker gets the finished model.
    """

    critical = False
    needs_output_dir = True
    contract: ClassVar[Mapping[str, object]] = {"passive": True}
    logs_metrics: tuple[str, ...] | None = ()
    name: str
    client: str
    requirement: str
    live: bool = True
    artifacts: bool = True
    _outbox: Outbox | None = None

    @abstractmethod
    def make_tracker(self, trainer: TrainerProtocol, folder: Path) -> Tracker:
        """Returns the tracker, which is opened later, in another thread.

        Args:
            folder: `OUTPUT_DIR/NAME`, absolute, for what it has to keep.
        """

    @hookimpl(tryfirst=True)  # before anybody logs
    def on_train_start(self, trainer: TrainerProtocol, resumed: bool) -> None:
        self._outbox = None
        if not trainer.is_main_process:
            return
        spec = importlib.util.find_spec(self.client)
        if spec is None or spec.origin is None:  # such as a folder `wandb` beside the script
            raise UsageError(
                f"{self.name} needs the library {self.client!r}, which is not installed. Install "
                f'it: pip install "{self.requirement}"'
            )
        assert trainer.output_dir is not None  # see needs_output_dir
        tracker = self.make_tracker(trainer, trainer.output_dir.resolve() / self.name)
        outbox = Outbox(trainer, self, tracker, name=self.name, live=self.live)
        try:
            outbox.start(resumed)
        except (RuntimeError, OSError) as error:
            outbox.close()
            raise UsageError(f"{self.name}: cannot start {self.client!r}: {error}.") from error
        self._outbox = outbox

    def on_log(  # type: ignore[override]
        self, event: int
    ) -> None:
        if self._outbox is not None:
            self._outbox.note(event)

    def on_log_text(self, event: int) -> None:  # type: ignore[override]
        if self._outbox is not None:
            self._outbox.note(event)

    def on_snapshot_save(
        self, trainer: TrainerProtocol, epoch: int, step: int
    ) -> Mapping[str, object] | None:
        if self._outbox is not None:
            self._outbox.note_snapshot(step)
        return None

    def on_snapshot_saved(
        self, trainer: TrainerProtocol, path: Path, epoch: int, step: int
    ) -> None:
        if self._outbox is not None:
            self._outbox.note_saved(step)

    @hookimpl(trylast=True)  # others may log something in the same event
    def on_train_end(self, trainer: TrainerProtocol, result: Any) -> None:
        if self._outbox is not None:
            self._outbox.finish(result)

    def on_final_saved(self, trainer: TrainerProtocol, path: Path) -> None:
        if self._outbox is not None and self.artifacts:
            self._outbox.send_final(path)

    def close(self) -> None:
        outbox, self._outbox = self._outbox, None
        if outbox is not None:
            outbox.close()
