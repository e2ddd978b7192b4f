"""One run in MLflow: what it has, what is added, how it ended. Lives in a process of its own."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from trainer_callback import LogRecord, serve_tracker

__all__ = ["MLflowTracker"]

logger: Final = logging.getLogger("trainer.mlflow")

_TAG: Final = "trainer.run_id"
_LARGEST: Final = 1.7976931348623157e308
_MOST_METRICS, _MOST_PARAMS, _LONGEST = 1000, 100, 6000
_STATES: Final[Mapping[str, str]] = {
    "failed": "FAILED",
    "interrupted": "KILLED",
    "terminated": "KILLED",
}


class MLflowTracker:
    """Adds to the run of MLflow that has this run's id as its tag.

    Args:
        artifacts: where files of a new experiment go; None where MLflow decides.
        settings: the parameters.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        artifacts: str | None,
        *,
        run_id: str,
        run_name: str,
        settings: Mapping[str, object],
        with_texts: bool,
    ) -> None:
        self._uri = uri
        self._experiment = experiment
        self._artifacts = artifacts
        self._run_id, self._run_name = run_id, run_name
        self._settings = settings
        self._with_texts = with_texts
        self._client: Any = None
        self._run = ""
        self._there: Counter[tuple[str, int, str]] = Counter()
        self._stamp = 0

    def start(self) -> None:
        """Loads MLflow, and makes a database that is not there."""
        from mlflow import MlflowClient

        if self._artifacts is not None:  # it is this run's own
            MlflowClient(self._uri).search_experiments(max_results=1)

    def open(self, known: int) -> int:
        """Finds or makes the run, and reads what it has."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = client = MlflowClient(self._uri)
        run = self._find_run()
        self._run = run.info.run_id
        if run.info.status != "RUNNING":  # it goes on
            client.update_run(self._run, status="RUNNING")
        params = {_legal(key): str(value)[:_LONGEST] for key, value in self._settings.items()}
        has = run.data.params
        new = [Param(key, value) for key, value in params.items() if key not in has]
        for first in range(0, len(new), _MOST_PARAMS):
            client.log_batch(self._run, params=new[first : first + _MOST_PARAMS])
        self._say_changed([key for key in params if key in has and has[key] != params[key]])
        self._there = Counter(
            (metric.key, metric.step, _form(metric.value))
            for key in run.data.metrics
            for metric in client.get_metric_history(self._run, key)
        )
        return 0

    def send(self, records: Sequence[LogRecord]) -> None:
        """Adds metrics that the run does not have, and texts."""
        metrics = [metric for record in records for metric in self._missing(record)]
        for first in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._run, metrics[first : first + _MOST_METRICS])
        for record in records if self._with_texts else ():
            for name, text in record.texts.items():
                file = f"texts/{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}/{record.event:08d}.txt"
                self._client.log_text(self._run, text, file)

    def finish(self, status: str) -> None:
        """Says how the run has ended."""
        left = self._there.total()
        if left:
            text = "mlflow: %d values are of updates that a resume took back; MLflow keeps them."
            logger.warning(text, left)
        self._client.set_terminated(self._run, _STATES.get(status, "FINISHED"))

    def save_final(self, path: Path) -> None:
        """Adds the files of the finished model."""
        self._client.log_artifacts(self._run, str(path), "final")

    def close(self) -> None:
        """Its client holds nothing."""

    def _find_run(self) -> Any:
        client = self._client
        found = client.get_experiment_by_name(self._experiment)
        if found is None:
            experiment = client.create_experiment(self._experiment, self._artifacts)
        else:
            experiment = found.experiment_id
        runs = client.search_runs([experiment], f"tags.`{_TAG}` = '{self._run_id}'")
        if runs:
            return runs[0]
        tags = {_TAG: self._run_id}
        return client.create_run(experiment, tags=tags, run_name=self._run_name)

    def _say_changed(self, keys: Sequence[str]) -> None:
        if keys:
            text = "mlflow: %s changed since the run began; MLflow keeps the first values."
            logger.info(text, ", ".join(keys))

    def _missing(self, record: LogRecord) -> Iterator[Any]:
        from mlflow.entities import Metric

        for name, value in record.metrics.items():
            key = _legal(name)
            at = (key, record.step, _form(value))
            if self._there[at] > 0:
                self._there[at] -= 1
                continue
            # two that are alike in everything, the millisecond too, would be one
            self._stamp = max(self._stamp + 1, round((record.time or 0.0) * 1000))
            yield Metric(key, value, self._stamp, record.step)


def _legal(name: str) -> str:
    """Returns `name` as MLflow allows it, with underscores for what it does not."""
    name = re.sub(r"[^\w.\-: /]", "_", name)[:250]
    is_path = all(part not in ("", ".", "..") for part in name.split("/"))
    return name if is_path else name.replace("/", "_").replace("..", "__")


def _form(value: float) -> str:
    """Returns a value as MLflow gives it back, as text: NaN is equal to itself then."""
    return repr(max(-_LARGEST, min(_LARGEST, value)) if not math.isnan(value) else value)


if __name__ == "__main__":
    serve_tracker(MLflowTracker)
