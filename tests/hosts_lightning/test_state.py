"""The state of plugins in Lightning's checkpoints, and runs that go on from one."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("lightning")

import torch
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from torchdata.stateful_dataloader import StatefulDataLoader

from trainer.testing import Recorder
from trainer_callback import TrainerCallback
from trainer_early_stopping import EarlyStoppingCallback
from trainer_ema import EMACallback
from trainer_gradient_monitor import GradientMonitorCallback
from trainer_lightning import Plugins

from .runs import (
    BATCHES,
    EPOCHS,
    VALIDATION,
    Cut,
    Module,
    assert_same_records,
    assert_same_run,
    assert_same_weights,
    make_host,
    make_loader,
    read_records,
    save_each,
    train_home,
    train_host,
)

pytestmark = pytest.mark.filterwarnings("ignore")

KEY = "trainer_lightning.Plugins"


def make_plugins():
    return [
        EarlyStoppingCallback(patience=2, min_delta=0.4),
        EMACallback(),
        GradientMonitorCallback(monitor_interval=1, report=False),
    ]


@pytest.mark.parametrize(
    ("saves", "cuts", "last"),
    [
        ({}, [Cut(6)], ["step=6"]),
        ({"every_n_train_steps": 1}, [Cut(3)], ["step=3"]),
        ({"every_n_train_steps": 4}, [Cut(7), Cut(10)], ["step=4", "step=8"]),
        ({"save_on_train_epoch_end": False}, [Cut(6, "on_train_epoch_start")], ["step=6"]),
    ],
    ids=["at an epoch's end", "inside an epoch", "twice", "between a validation and its epoch"],
)
def test_plugins_go_on_as_if_nothing_had_happened(saves, cuts, last, tmp_path):
    options = {"window": 1, "gradient_clip_val": 1.0, "epochs": 5}
    expected = train_home(tmp_path / "home", make_plugins(), epochs=5, max_grad_norm=1.0)
    path = None
    for cut, name in zip(cuts, last, strict=True):
        kind = {"data": make_loader(0, 6, kind=StatefulDataLoader), "ckpt_path": path}
        others = [save_each(tmp_path, **saves), cut]
        with pytest.raises(ConnectionError, match="cut"):
            train_host(tmp_path, make_plugins(), others=others, **kind, **options)
        path = tmp_path / "kept" / f"{name}.ckpt"
    kind = {"data": make_loader(0, 6, kind=StatefulDataLoader), "ckpt_path": path}
    found = train_host(tmp_path, make_plugins(), **kind, **options)
    assert_same_run(tmp_path, found, tmp_path / "home", expected)
    own, other = (tmp_path / place / "gradient_flow" for place in ("plugins", "home"))
    assert (own / "gradients.jsonl").read_bytes() == (other / "gradients.jsonl").read_bytes()


def test_a_stopped_run_that_is_resumed_trains_nothing_more(tmp_path):
    others = [save_each(tmp_path)]
    result, _, _ = train_host(tmp_path, make_plugins(), epochs=9, others=others)
    assert result.status == "stopped"
    path = tmp_path / "kept" / f"step={result.steps}.ckpt"
    again, _, trainer = train_host(tmp_path, make_plugins(), epochs=9, ckpt_path=path)
    assert trainer.global_step == result.steps
    assert (again.status, again.stop_reason, again.steps) == ("stopped", "patience", result.steps)


def test_a_finished_run_that_is_resumed_says_so(tmp_path):
    heard = Recorder()
    train_host(tmp_path, [], others=[save_each(tmp_path)])
    path = tmp_path / "kept" / "step=18.ckpt"
    result, _, _ = train_host(tmp_path, [heard], ckpt_path=path)
    assert (result.status, result.stop_reason, result.steps) == ("finished", "epochs", 18)
    hooks = [call.hook for call in heard.calls if call.hook in ("on_train_start", "on_train_end")]
    assert hooks == ["on_train_start", "on_train_end"]


def test_a_checkpoint_that_is_saved_behind_the_run_has_the_state_too(tmp_path):
    _, _, trainer = train_host(tmp_path, make_plugins())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    result, _, _ = train_host(tmp_path, make_plugins(), epochs=4, ckpt_path=tmp_path / "last.ckpt")
    assert [line["step"] for line in result.history] == [6, 12, 18, 24]


def test_the_state_is_plain_data_with_its_update_and_a_digest(tmp_path):
    train_host(tmp_path, make_plugins(), others=[save_each(tmp_path)], epochs=1)
    content = torch.load(tmp_path / "kept" / "step=6.ckpt", weights_only=True)
    assert set(content["callbacks"][KEY]) == {"step", "sha256", "content"}
    assert content["callbacks"][KEY]["step"] == 6


def test_a_checkpoint_of_weights_only_asks_for_no_state(tmp_path):
    heard = Recorder()
    train_host(tmp_path, [heard], others=[save_each(tmp_path, save_weights_only=True)], epochs=1)
    assert heard.of("on_snapshot_saved") == []


def damage(content):
    content["callbacks"][KEY]["content"][100] += 1


def forget(content):
    del content["callbacks"][KEY]


def age(content):
    content["callbacks"][KEY]["step"] = 3


def replace(content):
    content["callbacks"][KEY] = {"patience": 3}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (forget, "has no state of plugins"),
        (damage, "is damaged"),
        (age, "is of update 3, and the checkpoint of update 6"),
        (replace, "has no state of plugins"),
    ],
)
def test_a_state_that_does_not_fit_is_said_and_with_strict_refused(spoil, said, tmp_path, caplog):
    places = []

    class Looks(TrainerCallback):
        def on_epoch_start(self, trainer):
            places.append((trainer.epoch, trainer.step))

    train_host(tmp_path, [Looks()], others=[save_each(tmp_path)], epochs=1)
    path = tmp_path / "kept" / "step=6.ckpt"
    content = torch.load(path, weights_only=True)
    spoil(content)
    torch.save(content, path)
    result, _, _ = train_host(tmp_path, [Looks()], epochs=2, ckpt_path=path)
    assert said in caplog.text
    assert places == [(0, 0), (1, 6)]
    assert (result.steps, result.epochs) == (12, 2)
    entry = Plugins([Looks()], discover=False, strict=True)
    trainer, _ = make_host(tmp_path, [], entry=entry, epochs=2)
    with pytest.raises(Exception, match="strict=True") as caught:
        trainer.fit(Module(), make_loader(0, 6), make_loader(1, 5), ckpt_path=path)
    assert said in str(caught.value)


def test_last_is_the_newest_of_lightnings_checkpoints(tmp_path):
    train_host(tmp_path, make_plugins(), others=[save_each(tmp_path, save_last=True)], epochs=1)
    others = [save_each(tmp_path, save_last=True)]
    result, _, _ = train_host(tmp_path, make_plugins(), others=others, epochs=2, ckpt_path="last")
    assert [line["step"] for line in result.history] == [6, 12]


def test_a_killed_run_goes_on_exactly(tmp_path, run_script):
    """Killed with SIGKILL inside an epoch, in a process of its own."""
    script = """
        import os, sys
        from pathlib import Path
        sys.path.insert(0, {tests!r})
        import lightning.pytorch as pl
        from torchdata.stateful_dataloader import StatefulDataLoader
        from hosts_lightning import runs
        from trainer_early_stopping import EarlyStoppingCallback
        from trainer_ema import EMACallback

        class Dies(pl.Callback):
            def on_train_batch_start(self, trainer, *rest):
                if trainer.global_step == {step}:
                    os.kill(os.getpid(), 9)

        plugins = [EarlyStoppingCallback(patience=2, min_delta=0.4), EMACallback()]
        others = [runs.save_each(Path("."), every_n_train_steps=2, save_last=True), Dies()]
        data = runs.make_loader(0, 6, kind=StatefulDataLoader)
        found = runs.train_host(
            Path("."), plugins, others=others, data=data, epochs=5, ckpt_path="last"
        )
        import torch
        torch.save(found[1].state_dict(), "weights.pt")
        """
    tests = str(Path(__file__).parent.parent)
    run_script(script.format(tests=tests, step=9), code=-9)
    run_script(script.format(tests=tests, step=-1))
    plugins = [EarlyStoppingCallback(patience=2, min_delta=0.4), EMACallback()]
    expected = train_home(tmp_path / "home", plugins, epochs=5)
    module = Module()
    module.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert_same_records(read_records(tmp_path / "plugins"), read_records(tmp_path / "home"))
    assert_same_weights(module, expected[1])


def test_a_second_fit_of_a_trainer_counts_on_and_is_gone_on_from(tmp_path, caplog):
    trainer, plugins = make_host(tmp_path, [], others=[save_each(tmp_path)], epochs=1)
    module = Module()
    trainer.fit(module, make_loader(0, BATCHES), make_loader(1, VALIDATION))
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, make_loader(0, BATCHES), make_loader(1, VALIDATION))
    assert (plugins.result.epochs, plugins.result.steps) == (2, 2 * BATCHES)
    file = tmp_path / "kept" / f"step={2 * BATCHES}.ckpt"
    found, *_ = train_host(tmp_path, [], epochs=3, ckpt_path=str(file))
    assert (found.epochs, found.steps) == (3, 3 * BATCHES)
    assert "start fresh" not in caplog.text


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_train_batch_end"])
def test_a_checkpoint_that_is_saved_on_an_exception_has_the_state(hook, tmp_path):
    def train(place, **named):
        stopping, recorder = EarlyStoppingCallback(patience=9), Recorder()
        train_host(place, [stopping, recorder], **named)
        return stopping, recorder

    whole, _ = train(tmp_path / "whole")
    others = [OnExceptionCheckpoint(tmp_path), Cut(8, hook)]
    with pytest.raises(ConnectionError):
        train(tmp_path / "cut", others=others)
    file = str(tmp_path / "on_exception.ckpt")
    found, recorder = train(tmp_path / "cut", ckpt_path=file)
    assert recorder.of("on_train_start") == [{"resumed": True}]
    assert (found.state.checks, found.state.epochs_done) == (EPOCHS, EPOCHS)
    assert found.state.checks == whole.state.checks
