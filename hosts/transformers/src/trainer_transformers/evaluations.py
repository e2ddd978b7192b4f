"""What a trainer's `evaluate` tells a session: a validation, its sets and their batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import transformers

from trainer.hosting import HostedRun

from .metrics import PREFIX, name_validated
from .session import Session

__all__ = ["Evaluations"]

_REMEDY: Final = (
    "It computes their loss where they have labels: where these are called otherwise, set "
    "label_names."
)


class Evaluations:
    """The evaluations of one `train`."""

    def __init__(self, trainer: transformers.Trainer, session: Session) -> None:
        """Keeps references."""
        self._trainer, self._session = trainer, session
        self._is_in_set = self._is_in_several = False

    @property
    def _run(self) -> HostedRun:
        assert self._session.run is not None
        return self._session.run

    def wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Returns what is put over `evaluate`."""

        def evaluate(*values: Any, **named: Any) -> Any:
            session = self._session
            prefix = values[2] if len(values) > 2 else named.get("metric_key_prefix", PREFIX)
            data = values[0] if values else named.get("eval_dataset")

            def go_on() -> Any:
                return original(*values, **named)

            if session.is_validating:
                is_set = self._is_in_several and not self._is_in_set
                return self._evaluate_set(prefix, go_on) if is_set else self._pass_over(go_on)
            if not session.is_live or prefix != PREFIX:
                return go_on()
            session.start_validation()
            data = self._trainer.eval_dataset if data is None else data
            self._is_in_several = isinstance(data, dict)
            metrics = go_on() if self._is_in_several else self._evaluate_set(prefix, go_on)
            session.end_validation(metrics)
            return metrics

        return evaluate

    def end_batch(self, inputs: Any, answer: Any) -> None:
        """`compute_loss` has answered, outside of a step."""
        if self._is_in_set and self._run.sets.asks_batches:
            loss, outputs = answer if isinstance(answer, tuple) else (answer, None)
            self._run.sets.end_batch(inputs, loss.mean(), outputs)

    def _evaluate_set(self, prefix: str, go_on: Callable[[], Mapping[str, Any]]) -> Any:
        self._run.sets.remedy = _REMEDY
        self._run.sets.start("val" if prefix == PREFIX else prefix.removeprefix(f"{PREFIX}_"))
        with self._being_in_set(True):
            metrics = go_on()
        own = {each.replace(prefix, PREFIX, 1): value for each, value in metrics.items()}
        self._run.sets.end(name_validated(own))
        return metrics

    def _pass_over(self, go_on: Callable[[], Any]) -> Any:
        """Evaluates for somebody who does so inside of a validation: that is none of it."""
        with self._being_in_set(False):
            return go_on()

    @contextlib.contextmanager
    def _being_in_set(self, value: bool) -> Iterator[None]:
        before, self._is_in_set = self._is_in_set, value
        try:
            yield
        finally:
            self._is_in_set = before
