"""MLflow, its own client and database."""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from pathlib import Path

import pytest

mlflow = pytest.importorskip("mlflow.tracking") and pytest.importorskip("mlflow")

from trainer.testing import CallbackContract  # noqa: E402
from trainer_mlflow import MLflowCallback  # noqa: E402

from .conftest import At, Lives, Values, dying_tracker, fail, left_behind, terminate  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


class Dying(MLflowCallback):
    def make_tracker(self, trainer, folder):
        return dying_tracker(super().make_tracker(trainer, folder))


make, dying = MLflowCallback, Dying


@functools.cache
def empty_database() -> bytes:
    """What MLflow makes of a new database: it takes seconds."""
    with tempfile.TemporaryDirectory() as folder:
        mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
        return Path(folder, "mlflow.db").read_bytes()


def prepare(output: Path) -> None:
    (output / "mlflow").mkdir(parents=True, exist_ok=True)
    (output / "mlflow" / "mlflow.db").write_bytes(empty_database())


def read(output: Path) -> tuple[object, Values]:
    """The only run, and each value that MLflow has of it."""
    client = mlflow.MlflowClient(f"sqlite:///{output}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("trainer")
    (run,) = client.search_runs([experiment.experiment_id])
    found = Counter()
    for key in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, key):
            large = abs(metric.value) == 1.7976931348623157e308  # what MLflow makes of infinity
            value = float("inf") if large else metric.value
            found[key, metric.step, repr(value)] += 1
    return run, found


def test_each_value_is_there_as_often_as_in_the_log(lived: Lives, request):
    run, found = read(lived.output)
    if request.node.callspec.params["lived"] == "after_an_end_inside_an_epoch":  # see the README
        more = found - lived.logged()
        assert {step for _, step, _ in more} == {6}
        assert f"{sum(more.values())} values are of updates that a resume took back" in lived.said
        found -= more
    assert found == lived.logged()
    assert run.info.status == "FINISHED"


def test_a_run_has_its_settings_its_texts_and_the_finished_model(lives: Lives):
    assert lives.live() == 0
    run, _ = read(lives.output)
    assert run.info.run_name == "run"
    assert len(run.data.tags["trainer.run_id"]) == 12
    assert run.data.params["max_steps"] == "12"
    assert run.data.params["optimizer"] == "AdamW"
    artifacts = lives.output / "mlflow" / "artifacts" / run.info.run_id / "artifacts"
    written = sorted((artifacts / "texts" / "sample").iterdir())
    assert [file.read_text() for file in written] == lives.texts()
    assert (artifacts / "final" / "model.safetensors").read_bytes() == (
        lives.output / "final" / "model.safetensors"
    ).read_bytes()
    assert left_behind(lives) == []


@pytest.mark.parametrize(("act", "state"), [(fail, "FAILED"), (terminate, "KILLED")])
def test_its_end_is_told(lives: Lives, act, state):
    assert lives.live(At("on_batch_end", 5, act)) != 0
    run, found = read(lives.output)
    assert run.info.status == state
    assert found == lives.logged()


def test_a_server_that_does_not_answer_costs_seconds_and_no_run(lives: Lives, deaf: str):
    seconds = lives.wait_at_the_end(steps=2, tracker=lambda: MLflowCallback(deaf))
    assert seconds < 15 + 5  # and what else an end takes
    assert "mlflow" in lives.said
    assert lives.live(steps=4, tracker=lambda: MLflowCallback("http://127.0.0.1:1")) == 0
    assert "cannot send" in lives.said
    assert lives.live() == 0  # all of it
    assert read(lives.output)[1] == lives.logged()
    assert left_behind(lives) == []


def test_the_client_is_one_of_today():
    assert int(mlflow.__version__.split(".")[0]) >= 3


class TestContract(CallbackContract):
    entry_point = "mlflow"
    flags = ("--mlflow_experiment", "other", "--mlflow_live")
    passive = True

    @pytest.fixture(autouse=True)
    def one_database(self, tmp_path_factory, monkeypatch):
        place = tmp_path_factory.getbasetemp() / "contract.db"
        if not place.exists():
            place.write_bytes(empty_database())
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}")

    def make(self):
        return MLflowCallback(artifacts=False)
