"""The best weights: what is kept, put back, left alone and deleted."""

import json
import logging
import os
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from trainer import Trainer, TrainerConfig
from trainer_callback import CallbackError, TrainerCallback
from trainer_early_stopping import EarlyStoppingCallback

LOSSES = [1.0, 0.5, 0.75, 0.75, 0.75, 0.75]


class TiedModel(nn.Module):
    """Two layers that share one weight, with buffers that training changes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 4)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.norm(self.first(x))).square().mean()


class Copies(TrainerCallback):
    """Copies weights and buffers at the end of each epoch."""

    def __init__(self):
        self.of_epoch = []

    def on_epoch_end(self, trainer):
        self.of_epoch.append(copy_of(trainer.model))


def copy_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def is_equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def make_tied_trainer(losses, callbacks, **config):
    torch.manual_seed(0)
    model = TiedModel()

    def loss_fn(model, batch):
        return model(batch) if model.training else torch.tensor(losses[trainer.epoch])

    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        list(torch.randn(3, 8, 4)),
        [torch.zeros(1)],
        loss_fn=loss_fn,
        config=TrainerConfig(**{"epochs": len(losses), "device": "cpu", **config}),
        callbacks=callbacks,
        discover=False,
    )
    return trainer


def files_in(directory):
    return sorted(path.name for path in (directory / "weights").iterdir())


@pytest.mark.parametrize("on_disk", [True, False])
def test_weights_and_buffers_of_the_best_epoch_come_back_bit_by_bit(tmp_path, on_disk):
    copies = Copies()
    config = {"output_dir": tmp_path} if on_disk else {}
    trainer = make_tied_trainer(LOSSES, [EarlyStoppingCallback(patience=3), copies], **config)
    trainer.train()
    assert len(copies.of_epoch) == 5
    assert is_equal(copy_of(trainer.model), copies.of_epoch[1])
    assert not is_equal(copy_of(trainer.model), copies.of_epoch[4])
    changed = copies.of_epoch[4]["norm.running_mean"]
    assert not torch.equal(changed, copies.of_epoch[1]["norm.running_mean"])


@pytest.mark.parametrize("on_disk", [True, False])
def test_tied_weights_stay_tied(tmp_path, on_disk):
    config = {"output_dir": tmp_path} if on_disk else {}
    trainer = make_tied_trainer(LOSSES, [EarlyStoppingCallback(patience=3)], **config)
    parameters = dict(trainer.model.named_parameters())
    trainer.train()
    model = trainer.model
    assert model.first.weight is model.last.weight
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    optimized = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
    assert id(model.first.weight) in optimized


def test_what_is_kept_is_a_copy_and_not_a_reference():
    callback, host = EarlyStoppingCallback(), SimpleNamespace(model=TiedModel())
    callback.on_epoch_end(host, 0, 1.0, 1.0, {})
    kept = copy_of(host.model)
    with torch.no_grad():
        for tensor in host.model.state_dict().values():
            tensor.zero_()
    callback.on_epoch_end(host, 1, 1.0, 2.0, {})
    callback.on_train_end(host, SimpleNamespace(status="finished"))
    assert is_equal(copy_of(host.model), kept)


def test_a_plain_object_with_a_model_is_enough_of_a_trainer():
    callback, host = EarlyStoppingCallback(patience=1), SimpleNamespace(model=nn.Linear(1, 1))
    kept = copy_of(host.model)
    callback.on_epoch_end(host, 0, 1.0, 1.0, {"val_loss": 1.0})
    nn.init.zeros_(host.model.weight)
    callback.on_epoch_end(host, 1, 1.0, 1.0, {"val_loss": 1.0})
    assert callback.should_stop_training(host)
    assert callback.on_snapshot_save(host, 1, 0)["best"] == 1.0
    callback.on_snapshot_saved(host, None, 1, 0)
    callback.on_train_end(host, SimpleNamespace(status="stopped"))
    assert is_equal(copy_of(host.model), kept)


class Acts(TrainerCallback):
    """Does something at the end of epoch 3."""

    def __init__(self, act):
        self.act = act

    def on_epoch_end(self, trainer, epoch):
        if epoch == 3 and self.act == "raise":
            raise RuntimeError("broken")
        if epoch == 3 and isinstance(self.act, signal.Signals):
            os.kill(os.getpid(), self.act)

    def should_stop_training(self, trainer):
        return self.act == "stop" and trainer.epoch == 3


@pytest.mark.parametrize(
    ("patience", "act", "config"),
    [
        (2, None, {}),
        (9, "stop", {}),
        (9, None, {}),
        (9, None, {"max_steps": 4}),
        (9, None, {"max_time": 1e-9, "epochs": 1000}),
    ],
    ids=["own_stop", "another_callback", "epochs_used_up", "steps_used_up", "time_used_up"],
)
def test_every_normal_end_restores(make_trainer, patience, act, config):
    losses = LOSSES if "max_time" not in config else [0.5, *[0.75] * 9]
    callback = EarlyStoppingCallback(patience=patience)
    trainer = make_trainer(losses, [callback, Acts(act)], **config)
    assert trainer.train().status in ("finished", "stopped")
    assert trainer.model.updates - 1 == callback.best_epoch


def test_an_exception_does_not_restore(make_trainer):
    trainer = make_trainer(LOSSES, [EarlyStoppingCallback(patience=9), Acts("raise")])
    with pytest.raises(CallbackError):
        trainer.train()
    assert trainer.model.updates == 4


@pytest.fixture
def usual_signals():
    """As in a terminal, even if the tests run in the background, where Ctrl-C is ignored."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("usual_signals")
def test_ctrl_c_does_not_restore(make_trainer):
    trainer = make_trainer(LOSSES, [EarlyStoppingCallback(patience=9), Acts(signal.SIGINT)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.model.updates == 4


@pytest.mark.usefixtures("usual_signals")
def test_sigterm_does_not_restore(make_trainer):
    trainer = make_trainer(LOSSES, [EarlyStoppingCallback(patience=9), Acts(signal.SIGTERM)])
    assert trainer.train().status == "terminated"
    assert trainer.model.updates == 4


def test_without_restore_best_the_last_weights_stay_and_nothing_is_kept(make_trainer, tmp_path):
    callback = EarlyStoppingCallback(patience=2, restore_best=False)
    trainer = make_trainer(LOSSES, [callback], output_dir=tmp_path)
    trainer.train()
    assert (callback.best_epoch, trainer.model.updates) == (1, 4)
    assert not (tmp_path / "weights").exists()


def test_nothing_is_loaded_where_the_last_epoch_is_the_best(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer([1.0, 0.5], [EarlyStoppingCallback()], output_dir=tmp_path)
    monkeypatch.setattr(type(trainer.run.view), "load_weights", None)  # calling it would fail
    trainer.train()
    assert trainer.model.updates == 2


def test_the_best_of_an_epoch_is_restored_where_the_run_ends_inside_a_later_one(make_trainer):
    callback = EarlyStoppingCallback(check_on="epoch")
    trainer = make_trainer([1.0, 0.5, 0.6], [callback], batches=3, max_steps=8)
    trainer.train()
    assert (callback.best_step, trainer.model.updates) == (6, 6)


def test_the_periodic_snapshots_keep_the_last_weights_and_final_the_best(make_trainer, tmp_path):
    callback = EarlyStoppingCallback(patience=3)
    make_trainer(LOSSES, [callback], output_dir=tmp_path, snapshot_epochs=True).train()

    def read(name):
        state = torch.load(tmp_path / name / "state.pt", weights_only=True)
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        return -state["model"]["weight"].item(), manifest["metrics"]

    assert [read(f"snapshots/step-0000000{step}")[0] for step in (3, 4, 5)] == [3, 4, 5]
    weight, metrics = read("final")
    assert weight == 2
    restored = {name: value for name, value in metrics.items() if name.startswith("restored")}
    assert restored == {"restored_epoch": 1, "restored_step": 2, "restored_val_loss": 0.5}


def test_final_says_what_it_holds_where_nothing_had_to_be_loaded(make_trainer, tmp_path):
    make_trainer([1.0, 0.5], [EarlyStoppingCallback()], output_dir=tmp_path).train()
    metrics = json.loads((tmp_path / "final" / "manifest.json").read_text())["metrics"]
    assert (metrics["restored_epoch"], metrics["restored_step"]) == (1, 2)


def test_a_run_that_restored_goes_on_from_its_last_weights(tmp_path):
    losses = [1.0, 0.5, 0.75, 0.75, 0.75, 0.75]
    unbroken = make_tied_trainer(losses, [EarlyStoppingCallback()])
    unbroken.train()
    in_two = make_tied_trainer(losses, [EarlyStoppingCallback()], epochs=4, output_dir=tmp_path)
    in_two.train()
    copies = Copies()
    callbacks = [EarlyStoppingCallback(), copies]
    in_two = make_tied_trainer(losses, callbacks, epochs=6, output_dir=tmp_path)
    in_two.train(resume=True)
    assert is_equal(copy_of(in_two.model), copy_of(unbroken.model))
    expected = Copies()
    make_tied_trainer(losses, [expected]).train()
    assert is_equal(copies.of_epoch[-1], expected.of_epoch[-1])


def test_the_best_file_is_outside_the_retention_of_snapshots(make_trainer, tmp_path):
    config = {"output_dir": tmp_path, "snapshot_epochs": True, "keep_snapshots": 1}
    trainer = make_trainer([0.5, *[1.0] * 6], [EarlyStoppingCallback(patience=9)], **config)
    trainer.train()
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["step-00000007"]
    assert trainer.model.updates == 1


class Looks(TrainerCallback):
    """Notes at the start of each epoch of which steps there are snapshots, and best weights."""

    def __init__(self, directory):
        self.directory = directory
        self.seen = []

    def on_epoch_start(self):
        names = [sorted(self.directory.glob(f"{kind}/*")) for kind in ("snapshots", "weights")]
        self.seen.append(tuple([int(path.name[-8:]) for path in each] for each in names))


def test_a_superseded_file_goes_when_no_snapshot_needs_it(make_trainer, tmp_path):
    looks = Looks(tmp_path)
    losses = [9.0, 8.0, 7.0, 6.0, 6.5, 6.5, 6.5]
    config = {
        "output_dir": tmp_path,
        "snapshot_epochs": True,
        "keep_snapshots": 2,
        "snapshot_sync": True,
    }
    make_trainer(losses, [EarlyStoppingCallback(), looks], **config).train()
    assert looks.seen == [
        ([], []),
        ([1], [1]),
        ([1, 2], [1, 2]),
        ([2, 3], [1, 2, 3]),  # of a durable snapshot callbacks hear at the next boundary
        ([3, 4], [2, 3, 4]),
        ([4, 5], [3, 4]),
        ([5, 6], [4]),
    ]
    assert files_in(tmp_path) == ["early-stopping-step-00000004"]


def test_a_superseded_file_that_no_snapshot_needs_goes_at_once(make_trainer, tmp_path):
    looks = Looks(tmp_path)
    losses = [9.0, 8.0, 7.0, 7.5]
    make_trainer(losses, [EarlyStoppingCallback(), looks], output_dir=tmp_path).train()
    assert looks.seen == [([], []), ([], [1]), ([], [2]), ([], [3])]


def test_a_best_that_no_resume_can_ask_for_leaves_no_file(make_trainer, tmp_path):
    # The end of max_steps cuts the epoch: its snapshot is taken before its validation.
    callback = EarlyStoppingCallback()
    config = {"output_dir": tmp_path, "batches": 3, "max_steps": 5}
    trainer = make_trainer([1.0, 0.5, 0.4], [callback], **config)
    trainer.train()
    assert (callback.best_step, trainer.model.updates) == (5, 5)
    assert files_in(tmp_path) == ["early-stopping-step-00000003"]


def test_the_name_of_a_file_has_the_state_key_in_it(make_trainer, tmp_path):
    callback = EarlyStoppingCallback(state_key="by loss/ä")
    make_trainer([1.0], [callback], output_dir=tmp_path).train()
    assert files_in(tmp_path) == ["early-stopping-by-loss-ä-step-00000001"]


def test_where_the_file_cannot_be_written_the_weights_are_kept_in_memory(
    make_trainer, tmp_path, caplog
):
    class Blocks(TrainerCallback):
        def on_epoch_start(self, epoch):
            if epoch == 1:
                shutil.rmtree(tmp_path / "weights")
                (tmp_path / "weights").write_text("a file where a directory should be")

    callback = EarlyStoppingCallback(patience=3)
    trainer = make_trainer(LOSSES, [callback, Blocks()], output_dir=tmp_path)
    assert trainer.train().status == "stopped"
    warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert ["in memory only" in warning for warning in warnings] == [True]
    assert trainer.model.updates == 2


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose_best(directory, how):
    best = directory / "weights" / "early-stopping-step-00000002"
    if how in ("gone", "exchanged"):
        shutil.rmtree(best)
    if how == "exchanged":  # a sound one, but not the one that the state refers to
        shutil.copytree(directory / "snapshots" / "step-00000003", best)
    elif how == "damaged":
        damage(best / "state.pt")


@pytest.mark.parametrize("how", ["gone", "damaged", "exchanged"])
def test_a_lost_file_is_a_warning_and_the_snapshot_of_its_step_is_used(
    make_trainer, tmp_path, caplog, how
):
    config = {"output_dir": tmp_path, "snapshot_epochs": True, "keep_snapshots": 9}
    make_trainer(LOSSES[:3], [EarlyStoppingCallback(patience=3)], **config).train()
    lose_best(tmp_path, how)
    callback = EarlyStoppingCallback(patience=3)
    trainer = make_trainer(LOSSES, [callback], **config)
    assert trainer.train(resume=True).epochs == 5
    assert (callback.best, trainer.model.updates) == (0.5, 2)
    assert any(r.levelno == logging.WARNING for r in caplog.records)


@pytest.mark.parametrize("how", ["gone", "damaged", "exchanged"])
def test_a_lost_file_without_such_a_snapshot_keeps_best_for_comparison_and_the_last_weights(
    make_trainer, tmp_path, caplog, how
):
    config = {"output_dir": tmp_path, "snapshot_epochs": True, "keep_snapshots": 1}
    make_trainer(LOSSES[:3], [EarlyStoppingCallback(patience=3)], **config).train()
    lose_best(tmp_path, how)
    callback = EarlyStoppingCallback(patience=3)
    trainer = make_trainer(LOSSES, [callback], **config)
    assert trainer.train(resume=True).status == "stopped"
    assert (callback.best, callback.best_epoch, trainer.model.updates) == (0.5, 1, 5)
    assert "cannot restore epoch 1 (val_loss 0.5), so the last weights stay" in caplog.text
    metrics = json.loads((tmp_path / "final" / "manifest.json").read_text())["metrics"]
    assert "restored_epoch" not in metrics


def test_the_file_that_the_snapshot_before_a_damaged_one_needs_is_there(make_trainer, tmp_path):
    config = {"output_dir": tmp_path, "snapshot_epochs": True}
    make_trainer([1.0, 0.5, 0.4], [EarlyStoppingCallback()], **config).train()
    damage(tmp_path / "snapshots" / "step-00000003" / "state.pt")
    callback = EarlyStoppingCallback(patience=2, min_delta=0.25)  # 0.4 is no improvement now
    trainer = make_trainer([1.0, 0.5, 0.4, 0.5], [callback], **config)
    assert trainer.train(resume=True).epochs == 4
    assert (callback.best_epoch, trainer.model.updates) == (1, 2)


def test_a_moved_directory_still_has_its_best_weights(make_trainer, tmp_path):
    config = {"snapshot_epochs": True, "keep_snapshots": 1}
    before, after = tmp_path / "a", tmp_path / "b"
    make_trainer(
        LOSSES[:3], [EarlyStoppingCallback(patience=3)], output_dir=before, **config
    ).train()
    before.rename(after)
    trainer = make_trainer(LOSSES, [EarlyStoppingCallback(patience=3)], output_dir=after, **config)
    trainer.train(resume=True)
    assert trainer.model.updates == 2
