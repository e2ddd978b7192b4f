"""Points that every process has to come to: one that does not ends the others, or is named."""

import contextlib
import os
import threading
import time

import pytest
import torch
from torch import nn

from trainer import Trainer, TrainerConfig
from trainer.processes.group import join_ranks
from trainer.processes.points import FixedPointError
from trainer_callback import CallbackError, TrainerCallback


def make(place, *callbacks, **config):
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    data = torch.arange(96.0).reshape(12, 2, 4).sin()
    settings = {"epochs": 2, "log_interval": 1, "eval_interval": 1, "snapshot_interval": 1}
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01),
        [*data],
        [*data[:3]],
        loss_fn=lambda model, batch: model(batch).square().mean(),
        config=TrainerConfig(output_dir=place, **{**settings, **config}),
        callbacks=callbacks,
        discover=False,
    )


HOOKS = [
    *("on_train_start", "on_epoch_start", "on_batch_start", "on_backward_end", "on_step_end"),
    *("on_batch_end", "on_log", "on_validation_start", "on_validation_end", "on_epoch_end"),
    *("should_stop_training", "on_snapshot_save"),
]


@pytest.mark.parametrize("rank_that_fails", [0, 1])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_callback_that_fails_before_the_others_wait_for_it_is_off_in_all(
    tiny, tmp_path, hook, rank_that_fails
):
    def call(self, trainer):
        if trainer.step >= 2 or hook == "on_train_start":
            if trainer.rank == rank_that_fails:
                raise OSError("no space left")
            trainer.save_weights("mine")

    breaks = type("Breaks", (TrainerCallback,), {"critical": False, hook: call})

    def work(rank):
        options = {"gradient_accumulation_steps": 2 if hook == "on_batch_end" else 1}
        result = make(tmp_path, breaks(), **options).train()
        assert result.status == "finished"
        assert result.switched_off == ("Breaks",)

    assert tiny.run_ranks(work, seconds=30) == [0, 0]


@pytest.mark.parametrize("hook", ["on_step_end", "on_validation_end", "on_train_start"])
def test_a_callback_that_ends_its_process_ends_those_that_wait_for_it(tiny, tmp_path, hook):
    def call(self, trainer):
        if trainer.rank == 1:
            raise ZeroDivisionError("mine")
        trainer.save_weights("mine")

    fails = type("Fails", (TrainerCallback,), {hook: call})

    def work(rank):
        with pytest.raises(CallbackError) as caught:
            make(tmp_path, fails()).train()
        text = str(caught.value)
        if rank == 0:
            assert "save_weights 'mine'" in text
            assert "process 1 has failed" in text
            assert "ZeroDivisionError" in text
        time.sleep(2 * rank)  # it lives on: nobody may wait for its end

    started = time.monotonic()
    assert tiny.run_ranks(work, seconds=30) == [0, 0]
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("hook", ["on_step_end", "on_snapshot_saved", "on_epoch_end"])
def test_weights_that_one_process_alone_would_save_are_an_error_that_names_both_points(
    tiny, tmp_path, hook
):
    def call(self, trainer):
        if trainer.is_main_process:
            trainer.save_weights("mine")

    alone = type("Alone", (TrainerCallback,), {hook: call})

    def work(rank):
        with pytest.raises((CallbackError, FixedPointError)) as caught:
            make(tmp_path, alone()).train()
        text = str(caught.value)
        assert "save_weights 'mine'" in text if rank == 0 else "process 0 has failed" in text
        if rank == 0:
            assert "process 1 is at" in text

    assert tiny.run_ranks(work, seconds=30) == [0, 0]


def test_two_points_of_the_trainer_that_do_not_match_are_named_in_both(tiny):
    def work(rank):
        ranks = join_ranks("cpu")
        with pytest.raises(FixedPointError, match=r"process 0 is at one and process 1 at two"):
            ranks.total([1.0], "one") if rank == 0 else ranks.gather("x", "two")

    assert tiny.run_ranks(work, seconds=30) == [0, 0]


def test_an_innocent_callback_behind_one_that_is_switched_off_stays(tiny, tmp_path):
    class First(TrainerCallback):
        critical = False

        def on_validation_end(self, trainer):
            if trainer.rank == 0:
                raise OSError("no space left")
            trainer.save_weights("first")

    class Second(TrainerCallback):
        def on_validation_end(self, trainer):
            trainer.save_weights("second")

    def work(rank):
        result = make(tmp_path, First(), Second()).train()
        assert (result.status, result.switched_off) == ("finished", ("First",))

    assert tiny.run_ranks(work, seconds=30) == [0, 0]


def test_values_of_three_processes_are_gathered_and_added_up(tiny):
    def work(rank):
        ranks = join_ranks("cpu")
        assert ranks.total([0.1 * rank, 1.0], "sum") == [0.1 * 1 + 0.1 * 2, 3.0]
        assert ranks.highest(rank, "most") == 2
        assert ranks.gather({"rank": rank}, "all") == [{"rank": each} for each in range(3)]
        assert ranks.on_main(lambda: rank + 5, "main") == 5
        with pytest.raises(ZeroDivisionError):
            ranks.on_main(lambda: 1 / 0, "main")
        long = "ü" * 300  # a name is cut, not refused
        assert ranks.highest(1, long) == 1

    assert tiny.run_ranks(work, count=3) == [0] * 3


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_weights_that_the_main_process_cannot_load_are_the_same_error_in_all(tiny, tmp_path, kind):
    class Choosy(nn.Linear):
        refuses = False

        def _load_from_state_dict(self, *arguments):
            if self.refuses:
                raise kind("not these")
            super()._load_from_state_dict(*arguments)

    class Loads(TrainerCallback):
        def on_step_end(self, trainer):
            digest = trainer.save_weights("mine")
            Choosy.refuses = trainer.is_main_process
            trainer.load_weights("mine", digest)

    def work(rank):
        model = nn.Sequential(Choosy(4, 1))
        data = [torch.ones(2, 4)] * 4
        trainer = Trainer(
            model,
            torch.optim.SGD(model.parameters(), lr=0.01),
            data,
            loss_fn=lambda model, batch: model(batch).square().mean(),
            config=TrainerConfig(output_dir=tmp_path),
            callbacks=[Loads()],
            discover=False,
        )
        with pytest.raises(CallbackError, match=r"SnapshotError: .*does not fit the model: not"):
            trainer.train()
        time.sleep(2 * (1 - rank))

    assert tiny.run_ranks(work, seconds=20) == [0, 0]


@pytest.mark.parametrize("call", ["save", "load"])
@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("hook", ["on_batch_start", "on_forward_end", "on_batch_end"])
def test_weights_are_not_saved_inside_an_update(tiny, tmp_path, hook, everywhere, call):
    """One that does not call would wait in its backward pass, where it hears of nothing."""

    def strike(self, trainer):
        if everywhere or trainer.is_main_process:
            if call == "save":
                trainer.save_weights("mine")
            else:
                trainer.load_weights("mine", "0")

    alone = type("Alone", (TrainerCallback,), {hook: strike})
    text = f"{call}_weights 'mine' is called inside an update, where all processes wait"

    def work(rank):
        with pytest.raises((CallbackError, RuntimeError)) as caught:
            make(tmp_path, alone(), gradient_accumulation_steps=2).train()
        assert text in str(caught.value) or (rank == 1 and not everywhere)

    started = time.monotonic()
    assert tiny.run_ranks(work, seconds=30) == [0, 0]
    assert time.monotonic() - started < 20


@pytest.mark.slow  # it waits until that is unusual
def test_a_process_that_waits_while_another_one_waits_elsewhere_says_so(tiny, tmp_path, caplog):
    class Alone(TrainerCallback):
        def on_validation_start(self, trainer):
            if trainer.is_main_process:
                trainer.save_weights("mine")

    class Sums(TrainerCallback):
        def on_validation_start(self, trainer):
            torch.distributed.all_reduce(torch.ones(1))

    text = "waiting for another process at save_weights 'mine' for 10 seconds"

    def work(rank):
        def end():
            while time.monotonic() < start + 15 and text not in caplog.text:
                time.sleep(0.1)
            os._exit(7 if text in caplog.text else 8)

        start = time.monotonic()
        if rank == 0:
            threading.Thread(target=end, daemon=True).start()
        with contextlib.suppress(Exception):
            make(tmp_path, Alone(), Sums()).train()
        return 9

    assert tiny.run_ranks(work, seconds=30) == [7, 9]
