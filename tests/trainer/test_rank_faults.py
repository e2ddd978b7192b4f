"""Faults of one of several processes: all decide and end together, within a minute, and resume."""

import json
import math
import os
import signal
import time

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from trainer import ConfigError, NonFiniteError, Trainer
from trainer.data.loaders import EmptyLoaderError
from trainer.processes.points import FixedPointError
from trainer.snapshots.snapshot import list_snapshots
from trainer.snapshots.state_file import load_state
from trainer.writers.metrics_file import read_logged
from trainer_callback import CallbackError, SnapshotError, TrainerCallback

pytestmark = pytest.mark.any_loop


@pytest.mark.parametrize("hook", ["on_step_end", "on_validation_start"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_or_ctrl_c_to_one_rank(tiny, tmp_path, hook, number):
    def strike(self, trainer):
        if trainer.rank == 1 and trainer.epoch == 1 and not self.sent:
            self.sent = True
            os.kill(os.getpid(), number)

    sender = type("Sender", (TrainerCallback,), {hook: strike, "sent": False})
    place = tmp_path / "run"

    def work(rank, resume=False, callbacks=()):
        trainer = tiny.trainer(place, callbacks=callbacks, snapshot_interval=100)
        return trainer.train(resume=resume).exit_code

    started = time.monotonic()
    codes = tiny.run_ranks(lambda rank: work(rank, callbacks=[sender()]))
    assert codes == [143 if number == signal.SIGTERM else 130] * 2
    assert time.monotonic() - started < 20
    (snapshot,) = list_snapshots(place / "snapshots")
    assert load_state(snapshot)[0]["progress"]["epoch"] == 1
    assert tiny.run_ranks(lambda rank: work(rank, resume=True)) == [0, 0]


@pytest.mark.parametrize("victim", [0, 1])
def test_one_rank_dies(tiny, tmp_path, victim):
    whole, place = tmp_path / "whole", tmp_path / "run"

    def work(place, rank, resume=False, kill=None):
        callbacks = [tiny.killer(kill)] if rank == victim else []
        return tiny.trainer(place, callbacks=callbacks).train(resume=resume).exit_code

    assert tiny.run_ranks(lambda rank: work(whole, rank)) == [0, 0]
    codes = tiny.run_ranks(lambda rank: work(place, rank, kill=25))
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 1
    for snapshot in list_snapshots(place / "snapshots"):
        load_state(snapshot)  # no half one
    assert tiny.run_ranks(lambda rank: work(place, rank, resume="auto")) == [0, 0]
    one, other = tiny.newest_state(whole), tiny.newest_state(place)
    assert len(one["other_ranks"]) == 1
    one["callback_state"].pop("Killer", None)
    other["callback_state"].pop("Killer", None)
    assert tiny.difference(one, other) is None


def test_a_snapshot_of_two_ranks_is_refused_by_one(tiny, tmp_path):
    work = lambda rank: tiny.trainer(tmp_path, epochs=1).train().exit_code  # noqa: E731
    assert tiny.run_ranks(work) == [0, 0]
    with pytest.raises(SnapshotError, match="written by 2 processes, and this run has 1"):
        tiny.trainer(tmp_path, epochs=2).train(resume=True)


def test_a_refusal_of_the_main_process_ends_all_of_them(tiny, tmp_path):
    tiny.trainer(tmp_path, epochs=1).train()

    def work(rank):
        with pytest.raises(ConfigError, match="holds a run already"):
            tiny.trainer(tmp_path).train()

    assert tiny.run_ranks(work) == [0, 0]


KINDS = {
    "accumulated": {"gradient_accumulation_steps": 2},
    "validated inside the epoch": {"eval_interval": 1},
    "fp16, clipped": {"precision": "fp16", "max_grad_norm": 0.05},
    "iterable": {"kind": "stream"},
    "sampler of somebody's own": {"kind": "own sampler"},
    "loader of somebody's own": {"kind": "counting"},
    "torchdata": {"kind": "stateful"},
    "torchdata, iterable with a position": {"kind": "stateful position"},
    "2 workers": {"workers": 2},
    "2 workers, torchdata": {"kind": "stateful", "workers": 2},
    "2 workers, iterable": {"kind": "stream", "workers": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_of_which_one_dies_end_as_if_it_had_not(tiny, tmp_path, kind):
    def work(place, rank, kill=None):
        options = {"callbacks": [tiny.killer(kill)], "snapshot_interval": 1, **KINDS[kind]}
        return tiny.trainer(place, **options).train(resume="auto").exit_code

    whole, place = tmp_path / "whole", tmp_path / "run"
    assert tiny.run_ranks(lambda rank: work(whole, rank)) == [0, 0]
    codes = tiny.run_ranks(lambda rank: work(place, rank, kill=22 if rank else None))
    assert codes == [1, -signal.SIGKILL]
    assert tiny.run_ranks(lambda rank: work(place, rank)) == [0, 0]
    assert tiny.difference(tiny.newest_state(whole), tiny.newest_state(place)) is None
    logs = [read_logged(each / "metrics.jsonl") for each in (whole, place)]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("hook", ["on_train_start", "on_step_end", "on_snapshot_save"])
@pytest.mark.parametrize("rank_that_fails", [0, 1])
def test_a_callback_that_fails_on_one_rank_ends_both(tiny, tmp_path, hook, rank_that_fails):
    def fail(self, trainer):
        if trainer.rank == rank_that_fails:
            raise ZeroDivisionError(hook)

    failing = type("Failing", (TrainerCallback,), {hook: fail})

    def work(rank):
        trainer = tiny.trainer(tmp_path / "run", callbacks=[failing()])
        if rank != rank_that_fails:
            return trainer.train().exit_code
        with pytest.raises(CallbackError, match=hook):
            trainer.train()
        return 9

    codes = tiny.run_ranks(work)
    assert codes[rank_that_fails] == 9
    assert codes[1 - rank_that_fails] == 1


@pytest.mark.parametrize("rank_that_fails", [0, 1])
def test_a_state_that_one_rank_cannot_save_is_told_to_the_other(tiny, tmp_path, rank_that_fails):
    class Keeps(TrainerCallback):
        def on_snapshot_save(self, trainer):
            return {"odd": object() if trainer.rank == rank_that_fails else 1}

    def work(rank):
        text = f"process {rank_that_fails} has failed .CallbackError: Keeps"
        kind, text = (CallbackError, "odd") if rank == rank_that_fails else (FixedPointError, text)
        with pytest.raises(kind, match=text):
            tiny.trainer(tmp_path / "run", callbacks=[Keeps()]).train()

    assert tiny.run_ranks(work) == [0, 0]


@pytest.mark.parametrize("waits", ["on_step_end", "on_epoch_end"])
@pytest.mark.parametrize("fails", ["on_train_start", "on_batch_end", "on_validation_end", "on_log"])
def test_a_callback_that_is_switched_off_on_one_rank_is_off_on_both(
    tiny, tmp_path, fails, waits, caplog
):
    """Else the other process would wait for it in the next hook that takes both."""

    def fail(self, trainer):
        if trainer.rank == 0 and (fails == "on_train_start" or trainer.epoch == 1):
            raise OSError("no space left")

    def wait(self, trainer):
        trainer.save_weights("mine")

    breaks = type("Breaks", (TrainerCallback,), {"critical": False, fails: fail, waits: wait})

    def work(rank):
        result = tiny.trainer(tmp_path / "run", callbacks=[breaks()]).train()
        assert result.switched_off == ("Breaks",)
        assert ("has failed in another process" in caplog.text) == (rank == 1)

    assert tiny.run_ranks(work, seconds=20) == [0, 0]


def test_a_loss_that_is_not_finite_on_one_rank_stops_both(tiny, tmp_path):
    def work(rank):
        def loss_fn(model, batch):
            spoilt = rank == 1 and model.training and trainer.step == 3
            return model(batch).square().mean() * (math.nan if spoilt else 1.0)

        trainer = tiny.trainer(tmp_path / "run", loss_fn=loss_fn, snapshot_interval=1)
        with pytest.raises(NonFiniteError, match="epoch 1, update 4"):
            trainer.train()

    assert tiny.run_ranks(work) == [0, 0]
    state = tiny.newest_state(tmp_path / "run")
    assert state["progress"]["step"] == 3
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_the_time_of_one_rank_is_up(tiny, tmp_path):
    def work(rank):
        options = {"max_time": 1e-9 if rank else 1000.0, "snapshot_interval": 100}
        result = tiny.trainer(tmp_path / "run", **options).train()
        assert (result.stop_reason, result.steps) == ("max_time", 1)

    assert tiny.run_ranks(work) == [0, 0]
    assert tiny.newest_state(tmp_path / "run")["progress"]["step"] == 1


class Counted(IterableDataset):
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return iter(torch.ones(self.count, 4))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("known", [True, False])
def test_a_loader_with_more_batches_on_one_rank_ends_both(tiny, tmp_path, steps, known):
    def work(rank):
        loader = DataLoader(Counted(40 if rank else 24), batch_size=4)
        trainer = tiny.trainer(
            tmp_path / "run",
            loader=list(loader) if known else loader,
            gradient_accumulation_steps=steps,
        )
        with pytest.raises(EmptyLoaderError, match="Give every process as many"):
            trainer.train()

    assert tiny.run_ranks(work) == [0, 0]


def test_a_validation_loader_without_a_batch_on_any_rank_gives_no_mean(tiny):
    def work(rank):
        model = torch.nn.Linear(4, 1)
        trainer = Trainer(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            [torch.ones(2, 4)] * 2,
            DataLoader(Counted(0), batch_size=4),
            loss_fn=lambda model, batch: model(batch).square().mean(),
            discover=False,
        )
        with pytest.raises(EmptyLoaderError, match="validation loader gave no batch to any"):
            trainer.train()

    assert tiny.run_ranks(work) == [0, 0]


def test_ranks_that_find_different_snapshots_are_refused(tiny, tmp_path):
    def work(rank, resume):
        if resume:
            resume = list_snapshots(tmp_path / "run" / "snapshots")[rank]
            with pytest.raises(SnapshotError, match="another process from another snapshot"):
                tiny.trainer(tmp_path / "run").train(resume=resume)
            return 0
        return tiny.trainer(tmp_path / "run", epochs=1, snapshot_interval=1).train().exit_code

    assert tiny.run_ranks(lambda rank: work(rank, resume=False)) == [0, 0]
    assert tiny.run_ranks(lambda rank: work(rank, resume=True)) == [0, 0]


def test_the_main_process_alone_hears_that_a_snapshot_is_safe_also_after_a_resume(tiny, tmp_path):
    class Hears(TrainerCallback):
        def on_snapshot_saved(self, trainer, step):
            with (tmp_path / "heard").open("a") as file:
                file.write(json.dumps([trainer.rank, step]) + "\n")

    def work(rank, epochs):
        options = {"snapshot_interval": 100, "callbacks": [Hears()], "epochs": epochs}
        return tiny.trainer(tmp_path / "run", **options).train(resume="auto").exit_code

    for epochs in (1, 2):
        assert tiny.run_ranks(lambda rank, epochs=epochs: work(rank, epochs)) == [0, 0]
    heard = [json.loads(line) for line in (tmp_path / "heard").read_text().splitlines()]
    assert heard == [[0, 3], [0, 3], [0, 6]]
