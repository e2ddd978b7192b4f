"""The callback: when a message is sent, and what it says. Addresses hold passwords: they are
neither kept under the name of an option, nor written or logged anywhere.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from trainer_callback import TrainerCallback, TrainerProtocol, UsageError
from trainer_callback.checks import option_error
from trainer_callback.values import check_types

__all__ = ["NotifyCallback"]

logger: Final = logging.getLogger("trainer.notify")

_VARIABLE: Final = "NOTIFY_URLS"

_refuse = partial(option_error, "NotifyCallback", "notify_")

_NO_ADDRESS: Final = (
    "NotifyCallback: there is no address to send to. Set NOTIFY_URLS to one of apprise, such as "
    "mailto://... or slack://... (https://appriseit.com), or name a file of them."
)


@dataclass
class _State:
    """What a resumed run has to know: the best value so far, and at which update it came."""

    best: float | None = None
    best_step: int = 0


class NotifyCallback(TrainerCallback):
    """Sends a message when the run has ended, whichever way, by apprise: mail, Slack, Telegram and
    a hundred others. The addresses are in the environment variable NOTIFY_URLS, or in a file, for
    they hold passwords.

    Args:
        urls: one address, or several; in code only
        file: a file with an address on each line; lines that begin with # are passed over
        every_epochs: also send one after so many epochs
        at_best: also send one at each new best value
        monitor: the metric whose best value is told
        mode: whether lower (min) or higher (max) is better
    """

    critical = False
    logs_metrics: tuple[str, ...] | None = ()
    contract: ClassVar[Mapping[str, object]] = {
        "passive": True,
        "varying": ("self._begun",),
        "make": lambda: NotifyCallback("json://127.0.0.1:9"),  # nobody listens there
    }

    def __init__(
        self,
        urls: Any = None,
        *,
        file: Path | None = None,
        every_epochs: int | None = None,
        at_best: bool = False,
        monitor: str = "val_loss",
        mode: Literal["min", "max"] = "min",
    ) -> None:
        """Keeps each option but `urls` as the attribute of its name.

        Raises:
            OptionError: an option is out of range, or of another type.
        """
        check_types(NotifyCallback, locals(), "notify_")
        if every_epochs is not None and every_epochs < 1:
            raise _refuse("every_epochs", "at least 1", every_epochs, use=1)
        self.file = file
        self.every_epochs = every_epochs
        self.at_best = at_best
        self.monitor = monitor
        self.mode = mode
        self.state: _State = _State()
        self._urls: list[str] = [urls] if isinstance(urls, str) else list(urls or ())
        self._services: Any = None
        self._error = ""

    def on_snapshot_load(
        self,
        trainer: TrainerProtocol,
        checkpoint: Mapping[str, Any],
        state: Mapping[str, Any] | None,
    ) -> None:
        self.state = _State(**state) if state is not None else _State()

    def on_train_start(self, trainer: TrainerProtocol, resumed: bool) -> None:
        if not resumed:
            self.state = _State()
        self._error, self._begun = "", time.monotonic()
        if trainer.is_main_process:
            self._services = _open(self._find_urls())

    def on_log(  # type: ignore[override]  # its numbers are those of now
        self, trainer: TrainerProtocol, metrics: Mapping[str, float]
    ) -> None:
        value, best = metrics.get(self.monitor, math.nan), self.state.best
        is_better = best is None or (value < best if self.mode == "min" else value > best)
        if is_better and not math.isnan(value):
            self.state = _State(value, trainer.step)
            if self.at_best:
                self._submit(trainer, f"best {self.monitor} so far: {value:.6g}", [self._when()])

    def on_epoch_end(  # type: ignore[override]  # its losses are among the metrics
        self, trainer: TrainerProtocol, epoch: int, metrics: Mapping[str, float]
    ) -> None:
        if self.every_epochs is not None and (epoch + 1) % self.every_epochs == 0:
            known = [f"{name} {metrics[name]:.6g}" for name in _shown(metrics, self.monitor)]
            self._submit(trainer, f"epoch {epoch} is over", known)

    def on_snapshot_save(
        self, trainer: TrainerProtocol, epoch: int, step: int
    ) -> Mapping[str, object]:
        return asdict(self.state)

    def on_exception(self, trainer: TrainerProtocol, exception: BaseException) -> None:
        self._error = f"{type(exception).__name__}: {exception}"[:1000]

    def on_train_end(self, trainer: TrainerProtocol, result: Any) -> None:
        minutes, seconds = divmod(round(time.monotonic() - self._begun), 60)
        lines = [
            f"{result.stop_reason} after {result.steps} updates, {result.epochs} epochs",
            f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} since the start or the resume",
            f"in {trainer.output_dir}" if trainer.output_dir is not None else "nothing was written",
        ]
        if self.state.best is not None:
            lines.insert(1, f"best {self.monitor} {self.state.best:.6g}, {self._when()}")
        self._submit(trainer, result.status, [*lines, self._error] if self._error else lines)

    def _when(self) -> str:
        return f"at update {self.state.best_step}"

    def _submit(self, trainer: TrainerProtocol, title: str, lines: Sequence[str]) -> None:
        if self._services is not None:
            name = f"{trainer.run_name}: {title}"
            if not trainer.submit(self, _send, self._services, name, "\n".join(lines)):
                logger.warning("notify: %r was not sent, for too many messages wait.", name)

    def _find_urls(self) -> list[str]:
        if self._urls:
            return self._urls
        if self.file is None:
            return [each for each in re.split(r"[\s,]+", os.environ.get(_VARIABLE, "")) if each]
        try:
            lines = [line.strip() for line in self.file.read_text().splitlines()]
        except OSError as error:
            raise UsageError(f"NotifyCallback: {self.file} cannot be read: {error}.") from error
        return [line for line in lines if line and not line.startswith("#")]


def _shown(metrics: Mapping[str, float], monitor: str) -> list[str]:
    """Returns the names of the metrics that a message has."""
    return [name for name in dict.fromkeys(("train_loss", "val_loss", monitor)) if name in metrics]


def _open(urls: Sequence[str]) -> Any:
    """Returns what sends to all of `urls`.

    Raises:
        UsageError: there is none, or one that is none; it is not shown.
    """
    try:
        from apprise import Apprise
    except ImportError as error:
        text = f"NotifyCallback: apprise cannot be imported: {error}. Install it: pip install "
        raise UsageError(f"{text}apprise.") from error
    if not urls:
        raise UsageError(_NO_ADDRESS)
    services, said = Apprise(), logging.getLogger("apprise")
    before, said.disabled = said.disabled, True  # it would say a wrong address as it is
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of what its services import
            wrong = [place for place, url in enumerate(urls, 1) if not services.add(url)]
    finally:
        said.disabled = before
    if wrong:
        kind = re.match(r"\w*(?=://)", urls[wrong[0] - 1])
        raise UsageError(
            f"NotifyCallback: address {wrong[0]} of {len(urls)} is none that apprise knows. It "
            f"begins with {kind[0] + '://' if kind else 'no scheme'}; see https://appriseit.com."
        )
    kinds = ", ".join(str(each.service_name) for each in services)
    logger.info("notify: messages go to %s.", kinds)
    return services


def _send(services: Any, title: str, body: str) -> None:
    """Sends a message, in the background; what becomes of it is no matter of the run."""
    if not services.notify(body=body, title=title):
        logger.warning("notify: %r could not be sent to all addresses.", title)
