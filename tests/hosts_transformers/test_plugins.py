"""`Plugins`: an ordinary callback, which does what events allow and refuses the rest."""

import json
import shutil

import pytest

pytest.importorskip("transformers", minversion="5.6")


from trainer_callback import StopRequest, TrainerCallback, UsageError
from trainer_early_stopping import EarlyStoppingCallback
from trainer_ema import EMACallback
from trainer_gradient_monitor import GradientMonitorCallback
from trainer_throughput import ThroughputCallback
from trainer_transformers import Plugins, attach

from .driver import make_trainer, scenarios

pytestmark = pytest.mark.filterwarnings("ignore")

CASE = scenarios.Case("a test", window=2, clip=0.5, epochs=8)


def make_plugins():
    return [
        EarlyStoppingCallback(patience=1, min_delta=0.02),
        GradientMonitorCallback(monitor_interval=1),
    ]


def train(place, by_events, *, case=CASE, resume=None, entries=make_plugins, **options):
    trainer, ends = make_trainer(case, place, **options), scenarios.Ends()
    if by_events:
        trainer.add_callback(Plugins([*entries(), ends], discover=False))
    else:
        attach(trainer, [*entries(), ends], discover=False)
    trainer.train(resume_from_checkpoint=resume)
    return scenarios.summarise(ends.result, trainer.model, place / "plugins", 0)


def test_they_decide_measure_and_restore_as_with_attach(tmp_path):
    ours, theirs = train(tmp_path / "a", False), train(tmp_path / "b", True)
    for name in ("end", "weights", "files", "kept"):
        assert not list(scenarios.differences(ours[name], theirs[name])), name
    assert ours["end"][0] == "stopped"
    assert ours["files"]["gradient_flow/gradients.jsonl"]
    found = [{**entry, "train_loss": 0} for entry in theirs["history"]]
    assert found == [{**entry, "train_loss": 0} for entry in ours["history"]]


def test_a_run_goes_on_from_a_checkpoint_as_if_nothing_had_happened(tmp_path):
    whole, place = train(tmp_path / "whole", True), tmp_path / "cut"
    train(place, True, num_train_epochs=2)
    shutil.rmtree(place / "checkpoint-6")
    found = train(place, True, resume=str(place / "checkpoint-3"))
    assert not list(scenarios.differences(whole["end"], found["end"]))
    assert found["weights"] == whole["weights"]
    assert found["files"] == whole["files"]


def test_the_training_loss_is_the_mean_of_what_the_trainer_logs(tmp_path):
    found = train(tmp_path, True, num_train_epochs=1)
    logged = [json.loads(line) for line in (tmp_path / "plugins/metrics.jsonl").open()]
    losses = [line["loss"] for line in logged if "loss" in line]
    assert len(losses) == 3
    assert found["history"][0]["train_loss"] == pytest.approx(sum(losses) / 3)


def test_the_limit_of_the_norm_is_the_trainers_own_again_afterwards(tmp_path):
    trainer = make_trainer(CASE, tmp_path, num_train_epochs=1)
    trainer.add_callback(Plugins(make_plugins(), discover=False))
    trainer.train()
    assert trainer.args.max_grad_norm == 0.5


@pytest.mark.parametrize(
    ("plugin", "named"),
    [
        (EMACallback, "the start of a validation, which ema needs"),
        (ThroughputCallback, "throughput needs"),
    ],
)
def test_a_plugin_that_needs_more_is_refused_and_attach_is_named(plugin, named, tmp_path):
    trainer = make_trainer(CASE, tmp_path)
    trainer.add_callback(Plugins([plugin()], discover=False))
    with pytest.raises(UsageError, match=named) as caught:
        trainer.train()
    assert "trainer_transformers.attach" in str(caught.value)
    assert trainer.state.global_step == 0


def test_a_plugin_that_changes_the_structure_is_refused_at_a_resume(tmp_path):
    class Adds(TrainerCallback):
        def on_setup(self):
            pass

    train(tmp_path, True, entries=lambda: [Adds()], num_train_epochs=1)
    with pytest.raises(UsageError, match="the time before the optimizer is restored"):
        train(tmp_path, True, entries=lambda: [Adds()], resume=True)


def test_a_run_that_plugins_had_ended_says_that_it_makes_one_update_more(tmp_path, caplog):
    class Stops(TrainerCallback):
        def should_stop_training(self, trainer):
            return StopRequest("enough") if trainer.step >= 3 else None

    train(tmp_path, True, entries=lambda: [Stops()])
    found = train(tmp_path, True, entries=lambda: [Stops()], resume=True)
    assert found["end"][:2] == ("stopped", "enough")
    assert "one more update" in caplog.text
