"""What early stopping knows after a resume, and what it forgets for a fresh run."""

import copy
import json
import logging
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from trainer_callback import PluginError, TrainerCallback
from trainer_callback.state import to_plain
from trainer_early_stopping import EarlyStoppingCallback


@pytest.fixture
def host():
    return SimpleNamespace(model=torch.nn.Linear(1, 1))


def feed(callback, host, losses, first_epoch=0):
    for epoch, loss in enumerate(losses, first_epoch):
        callback.on_epoch_end(host, epoch, 1.0, loss, {"val_loss": loss})


def checkpoint_of(callback, host, key="EarlyStoppingCallback"):
    state = to_plain(callback.on_snapshot_save(host, epoch=0, step=0))
    return {"callback_state": {key: state}}


def resumed_from(callback, host, **options):
    other = EarlyStoppingCallback(**options)
    other.on_snapshot_load(host, checkpoint_of(callback, host))
    other.on_train_start(host, resumed=True)
    return other


def test_count_best_and_last_value_survive(host):
    callback = EarlyStoppingCallback(patience=5)
    feed(callback, host, [1.0, 0.5, 0.75, 0.625])
    other = resumed_from(callback, host, patience=5)
    assert (other.best, other.best_epoch, other.wait) == (0.5, 1, 2)
    assert asdict(other.state) == asdict(callback.state)
    feed(other, host, [0.7, 0.7, 0.7], first_epoch=4)
    assert (other.stop_reason, other.stopped_epoch) == ("patience", 6)


def test_the_state_is_all_that_changes_while_it_runs(host):
    callback = EarlyStoppingCallback(restore_best=False)
    before = {name: copy.copy(value) for name, value in vars(callback).items()}
    feed(callback, host, [1.0, 0.5, 0.75])
    changed = {name for name, value in vars(callback).items() if value != before[name]}
    assert changed <= {"state", "_weights"}
    assert callback.on_snapshot_save(host, 0, 0) == asdict(callback.state)


def test_a_snapshot_holds_all_of_it_and_the_best_file_with_its_digest(make_trainer, tmp_path):
    config = {"output_dir": tmp_path, "snapshot_epochs": True}
    make_trainer([1.0, 0.5, 0.75], [EarlyStoppingCallback()], **config).train()
    snapshot = torch.load(tmp_path / "snapshots" / "step-00000003" / "state.pt", weights_only=True)
    state = snapshot["callback_state"]["EarlyStoppingCallback"]
    best = tmp_path / "weights" / state["best_file"]
    expected = {"best": 0.5, "best_epoch": 1, "best_step": 2, "wait": 1, "last_value": 0.75}
    expected["best_digest"] = json.loads((best / "manifest.json").read_text())["digest"]
    expected["fingerprint"] = ("val_loss", "min", "abs")
    assert {name: state[name] for name in expected} == expected


@pytest.mark.parametrize("started_first", [True, False])
def test_loading_before_or_after_the_start_gives_the_same(host, started_first):
    callback = EarlyStoppingCallback(patience=2)
    feed(callback, host, [1.0, 2.0, 2.0])
    other = EarlyStoppingCallback(patience=2)
    if started_first:
        other.on_train_start(host, resumed=True)
    other.on_snapshot_load(host, checkpoint_of(callback, host))
    if not started_first:
        other.on_train_start(host, resumed=True)
    assert asdict(other.state) == asdict(callback.state)
    assert other.should_stop_training(host).reason == "patience"


def test_a_fresh_second_run_with_the_same_object_starts_clean(make_trainer):
    callback = EarlyStoppingCallback(patience=2)
    make_trainer([0.1, 0.2, 0.3, 0.4], [callback]).train()
    assert callback.stop_reason == "patience"
    trainer = make_trainer([3.0, 2.0, 2.5, 2.75], [callback])
    assert trainer.train().epochs == 4
    assert (callback.best, callback.best_epoch, callback.stopped_epoch) == (2.0, 1, 3)
    assert trainer.model.updates == 2


def test_a_resume_without_state_of_ours_starts_clean(host):
    callback = EarlyStoppingCallback(patience=2)
    feed(callback, host, [1.0, 2.0, 3.0])
    callback.on_snapshot_load(host, {"callback_state": {}})
    assert asdict(callback.state) == asdict(EarlyStoppingCallback(patience=2).state)


def test_no_option_is_read_back_a_larger_patience_is_used(host):
    callback = EarlyStoppingCallback(patience=2)
    feed(callback, host, [1.0, 2.0, 2.0])
    assert callback.stop_reason == "patience"
    other = resumed_from(callback, host, patience=4)
    assert (other.should_stop_training(host), other.stopped_epoch, other.wait) == (False, None, 2)
    feed(other, host, [2.0, 2.0], first_epoch=3)
    assert (other.stop_reason, other.stopped_epoch, other.wait) == ("patience", 4, 4)


@pytest.mark.parametrize(
    "options",
    [
        {"monitor": "train_loss"},
        {"mode": "max"},
        {"min_delta_mode": "rel"},
    ],
)
def test_a_changed_fingerprint_drops_the_state_with_one_warning(host, caplog, options):
    callback = EarlyStoppingCallback()
    feed(callback, host, [1.0, 2.0])
    other = resumed_from(callback, host, **options)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert asdict(other.state) == asdict(EarlyStoppingCallback(**options).state)


def test_state_of_a_newer_version_with_more_in_it_is_read(host):
    callback = EarlyStoppingCallback()
    feed(callback, host, [1.0, 0.5])
    checkpoint = checkpoint_of(callback, host)
    checkpoint["callback_state"]["EarlyStoppingCallback"]["from_the_future"] = 1
    other = EarlyStoppingCallback()
    other.on_snapshot_load(host, checkpoint)
    assert other.best == 0.5


RUN = {"snapshot_epochs": True, "epochs": 8}


@pytest.mark.parametrize(
    ("losses", "options"),
    [
        ([1.0, 2.0, 2.0, 0.1], {"patience": 2}),
        ([1.0, 0.1, 2.0], {"stopping_threshold": 0.2}),
        ([1.0, 3.0, 0.1], {"divergence_threshold": 2.0}),
        ([1.0, float("nan"), 0.1], {"check_finite": True}),
    ],
)
def test_a_stopped_run_that_is_resumed_ends_before_the_first_batch(
    make_trainer, tmp_path, losses, options
):
    class Batches(TrainerCallback):
        count = 0

        def on_batch_start(self, batch_idx):
            self.count += 1

    first = make_trainer(losses, [EarlyStoppingCallback(**options)], output_dir=tmp_path, **RUN)
    before = first.train()
    callback, batches = EarlyStoppingCallback(**options), Batches()
    trainer = make_trainer(losses, [callback, batches], output_dir=tmp_path, **RUN)
    after = trainer.train(resume=True)
    assert batches.count == 0
    assert (after.status, after.stop_reason) == (before.status, before.stop_reason)
    assert trainer.model.updates == first.model.updates


def test_a_run_that_stopped_inside_an_epoch_ends_at_once_too(make_trainer, tmp_path):
    losses = dict.fromkeys(range(1, 11), 1.0)
    run = {"batches": 10, "eval_interval": 2, "epochs": 1, "output_dir": tmp_path}
    make_trainer(losses, [EarlyStoppingCallback(patience=2)], **run).train()
    again = make_trainer(losses, [EarlyStoppingCallback(patience=2)], **run)
    assert (again.train(resume=True).stop_reason, again.step) == ("patience", 6)


def test_continue_sets_the_count_to_0_and_keeps_the_best(make_trainer, tmp_path):
    losses = [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    options = {"patience": 2, "on_resume_stopped": "continue"}
    run = {"output_dir": tmp_path, "epochs": 6}
    make_trainer(losses, [EarlyStoppingCallback(**options)], **run).train()
    callback = EarlyStoppingCallback(**options)
    trainer = make_trainer(losses, [callback], **run)
    assert trainer.train(resume=True).epochs == 5
    assert (callback.best_epoch, callback.stopped_epoch, trainer.model.updates) == (0, 4, 1)


def test_continue_after_a_threshold_waits_for_the_next_check(host):
    callback = EarlyStoppingCallback(stopping_threshold=0.5)
    feed(callback, host, [1.0, 0.25])
    options = {"stopping_threshold": 0.5, "on_resume_stopped": "continue"}
    other = resumed_from(callback, host, **options)
    feed(other, host, [None], first_epoch=2)
    assert other.should_stop_training(host) is False
    feed(other, host, [0.25], first_epoch=3)
    assert other.should_stop_training(host).reason == "stopping_threshold"


def test_two_instances_have_their_own_state_and_either_one_stops(make_trainer, tmp_path):
    def pair():
        return [
            EarlyStoppingCallback(patience=9, state_key="slow"),
            EarlyStoppingCallback(patience=2, state_key="fast", restore_best=False),
        ]

    losses = [1.0, 0.5, 2.0, 2.0, 2.0]
    first, second = pair(), pair()
    run = {"output_dir": tmp_path, "snapshot_epochs": True}
    result = make_trainer(losses, first, **run).train()
    assert (result.epochs, result.stop_reason) == (4, "patience")
    assert "fast" in result.stopped_by
    make_trainer(losses, second, **run).train(resume=True)
    assert [each.wait for each in second] == [2, 2]
    assert [each.stop_reason for each in second] == [None, "patience"]


def test_two_instances_without_keys_of_their_own_are_refused(make_trainer):
    with pytest.raises(PluginError, match="state_key"):
        make_trainer([1.0], [EarlyStoppingCallback(), EarlyStoppingCallback()])


def test_restore_best_in_two_instances_is_a_value_error(make_trainer):
    pair = [EarlyStoppingCallback(state_key="a"), EarlyStoppingCallback(state_key="b")]
    trainer = make_trainer([1.0], pair)
    pair[0].on_train_start(trainer, resumed=False)
    with pytest.raises(ValueError, match="restore_best=False in one of them"):
        pair[1].on_train_start(trainer, resumed=False)


def test_restore_best_in_two_instances_is_refused_before_training(make_trainer):
    pair = [EarlyStoppingCallback(state_key="a"), EarlyStoppingCallback(state_key="b")]
    trainer = make_trainer([1.0], pair)
    for _ in range(2):
        with pytest.raises(PluginError, match="restore_best=False in one of them"):
            trainer.train()
    assert trainer.step == 0
    pair[1].restore_best = False
    assert trainer.train().status == "finished"


def test_instances_in_runs_one_after_the_other_do_not_meet(make_trainer):
    trainer = make_trainer([1.0], [])
    for key in "ab":
        callback = EarlyStoppingCallback(state_key=key)
        callback.on_train_start(trainer, resumed=False)
        callback.on_train_end(trainer, SimpleNamespace(status="failed"))
