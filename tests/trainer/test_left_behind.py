"""A run that is over, and that nobody holds, leaves no tensor: on a card that is memory. No tensor
waits for the garbage collector.
"""

import gc
import signal

import pytest
import torch
from torch import Tensor, nn

from trainer import Run, Trainer, TrainerConfig
from trainer_callback import TrainerCallback
from trainer_early_stopping import EarlyStoppingCallback
from trainer_ema import EMACallback
from trainer_gradient_monitor import GradientMonitorCallback
from trainer_lr_finder import LRFinderCallback
from trainer_throughput import ThroughputCallback

SIZES = (17, 23)
"""Of the model: nobody else has tensors of these."""


class Fail(TrainerCallback):
    def on_step_end(self, trainer):
        if trainer.step == 5:
            raise RuntimeError("the end")


def train(place, device, *, fails=False, **config):
    """A whole run: updates, a validation, snapshots, a resume, predictions."""
    own = [Fail()] if fails else []
    data = list(torch.randn(6, 4, SIZES[0]))

    def make():
        model = nn.Sequential(nn.Linear(*SIZES), nn.Tanh(), nn.Linear(SIZES[1], 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        monitor = GradientMonitorCallback(monitor_interval=1, monitor_histogram=True, report=False)
        plugins = [EarlyStoppingCallback(patience=3), EMACallback(), ThroughputCallback()]
        return Trainer(
            model,
            optimizer,
            data,
            data[:2],
            loss_fn=lambda model, batch: model(batch).float().square().mean(),
            scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 3),
            config=TrainerConfig(
                output_dir=place, device=device, snapshot_interval=2, max_grad_norm=1.0, **config
            ),
            callbacks=[monitor, *plugins, *own],
            discover=False,
            progress=False,
        )

    if fails:
        with pytest.raises(RuntimeError, match="the end"):
            make().train()
        return
    make().train()
    trainer = make()
    assert trainer.train(resume=True).status == "finished"
    trainer.predict(data, predict_fn=lambda model, batch: model(batch))


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def find_tensors():
    return {id(each): each for each in gc.get_objects() if issubclass(type(each), Tensor)}


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_that_is_over_leaves_no_tensor(no_collector, tmp_path, fails):
    train(tmp_path / "warm", "cpu", epochs=2)
    before = find_tensors()
    train(tmp_path / "run", "cpu", epochs=2, fails=fails)
    left = [each for key, each in find_tensors().items() if key not in before]
    assert [(each.shape, each.dtype) for each in left] == []


def raising(hook, error):
    """A callback that raises a new exception of that kind in `hook`."""

    def fail(self):
        raise error("the end")

    return type("Raises", (TrainerCallback,), {hook: fail})()


def train_quietly(place, callback):
    """A run with a callback that stands around others; returns the text of what it ended in."""
    model = nn.Linear(SIZES[0], 1)
    config = TrainerConfig(epochs=1, output_dir=place, device="cpu", snapshot_interval=1)
    batches = list(torch.randn(4, 3, SIZES[0]))
    trainer = Trainer(
        *(model, torch.optim.Adam(model.parameters()), batches, batches),
        loss_fn=lambda model, batch: model(batch).square().mean(),
        config=config,
        callbacks=[callback, EMACallback()],
        discover=False,
        progress=False,
    )
    try:
        trainer.train()
    except BaseException as error:
        return str(error)
    return ""


def check_left(make, place, end=""):
    train_quietly(place / "warm", make())
    before = find_tensors()
    said = train_quietly(place / "run", make())
    left = [each for key, each in find_tensors().items() if key not in before]
    assert [(each.shape, each.dtype) for each in left] == []
    assert end in said if end else not said


HOOKS = """
on_setup on_train_start on_step_end on_validation_end on_snapshot_saved on_epoch_end on_train_end
on_final_saved
"""


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("hook", HOOKS.split())
def test_a_run_leaves_no_tensor_wherever_it_fails(no_collector, tmp_path, hook, error):
    check_left(lambda: raising(hook, error), tmp_path, "the end")


def test_a_run_whose_snapshots_fail_leaves_no_tensor(no_collector, tmp_path):
    class FullDisk(TrainerCallback):
        def on_train_start(self, trainer):
            (trainer.output_dir / "snapshots").write_text("in the way")

    check_left(FullDisk, tmp_path, "could not be written")


def test_a_run_with_pictures_leaves_no_tensor(no_collector, tmp_path):
    check_left(lambda: GradientMonitorCallback(monitor_interval=1), tmp_path)
    check_left(LRFinderCallback, tmp_path / "rates")
    assert {each.parent.name for each in tmp_path.rglob("*.png")} >= {"run"}


def test_a_started_run_that_nobody_holds_is_gone_without_a_word(monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr("sys.unraisablehook", said.append)
    model = nn.Linear(SIZES[0], 1)
    run = Run(model, torch.optim.Adam(model.parameters()), discover=False, progress=False)
    context, handlers = run.start(), [*map(signal.getsignal, (signal.SIGINT, signal.SIGTERM))]
    context.__enter__()
    del run, context
    gc.collect()
    assert said == []
    assert [*map(signal.getsignal, (signal.SIGINT, signal.SIGTERM))] == handlers
    train_by_hand(tmp_path)  # another one may start


def test_the_collector_frees_a_run_whose_callback_keeps_the_trainer(tmp_path):
    class Keeps(TrainerCallback):
        def on_train_start(self, trainer):
            self.trainer = trainer

    gc.collect()
    before = find_tensors()
    train_quietly(tmp_path, Keeps())
    gc.collect()
    assert [each.shape for key, each in find_tensors().items() if key not in before] == []


@pytest.mark.card
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_card_it_leaves_no_byte(no_collector, tmp_path, precision):
    train(tmp_path / "warm", "cuda", epochs=2, precision=precision)  # workspaces of libraries stay
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    train(tmp_path / "run", "cuda", epochs=2, precision=precision)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


def train_by_hand(place):
    """Two models and two optimizers, a step that is skipped, a break."""
    models = {name: nn.Linear(SIZES[0], 1) for name in ("one", "two")}
    optimizers = {name: torch.optim.Adam(each.parameters()) for name, each in models.items()}
    config = TrainerConfig(
        epochs=2, output_dir=place, device="cpu", snapshot_interval=1, on_nonfinite="skip"
    )
    monitor = GradientMonitorCallback(monitor_interval=1, report=False)
    run = Run(models, optimizers, config=config, callbacks=[monitor], discover=False)
    batches = list(torch.randn(4, 3, SIZES[0]))
    batches[1] *= float("nan")
    with run.start():
        for _ in run.epochs():
            for number, batch in enumerate(run.batches(batches)):
                for name, module in run.module.items():
                    run.backward(module(batch).square().mean(), name)
                    run.step(name)
                if number == 2:
                    break


def test_a_loop_of_ones_own_leaves_no_tensor(no_collector, tmp_path):
    train_by_hand(tmp_path / "warm")
    before = find_tensors()
    train_by_hand(tmp_path / "run")
    left = [each for key, each in find_tensors().items() if key not in before]
    assert [(each.shape, each.dtype) for each in left] == []
