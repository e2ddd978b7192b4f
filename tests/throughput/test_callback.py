"""What is logged, when, and what is left out."""

import logging
import time

import pytest
import torch
from torch import nn

from trainer_callback import TrainerCallback
from trainer_throughput import ThroughputCallback

SLOW = 0.02


def slowly(batches):
    """A loader that takes its time before each batch."""

    class Slow:
        def __iter__(self):
            for batch in batches:
                time.sleep(SLOW)
                yield batch

        def __len__(self):
            return len(batches)

    return Slow()


def test_it_logs_every_interval_under_its_own_names(make, logged):
    make(ThroughputCallback(interval=2), logged).train()
    assert list(logged.values) == [2, 4, 6]
    assert set(logged.values[6]) == {
        "items_per_s",
        "data_wait_share",
        "step_ms_p50",
        "step_ms_p90",
        "step_ms_p99",
        "peak_memory_gib",
    }


def test_batches_with_input_ids_are_counted_in_tokens(make, logged):
    class Embed(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(10, 4)

        def forward(self, input_ids):
            return self.embedding(input_ids).square().mean()

    batches = [{"input_ids": torch.zeros(2, 8, dtype=torch.long)}] * 4
    make(
        ThroughputCallback(interval=4, peak_tflops=1.0),
        logged,
        model=Embed(),
        batches=batches,
        loss_fn=lambda model, batch: model(**batch),
    ).train()
    values = logged.values[4]
    assert values["mfu"] == pytest.approx(values["tokens_per_s"] * 6 * 40 / 1e12)


def test_flops_per_item_gives_any_model_an_mfu(make, logged):
    make(ThroughputCallback(interval=6, peak_tflops=2.0, flops_per_item=1e6), logged).train()
    values = logged.values[6]
    assert values["mfu"] == pytest.approx(values["items_per_s"] * 1e6 / 2e12)


def test_a_peak_without_known_flops_is_warned_about(make, logged, caplog):
    make(ThroughputCallback(interval=6, peak_tflops=1.0), logged).train()
    assert "mfu" not in logged.values[6]
    assert "--throughput_flops_per_item" in caplog.text


def test_a_slow_loader_is_seen_as_waiting(make, logged):
    batches = slowly(list(torch.randn(6, 3, 4)))
    make(ThroughputCallback(interval=6), logged, batches=batches).train()
    values = logged.values[6]
    assert values["data_wait_share"] > 0.5
    assert values["step_ms_p50"] >= SLOW * 1e3


def test_accumulated_batches_are_one_update(make, logged):
    batches = slowly(list(torch.randn(6, 3, 4)))
    callback = ThroughputCallback(interval=3)
    make(callback, logged, batches=batches, gradient_accumulation_steps=2).train()
    values = logged.values[3]
    assert values["step_ms_p50"] >= 2 * SLOW * 1e3
    assert values["items_per_s"] == pytest.approx(6e3 / values["step_ms_p50"], rel=0.3)


class SlowElsewhere(TrainerCallback):
    """Takes its time at every moment that is no part of an update."""

    def on_epoch_start(self):
        time.sleep(SLOW)

    def on_log(self):
        time.sleep(SLOW)

    def on_validation_start(self):
        time.sleep(SLOW)

    def on_validation_end(self):
        time.sleep(SLOW)

    def on_epoch_end(self):
        time.sleep(SLOW)

    def should_stop_training(self):
        time.sleep(SLOW)

    def on_snapshot_save(self):
        time.sleep(SLOW)

    def on_snapshot_saved(self):
        time.sleep(SLOW)


@pytest.mark.parametrize("first", [True, False], ids=["slow_first", "slow_last"])
def test_what_is_no_training_is_left_out(make, logged, tmp_path, first):
    callbacks = [SlowElsewhere(), ThroughputCallback(interval=1), logged]
    make(
        *(callbacks if first else callbacks[::-1]),
        val_batches=[torch.randn(3, 4)],
        epochs=2,
        log_interval=1,
        eval_interval=2,
        snapshot_interval=3,
        snapshot_sync=True,
        output_dir=tmp_path,
    ).train()
    assert list(logged.values) == list(range(2, 13))
    assert logged.values[12]["step_ms_p99"] < SLOW * 1e3


def test_the_slow_part_of_an_update_is_not_left_out(make, logged):
    def loss_fn(model, batch):
        time.sleep(SLOW)
        return model(batch).square().mean()

    make(ThroughputCallback(interval=6), logged, loss_fn=loss_fn).train()
    assert logged.values[6]["step_ms_p50"] >= SLOW * 1e3
    assert logged.values[6]["data_wait_share"] < 0.5


def test_a_line_at_the_end_sums_up(make, caplog):
    caplog.set_level(logging.INFO, "trainer.throughput")
    make(ThroughputCallback(peak_tflops=1.0, flops_per_item=1.0)).train()
    (line,) = [r.getMessage() for r in caplog.records if r.name == "trainer.throughput"]
    assert line.startswith("throughput: 15 items in ")
    assert "ms an update" in line
    assert "waiting for data" in line
    assert "MFU" in line
    assert "GiB" in line


@pytest.mark.parametrize("count", [1, 2])
def test_a_very_short_run_is_survived(make, logged, count):
    result = make(ThroughputCallback(interval=1), logged, batches=[torch.ones(1, 4)] * count)
    assert result.train().status == "finished"
    assert len(logged.values) == count - 1


def test_it_changes_no_weight(make):
    plain, measured = make(), make(ThroughputCallback(interval=1))
    plain.train()
    measured.train()
    assert torch.equal(plain.model.weight, measured.model.weight)


def test_a_second_run_of_one_object_starts_clean(make, logged):
    callback = ThroughputCallback(interval=6)
    make(callback, logged, batches=slowly(list(torch.randn(6, 3, 4)))).train()
    make(callback, logged).train()
    assert logged.values[6]["step_ms_p99"] < SLOW * 1e3


@pytest.mark.parametrize(
    "options", [{"interval": 0}, {"window": 0}, {"peak_tflops": 0}, {"flops_per_item": -1}]
)
def test_an_option_out_of_range_is_refused_with_one_that_works(options):
    with pytest.raises(ValueError, match=f"--throughput_{next(iter(options))} "):
        ThroughputCallback(**options)
