"""Several processes that train one model: each batch is seen once; they decide and end together."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from trainer import ConfigError, Trainer, TrainerConfig
from trainer.snapshots.snapshot import list_snapshots
from trainer_callback import StopRequest, TrainerCallback

pytestmark = pytest.mark.any_loop


class Numbers(torch.utils.data.Dataset):
    """Items that tell which they are."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.full((4,), float(index))


class Seen(TrainerCallback):
    """Writes down every batch, loss and decision of its rank."""

    def __init__(self, place, rank):
        self.file = place / f"rank-{rank}.jsonl"

    def note(self, **facts):
        with self.file.open("a") as file:
            file.write(json.dumps(facts) + "\n")

    def on_batch_start(self, trainer, batch_idx, batch):
        self.note(batch=batch[:, 0].tolist(), epoch=trainer.epoch)

    def on_epoch_end(self, trainer, train_loss, val_loss):
        self.note(train_loss=train_loss, val_loss=val_loss)

    def on_train_end(self, trainer, result):
        weights = nn.utils.parameters_to_vector(trainer.model.parameters()).tolist()
        self.note(status=result.status, by=result.stopped_by, step=result.steps, weights=weights)


def read(place, key, rank):
    lines = map(json.loads, (place / f"rank-{rank}.jsonl").read_text().splitlines())
    return [line[key] for line in lines if key in line]


def make_plain(
    place, rank, *, items=22, workers=0, callbacks=(), loader=None, loss_fn=None, **config
):
    """A trainer without dropout, so that W processes do what one does with W batches an update."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    settings = {"epochs": 2, "seed": 5, **config}
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.001),
        loader or DataLoader(Numbers(items), batch_size=4, shuffle=True, num_workers=workers),
        DataLoader(Numbers(10), batch_size=4),
        loss_fn=loss_fn or (lambda model, batch: model(batch.double()).square().mean()),
        config=TrainerConfig(**settings),
        callbacks=[Seen(place, rank), *callbacks],
        discover=False,
    )


@pytest.mark.parametrize(("workers", "steps"), [(0, 1), (0, 2), (2, 1)])
def test_two_ranks_do_what_one_does_with_twice_the_batches_an_update(
    tiny, tmp_path, workers, steps
):
    alone, both = tmp_path / "alone", tmp_path / "both"
    alone.mkdir()
    both.mkdir()
    make_plain(alone, 0, items=32, gradient_accumulation_steps=2 * steps).train()

    def work(rank):
        settings = {"workers": workers, "gradient_accumulation_steps": steps}
        return make_plain(both, rank, items=32, **settings).train().exit_code

    assert tiny.run_ranks(work) == [0, 0]
    (one,), (first,), (second,) = (
        read(place, "weights", rank) for place, rank in ((alone, 0), (both, 0), (both, 1))
    )
    assert first == second
    assert torch.allclose(torch.tensor(one), torch.tensor(first), rtol=0, atol=1e-12)
    for key in ("train_loss", "val_loss"):
        assert read(both, key, 0) == read(both, key, 1)
        assert read(both, key, 0) == pytest.approx(read(alone, key, 0), abs=1e-12)


@pytest.mark.parametrize("kind", ["map", "workers", "list", "own sampler", "divided already"])
def test_each_batch_of_an_epoch_is_seen_by_one_rank(tiny, tmp_path, kind):
    def loader(rank):
        numbers = Numbers(22)  # 6 batches
        if kind == "list":
            return [torch.full((4, 4), float(index)) for index in range(7)]  # the last one is over
        if kind == "divided already":
            sampler = DistributedSampler(numbers, 2, rank)
            return DataLoader(numbers, batch_size=4, sampler=sampler)
        if kind == "own sampler":
            return DataLoader(numbers, batch_size=4, sampler=range(21, -1, -1))
        return DataLoader(numbers, batch_size=4, shuffle=True, num_workers=2 * (kind == "workers"))

    def work(rank):
        return make_plain(tmp_path, rank, loader=loader(rank), epochs=1).train().exit_code

    assert tiny.run_ranks(work) == [0, 0]
    batches = [read(tmp_path, "batch", rank) for rank in (0, 1)]
    assert len(batches[0]) == len(batches[1]) == 3
    seen = sorted(number for each in batches for batch in each for number in batch)
    if kind == "list":
        assert seen == sorted(float(index) for index in range(6) for _ in range(4))
    else:
        assert seen == [float(index) for index in range(22)]


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_draw_random_numbers_of_their_own(tiny, tmp_path, workers):
    class Noise(Numbers):
        def __getitem__(self, index):
            return torch.rand(4)

    def work(rank):
        loader = DataLoader(Noise(8), batch_size=4, num_workers=workers)
        return make_plain(tmp_path, rank, loader=loader, epochs=1).train().exit_code

    assert tiny.run_ranks(work) == [0, 0]
    assert read(tmp_path, "batch", 0) != read(tmp_path, "batch", 1)


def test_all_ranks_validate_with_the_buffers_of_the_main_one(tiny, tmp_path):
    class Buffers(TrainerCallback):
        def on_validation_start(self, trainer):
            means = trainer.model[2].running_mean.tolist()
            with (tmp_path / f"rank-{trainer.rank}.jsonl").open("a") as file:
                file.write(json.dumps({"means": means}) + "\n")

    work = lambda rank: tiny.trainer(None, callbacks=[Buffers()], snapshot_interval=None).train()  # noqa: E731
    assert tiny.run_ranks(lambda rank: work(rank).exit_code) == [0, 0]
    assert read(tmp_path, "means", 0) == read(tmp_path, "means", 1) != []


def test_fewer_batches_than_ranks_are_refused(tiny, tmp_path):
    def work(rank):
        with pytest.raises(ConfigError, match=r"has 1 batches for 2 processes \(4 items"):
            make_plain(tmp_path, rank, items=4)

    assert tiny.run_ranks(work) == [0, 0]


@pytest.mark.parametrize("rank_that_asks", [0, 1])
def test_one_rank_wants_to_stop(tiny, tmp_path, rank_that_asks):
    class Stopper(TrainerCallback):
        def should_stop_training(self, trainer):
            if trainer.rank == rank_that_asks and trainer.step == 4:
                return StopRequest("enough")
            return None

    def work(rank):
        trainer = make_plain(tmp_path, rank, callbacks=[Stopper()], epochs=5)
        return trainer.train().exit_code

    assert tiny.run_ranks(work) == [0, 0]
    for rank in (0, 1):
        assert read(tmp_path, "step", rank) == [4]
        assert read(tmp_path, "by", rank) == ["Stopper"]


def test_a_snapshot_that_one_rank_asks_for_is_taken(tiny, tmp_path):
    class Asker(TrainerCallback):
        def on_step_end(self, trainer, skipped):
            if trainer.rank == 1 and trainer.step == 2:
                trainer.request_snapshot()

    def work(rank):
        trainer = make_plain(tmp_path, rank, callbacks=[Asker()], output_dir=tmp_path / "run")
        return trainer.train().exit_code

    assert tiny.run_ranks(work) == [0, 0]
    names = [path.name for path in list_snapshots(tmp_path / "run" / "snapshots")]
    assert names == ["step-00000006", "step-00000002"]


def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_by_both(tiny, tmp_path):
    def work(rank):
        losses = itertools.count()

        def loss_fn(model, batch):
            bad = rank == 1 and next(losses) == 2
            return model(batch.double()).square().mean() * (math.nan if bad else 1.0)

        trainer = make_plain(tmp_path, rank, on_nonfinite="skip", loss_fn=loss_fn)
        return trainer.train().exit_code

    assert tiny.run_ranks(work) == [0, 0]
    weights = [read(tmp_path, "weights", rank) for rank in (0, 1)]
    assert weights[0] == weights[1]
    assert all(map(torch.isfinite, torch.tensor(weights[0][0])))


def test_early_stopping_restores_the_same_weights_on_all_ranks(tiny, tmp_path):
    from trainer_early_stopping import EarlyStoppingCallback

    class Worse(TrainerCallback):
        """Spoils the weights of epoch 1, at the end on each rank in a way of its own."""

        def on_validation_start(self, trainer):
            if trainer.epoch:
                with torch.no_grad():
                    next(trainer.model.parameters()).add_(10.0)

        def on_train_end(self, trainer):
            with torch.no_grad():
                next(trainer.model.parameters()).add_(trainer.rank)

    def work(rank):
        stopping = EarlyStoppingCallback(patience=1)
        trainer = make_plain(
            tmp_path, rank, callbacks=[Worse(), stopping], epochs=5, output_dir=tmp_path / "run"
        )
        trainer.run.view.manager.plugins.sort(key=lambda plugin: plugin.name == "Seen")
        code = trainer.train().exit_code
        weights = nn.utils.parameters_to_vector(trainer.model.parameters())
        (tmp_path / f"{rank}.json").write_text(json.dumps([weights.tolist(), stopping.best_epoch]))
        return code

    assert tiny.run_ranks(work) == [0, 0]
    (first, best), (second, _) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)
    )
    assert best == 0
    assert first == second


def test_two_ranks_record_the_gradients_of_one_once(tiny, tmp_path):
    from trainer_gradient_monitor import GradientMonitorCallback

    def work(place, rank, **config):
        place.mkdir(exist_ok=True)
        monitor = GradientMonitorCallback(monitor_interval=1, report=False)
        settings = {"items": 16, "output_dir": place / "run", **config}
        return make_plain(place, rank, callbacks=[monitor], **settings).train().exit_code

    alone, both = tmp_path / "alone", tmp_path / "both"
    record = "run/gradient_flow/gradients.jsonl"
    work(alone, 0, gradient_accumulation_steps=2)
    assert tiny.run_ranks(lambda rank: work(both, rank)) == [0, 0]
    one, two = (
        [json.loads(line) for line in (each / record).read_text().splitlines()]
        for each in (alone, both)
    )
    assert [line["step"] for line in two] == [line["step"] for line in one] == [1, 2, 3, 4]
    norms = [[line["total_norm_pre_clip"] for line in each] for each in (one, two)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_ranks_that_cannot_find_each_other_are_refused_before_the_first_step(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match=r"one of 2 processes .*RANK is not\s+set"):
        tiny.trainer(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("count", ["1", ""])
def test_a_single_process_of_torchrun_trains(tiny, tmp_path, monkeypatch, count):
    monkeypatch.setenv("WORLD_SIZE", count)
    assert tiny.trainer(tmp_path / "run").train().status == "finished"


def test_one_rank_dies_and_the_other_says_so_on_a_line(tiny, tmp_path, monkeypatch, capfd):
    from trainer_lm.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "text.txt").write_text("to be or not to be that is the question " * 400)
    (tmp_path / "trainer_dies.py").write_text(
        "import os\n"
        "from trainer_callback import TrainerCallback\n"
        "class Dies(TrainerCallback):\n"
        "    def on_step_end(self, trainer):\n"
        "        if trainer.rank == 1 and trainer.step == 3:\n"
        "            os.kill(os.getpid(), 9)\n"
    )
    words = ["--dataset", "text.txt", "--n_layer", "1", "--n_embd", "16", "--output_dir", "run"]
    words += ["--callback", "trainer_dies:Dies"]
    assert tiny.run_ranks(lambda rank: main(words)) == [1, -signal.SIGKILL]
    said = capfd.readouterr().err
    assert "train-lm: another process of this run has died. To go on: the same command with" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_train_lm_under_torchrun_writes_one_run(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be that is the question " * 400)
    words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "trainer_lm"]
    words += ["--dataset", str(text), "--max_steps", "4", "--n_layer", "1", "--n_embd", "16"]
    words += ["--early_stopping", "--gradient_monitor"]
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("validation loss") == 1
    (run,) = (tmp_path / "runs").iterdir()
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert (run / "final" / "model.safetensors").exists()
