"""Runs that every host has to make as `trainer.Trainer` makes them, and what is compared of them.

A host brings a driver: a function of a `Case` that trains, and returns what `summarise` does. All
runs take place in processes of their own, forked off one that has imported everything, so that they
can be killed, and so that several of them can train together.

Letters: B rows of a batch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer_callback import StopRequest, TrainerCallback

B, BATCHES = 4, 5
RATE = 0.05


class TinyModel(nn.Module):
    """A model as the hub has them: it computes its own loss, and knows no other arguments. It is a
    regression, or tells `classes` classes apart.
    """

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.last = nn.Linear(4, classes or 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        y = self.last(torch.tanh(self.first(x)))
        if y.shape[1] > 1:
            return {"loss": nn.functional.cross_entropy(y, labels), "logits": y}
        return {"loss": nn.functional.mse_loss(y, labels), "y": y}


def make_data(
    seed: int, rows: int = B * BATCHES, classes: int = 0
) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 4, generator=generator)
    if classes:
        labels = inputs.sum(1).long() % classes
        labels[::7] = -100
        return [{"x": x, "labels": y} for x, y in zip(inputs, labels, strict=True)]
    return [{"x": x, "labels": x.sum(0, keepdim=True)} for x in inputs]


def make_model(classes: int = 0) -> tuple[TinyModel, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = TinyModel(classes)
    return model, torch.optim.AdamW(model.parameters(), lr=RATE)


def answer(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Any]:
    """Returns the loss, and all that the model has answered."""
    outputs = model(**batch)
    return outputs["loss"], outputs


def loss_of(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return answer(model, batch)[0]


class Killer(TrainerCallback):
    """Kills its process before an update, so that nobody can do anything about it."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_batch_start(self, trainer: Any) -> None:
        if trainer.step == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


class StopAt(TrainerCallback):
    """Ends the run behind an update; of several processes, one alone asks for it."""

    def __init__(self, at: int, rank: int = 0) -> None:
        self.at, self.rank = at, rank

    def should_stop_training(self, trainer: Any) -> StopRequest | None:
        if trainer.step >= self.at and trainer.rank == self.rank:
            return StopRequest("enough", "it is enough.")
        return None


class Faulty(TrainerCallback):
    """Fails once."""

    def __init__(self, *, critical: bool, at: int = 3) -> None:
        self.critical, self.at = critical, at

    def on_step_end(self, trainer: Any) -> None:
        if trainer.step == self.at:
            raise RuntimeError("this is a fault")


class Drawer(TrainerCallback):
    """Has random numbers of its own in each process, and writes down what it has drawn."""

    state_per_process = True

    def __init__(self) -> None:
        self.drawn: list[int] = []

    def on_train_start(self, trainer: Any, resumed: bool) -> None:
        if not resumed:
            self.drawn = [trainer.rank]

    def on_snapshot_load(self, state: Any) -> None:  # type: ignore[override]
        self.drawn = list(state["drawn"])

    def on_step_end(self, trainer: Any) -> None:
        self.drawn.append(self.drawn[-1] * 7 % 101 + trainer.rank)

    def on_snapshot_save(self) -> Any:  # type: ignore[override]
        return {"drawn": self.drawn}

    def on_train_end(self, trainer: Any) -> None:  # type: ignore[override]
        place = trainer.output_dir / f"drawn-{trainer.rank}.json"
        place.write_text(json.dumps(self.drawn))


class Asks(TrainerCallback):
    """Asks for a snapshot of its own behind an update, in the last process alone."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, trainer: Any) -> None:
        if trainer.step == self.at and trainer.rank == trainer.world_size - 1:
            trainer.request_snapshot()

    def on_snapshot_saved(self, trainer: Any, step: int) -> None:  # type: ignore[override]
        with (trainer.output_dir / "saved.txt").open("a") as file:
            file.write(f"{step}\n")


class Logs(TrainerCallback):
    """Logs from another thread, which is over before the boundary."""

    logs_metrics = ("from_thread",)

    def on_batch_end(self, trainer: Any) -> None:  # type: ignore[override]
        import threading

        thread = threading.Thread(target=trainer.log, args=({"from_thread": 1.0},))
        thread.start()
        thread.join()


class Watches(TrainerCallback):
    """Writes down what it is handed in each hook of a batch, and where."""

    def _write(self, trainer: Any, *values: Any) -> None:
        place = (trainer.epoch, trainer.step, trainer.batch_in_epoch, trainer.snapshot_due)
        with (trainer.output_dir / f"watched-{trainer.rank}.txt").open("a") as file:
            file.write(f"{place} {[_plain(each) for each in values]}\n")

    def on_epoch_start(self, trainer: Any, epoch: int) -> None:
        self._write(trainer, "epoch", epoch, trainer.train_batches, trainer.max_steps)

    def on_batch_start(self, trainer: Any, batch_idx: int, batch: Any) -> None:
        self._write(trainer, "batch", batch_idx, batch["x"].double().sum())

    def on_forward_end(self, trainer: Any, loss: Any, outputs: Any) -> None:
        self._write(trainer, "forward", loss)

    def on_backward_end(self, trainer: Any) -> None:
        norm = trainer.gradient_stats().total_norm
        self._write(trainer, "backward", norm, trainer.last_update_of_epoch)

    def on_gradients_clipped(self, trainer: Any, total_norm: Any, clipped: Any) -> None:
        self._write(trainer, "clipped", total_norm, clipped)

    def on_step_end(self, trainer: Any, skipped: bool) -> None:
        gradients = [each.grad is not None for each in trainer.model.parameters()]
        rate = trainer.optimizer.param_groups[0]["lr"]
        self._write(trainer, "step", skipped, all(gradients), rate)

    def on_batch_end(self, trainer: Any, batch_idx: int, loss: Any, outputs: Any) -> None:
        self._write(trainer, "end", batch_idx, loss)

    def on_epoch_end(self, trainer: Any, epoch: int, train_loss: float) -> None:  # type: ignore[override]
        self._write(trainer, "epoch end", epoch, train_loss)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else value


Maker = Callable[[], Sequence[object]]


@dataclass(frozen=True)
class Case:
    """What is trained, and how.

    Attributes:
        name: for people.
        entries: makes the plugins.
        lives: of each start but the last, the update before which it is killed.
        stops_at: of each start but the last, where a plugin ends it cleanly.
        validate_every: updates between two validations; None: one behind each epoch.
        save_every: updates between two checkpoints; None: one behind each epoch.
        classes: that the model tells apart; 0: it is a regression.
    """

    name: str
    entries: Maker = tuple
    place: Path = Path()
    epochs: int = 3
    window: int = 1
    clip: float | None = None
    precision: str = "fp32"
    linear: bool = False
    max_steps: int | None = None
    validate_every: int | None = None
    save_every: int | None = None
    processes: int = 1
    rows: int = B * BATCHES
    classes: int = 0
    lives: tuple[int, ...] = ()
    stops_at: tuple[int, ...] = ()
    extra: tuple[object, ...] = field(default=())
    resumes: bool = False

    @property
    def updates(self) -> int:
        each = -(-(self.rows // B // self.processes) // self.window)
        return self.max_steps or each * self.epochs

    def plugins(self) -> list[object]:
        return [*self.entries(), *self.extra]


def summarise(result: Any, model: nn.Module, folder: Path, rank: int) -> dict[str, Any]:
    """Returns what two hosts have to have in common: the decision, the records, the weights.

    Args:
        result: what `on_train_end` was handed.
        folder: where plugins wrote.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    names = ["gradient_flow/gradients.jsonl", "saved.txt", "lr_finder.json"]
    names += [f"{start}-{rank}.{end}" for start, end in (("drawn", "json"), ("watched", "txt"))]
    return {
        "end": (result.status, result.stop_reason, result.stopped_by, result.steps, result.epochs),
        "switched_off": result.switched_off,
        "history": result.history,
        "kept": (result.weights.kind, result.weights.step),
        "metrics": _read_metrics(folder / "metrics.jsonl") if rank == 0 else [],
        "files": {each: _read_lines(folder / each) for each in names},
        "weights": digest.hexdigest(),
    }


def _read_lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


_TIMES = ("_time", "text", "callback_costs", "seconds", "per_second", "memory", "mfu", "flops")


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [
        {name: value for name, value in line.items() if not any(each in name for each in _TIMES)}
        for line in lines
    ]
    return [line for line in kept if line.keys() - {"step", "epoch", "event", "_event"}]


class Ends(TrainerCallback):
    """Keeps how a run has ended."""

    logs_metrics = ()
    result: Any = None

    def on_train_end(self, result: Any) -> None:  # type: ignore[override]
        self.result = result


def train_at_home(case: Case, rank: int) -> dict[str, Any]:
    """The run in our own trainer."""
    from trainer import Trainer, TrainerConfig

    model, optimizer = make_model(case.classes)
    config = TrainerConfig(
        epochs=case.epochs,
        max_steps=case.max_steps,
        output_dir=case.place / "home",
        gradient_accumulation_steps=case.window,
        max_grad_norm=case.clip,
        precision=case.precision,  # type: ignore[arg-type]
        eval_interval=case.validate_every,
        log_interval=1,
        snapshot_interval=case.save_every,
        snapshot_epochs=case.save_every is None,
        snapshot_sync=True,
        device="cpu",
    )
    scheduler = None
    if case.linear:
        last = case.updates
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: max(0, last - n) / last)
    own, ends = make_loader(case.rows, case.classes), Ends()
    trainer = Trainer(
        *(model, optimizer, own),
        val_loader=torch.utils.data.DataLoader(make_data(1, 8, case.classes), batch_size=8),
        loss_fn=answer if case.classes else loss_of,
        scheduler=scheduler,
        config=config,
        callbacks=[*_make(case), ends],
        discover=False,
        progress=False,
    )
    with contextlib.suppress(Exception):
        trainer.train(resume="auto" if case.resumes else False)
    return summarise(ends.result, model, case.place / "home", rank)


def make_loader(rows: int, classes: int = 0) -> Any:
    return torch.utils.data.DataLoader(make_data(0, rows, classes), batch_size=B)  # type: ignore[arg-type]


def _make(case: Case) -> list[object]:
    from trainer.hosting import make_callbacks

    return make_callbacks(case.plugins())


Driver = Callable[[Case, int], dict[str, Any]]


def run_case(case: Case, driver: Driver, place: Path) -> list[dict[str, Any]]:
    """Returns the summary of each process of the last life.

    Raises:
        AssertionError: a life did not end as it had to.
    """
    case = replace(case, place=place)
    ends = [*[(Killer(at), -signal.SIGKILL) for at in case.lives]]
    ends += [(StopAt(at), 0) for at in case.stops_at]
    for number, (callback, expected) in enumerate(ends):
        life = replace(case, extra=(callback,), resumes=number > 0)
        codes, _ = _fork(life, driver)
        assert all(code == expected for code in codes), (case.name, number, codes)
    codes, found = _fork(replace(case, resumes=bool(ends)), driver)
    assert not any(codes), (case.name, codes)
    return found


def _fork(case: Case, driver: Driver) -> tuple[list[int], list[dict[str, Any]]]:
    """Runs all processes of one life; returns their exit codes, and what they have returned."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    case.place.mkdir(parents=True, exist_ok=True)
    pids = []
    for rank in range(case.processes):
        pid = os.fork()
        if pid == 0:
            _live(case, driver, rank, port)
        pids.append(pid)
    codes = _wait(pids)
    names = [case.place / f"found-{rank}.pkl" for rank in range(case.processes)]
    found_all = [pickle.loads(each.read_bytes()) for each in names if each.exists()]
    for each in names:
        each.unlink(missing_ok=True)
    return codes, found_all


def _wait(pids: list[int], seconds: float = 240) -> list[int]:
    """Returns the exit codes; the others of a process that was killed are killed too."""
    codes: dict[int, int] = {}
    end = time.monotonic() + seconds
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        killed = any(code == -signal.SIGKILL for code in codes.values())
        if killed or time.monotonic() > end:
            for pid in set(pids) - codes.keys():
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def _live(case: Case, driver: Driver, rank: int, port: int) -> None:
    """The life of a forked process, which ends in it."""
    code = 1
    try:
        with (case.place / f"log-{driver.__name__}-{rank}.txt").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        torch.set_num_threads(1)
        if case.processes > 1:
            named = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.processes}
            named |= {"MASTER_PORT": port, "LOCAL_WORLD_SIZE": case.processes}
            named |= {"OMP_NUM_THREADS": 1}  # which accelerate sets else, with a warning
            os.environ.update({name: str(value) for name, value in named.items()})
            os.environ["MASTER_ADDR"] = "127.0.0.1"
        found = driver(case, rank)
        (case.place / f"found-{rank}.pkl").write_bytes(pickle.dumps(found))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if code == 0 and case.processes > 1:
            with contextlib.suppress(Exception):
                torch.distributed.destroy_process_group()
        os._exit(code)


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Yields where two summaries differ; validation losses by more than a float32 can tell."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in ours.keys() | theirs.keys():
            if name not in ours or name not in theirs:
                yield f"{path}.{name}: only in {'ours' if name in ours else 'theirs'}"
            else:
                yield from differences(ours[name], theirs[name], f"{path}.{name}")
    elif isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        if len(ours) != len(theirs):
            yield f"{path}: {len(ours)} and {len(theirs)} entries: {ours} and {theirs}"
        for index, (one, other) in enumerate(zip(ours, theirs, strict=False)):
            yield from differences(one, other, f"{path}[{index}]")
    elif isinstance(ours, float) and isinstance(theirs, float) and "val_" in path:
        if not math.isclose(ours, theirs, rel_tol=1e-6, abs_tol=1e-6):
            yield f"{path}: {ours!r} and {theirs!r}"
    elif ours != theirs and not (ours != ours and theirs != theirs):
        yield f"{path}: {ours!r} and {theirs!r}"


def _stopping(**options: Any) -> Maker:
    return lambda: [{"early_stopping": {"patience": 1, "min_delta": 0.02, **options}}]


def _monitor() -> list[object]:
    return [{"gradient_monitor": {"monitor_interval": 1}}]


def _all_three() -> list[object]:
    return [*_stopping()(), "ema", *_monitor()]


def _two() -> list[object]:
    named = {"early_stopping": {"patience": 9, "monitor": "train_loss", "state_key": "second"}}
    return [*_stopping()(), named]


CASES: Sequence[Case] = (
    Case("plain", lambda: [Watches()]),
    Case("accumulation", lambda: [Watches(), *_monitor()], window=5),
    Case("a short last window", lambda: [Watches(), *_monitor()], window=2),
    Case("clipping", lambda: [Watches(), *_monitor()], clip=0.5),
    Case("clipping, and a short window", lambda: [Watches(), *_monitor()], clip=0.5, window=3),
    Case("a schedule", lambda: [Watches()], linear=True),
    Case("bf16", lambda: [Watches(), *_monitor()], precision="bf16"),
    Case("fp16", lambda: [Watches()], precision="fp16"),
    Case("a limit of updates, inside an epoch", lambda: [Watches()], max_steps=7),
    Case("validation behind each update", _stopping(patience=3), validate_every=1),
    Case("early stopping", _stopping(), epochs=12),
    Case("early stopping, best weights put back", _stopping(patience=2, min_delta=0.3), epochs=12),
    Case("early stopping without weights", _stopping(restore_best=False), epochs=12),
    Case("two of early stopping", _two, epochs=8),
    Case("average of the weights, validated", lambda: ["ema"]),
    Case("average and early stopping", lambda: [*_stopping()(), "ema"], epochs=12),
    Case("gradient monitor", _monitor),
    Case("gradient monitor at snapshots", lambda: ["gradient_monitor"], save_every=2),
    Case("throughput", lambda: ["throughput"]),
    Case("TensorBoard", lambda: ["tensorboard"]),
    Case("profiler", lambda: [{"profiler": {"wait": 1, "warmup": 1, "active": 1}}]),
    Case("learning-rate finder", lambda: [{"lr_finder": {"steps": 12}}]),
    Case("mirror", lambda: [{"mirror": {"url": "memory://there"}}]),
    Case("a stop by a plugin, inside an epoch", lambda: [Watches(), StopAt(7)]),
    Case("a stop by a plugin, at an epoch's end", lambda: [Watches(), StopAt(10)]),
    Case("a failing plugin, critical", lambda: [Watches(), Faulty(critical=True)]),
    Case("a failing plugin, not critical", lambda: [Watches(), Faulty(critical=False)]),
    Case("a snapshot that a plugin asks for", lambda: [Asks(3)]),
    Case("logged from a thread", lambda: [Logs()]),
    Case("killed behind an epoch's end", _all_three, lives=(7,)),
    Case("killed inside an epoch", _all_three, lives=(8,), save_every=2),
    Case("killed inside an epoch, short windows", _all_three, lives=(5,), save_every=2, window=2),
    Case("killed twice", _all_three, lives=(3, 8), save_every=2),
    Case("killed, then early stopping", _stopping(), lives=(12,), epochs=12),
    Case("stopped by a plugin, and resumed", lambda: [Watches()], stops_at=(7,)),
    Case("killed, state of each process", lambda: [Drawer()], lives=(8,), save_every=2),
    Case("two processes", lambda: [Watches(), *_monitor()], processes=2, rows=32),
    Case("two processes, early stopping", _stopping(), processes=2, rows=32, epochs=12),
    Case("two processes, one asks for the end", lambda: [StopAt(5, 1)], processes=2, rows=32),
    Case("two processes, one asks for a snapshot", lambda: [Asks(3)], processes=2, rows=32),
    Case(
        "two processes, killed, state of each",
        lambda: [Drawer(), *_all_three()],
        processes=2,
        rows=32,
        lives=(6,),
        save_every=3,
    ),
)
