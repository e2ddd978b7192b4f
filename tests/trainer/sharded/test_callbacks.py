"""Our plugins beside a divided model: what they keep and say is what they say of a whole one."""

import json
import math

import pytest
import torch
from torch import nn

from trainer_callback import CallbackError, TrainerCallback
from trainer_early_stopping import EarlyStoppingCallback
from trainer_ema import EMACallback
from trainer_gradient_monitor import GradientMonitorCallback
from trainer_tensorboard import TensorBoardCallback


def read_gradients(place):
    text = (place / "gradient_flow" / "gradients.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def flatten(value):
    """All numbers of an entry, in order; None as nan."""
    if isinstance(value, dict):
        return [x for key, item in value.items() for x in [key, *flatten(item)]]
    if isinstance(value, list):
        return [x for item in value for x in flatten(item)]
    return [math.nan if value is None else value]


def same_entry(one, other):
    one, other = flatten(one), flatten(other)
    return len(one) == len(other) and all(
        a == pytest.approx(b, rel=1e-5, abs=1e-9, nan_ok=True) if isinstance(a, float) else a == b
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("norm_type", [2.0, 1.0])
def test_the_record_of_two_ranks_is_that_of_one(tiny, sharded, tmp_path, norm_type):
    """Every number of it: statistics, update ratios, histograms, clipping."""

    def run(place, **config):
        monitor = GradientMonitorCallback(
            monitor_interval=1,
            monitor_level="parameter",
            monitor_norm_type=norm_type,
            monitor_histogram=True,
            report=False,
        )
        return sharded.trainer(place, callbacks=[monitor], **config).train().exit_code

    alone, both = tmp_path / "alone", tmp_path / "both"
    run(alone, divided=False, gradient_accumulation_steps=2)
    assert tiny.run_ranks(lambda rank: run(both)) == [0, 0]
    one, two = read_gradients(alone), read_gradients(both)
    assert len(one) == len(two) == 8
    assert one[0]["histogram_pre_clip"]["shares"]
    for a, b in zip(one, two, strict=True):
        assert same_entry(a, b), (a, b)


def test_the_monitor_changes_no_bit_of_a_divided_run(tiny, sharded, tmp_path):
    def run(place, callbacks):
        return sharded.trainer(place, callbacks=callbacks).train().exit_code

    bare, watched = tmp_path / "bare", tmp_path / "watched"
    assert tiny.run_ranks(lambda rank: run(bare, [])) == [0, 0]

    def work(rank):
        monitor = GradientMonitorCallback(monitor_interval=1, monitor_histogram=True)
        return run(watched, [monitor])

    assert tiny.run_ranks(work) == [0, 0]
    one, two = tiny.newest_state(bare), tiny.newest_state(watched)
    for part in ("model", "optimizer", "rng"):
        assert tiny.difference(one[part], two[part]) is None


def test_a_layer_with_a_bad_entry_in_one_part_is_named(tiny, sharded, tmp_path):
    class Spoils(TrainerCallback):
        before = ("GradientMonitorCallback",)

        def on_backward_end(self, trainer):
            if trainer.rank == 1 and trainer.step == 2:
                trainer.model[0].weight.grad.to_local()[0, 0] = math.nan

    def work(rank):
        monitor = GradientMonitorCallback(monitor_interval=1, report=False)
        settings = {"on_nonfinite": "skip", "callbacks": [Spoils(), monitor]}
        return sharded.trainer(tmp_path, **settings).train().exit_code

    assert tiny.run_ranks(work) == [0, 0]
    entries = read_gradients(tmp_path)
    assert [entry["nonfinite_parameters_pre_clip"] for entry in entries] == [
        {},
        {},
        {"0.weight": 1},
        *[{}] * 5,
    ]
    assert entries[2]["layers"]["update_ratio"] == [None] * 3  # there was no update
    assert None not in entries[3]["layers"]["update_ratio"]


def test_a_run_that_a_bad_gradient_ends_says_where_it_came_from_on_both(tiny, sharded, tmp_path):
    """One process ends before the other has come to know of it."""

    class Fails(TrainerCallback):
        def on_gradients_clipped(self, trainer):
            if trainer.rank == 0 and trainer.step == 2:
                raise RuntimeError("broken")

    def work(rank):
        monitor = GradientMonitorCallback(monitor_interval=1, report=False)
        with pytest.raises(CallbackError if rank == 0 else RuntimeError):
            sharded.trainer(tmp_path, callbacks=[monitor, Fails()]).train()

    assert tiny.run_ranks(work, seconds=30) == [0, 0]
    assert [entry["step"] for entry in read_gradients(tmp_path)] == [1, 2, 3]


class Worse(TrainerCallback):
    """Each epoch's score is worse than that before."""

    def on_validation_end(self, trainer):
        trainer.log({"score": float(trainer.epoch)})


@pytest.mark.parametrize("where", ["file", "memory"])
def test_early_stopping_restores_every_part_bit_by_bit(tiny, sharded, tmp_path, where):
    class Best(TrainerCallback):
        def on_epoch_end(self, trainer, epoch):
            if epoch == 0:
                self.parts = [p.to_local().clone() for p in trainer.model.parameters()]
                self.mean = trainer.model[2].running_mean.clone()

    def work(rank):
        place = tmp_path if where == "file" else None
        best, stopping = Best(), EarlyStoppingCallback(patience=1, monitor="score", mode="min")
        callbacks = [Worse(), best, stopping]
        trainer = sharded.trainer(place, callbacks=callbacks, norm=nn.BatchNorm1d(7), epochs=5)
        assert trainer.train().epochs == 2
        assert stopping.best_epoch == 0
        parts = [p.to_local() for p in trainer.model.parameters()]
        assert all(map(torch.equal, parts, best.parts))
        assert torch.equal(trainer.model[2].running_mean, best.mean)

    assert tiny.run_ranks(work) == [0, 0]


def test_early_stopping_resumes_with_the_best_of_the_killed_run(tiny, sharded, tmp_path):
    """Both are killed behind the best epoch; the resumed run never saw its weights."""

    class Dies(TrainerCallback):
        def on_epoch_end(self, trainer, epoch):
            if epoch == 2:
                tiny.killer(at=1).strike()

    def run(place, rank, resume=False, extra=()):
        stopping = EarlyStoppingCallback(patience=3, monitor="score", mode="min")
        callbacks = [Worse(), stopping, *extra]
        trainer = sharded.trainer(place, callbacks=callbacks, epochs=9, snapshot_epochs=True)
        trainer.train(resume=resume)
        assert stopping.best_epoch == 0

    through, killed = tmp_path / "through", tmp_path / "killed"
    assert tiny.run_ranks(lambda rank: run(through, rank)) == [0, 0]
    assert 0 not in tiny.run_ranks(lambda rank: run(killed, rank, extra=[Dies()]))
    assert tiny.run_ranks(lambda rank: run(killed, rank, resume=True)) == [0, 0]
    name = "final/model.safetensors"
    assert (through / name).read_bytes() == (killed / name).read_bytes()


def test_averages_of_parts_are_parts_of_the_averages(tiny, sharded, tmp_path):
    def run(place, resume=False, **config):
        ema = EMACallback(decay=0.9, use_for_validation=True, swap_at_end=True)
        settings = {"callbacks": [ema], "snapshot_interval": 3, **config}
        return sharded.trainer(place, **settings).train(resume=resume).exit_code

    alone, both, cut = tmp_path / "alone", tmp_path / "both", tmp_path / "cut"
    run(alone, divided=False, gradient_accumulation_steps=2)
    assert tiny.run_ranks(lambda rank: run(both)) == [0, 0]
    assert tiny.run_ranks(lambda rank: run(cut, max_steps=3)) == [0, 0]
    assert tiny.run_ranks(lambda rank: run(cut, resume=True)) == [0, 0]
    assert sharded.same_log(sharded.read_log(alone), sharded.read_log(both))
    assert sharded.read_log(both)[-1] == sharded.read_log(cut)[-1]
    states = [tiny.newest_state(place)["callback_state"]["EMACallback"] for place in (both, cut)]
    assert tiny.difference(*states) is None
    assert states[0]["averages"]["0.weight"].shape == (7, 4)


def test_histograms_in_tensorboard_are_of_the_whole(tiny, sharded, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def work(rank):
        callback = TensorBoardCallback(histogram_epochs=1)
        return sharded.trainer(tmp_path, callbacks=[callback]).train().exit_code

    assert tiny.run_ranks(work) == [0, 0]
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"histograms": 0})
    events.Reload()
    for kind in ("weights", "gradients"):
        (first, _) = events.Histograms(f"{kind}/0.weight")
        assert first.histogram_value.num == 7 * 4


def test_a_disk_that_is_full_for_one_process_ends_the_histograms_and_not_the_run(
    tiny, sharded, tmp_path
):
    class Full(TensorBoardCallback):
        def _open(self, directory, step):
            super()._open(directory, step)
            self._writer.add_histogram = self.fail

        def fail(self, name, values, step):
            raise OSError("no space left")

    def work(rank):
        result = sharded.trainer(tmp_path, callbacks=[Full(histogram_epochs=1)]).train()
        assert result.switched_off == ("Full",)

    assert tiny.run_ranks(work) == [0, 0]


def test_averages_of_parts_and_of_whole_buffers(tiny, sharded, tmp_path):
    def run(place, **config):
        ema = EMACallback(decay=0.9, use_buffers=True)
        settings = {"callbacks": [ema], "norm": nn.BatchNorm1d(7), **config}
        return sharded.trainer(place, **settings).train().exit_code

    for divided in (True, False):
        assert tiny.run_ranks(lambda rank: run(tmp_path / str(divided), divided=divided)) == [0, 0]  # noqa: B023
    one, two = (
        tiny.newest_state(tmp_path / name)["callback_state"]["EMACallback"]["averages"]
        for name in ("True", "False")
    )
    assert sharded.apart(one, two) < 1e-12
