"""What `attach` does to a trainer, and what it refuses."""

import copy
import io
import json
import shutil

import pytest

pytest.importorskip("transformers", minversion="5.6")

import torch
import transformers

from trainer.testing import Recorder
from trainer_callback import CallbackError, PluginError, TrainerCallback, UsageError
from trainer_early_stopping import EarlyStoppingCallback
from trainer_ema import EMACallback
from trainer_transformers import attach, detach

from .driver import make_trainer, scenarios

pytestmark = pytest.mark.filterwarnings("ignore")

CASE = scenarios.Case("a test")


def wrapped(trainer):
    """Names of methods that are not the class's own, of all that `attach` may touch."""
    found = {name for name in vars(trainer) if callable(getattr(type(trainer), name, None))}
    accelerator = trainer.accelerator
    found |= {
        each for each in vars(accelerator) if callable(getattr(type(accelerator), each, None))
    }
    return found | ({"zero_grad"} & set(vars(trainer.model)))


def read_lines(place):
    return [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]


def test_methods_are_put_back_behind_each_train_and_by_detach(tmp_path):
    trainer = make_trainer(CASE, tmp_path, num_train_epochs=1)
    before = wrapped(trainer)
    assert attach(trainer, [Recorder()], discover=False) is trainer
    trainer.train()
    assert wrapped(trainer) == {*before, "train"}
    assert len(trainer.callback_handler.callbacks) == len(
        make_trainer(CASE, tmp_path).callback_handler.callbacks
    )
    detach(trainer)
    assert wrapped(trainer) == before


def test_methods_are_put_back_where_training_fails(tmp_path):
    trainer = make_trainer(CASE, tmp_path, num_train_epochs=1)
    before = wrapped(trainer)
    recorder = Recorder()
    attach(trainer, [recorder, scenarios.Faulty(critical=True)], discover=False)
    with pytest.raises(CallbackError, match=r"Faulty .* failed in on_step_end"):
        trainer.train()
    assert wrapped(trainer) == {*before, "train"}
    assert recorder.hooks[-2:] == ["on_exception", "on_train_end"]
    assert recorder.of("on_train_end")[0]["result"].status == "failed"


def test_a_second_train_is_a_run_of_its_own(tmp_path):
    recorder = Recorder()
    trainer = attach(make_trainer(CASE, tmp_path, num_train_epochs=1), [recorder], discover=False)
    trainer.train()
    first, recorder.calls = recorder.hooks, []
    trainer.train()
    assert recorder.hooks == first
    assert (tmp_path / "plugins-1" / "metrics.jsonl").exists()


def test_a_model_may_be_copied_and_written_while_it_is_trained(tmp_path):
    zeroed = []

    class Copies(TrainerCallback):
        def on_step_end(self, trainer):
            if trainer.step == 2:
                other = copy.deepcopy(trainer.model)
                for parameter in other.parameters():
                    parameter.grad = torch.ones_like(parameter)
                other.zero_grad()
                zeroed.append(all(each.grad is None for each in other.parameters()))
                zeroed.append(all(each.grad is not None for each in trainer.model.parameters()))
                torch.save(trainer.model, file := io.BytesIO())
                file.seek(0)
                whole = torch.load(file, weights_only=False)  # a module, of this test's own bytes
                whole.zero_grad()

    attach(make_trainer(CASE, tmp_path, num_train_epochs=1), [Copies()], discover=False).train()
    assert zeroed == [True, True]


def test_callbacks_that_ask_get_what_the_model_answers(tmp_path):
    found = []

    class Looks(TrainerCallback):
        def on_forward_end(self, trainer, loss, outputs):
            found.append(outputs["y"].shape)

    attach(make_trainer(CASE, tmp_path, num_train_epochs=1), [Looks()], discover=False).train()
    assert found == [(scenarios.B, 1)] * scenarios.BATCHES


def test_losses_of_counted_items_are_exact_over_a_window(tmp_path):
    class Counts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def forward(self, x, labels=None, num_items_in_batch=None, **_):
            kept = labels != -100
            losses = torch.where(kept, (self.layer(x) - labels).square(), 0.0)
            return {"loss": losses.sum() / (num_items_in_batch or kept.sum())}

    data = scenarios.make_data(0)
    for row in data[3:9]:
        row["labels"] = torch.tensor([-100.0])
    torch.manual_seed(1)
    model = Counts()
    with torch.no_grad():
        kept = [row for row in data if row["labels"] != -100]
        losses = [(model.layer(row["x"]) - row["labels"]).square().item() for row in kept]
    trainer = make_trainer(CASE, tmp_path, num_train_epochs=1, gradient_accumulation_steps=5)
    trainer = transformers.Trainer(model, trainer.args, train_dataset=data, eval_dataset=data)
    recorder = Recorder()
    attach(trainer, [recorder], discover=False).train()
    (end,) = recorder.of("on_epoch_end")
    assert end["train_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)


def test_metrics_that_a_trainer_logs_beside_its_own_are_passed_on(tmp_path):
    class Logs(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            trainer.log({"perplexity": 3.5, "loss": 99.0, "name": "no number"})

    trainer = make_trainer(CASE, tmp_path, num_train_epochs=1, logging_strategy="no")
    trainer.add_callback(Logs())
    attach(trainer, [], discover=False).train()
    lines = read_lines(tmp_path / "plugins")
    assert [line["perplexity"] for line in lines if "perplexity" in line] == [3.5] * 5
    assert not any("loss" in line or "train_runtime" in line for line in lines)


def test_validation_of_several_sets_is_one_validation(tmp_path):
    trainer = make_trainer(CASE, tmp_path, num_train_epochs=1)
    trainer.eval_dataset = {"a": scenarios.make_data(1, 8), "b": scenarios.make_data(2, 8)}
    recorder = Recorder()
    attach(trainer, [recorder], discover=False).train()
    (found,) = recorder.of("on_validation_end")
    assert set(found["metrics"]) == {"val_a_loss", "val_b_loss"}


def test_an_evaluation_outside_a_run_tells_nobody(tmp_path):
    recorder = Recorder()
    trainer = attach(make_trainer(CASE, tmp_path), [recorder], discover=False)
    trainer.evaluate()
    assert recorder.calls == []


def test_the_end_by_a_callback_of_the_host_is_no_end_of_the_epochs(tmp_path):
    class Ends(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 3

    recorder = Recorder()
    trainer = make_trainer(CASE, tmp_path)
    trainer.add_callback(Ends())
    attach(trainer, [recorder], discover=False).train()
    (end,) = recorder.of("on_train_end")
    assert (end["result"].status, end["result"].stop_reason) == ("stopped", "host")
    assert (end["result"].steps, end["result"].epochs) == (3, 0)


def test_settings_of_the_trainer_reach_trackers(tmp_path):
    found = {}

    class Tracks(TrainerCallback):
        def on_train_start(self, trainer):
            found.update(trainer.hyperparameters)
            found["place"] = trainer.output_dir

    attach(make_trainer(CASE, tmp_path, num_train_epochs=1), [Tracks()], discover=False).train()
    assert found["optimizer"] == "AdamW"
    assert found["args.per_device_train_batch_size"] == scenarios.B
    assert found["place"] == tmp_path / "plugins"


def test_a_module_that_a_plugin_adds_is_restored(tmp_path):
    class Adds(TrainerCallback):
        def on_setup(self, trainer):
            trainer.model.extra = torch.nn.Linear(1, 1)
            trainer.optimizer.add_param_group({"params": [*trainer.model.extra.parameters()]})
            with torch.no_grad():
                trainer.model.extra.weight.fill_(7.0)

        def on_backward_end(self, trainer):
            trainer.model.extra.weight.grad = torch.ones(1, 1)

    def run(resume, **options):
        trainer = make_trainer(CASE, tmp_path, **options)
        attach(trainer, [Adds()], discover=False).train(resume_from_checkpoint=resume)
        return trainer.model.extra.weight.item()

    whole = run(None)
    shutil.rmtree(tmp_path / "checkpoint-15")
    assert run(True) == whole


# The state


@pytest.mark.parametrize("strict", [False, True])
def test_a_checkpoint_without_state_of_plugins_is_said_and_with_strict_refused(
    strict, tmp_path, caplog
):
    make_trainer(CASE, tmp_path, num_train_epochs=1).train()
    recorder = Recorder()
    trainer = attach(make_trainer(CASE, tmp_path), [recorder], discover=False, strict=strict)
    if strict:
        with pytest.raises(UsageError, match="has no state of plugins"):
            trainer.train(resume_from_checkpoint=True)
        assert recorder.calls == []
        return
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert "has no state of plugins" in caplog.text
    first = next(call for call in recorder.calls if call.hook == "on_batch_start")
    assert (first.step, first.epoch, first.arguments["batch_idx"]) == (5, 1, 0)
    assert recorder.of("on_train_start")[0]["resumed"] is False


def test_a_state_of_another_update_starts_fresh(tmp_path, caplog):
    trainer = make_trainer(CASE, tmp_path, num_train_epochs=2)
    attach(trainer, [Recorder()], discover=False).train()
    shutil.rmtree(tmp_path / "checkpoint-10" / "plugins")
    shutil.copytree(tmp_path / "checkpoint-5" / "plugins", tmp_path / "checkpoint-10" / "plugins")
    trainer = make_trainer(CASE, tmp_path)
    attach(trainer, [Recorder()], discover=False).train(resume_from_checkpoint=True)
    assert "is of update 5, and the checkpoint of update 10" in caplog.text


def test_weights_of_checkpoints_that_are_rotated_away_go_too(tmp_path):
    trainer = make_trainer(CASE, tmp_path, save_total_limit=1, num_train_epochs=6)
    stopping = EarlyStoppingCallback(patience=9)
    attach(trainer, [stopping], discover=False).train()
    kept = sorted(path.name for path in (tmp_path / "plugins" / "weights").glob("early*"))
    needed = {stopping.state.best_file, *stopping.state.file_of_snapshot.values()} - {None}
    assert set(kept) == needed
    assert len(kept) <= 2


# Refusals


@pytest.mark.parametrize(
    ("options", "plugin", "named"),
    [
        ({"auto_find_batch_size": True}, Recorder, "auto_find_batch_size=True"),
        (
            {"load_best_model_at_end": True},
            EarlyStoppingCallback,
            "load_best_model_at_end=True and early_stopping",
        ),
        ({"load_best_model_at_end": True}, EMACallback, "load_best_model_at_end=True and ema"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_step(options, plugin, named, tmp_path):
    trainer, recorder = make_trainer(CASE, tmp_path, **options), Recorder()
    with pytest.raises(UsageError, match=named):
        attach(trainer, [plugin(), recorder], discover=False).train()
    assert recorder.calls == []


def test_more_gpus_than_one_in_a_process_are_refused(tmp_path, monkeypatch):
    trainer = make_trainer(CASE, tmp_path)
    monkeypatch.setattr(trainer.args, "_n_gpu", 2)
    with pytest.raises(UsageError, match="2 GPUs in one process"):
        attach(trainer, [])


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "TP"])
def test_a_divided_model_is_refused(kind, tmp_path):
    trainer = make_trainer(CASE, tmp_path)
    before = trainer.accelerator.state.distributed_type
    trainer.accelerator.state.distributed_type = kind
    try:
        with pytest.raises(UsageError, match=kind):
            attach(trainer, [])
    finally:
        trainer.accelerator.state.distributed_type = before


def test_plugins_that_put_nothing_back_may_be_beside_the_best_model(tmp_path):
    trainer = make_trainer(CASE, tmp_path, load_best_model_at_end=True, num_train_epochs=2)
    plugins = [EarlyStoppingCallback(restore_best=False), EMACallback(swap_at_end=False)]
    attach(trainer, plugins, discover=False).train()


def test_a_second_attach_and_a_detach_of_nothing_are_refused(tmp_path):
    trainer = make_trainer(CASE, tmp_path)
    with pytest.raises(UsageError, match="has no plugins"):
        detach(trainer)
    attach(trainer, [])
    with pytest.raises(UsageError, match="has plugins already"):
        attach(trainer, [])


def test_detach_while_it_trains_is_refused(tmp_path):
    class Detaches(TrainerCallback):
        def on_step_end(self):
            with pytest.raises(UsageError, match="is training"):
                detach(trainer)

    trainer = attach(make_trainer(CASE, tmp_path, num_train_epochs=1), [Detaches()], discover=False)
    trainer.train()


@pytest.mark.parametrize(
    ("entries", "error"),
    [("ema", PluginError), ([EMACallback], PluginError), (["no_such"], PluginError)],
)
def test_wrong_entries_are_refused_at_once(entries, error, tmp_path):
    trainer = make_trainer(CASE, tmp_path, num_train_epochs=1)
    with pytest.raises(error):
        attach(trainer, entries, discover=False).train()


@pytest.mark.parametrize("trainer", [None, "trainer", transformers.Trainer])
def test_what_is_no_trainer_is_refused(trainer):
    with pytest.raises(UsageError, match=r"attach takes a transformers\.Trainer"):
        attach(trainer, [])
