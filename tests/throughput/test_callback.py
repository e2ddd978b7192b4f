"""What is logged, when, and what is left out."""

import logging
import resource
import subprocess
import sys

import pytest
import torch
from torch import nn

from trainer import Run, TrainerConfig
from trainer_callback import TrainerCallback
from trainer_throughput import ThroughputCallback


class SlowLoader:
    """Takes 2 s before each batch."""

    def __init__(self, clock):
        self.clock = clock

    def __iter__(self):
        for batch in torch.ones(6, 3, 4):
            self.clock.sleep(2)
            yield batch

    def __len__(self):
        return 6


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
    assert "Use flops_per_item." in caplog.text


def slow_loss(clock):
    def loss_fn(model, batch):
        clock.sleep(1)
        return model(batch).square().mean()

    return loss_fn


def test_a_slow_loader_is_seen_as_waiting(make, logged, clock):
    callback = ThroughputCallback(interval=6)
    make(callback, logged, batches=SlowLoader(clock), loss_fn=slow_loss(clock)).train()
    values = logged.values[6]
    assert values["data_wait_share"] == pytest.approx(2 / 3)
    assert values["step_ms_p50"] == values["step_ms_p99"] == 3000
    assert values["items_per_s"] == 1


def test_accumulated_batches_are_one_update(make, logged, clock):
    make(
        ThroughputCallback(interval=3),
        logged,
        batches=SlowLoader(clock),
        loss_fn=slow_loss(clock),
        gradient_accumulation_steps=2,
    ).train()
    assert logged.values[3]["step_ms_p50"] == 6000
    assert logged.values[3]["items_per_s"] == 1


@pytest.mark.parametrize("first", [True, False], ids=["slow_first", "slow_last"])
def test_what_is_no_training_is_left_out(make, logged, clock, tmp_path, first):
    hooks = (
        "on_epoch_start",
        "on_backward_end",
        "on_step_end",
        "on_batch_end",
        "on_log",
        "on_validation_start",
        "on_validation_end",
        "on_epoch_end",
        "should_stop_training",
        "on_snapshot_save",
        "on_snapshot_saved",
    )
    slow = {hook: lambda self: clock.sleep(100) for hook in hooks}
    slow_elsewhere = type("SlowElsewhere", (TrainerCallback,), slow)()
    callbacks = [slow_elsewhere, ThroughputCallback(interval=1), logged]
    make(
        *(callbacks if first else callbacks[::-1]),
        val_batches=[torch.randn(3, 4)],
        loss_fn=slow_loss(clock),
        epochs=2,
        log_interval=1,
        eval_interval=2,
        snapshot_interval=3,
        snapshot_sync=True,
        output_dir=tmp_path,
    ).train()
    assert list(logged.values) == list(range(1, 13))
    assert {values["step_ms_p99"] for values in logged.values.values()} == {1000}


def test_finding_the_place_after_a_resume_is_no_waiting(make, logged, clock, tmp_path):
    make(output_dir=tmp_path, max_steps=4).train()
    settings = {"batches": SlowLoader(clock), "loss_fn": slow_loss(clock), "output_dir": tmp_path}
    make(ThroughputCallback(interval=1), logged, **settings).train(resume=True)
    assert {step: values["step_ms_p99"] for step, values in logged.values.items()} == {
        5: 1000,
        6: 3000,
    }


def test_a_line_at_the_end_sums_up(make, clock, caplog):
    caplog.set_level(logging.INFO, "trainer.throughput")
    callback = ThroughputCallback(interval=6, peak_tflops=1.0, flops_per_item=1e11)
    make(callback, batches=SlowLoader(clock), loss_fn=slow_loss(clock)).train()
    (line,) = [r.getMessage() for r in caplog.records if r.name == "trainer.throughput"]
    assert line.startswith(
        "throughput: 15 items in 15.0 s of training, 1 a second, 3,000.0 ms an update (90 % within "
        "3,000.0, 99 % within 3,000.0), 66.7% waiting for data, MFU 10.0%, "
    )
    assert line.endswith(" GiB of memory at most.")


@pytest.mark.parametrize("count", [1, 2])
def test_a_very_short_run_is_survived(make, logged, count):
    result = make(ThroughputCallback(interval=1), logged, batches=[torch.ones(1, 4)] * count)
    assert result.train().status == "finished"
    assert len(logged.values) == count


STARTED = """
import torch
from trainer_throughput.memory import forget_peak, peak_memory
forget_peak(torch.device("cpu"))
print(peak_memory(torch.device("cpu")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux inherits a peak")
def test_the_peak_of_the_process_that_started_this_one_does_not_count():
    held = bytearray(b"x") * (1 << 30)
    command = [sys.executable, "-c", STARTED]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(shown) < len(held)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
def test_the_peak_is_the_memory_of_the_run_and_not_of_what_was_before(make, logged):
    before = bytearray(b"x") * (1 << 28)
    del before
    most_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    make(ThroughputCallback(interval=1), logged).train()
    assert 0 < logged.values[6]["peak_memory_gib"] < most_before - 1 / 8


def test_it_changes_no_weight(make):
    plain, measured = make(), make(ThroughputCallback(interval=1))
    plain.train()
    measured.train()
    assert torch.equal(plain.model.weight, measured.model.weight)


def test_a_second_run_of_one_object_starts_clean(make, logged, clock):
    callback = ThroughputCallback(interval=6)
    make(callback, logged, batches=SlowLoader(clock), loss_fn=slow_loss(clock)).train()
    make(callback, logged, loss_fn=slow_loss(clock)).train()
    assert logged.values[6]["step_ms_p99"] == 1000


@pytest.mark.parametrize(
    "options", [{"interval": 0}, {"window": 0}, {"peak_tflops": 0}, {"flops_per_item": -1}]
)
def test_an_option_out_of_range_is_refused_with_one_that_works(options):
    with pytest.raises(ValueError, match=f"Use {next(iter(options))}="):
        ThroughputCallback(**options)


def test_a_count_that_is_not_certain_is_told_once(make, caplog):
    batches = [(torch.zeros(3, 4), torch.zeros(5))] * 4
    make(
        ThroughputCallback(), batches=batches, loss_fn=lambda m, b: m(b[0]).square().mean()
    ).train()
    assert caplog.text.count("is not certain how many items a batch has") == 1


def test_an_interval_beyond_the_run_is_told_once(make, caplog):
    make(ThroughputCallback(interval=9), max_steps=5).train()
    assert caplog.text.count("interval 9 has no effect in a run of 5 updates") == 1


class Loop:
    """A loop of one's own, of 6 batches of 3, that takes a second for each optimizer's half."""

    def __init__(self, clock, *callbacks, names):
        parts = {name: nn.Linear(4, 1) for name in names}
        rates = {name: torch.optim.SGD(part.parameters()) for name, part in parts.items()}
        config = TrainerConfig(epochs=1, device="cpu", log_interval=1000)
        self.run = Run(parts, rates, config=config, callbacks=callbacks, discover=False)
        self.clock, self.names = clock, names

    def train(self, passed_over=()):
        with self.run.start():
            for _ in self.run.epochs():
                for number, batch in enumerate(self.run.batches(SlowLoader(self.clock))):
                    if number in passed_over:
                        self.clock.sleep(4)
                        continue
                    for name in self.names:
                        self.clock.sleep(1)
                        self.run.backward(self.run.module[name](batch).mean(), name)
                        self.run.step(name)


def test_an_update_takes_the_time_of_all_its_optimizers(logged, clock):
    slow = type("Slow", (TrainerCallback,), {"on_step_end": lambda self: clock.sleep(100)})()
    Loop(clock, ThroughputCallback(interval=6), slow, logged, names=("a", "b", "c")).train()
    values = logged.values[6]
    assert values["step_ms_p50"] == 5000  # 2 s for the batch, and 3 for three optimizers
    assert values["items_per_s"] == 3 / 5
    assert values["data_wait_share"] == 2 / 5


def test_of_a_batch_that_is_passed_over_the_time_counts_and_the_items_do_not(logged, clock):
    Loop(clock, ThroughputCallback(interval=4), logged, names=("a",)).train(passed_over=(2, 3))
    values = logged.values[4]
    assert values["step_ms_p99"] == 3000 + 2 * 6000
    assert values["items_per_s"] == 9 / (3 * 3 + 2 * 6)


def test_what_stands_behind_an_epoch_is_left_out_where_its_last_batch_is_passed_over(logged, clock):
    slow = type("Slow", (TrainerCallback,), {"on_epoch_end": lambda self: clock.sleep(100)})()
    loop = Loop(clock, ThroughputCallback(interval=1), slow, logged, names=("a",))
    loop.train(passed_over=(5,))
    assert logged.values[5]["step_ms_p99"] == 3000
