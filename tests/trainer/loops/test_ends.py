"""A loop that is written by hand ends like a `Trainer`: signals, NaN, faults, full disks."""

import copy
import importlib.util
import json
import os
import resource
import signal

import pytest
import torch

from trainer import NonFiniteError
from trainer_callback import CallbackError, SaveError, TrainerCallback

NAMES = ["nanogpt", "epochs", "gan", "rl"]
if importlib.util.find_spec("accelerate") is not None:
    NAMES.append("accelerate")


@pytest.mark.parametrize("name", NAMES)
def test_the_plugins_stay_on_and_all_hooks_are_called(loops, tmp_path, name):
    striker = loops.striker()
    result = loops.start(tmp_path, name, striker).run.result
    assert (result.status, result.switched_off) == ("finished", ())
    assert {"on_backward_end", "on_gradients_clipped", "on_step_end", "on_batch_end"} <= {
        *striker.calls
    }
    assert {"on_validation_end", "on_epoch_end", "on_snapshot_saved"} <= {*striker.calls}
    assert (tmp_path / "final" / "model.safetensors").exists()
    assert [*tmp_path.rglob("events.out.tfevents.*")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("number", "hook", "code"),
    [
        (signal.SIGTERM, "on_step_end", 143),
        (signal.SIGTERM, "on_validation_start", 143),
        (signal.SIGINT, "on_backward_end", 130),
    ],
)
def test_a_signal_finishes_the_update_and_loses_nothing(loops, tmp_path, name, number, hook, code):
    def send():
        os.kill(os.getpid(), number)

    settings = {"plugins": False, "snapshot_interval": None, "snapshot_epochs": True}
    assert loops.train(tmp_path / "cut", name, loops.striker(2, hook, send), **settings) == code
    assert not (tmp_path / "cut" / "final").exists()
    assert loops.train(tmp_path / "cut", name, loops.striker(), **settings) == 0
    assert loops.train(tmp_path / "whole", name, loops.striker(), **settings) == 0
    loops.compare(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("name", NAMES)
def test_ctrl_c_is_raised_behind_the_snapshot_and_the_result_says_it(loops, tmp_path, name):
    striker = loops.striker(2, "on_step_end", lambda: os.kill(os.getpid(), signal.SIGINT))
    loop = loops.kinds[name](tmp_path, [striker], snapshot_interval=None)
    with pytest.raises(KeyboardInterrupt):
        loop.train()
    assert loop.run.result.status == "interrupted"
    assert loop.run.position.step in (1, 2)
    assert [*(tmp_path / "snapshots").iterdir()]


@pytest.mark.parametrize("name", NAMES)
def test_a_nan_ends_the_run_with_the_weights_before_it(loops, tmp_path, name):
    weights = {}

    class Spoil(TrainerCallback):
        def on_batch_start(self, trainer):
            weights.update({k: v.clone() for k, v in trainer.model.state_dict().items()})

        def on_backward_end(self, trainer):
            if trainer.step == 3:
                for group in trainer.optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.grad.fill_(float("nan"))

    loop = loops.kinds[name](tmp_path, [Spoil()])
    with pytest.raises(NonFiniteError, match="update 4"):
        loop.train()
    assert (loop.run.result.status, loop.run.result.stop_reason) == ("failed", "NonFiniteError")
    assert not (tmp_path / "final").exists()
    for key, value in loop.run.model.state_dict().items():
        if "weight" in key:
            assert torch.equal(value, weights[key])


def snap(loop):
    """The state of model, optimizer and schedule, copied."""
    run = loop.run
    parts = [run.model, run.view.optimizer, *filter(None, [run.view.scheduler])]
    return copy.deepcopy([part.state_dict() for part in parts])


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("name", [name for name in NAMES if name in ("epochs", "accelerate")])
def test_an_update_that_is_not_finite_changes_nothing(
    loops, tiny, tmp_path, name, what, on_nonfinite
):
    states = {}

    class Spoil(TrainerCallback):
        def on_backward_end(self, trainer):
            states[trainer.step] = snap(loop)
            if what == "gradient" and trainer.step == 3:
                loop.model[2].weight.grad[0, 0] = float("inf")

        def on_step_end(self, trainer, skipped):
            assert skipped == (trainer.step == 4)

    class Bad(loops.kinds[name]):
        def loss_of(self, ids, labels):
            is_bad = what == "loss" and self.run.position.step == 3 and self.model.training
            return super().loss_of(ids, labels) * (float("nan") if is_bad else 1.0)

    loop = Bad(tmp_path, [Spoil()], on_nonfinite=on_nonfinite, epochs=2)
    if on_nonfinite == "stop":
        with pytest.raises(NonFiniteError, match="at epoch 0, update 4"):
            loop.train()
        after = snap(loop)
    else:
        assert (loop.train().status, loop.run.result.steps) == ("finished", 8)
        after = states[4]
    assert tiny.difference(states[3], after) is None
    assert tiny.difference(states[2], after) is not None


@pytest.mark.parametrize("name", NAMES)
def test_a_plugin_that_is_not_critical_is_switched_off(loops, tmp_path, name):
    class Fails(TrainerCallback):
        critical = False

        def on_step_end(self, trainer):
            if trainer.step == 3:
                raise ArithmeticError("on purpose")

    result = loops.kinds[name](tmp_path, [Fails()]).train()
    assert (result.status, result.switched_off) == ("finished", ("Fails",))


def test_a_skipped_update_of_one_optimizer_leaves_the_other_alone(loops, caplog):
    taken = []

    class Spoil(TrainerCallback):
        def on_backward_end(self, trainer):
            if trainer.step == 1 and trainer.optimizer is loop.optimizers["d"]:
                trainer.optimizer.param_groups[0]["params"][0].grad.fill_(float("nan"))

        def on_step_end(self, trainer, skipped):
            taken.append(
                (trainer.step, "d" if trainer.optimizer is loop.optimizers["d"] else "g", skipped)
            )

    loop = loops.kinds["gan"](
        None, [Spoil()], epochs=1, on_nonfinite="skip", snapshot_interval=None
    )
    assert loop.train().status == "finished"
    expected = [(step, name, (step, name) == (2, "d")) for step in range(1, 6) for name in "dg"]
    assert taken == expected
    assert "skipped epoch 0, update 2 of 'd'" in caplog.text


@pytest.mark.parametrize("name", NAMES)
def test_a_failing_plugin_ends_the_run_and_is_named(loops, tmp_path, name):
    class Fails(TrainerCallback):
        def on_step_end(self, trainer):
            if trainer.step == 3:
                raise ArithmeticError("on purpose")

    loop = loops.kinds[name](tmp_path, [Fails()])
    with pytest.raises((CallbackError, ArithmeticError), match="on purpose"):
        loop.train()
    assert loop.run.result.status == "failed"
    assert loop.run.view.store is not None
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["step-00000002"]


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_ends_the_run_at_the_third_write_in_a_row(loops, tiny, tmp_path, name):
    def work():
        loop = loops.kinds[name](tmp_path, [], snapshot_interval=1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000))
        try:
            loop.train()
        except SaveError as error:
            (tmp_path / "e").write_text(
                f"{loop.run.position.step} {loop.run.result.status} {error}"
            )
            return 1
        return 0

    assert tiny.child(work).wait() == 1
    step, status, error = (tmp_path / "e").read_text().split(" ", 2)
    assert 3 <= int(step) <= 4
    assert status == "failed"
    assert "File too large" in error


def test_early_stopping_ends_a_loop_and_the_best_weights_come_back(loops, tmp_path):
    from trainer_early_stopping import EarlyStoppingCallback

    class Worse(loops.kinds["gan"]):
        def measure(self):
            return {"distance": abs(self.run.position.step - 4)}

    stopping = EarlyStoppingCallback(patience=2, monitor="distance", mode="min")
    at_best = {}

    class Note(TrainerCallback):
        def on_validation_end(self, trainer):
            if trainer.step == 4:
                at_best.update({k: v.clone() for k, v in trainer.model.state_dict().items()})

    loop = Worse(tmp_path, [stopping, Note()], eval_interval=2)
    result = loop.train()
    assert (result.status, result.stop_reason, result.steps) == ("stopped", "patience", 6)
    for key, value in loop.run.model.state_dict().items():
        assert torch.equal(value, at_best[key])


def test_what_is_logged_of_two_optimizers(loops, tmp_path):
    loops.start(tmp_path, "gan", plugins=False, epochs=1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [*lines[0]] == [
        "step", "epoch", "_event", "_time",
        "learning_rate/g", "grad_norm/g", "learning_rate/d", "grad_norm/d", "loss/d", "loss/g",
    ]  # fmt: skip
    ends = [line for line in lines if "train_loss" in line]
    assert [*ends[0]] == [
        "step", "epoch", "_event", "_time",
        "train_loss", "train_loss/d", "train_loss/g", "distance", "spread",
    ]  # fmt: skip
