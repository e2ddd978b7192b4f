"""Between two log events nothing waits for the device. Counted on a CPU, where verdicts are left on
the device by force, by what torch calls; on a card torch itself refuses each wait.
"""

import contextlib
import warnings

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainer import Loss, Trainer, TrainerConfig
from trainer.step import gradient_stats
from trainer.testing.batch_watch import SyncWatch
from trainer_callback import TrainerCallback, hookimpl
from trainer_early_stopping import EarlyStoppingCallback
from trainer_ema import EMACallback
from trainer_gradient_monitor import GradientMonitorCallback
from trainer_lm.measures import loss_of
from trainer_lm.model import GPT
from trainer_lm.options import ModelOptions
from trainer_throughput import ThroughputCallback

UPDATES = 100
_READS = {"_local_scalar_dense", "is_nonzero", "nonzero", "equal", "unique2", "masked_select"}


class Waits(TorchDispatchMode):
    """Counts what has to wait until a device has computed a value: by the names of functions, as
    the kit does, and by what they call. Values that are read one after the other, with nothing
    computed between, are one copy on a device.
    """

    def __init__(self):
        super().__init__()
        self.total, self._is_reading, self._kit = 0, False, SyncWatch()
        self._kit.see = lambda what: self.read() if what != ": to" else None  # it is there already

    def __enter__(self):
        self._names = self._kit.around("")
        self._names.__enter__()
        return super().__enter__()

    def __exit__(self, *failure):
        super().__exit__(*failure)
        self._names.__exit__(*failure)

    def read(self):
        self.total += not self._is_reading
        self._is_reading = True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in _READS:
            self.read()
        elif name != "detach":
            self._is_reading = False
        return func(*args, **(kwargs or {}))


class Window(TrainerCallback):
    """Watches `UPDATES` updates behind the first log event, which comes once all is warm."""

    def __init__(self, watch):
        self.watch, self.held = watch, contextlib.ExitStack()
        self.updates = 0

    def on_log(self, trainer, metrics):
        if trainer.step == UPDATES and "loss" in metrics:
            self.held.enter_context(self.watch)

    def on_step_end(self, trainer):
        self.updates += UPDATES < trainer.step <= 2 * UPDATES

    @hookimpl(tryfirst=True)
    def on_batch_end(self, trainer):
        if trainer.step == 2 * UPDATES:  # whose log event reads
            self.held.close()


def fused(parameters):
    return torch.optim.AdamW(parameters, lr=0.01, fused=True)


def plain(parameters):
    """Of AdamW that is not fused the counts of steps are on the CPU, and read there."""
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def mean(model, batch):
    return model(batch).float().square().mean()


def sum_of_numbers(model, batch):
    return Loss(model(batch).float().square().sum(), len(batch))


def sum_of_tensors(model, batch):
    count = torch.full((), len(batch), device=batch.device)
    return Loss(model(batch).float().square().sum(), count)


def of_train_lm(model, batch):
    ids = (batch.abs() * 9).long() % 11  # made of what the other losses have as a batch
    return loss_of(model[0], {"input_ids": ids, "labels": ids})


def train(
    watch, callbacks=(), *, device="cpu", make=fused, steps=1, width=16, loss_fn=mean, **config
):
    torch.manual_seed(0)
    if loss_fn is of_train_lm:
        model = nn.Sequential(GPT(11, ModelOptions(block_size=8, n_layer=1, n_head=1, n_embd=8)))
    else:
        model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 1))
    optimizer = make(model.parameters())
    settings = {"log_interval": UPDATES, "device": device, "max_grad_norm": 1.0, **config}
    window = Window(watch)
    data = torch.randn(2 * UPDATES * steps, 4, 8).to(device)
    trainer = Trainer(
        model,
        optimizer,
        [*data],
        [*data[:1]],
        loss_fn=loss_fn,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500),
        config=TrainerConfig(epochs=1, gradient_accumulation_steps=steps, **settings),
        callbacks=[window, *callbacks],
        discover=False,
    )
    result = trainer.train()
    assert result.status == "finished"
    assert result.switched_off == ()  # for a wait that torch has refused
    assert window.updates == UPDATES


def ours():
    return [EarlyStoppingCallback(patience=3), EMACallback(), ThroughputCallback(interval=50)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("loss_fn", [mean, sum_of_numbers, of_train_lm])
def test_between_two_log_events_nothing_waits(late, precision, steps, clip, loss_fn):
    waits = Waits()
    options = {"precision": precision, "steps": steps, "max_grad_norm": clip}
    train(waits, ours(), loss_fn=loss_fn, **options)
    assert waits.total == 0


CASES = {  # of a CPU few gradients are read beside the loss, so that there are many
    "fp16": {"precision": "fp16", "width": 8000},
    "count": {"loss_fn": sum_of_tensors, "width": 8000},
    "fp16, not fused": {"precision": "fp16", "make": plain, "width": 8000},
    "fp16, unclipped": {"precision": "fp16", "max_grad_norm": None, "width": 8000},
    "not fused": {"make": plain, "width": 8000},
    "skip": {"on_nonfinite": "skip", "width": 8000},
}


@pytest.mark.parametrize("case", CASES)
def test_where_the_host_has_to_know_it_waits_once_an_update(late, case):
    waits = Waits()
    train(waits, ours(), **CASES[case])
    assert waits.total == UPDATES


def test_a_measurement_of_the_gradient_monitor_waits_once(late, monkeypatch):
    def reduce(values, scratch):
        return gradient_stats._reduce_on_device(values)

    monkeypatch.setattr(gradient_stats, "_reduce_in_cache", reduce)  # it reads
    waits = Waits()
    monitor = GradientMonitorCallback(monitor_interval=10, report=False)
    train(waits, [*ours(), monitor])
    assert waits.total == UPDATES // 10


@pytest.mark.card
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_on_a_card_torch_finds_no_wait_between_two_log_events(precision, steps, clip):
    settings = {"precision": precision, "steps": steps, "max_grad_norm": clip}
    train(refused(), ours(), device="cuda", **settings)


@pytest.mark.card
@pytest.mark.parametrize("case", CASES)
def test_on_a_card_torch_finds_one_wait_an_update_where_the_host_has_to_know(case):
    found = []
    train(counted(found), ours(), device="cuda", **CASES[case])
    assert len(found) == UPDATES


@pytest.mark.card
@pytest.mark.parametrize("histogram", [False, True])
def test_on_a_card_torch_finds_one_wait_in_a_measurement_of_the_gradient_monitor(histogram):
    found = []
    monitor = GradientMonitorCallback(
        monitor_interval=10, report=False, monitor_histogram=histogram
    )
    train(counted(found), [*ours(), monitor], device="cuda")
    assert len(found) == UPDATES // 10


@pytest.mark.card
def test_on_a_card_torch_refuses_a_wait_that_is_there():
    """What the tests above rely on: also where the callback that waits is one that may fail."""

    class Waits(TrainerCallback):
        critical = False

        def on_step_end(self, trainer):
            next(trainer.model.parameters()).sum().item()

    with pytest.raises(AssertionError):
        train(refused(), [Waits()], device="cuda")


def set_debug_mode(mode):
    """Sets what torch does about a wait for the card, and is silent about that being new."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode(mode)


@contextlib.contextmanager
def debugging(mode):
    set_debug_mode(mode)
    try:
        yield
    finally:
        set_debug_mode("default")


def refused():
    """While it is open, torch raises where anything waits for the card."""
    return debugging("error")


@contextlib.contextmanager
def counted(found):
    """Puts into `found` torch's warnings of each wait for the card while it is open."""
    with debugging("warn"), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield
    found += [each for each in seen if "called a synchronizing" in str(each.message)]
