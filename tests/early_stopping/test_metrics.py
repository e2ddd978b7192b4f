"""Which value is looked at, and when a look counts."""

import logging
import math
import os
import signal
from types import SimpleNamespace

import pytest
import torch

from trainer import Run, Trainer, TrainerConfig
from trainer_callback import TrainerCallback, UsageError
from trainer_early_stopping import EarlyStoppingCallback

STEADY = [1.0] * 6


class Logs(TrainerCallback):
    """Logs its own metric, one value per call of `hook`; None logs nothing."""

    def __init__(self, hook, name, values):
        self.values = iter(values)
        self.name = name
        self._hook = hook

    def _log(self, trainer, hook):
        value = next(self.values) if hook == self._hook else None
        if value is not None:
            trainer.log({self.name: value})

    def on_validation_end(self, trainer):
        self._log(trainer, "on_validation_end")

    def on_epoch_end(self, trainer):
        self._log(trainer, "on_epoch_end")


def test_a_validation_inside_an_epoch_is_a_check(make_trainer):
    callback = EarlyStoppingCallback(patience=2)
    losses = {2: 1.0, 4: 0.5, 6: 0.9, 8: 0.8, 10: 0.1}
    result = make_trainer(losses, [callback], batches=10, eval_interval=2, epochs=1).train()
    assert (result.steps, callback.best_step, callback.stopped_epoch) == (8, 4, 0)


def test_check_on_epoch_looks_only_at_the_end_of_each_epoch(make_trainer):
    callback = EarlyStoppingCallback(patience=2, check_on="epoch")
    losses = {1: 9.0, 2: 1.0, 3: 9.0, 4: 0.5, 5: 9.0, 6: 0.6, 7: 9.0, 8: 0.7, 9: 9.0, 10: 0.0}
    result = make_trainer(losses, [callback], batches=2, eval_interval=1, epochs=5).train()
    assert (result.epochs, callback.best_epoch, callback.best_step) == (4, 1, 4)


def test_a_validation_told_by_two_hooks_is_one_check():
    callback, host = EarlyStoppingCallback(patience=3), SimpleNamespace(model=torch.nn.Linear(1, 1))
    for epoch in range(3):
        callback.on_validation_end(host, {"val_loss": 1.0})
        callback.on_epoch_end(host, epoch, 1.0, 1.0, {"val_loss": 1.0})
    assert (callback.wait, callback.should_stop_training(host)) == (2, False)


def test_patience_counts_validations_where_they_are_rarer_than_epochs():
    callback, host = EarlyStoppingCallback(patience=2), SimpleNamespace(model=torch.nn.Linear(1, 1))
    for epoch in range(9):
        loss = 1.0 if epoch % 3 == 2 else None
        callback.on_epoch_end(host, epoch, 1.0, loss, {"val_loss": 1.0})
        assert bool(callback.should_stop_training(host)) is (epoch == 8)
    assert (callback.best_epoch, callback.wait) == (2, 2)


def test_a_validation_that_a_signal_cut_short_is_no_check(make_trainer):
    class Interrupts(TrainerCallback):
        def on_validation_start(self, trainer):
            if trainer.epoch == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    callback = EarlyStoppingCallback(patience=5)
    result = make_trainer([1.0, 0.9, 0.8, 0.7], [callback, Interrupts()]).train()
    assert result.status == "terminated"
    assert (callback.state.checks, callback.best, callback.wait) == (2, 0.9, 0)


def test_train_loss_can_be_watched_without_a_validation_set():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    losses = iter([3.0, 2.0, 2.5, 2.25, 1.0])
    callback = EarlyStoppingCallback(patience=2, monitor="train_loss")
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        [torch.ones(1, 1)],
        loss_fn=lambda model, batch: model(batch).sum() * 0 + next(losses),
        config=TrainerConfig(epochs=5, device="cpu"),
        callbacks=[callback],
        discover=False,
    )
    assert trainer.train().epochs == 4
    assert (callback.best, callback.best_epoch) == (2.0, 1)


@pytest.mark.parametrize("hook", ["on_validation_end", "on_epoch_end"])
@pytest.mark.parametrize("check_on", ["validation", "epoch"])
@pytest.mark.parametrize("logs_first", [True, False])
def test_a_metric_that_another_callback_logs_is_seen_in_the_same_epoch(
    make_trainer, hook, check_on, logs_first
):
    callback = EarlyStoppingCallback(patience=2, monitor="accuracy", check_on=check_on)
    logs = Logs(hook, "accuracy", [0.1, 0.9, 0.8, 0.7, 1.0, 1.0])
    callbacks = [logs, callback] if logs_first else [callback, logs]
    trainer = make_trainer(STEADY, callbacks)
    assert trainer.train().epochs == 4
    assert (callback.best_epoch, callback.best, trainer.model.updates) == (1, 0.9, 2)


@pytest.mark.parametrize("logs_first", [True, False])
def test_a_metric_that_another_callback_logs_is_seen_in_the_same_validation(
    make_trainer, logs_first
):
    callback = EarlyStoppingCallback(patience=2, monitor="accuracy")
    logs = Logs("on_validation_end", "accuracy", [0.1, 0.9, 0.8, 0.7, 0.6, 0.5])
    callbacks = [logs, callback] if logs_first else [callback, logs]
    losses = dict.fromkeys(range(1, 7), 1.0)
    result = make_trainer(losses, callbacks, batches=6, eval_interval=1, epochs=1).train()
    assert (result.steps, callback.best, callback.best_step) == (4, 0.9, 2)


@pytest.mark.parametrize("check_on", ["validation", "epoch"])
def test_a_metric_counts_only_when_it_has_a_new_value(make_trainer, check_on):
    callback = EarlyStoppingCallback(patience=2, monitor="accuracy", check_on=check_on)
    logs = Logs("on_validation_end", "accuracy", [0.5, None, None, 0.4, None, 0.3, None])
    result = make_trainer([1.0] * 7, [logs, callback]).train()
    assert (result.epochs, callback.state.checks) == (6, 3)


def test_without_a_validation_set_val_loss_is_refused_before_training():
    model = torch.nn.Linear(1, 1)
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        [torch.ones(1, 1)],
        loss_fn=lambda model, batch: model(batch).sum(),
        config=TrainerConfig(epochs=2, device="cpu"),
        callbacks=[EarlyStoppingCallback()],
        discover=False,
    )
    with pytest.raises(UsageError, match="use monitor='train_loss'"):
        trainer.train()
    assert trainer.step == 0


def test_a_metric_that_does_not_exist_is_an_error_at_the_first_check(make_trainer):
    unsaid = TrainerCallback()  # which does not say what it logs
    callback = EarlyStoppingCallback(monitor="acuracy", mode="max")
    trainer = make_trainer(STEADY, [callback, unsaid])
    with pytest.raises(UsageError, match=r"no acuracy .* train_loss, val_loss"):
        trainer.train()
    assert trainer.step == 1


def make_validated(callback, others=(), **config):
    """Returns a trainer with two sets, of which a function and an object measure something."""

    class Worst:
        def reset(self):
            self.found = []

        def update(self, outputs, targets):
            self.found.append(float(outputs.max()))

        def compute(self):
            return {"case": max(self.found)}

    model = torch.nn.Linear(1, 1)
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01),
        [torch.ones(2, 1)],
        {name: [torch.ones(2, 1)] for name in ("clean", "noisy")},
        loss_fn=lambda model, batch: (model(batch).square().mean(), model(batch)),
        metrics={"f1": lambda outputs, batch: outputs[:, 0], "worst": Worst()},
        metric_inputs=lambda outputs, batch: (outputs, batch),
        config=TrainerConfig(epochs=2, **config),
        callbacks=[callback, *others],
        discover=False,
    )


@pytest.mark.parametrize("monitor", ["noisi/f1", "noisy/val_f1", "val_f2", "f1", "grad_norm"])
def test_a_metric_that_the_run_cannot_have_is_refused_before_the_first_step(monitor):
    trainer = make_validated(EarlyStoppingCallback(monitor=monitor, mode="max"))
    with pytest.raises(UsageError) as caught:
        trainer.train()
    assert trainer.step == 0
    known = "train_loss, val_f1, val_loss, val_worst, val_worst_*, or use strict=False"
    for part in (f"no {monitor} among the metrics", "clean/f1, ", "noisy/loss, ", known):
        assert part in str(caught.value)
    assert ("Did you mean 'noisy/f1'?" in str(caught.value)) is monitor.startswith("nois")


@pytest.mark.parametrize(
    "monitor", ["noisy/f1", "val_f1", "clean/loss", "val_worst_case", "train_loss", "loss"]
)
def test_a_metric_of_the_run_is_watched(monitor):
    callback = EarlyStoppingCallback(monitor=monitor, mode="max")
    assert make_validated(callback, log_interval=1).train().epochs == 2
    assert callback.best is not None


def test_a_metric_that_a_callback_says_it_logs_is_not_refused():
    class Says(Logs):
        logs_metrics = ("gap",)

    class SaysSome(Logs):
        logs_metrics = ("gap*",)

    for kind, name in ((Says, "gap"), (SaysSome, "gap_of_means"), (Logs, "anything")):
        callback = EarlyStoppingCallback(monitor=name, mode="min")
        make_validated(callback, [kind("on_epoch_end", name, [2.0, 1.0])]).train()
        assert callback.best == 1.0
    quiet = EarlyStoppingCallback(monitor="gaps", mode="min")
    with pytest.raises(UsageError, match="no gaps among the metrics that this run will have"):
        make_validated(quiet, [Says("on_epoch_end", "gap", [2.0, 1.0])]).train()


def test_where_a_callback_does_not_say_a_name_that_looks_misspelt_gets_a_warning(caplog):
    callback = EarlyStoppingCallback(monitor="noisi/f1")
    with pytest.raises(UsageError, match="no noisi/f1 among the metrics by the end of epoch 0"):
        make_validated(callback, [TrainerCallback()]).train()
    assert "none of the metrics that are known now. Did you mean 'noisy/f1'?" in caplog.text


@pytest.mark.parametrize("still", [True, False])
def test_a_metric_that_nothing_logs_behind_a_resume_is_told_of(tmp_path, caplog, still):
    class Says(Logs):
        logs_metrics = ("gap",)

    def make(epochs, others):
        callback = EarlyStoppingCallback(monitor="gap", mode="min")
        config = {"output_dir": tmp_path, "max_steps": epochs}
        return make_validated(callback, others, **config)

    make(1, [Says("on_epoch_end", "gap", [2.0])]).train()
    make(2, [Says("on_epoch_end", "gap", [1.0])] if still else []).train(resume=True)
    said = (
        "early stopping watches gap, which is none of the metrics that are known now" in caplog.text
    )
    assert said is not still


def test_what_a_metric_object_does_not_answer_is_refused_at_the_first_check():
    trainer = make_validated(EarlyStoppingCallback(monitor="val_worst_acc"))
    with pytest.raises(UsageError, match="no val_worst_acc among the metrics by the end of"):
        trainer.train()
    assert trainer.step == 1


def test_in_a_loop_of_ones_own_no_name_is_refused_before_its_time():
    model = torch.nn.Linear(1, 1)
    callback = EarlyStoppingCallback(monitor="score", mode="max")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = Run(model, optimizer, validate=lambda: {"score": 1.0}, callbacks=[callback])
    with run.start():
        for _ in run.epochs():
            for batch in run.batches([torch.ones(1, 1)]):
                run.backward(run.module(batch).sum())
                run.step()
            run.stop("enough")
    assert callback.best == 1.0


def test_not_strict_warns_once_and_stays_idle(make_trainer, caplog):
    callback = EarlyStoppingCallback(patience=1, monitor="accuracy", strict=False)
    trainer = make_trainer(STEADY, [callback])
    assert trainer.train().epochs == 6
    assert [r.levelno for r in caplog.records if "no accuracy" in r.message] == [logging.WARNING]
    assert trainer.model.updates == 6


def test_not_strict_without_a_validation_set_warns_once_and_stays_idle(caplog):
    callback = EarlyStoppingCallback(patience=1, strict=False)
    host = SimpleNamespace(model=torch.nn.Linear(1, 1), has_validation=False)
    callback.on_train_start(host, resumed=False)
    for epoch in range(3):
        callback.on_epoch_end(host, epoch, 1.0, None, {"train_loss": 1.0})
    assert callback.should_stop_training(host) is False
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_min_epochs_is_reached_at_the_end_of_an_epoch_without_a_check():
    callback = EarlyStoppingCallback(patience=1, min_epochs=4)
    host = SimpleNamespace(model=torch.nn.Linear(1, 1))
    for epoch, loss in enumerate([1.0, None, 1.0, None]):
        assert callback.should_stop_training(host) is False
        callback.on_epoch_end(host, epoch, 1.0, loss, {})
    assert callback.should_stop_training(host).reason == "patience"
    assert callback.stopped_epoch == 3


def test_a_stop_inside_an_epoch_waits_for_min_epochs(make_trainer):
    callback = EarlyStoppingCallback(patience=1, min_epochs=1)
    losses = {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}
    trainer = make_trainer(losses, [callback], batches=4, eval_interval=1, epochs=3)
    assert trainer.train().steps == 4


def test_several_ranks_that_are_handed_the_same_metric_decide_the_same():
    ranks = [EarlyStoppingCallback(patience=2) for _ in range(3)]
    hosts = [
        SimpleNamespace(model=torch.nn.Linear(1, 1), rank=rank, is_main_process=rank == 0)
        for rank in range(3)
    ]
    for epoch, loss in enumerate([1.0, math.nan, 0.5, 0.5, 0.75]):
        for callback, host in zip(ranks, hosts, strict=True):
            callback.on_epoch_end(host, epoch, 1.0, loss, {"val_loss": loss})
    assert repr(ranks[0].state) == repr(ranks[1].state) == repr(ranks[2].state)
    assert all(callback.stop_reason == "patience" for callback in ranks)


@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_metric_may_first_come_in_the_first_epoch_that_counts(make_trainer, first):
    callback = EarlyStoppingCallback(patience=2, monitor="accuracy", start_from_epoch=3)
    values = [None] * first + [0.5] * (7 - first)
    result = make_trainer([1.0] * 7, [callback, Logs("on_epoch_end", "accuracy", values)]).train()
    assert (result.epochs, callback.best_epoch) == (6, 3)


def test_a_metric_that_is_missing_in_the_first_epoch_that_counts_is_an_error(make_trainer):
    callback = EarlyStoppingCallback(patience=2, monitor="accuracy", start_from_epoch=3)
    trainer = make_trainer(STEADY, [callback, TrainerCallback()])
    with pytest.raises(UsageError) as caught:
        trainer.train()
    assert trainer.epoch == 3
    for part in ("strict=False", "start_from_epoch", "train_loss, val_loss", "epoch 3"):
        assert part in str(caught.value)


def test_not_strict_it_waits_for_a_metric_that_comes_late(make_trainer, caplog):
    callback = EarlyStoppingCallback(patience=2, monitor="accuracy", strict=False)
    logs = Logs("on_epoch_end", "accuracy", [None, None, 0.5, 0.4, 0.3, 0.2])
    assert make_trainer(STEADY, [callback, logs]).train().epochs == 5
    assert caplog.text.count("no accuracy") == 1


def test_a_metric_that_comes_no_more_is_told_once(make_trainer, caplog):
    callback = EarlyStoppingCallback(patience=2, monitor="accuracy")
    logs = Logs("on_epoch_end", "accuracy", [0.5, 0.5] + [None] * 6)
    assert make_trainer([1.0] * 8, [callback, logs]).train().epochs == 8
    assert caplog.text.count("accuracy had its last value in epoch 1") == 1
    assert "none by the end of epoch 4" in caplog.text


def test_a_metric_that_came_only_before_the_epochs_that_count_is_told(make_trainer, caplog):
    callback = EarlyStoppingCallback(patience=1, monitor="accuracy", start_from_epoch=2)
    logs = Logs("on_epoch_end", "accuracy", [0.5, 0.5] + [None] * 4)
    assert make_trainer(STEADY, [callback, logs]).train().epochs == 6
    assert caplog.text.count("accuracy had its last value in epoch 1") == 1


def test_a_metric_of_every_second_epoch_is_no_silence(make_trainer, caplog):
    callback = EarlyStoppingCallback(patience=2, monitor="accuracy")
    logs = Logs("on_epoch_end", "accuracy", [0.5, None, 0.6, None, 0.7, None])
    assert make_trainer(STEADY, [callback, logs]).train().epochs == 6
    assert "last value" not in caplog.text
