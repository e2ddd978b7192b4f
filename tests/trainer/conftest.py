"""Tiny runs, and processes that are forked off this one, so that torch is imported once."""

import contextlib
import faulthandler
import logging
import os
import random
import shutil
import signal
import socket
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from trainer import Run, Trainer, TrainerConfig
from trainer.snapshots.snapshot import list_snapshots
from trainer.snapshots.state_file import load_state
from trainer_callback import TrainerCallback

torch.set_num_threads(1)


def noisy(index: int) -> torch.Tensor:
    """An item that draws from every generator: what a data set with augmentation does."""
    noise = torch.rand(4) + random.random() + float(numpy.random.rand())
    return torch.full((4,), float(index % 5)) + 0.1 * noise


class Items(Dataset):
    def __init__(self, count=22):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return noisy(index)


class Stream(IterableDataset):
    """Says nothing of its length; shuffles by what the global generator gives."""

    def __init__(self, count=22):
        self.count = count

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        numbers = list(range(self.count))[worker.id :: worker.num_workers] if worker else None
        order = numbers or list(range(self.count))
        random.shuffle(order)
        for index in order:
            yield noisy(index)


class Position(IterableDataset):
    """An iterable data set that tells its position itself."""

    def __init__(self):
        self.position = 0

    def __iter__(self):
        while self.position < 22:
            self.position += 1
            yield noisy(self.position)
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class Counting:
    """A loader of somebody's own, which tells its position itself."""

    def __init__(self, count=6):
        self.count, self.position = count, 0

    def __iter__(self):
        while self.position < self.count:
            self.position += 1
            yield torch.stack([noisy(self.position + i) for i in range(4)])
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class Ordered:
    """A loader of somebody's own that shuffles by the epoch, and whose items draw."""

    def __init__(self):
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 6

    def __iter__(self):
        for index in random.Random(self.epoch).sample(range(6), 6):
            yield torch.stack([noisy(index + i) for i in range(4)])


class OwnSampler(torch.utils.data.Sampler):
    """Draws its order from the global generator, as torch's own do not."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __iter__(self):
        return iter(random.sample(range(self.count), self.count))


class Killer(TrainerCallback):
    """Ends its process by kill -9 at the n-th hook call."""

    def __init__(self, at=None):
        self.left = at
        self.count = 0

    def strike(self):
        self.count += 1
        if self.left is not None and self.count >= self.left:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_epoch_start(self, trainer, epoch):
        self.strike()

    def on_batch_start(self, trainer, batch_idx, batch):
        self.strike()

    def on_backward_end(self, trainer):
        self.strike()

    def on_step_end(self, trainer, skipped):
        self.strike()

    def on_batch_end(self, trainer, batch_idx, loss):
        self.strike()

    def on_validation_end(self, trainer, metrics):
        self.strike()

    def on_epoch_end(self, trainer, epoch):
        self.strike()

    def on_snapshot_save(self, trainer, epoch, step):
        self.strike()

    def on_snapshot_saved(self, trainer, path, epoch, step):
        self.strike()


def make_loader(kind="map", workers=0):
    settings = {"batch_size": 4, "num_workers": workers}
    if kind in ("map", "persistent"):
        settings["persistent_workers"] = kind == "persistent"
        return DataLoader(Items(), shuffle=True, **settings)
    if kind == "stream":
        return DataLoader(Stream(), **settings)
    if kind == "own sampler":
        return DataLoader(Items(), sampler=OwnSampler(22), **settings)
    if kind == "counting":
        return Counting()
    if kind == "set_epoch":
        return Ordered()
    from torchdata.stateful_dataloader import StatefulDataLoader

    with warnings.catch_warnings():  # of torch about torchdata: 'set_vital' is deprecated
        warnings.simplefilter("ignore", UserWarning)
        if kind == "stateful stream":
            return StatefulDataLoader(Stream(), **settings)
        if kind == "stateful position":
            return StatefulDataLoader(Position(), **settings)
        return StatefulDataLoader(Items(), shuffle=True, **settings)


def make_trainer(
    directory, *, kind="map", workers=0, val=True, callbacks=(), loss_fn=None, loader=None, **config
):
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    settings = {"epochs": 3, "snapshot_interval": 2, "log_interval": 1, "seed": 5, **config}
    return Trainer(
        model,
        optimizer,
        make_loader(kind, workers) if loader is None else loader,
        DataLoader(Items(8), batch_size=4) if val else None,
        loss_fn=loss_fn or (lambda model, batch: model(batch).square().mean()),
        scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 3),
        config=TrainerConfig(output_dir=directory, **settings),
        callbacks=list(callbacks),
        discover=False,
        artifacts={"config.yaml": b"epochs: 3\n"},
    )


class ByHand:
    """The training of a `Trainer`, by a loop of one's own over `Run`."""

    def __init__(
        self, model, optimizer, train_loader, val_loader=None, *, loss_fn, scheduler=None, **rest
    ):
        self.train_loader, self.val_loader, self.loss_fn = train_loader, val_loader, loss_fn
        validate = None if val_loader is None else self.validate
        self.run = Run(model, optimizer, scheduler=scheduler, validate=validate, **rest)

    def __getattr__(self, name):
        return getattr(self.run.view, name)

    def validate(self):
        total = count = 0
        for batch in self.run.validation_batches(self.val_loader):
            total += float(self.loss_fn(self.run.module, batch)) * len(batch)
            count += len(batch)
        sums = torch.tensor([total, count], dtype=torch.float64)
        if self.run.view.world_size > 1:
            torch.distributed.all_reduce(sums)
        return {"val_loss": float(sums[0] / sums[1])}

    def train(self, resume=False):
        run = self.run
        with run.start(resume):
            for _ in run.epochs():
                for batch in run.batches(self.train_loader):
                    with run.autocast():
                        loss = self.loss_fn(run.module, batch)
                    run.backward(loss)
                    run.step()
        return run.result


def pytest_generate_tests(metafunc):
    if metafunc.definition.get_closest_marker("any_loop"):
        metafunc.fixturenames.append("any_loop")
        metafunc.parametrize("any_loop", ["Trainer", "by hand"], indirect=True)


@pytest.fixture
def any_loop(request, monkeypatch):
    """Puts a loop of one's own where a test of the mark `any_loop` builds a Trainer."""
    if request.param == "by hand":
        monkeypatch.setitem(globals(), "Trainer", ByHand)
        if hasattr(request.module, "Trainer"):
            monkeypatch.setattr(request.module, "Trainer", ByHand)


class Child:
    """A forked process; `wait` returns its exit code, negative for a signal."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                faulthandler.register(signal.SIGUSR1, file=2)  # where it hangs, if it does
                result = work()
                code = result if isinstance(result, int) else 0
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
            except KeyboardInterrupt:
                code = 130
            except BaseException:
                traceback.print_exc()
            finally:
                logging.shutdown()
                os._exit(code)

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 60) -> int:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(self.pid, signal.SIGUSR1)
        time.sleep(0.5)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"still running after {seconds} seconds")


def run_ranks(work: Callable[[int], object], seconds: float = 60, count: int = 2) -> list[int]:
    """Runs `work(rank)` in `count` processes, as torchrun would; returns their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}

    def join(rank: int) -> object:
        os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
        try:
            return work(rank)
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()

    children = [Child(lambda rank=rank: join(rank)) for rank in range(count)]
    end = time.monotonic() + seconds
    try:
        return [child.wait(max(1, end - time.monotonic())) for child in children]
    except AssertionError:  # the one that is left would wait for the other
        for number in (signal.SIGUSR1, signal.SIGKILL):
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    child.send(number)
            time.sleep(0.5)
        raise


def newest_state(directory: Path) -> dict[str, Any]:
    return load_state(list_snapshots(directory / "snapshots")[0])[0]


def difference(one: Any, other: Any, path: str = "state") -> str | None:
    """The first place where two states differ by a single bit, or None."""
    if type(one) is not type(other):
        return f"{path}: {type(one)} and {type(other)}"
    if isinstance(one, dict):
        if list(one) != list(other):
            return f"{path}: {list(one)} and {list(other)}"
        pairs = [(one[key], other[key], f"{path}.{key}") for key in one]
    elif isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return f"{path}: {len(one)} and {len(other)} items"
        pairs = [(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(one, other, strict=True))]
    elif isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
        return None if same else f"{path}: tensors differ"
    else:
        return None if repr(one) == repr(other) else f"{path}: {one!r} and {other!r}"
    return next((found for pair in pairs if (found := difference(*pair))), None)


@pytest.fixture
def tmp_path(tmp_path):
    """In memory where there is such a place: a killed process loses nothing there either, and
    hundreds of syncs cost nothing.
    """
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    place = Path(tempfile.mkdtemp(dir=memory))
    yield place
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny():
    """The functions above, for tests: `--import-mode=importlib` lets nobody import a conftest."""
    make_trainer(None, snapshot_interval=None, epochs=1).train()  # what torch imports late

    class Tiny:
        trainer = staticmethod(make_trainer)
        loader = staticmethod(make_loader)
        child = Child
        run_ranks = staticmethod(run_ranks)
        killer = Killer
        items = Items
        newest_state = staticmethod(newest_state)
        difference = staticmethod(difference)

    return Tiny


@pytest.fixture
def late(monkeypatch):
    """Verdicts are left on the device. That is for CUDA alone; a fused optimizer obeys them on a
    CPU, too.
    """
    monkeypatch.setattr("trainer.step.verdicts._WAITING_COSTS", {"cpu"})


@pytest.fixture(params=["at once", "late"])
def reading(request):
    """When verdicts are read."""
    if request.param == "late":
        request.getfixturevalue("late")
    return request.param
