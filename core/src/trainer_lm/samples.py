"""Samples of text while a language model is trained, for whoever writes texts down."""

from __future__ import annotations

import logging
from typing import Any, Final, cast

from trainer_callback import TrainerCallback, TrainerProtocol

from .model import GPT
from .sample import generate_text, printable
from .tokenizer import Tokenizer

__all__ = ["SampleCallback"]

logger: logging.Logger = logging.getLogger("trainer.lm")

_TOKENS: Final = 200


class SampleCallback(TrainerCallback):
    """Sends text that the model generates to `on_log_text`, under the name `sample`: every so many
    updates, and at the end of a run that was not cut off.

    The random numbers are its own, and the same for each sample: the run is not changed, and the
    samples can be compared.

    Attributes:
        final_text: the sample of the end, or None.
    """

    critical = False
    logs_metrics: tuple[str, ...] | None = ()
    state_key: str | None = "trainer_lm.samples"  # the class name is left to plugins

    def __init__(self, tokenizer: Tokenizer, interval: int | None) -> None:
        self.interval = interval
        self.final_text: str | None = None
        self._tokenizer = tokenizer

    def on_step_end(self, trainer: TrainerProtocol, skipped: bool) -> None:
        due = self.interval is not None and trainer.step % self.interval == 0
        if due and trainer.is_main_process:
            logger.info("sample at update %d: %s", trainer.step, printable(self._send(trainer)))

    def on_train_end(self, trainer: TrainerProtocol, result: Any) -> None:
        if trainer.is_main_process and result.status in ("finished", "stopped"):
            self.final_text = self._send(trainer)

    def _send(self, trainer: TrainerProtocol) -> str:
        text = generate_text(cast(GPT, trainer.model), self._tokenizer, "", _TOKENS)
        trainer.log_text("sample", text)
        return text
