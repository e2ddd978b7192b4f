"""What a run was told about text, model and optimizer, kept in its snapshots: a resume with other
options says so, and is refused where it would go on with something else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any, Final

from trainer_callback import TrainerCallback, TrainerProtocol, UsageError

from .settings import Settings
from .text import Corpus
from .tokenizer import Tokenizer

__all__ = ["RunOptions"]

logger: logging.Logger = logging.getLogger("trainer.lm")

_OF_THIS_MACHINE: Final = frozenset({"dataset", "data_dir", "cache_dir", "num_workers"})


class RunOptions(TrainerCallback):
    """Shows at a resume which options differ from those of the snapshot's run. Those of the trainer
    and of plugins are shown by the trainer; what changes a shape is refused by it.
    """

    state_key: str | None = "trainer_lm.options"  # the class name is left to plugins
    logs_metrics: tuple[str, ...] | None = ()

    def __init__(self, settings: Settings, corpus: Corpus, tokenizer: Tokenizer) -> None:
        digest = hashlib.sha256(corpus.train)
        digest.update(corpus.validation)
        self._text = digest.hexdigest()
        self._dataset = settings.text.dataset
        self._kind = tokenizer.name
        content = json.dumps(tokenizer.to_dict(), sort_keys=True)
        self._tokenizer = hashlib.sha256(content.encode()).hexdigest()
        self._values = {
            name: value if value is None or isinstance(value, (int, float, str)) else str(value)
            for part in (settings.text, settings.model, settings.optimizer)
            for name, value in dataclasses.asdict(part).items()
            if name not in _OF_THIS_MACHINE
        }

    def on_snapshot_save(self, trainer: TrainerProtocol) -> Mapping[str, object]:  # type: ignore[override]
        return {
            "text": self._text,
            "tokenizer": self._tokenizer,
            "tokenizer_kind": self._kind,
            "values": self._values,
        }

    def on_snapshot_load(
        self,
        trainer: TrainerProtocol,
        checkpoint: Mapping[str, Any],
        state: Mapping[str, Any] | None,
    ) -> None:
        if state is None:
            return
        if state["text"] != self._text:
            raise UsageError(
                f"--dataset {self._dataset} is another text than that of the run to resume. Give "
                "it the same text, or start afresh with another --output_dir."
            )
        if state.get("tokenizer", self._tokenizer) != self._tokenizer:
            was = state["tokenizer_kind"]
            raise UsageError(
                f"--tokenizer {self._kind} gives other tokens than the {was} tokenizer of the run "
                f"to resume. Use --tokenizer {was}, the same --vocab_size, and the same version of "
                "the library tokenizers, or start afresh with another --output_dir."
            )
        for name, value in self._values.items():
            was = state["values"].get(name, value)
            if was == value:
                continue
            if name == "n_head":
                raise UsageError(
                    f"--n_head was {was} in the run to resume and is {value}: the same shapes, and "
                    f"another model. Use --n_head {was}."
                )
            logger.info("%s was %r in the snapshot's run and is %r.", name, was, value)
