"""Callbacks of transformers in our own trainer."""

import json
import logging

import pytest

pytest.importorskip("transformers", minversion="5.6")

import accelerate
import torch
import transformers
from transformers.trainer_callback import ExportableState

from trainer import Trainer, TrainerConfig
from trainer_callback import CallbackError, UsageError
from trainer_transformers import FromTransformers, Plugins, attach

from .driver import make_trainer, scenarios

pytestmark = pytest.mark.filterwarnings("ignore")

EVENTS = [name for name in vars(transformers.TrainerCallback) if name.startswith("on_")]


def make_home(place, callbacks, **options):
    model, optimizer = scenarios.make_model()
    settings = {"epochs": 3, "gradient_accumulation_steps": 2, "log_interval": 1, **options}
    return Trainer(
        *(model, optimizer, scenarios.make_loader(20)),
        val_loader=torch.utils.data.DataLoader(scenarios.make_data(1, 8), batch_size=8),
        loss_fn=scenarios.loss_of,
        config=TrainerConfig(output_dir=place, device="cpu", snapshot_epochs=True, **settings),
        callbacks=callbacks,
        discover=False,
        progress=False,
    )


class Notes(transformers.TrainerCallback):
    """Writes down each event."""

    def __init__(self):
        self.seen = []

    def __getattribute__(self, name):
        if name not in EVENTS:
            return super().__getattribute__(name)

        def note(args, state, control, **named):
            self.seen.append((name, state.global_step, round(state.epoch or 0, 3)))
            for kind in ("logs", "metrics"):
                if kind in named:
                    self.seen[-1] += (sorted(named[kind]),)

        return note


def test_events_come_in_the_order_and_with_the_numbers_of_their_own_trainer(tmp_path):
    ours, theirs = Notes(), Notes()
    make_home(tmp_path / "a", [FromTransformers(ours)]).train()
    case = scenarios.Case("a test", window=2)
    trainer = make_trainer(case, tmp_path / "b")
    trainer.add_callback(theirs)
    trainer.train()
    left_out = {"on_log", "on_prediction_step", "on_evaluate", "on_save", "on_epoch_end"}
    pick = [
        [each[:2] for each in seen if each[0] not in left_out] for seen in (ours.seen, theirs.seen)
    ]
    assert pick[0] == [("on_init_end", 0), *pick[1]]
    found = {each[0] for each in ours.seen}
    assert {"on_log", "on_evaluate", "on_save", "on_epoch_end"} <= found
    (first, *_) = [each for each in ours.seen if each[0] == "on_evaluate"]
    assert "eval_loss" in first[3]


def test_their_early_stopping_decides_as_in_their_own_trainer(tmp_path):
    stopping = transformers.EarlyStoppingCallback(1, 0.02)
    wrapped = FromTransformers(stopping, metric_for_best_model="eval_loss", greater_is_better=False)
    result = make_home(tmp_path / "a", [wrapped], epochs=12).train()
    options = {"metric_for_best_model": "eval_loss", "load_best_model_at_end": True}
    case = scenarios.Case("a test", window=2, epochs=12)
    trainer = make_trainer(case, tmp_path / "b", greater_is_better=False, **options)
    trainer.add_callback(transformers.EarlyStoppingCallback(1, 0.02))
    trainer.train()
    assert result.status == "stopped"
    assert result.steps == trainer.state.global_step
    assert "EarlyStoppingCallback asked for the end" in result.stop_detail


def test_their_exported_state_goes_on_at_a_resume(tmp_path):
    class Counts(transformers.TrainerCallback, ExportableState):
        count = 0

        def on_step_end(self, args, state, control, **_):
            self.count += 1

        def state(self):
            return {"args": {}, "attributes": {"count": self.count}}

    make_home(tmp_path, [FromTransformers(Counts())], epochs=1).train()
    counts = Counts()
    make_home(tmp_path, [FromTransformers(counts)], epochs=3).train(resume=True)
    assert counts.count == 9


def test_a_checkpoint_that_it_asks_for_is_a_snapshot(tmp_path):
    class Asks(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_save = state.global_step == 2

    make_home(tmp_path, [FromTransformers(Asks())], keep_snapshots=9).train()
    names = sorted(path.name for path in (tmp_path / "snapshots").iterdir())
    assert "step-00000002" in names


def test_what_is_not_followed_is_said_once(tmp_path, caplog):
    class Asks(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_evaluate = True

    make_home(tmp_path, [FromTransformers(Asks())]).train()
    said = [each for each in caplog.messages if "should_evaluate" in each]
    assert len(said) == 1


def test_their_failure_is_named(tmp_path):
    class Fails(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            raise RuntimeError("no")

    with pytest.raises(CallbackError, match=r"FromTransformers .* failed in on_batch_end"):
        make_home(tmp_path, [FromTransformers(Fails())]).train()


@pytest.mark.parametrize("callback", [None, transformers.EarlyStoppingCallback])
def test_what_is_no_callback_is_refused(callback):
    with pytest.raises(UsageError, match=r"takes a transformers\.TrainerCallback, made"):
        FromTransformers(callback)


def test_plugins_inside_of_plugins_are_refused():
    with pytest.raises(UsageError, match="are plugins already"):
        FromTransformers(Plugins([]))


def test_an_accelerator_of_the_process_stays_as_it_is(tmp_path):
    accelerator, notes = accelerate.Accelerator(cpu=True), Notes()
    before = (accelerator.distributed_type, accelerator.device)
    make_home(tmp_path / "home", [FromTransformers(Notes())], epochs=1).train()
    assert (accelerator.distributed_type, accelerator.device) == before
    trainer = make_trainer(scenarios.Case("a test"), tmp_path / "host", num_train_epochs=1)
    attach(trainer, [FromTransformers(notes)], discover=False).train()
    assert notes.seen[-1][:2] == ("on_train_end", scenarios.BATCHES)


VENDORS = {
    "TensorBoardCallback": "tensorboard",
    "DVCLiveCallback": "dvclive",
    "CodeCarbonCallback": "codecarbon",
    "MLflowCallback": "mlflow",
    "TrackioCallback": "trackio",
    "SwanLabCallback": "swanlab",
    "WandbCallback": "wandb",
}


@pytest.mark.parametrize("name", VENDORS)
def test_a_vendors_callback_runs_over_a_resume(name, tmp_path, monkeypatch):
    pytest.importorskip(VENDORS[name])
    from transformers import integrations

    for variable, value in {
        "WANDB_MODE": "offline",
        "SWANLAB_MODE": "offline",
        "HF_HUB_OFFLINE": "1",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "DVCLIVE_NO_DVC": "1",
    }.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.chdir(tmp_path)
    make = getattr(integrations, name)
    make_home(tmp_path / "run", [FromTransformers(make())], epochs=1).train()
    result = make_home(tmp_path / "run", [FromTransformers(make())], epochs=2).train(resume=True)
    assert result.status == "finished"


def test_two_of_theirs_and_a_printer_are_three_callbacks(tmp_path, caplog, capsys):
    caplog.set_level(logging.INFO)
    printer = FromTransformers(transformers.PrinterCallback())
    make_home(tmp_path, [printer, FromTransformers(Notes())], epochs=1).train()
    assert "eval_loss" in capsys.readouterr().out
    line = (tmp_path / "metrics.jsonl").read_text().splitlines()[0]
    assert json.loads(line)
