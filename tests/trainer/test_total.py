"""Sums of a callback's numbers over all processes."""

import threading

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from trainer import Trainer, TrainerConfig
from trainer_callback import CallbackError, TrainerCallback


def make(*callbacks, **config):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    data = torch.arange(48.0).reshape(12, 4).sin()
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        DataLoader(data, batch_size=2),
        DataLoader(data[:5], batch_size=2),
        loss_fn=lambda model, batch: model(batch).square().mean(),
        config=TrainerConfig(**{"epochs": 1, "log_interval": 1, **config}),
        callbacks=list(callbacks),
        discover=False,
    )


def calling(hook, call):
    """A callback that adds up in one hook."""

    def add(self, trainer):
        call(trainer)

    return type("Adds", (TrainerCallback,), {hook: add})()


ALLOWED = [
    *("on_train_start", "on_epoch_start", "on_backward_end", "on_step_end", "on_batch_end"),
    *("on_log", "on_validation_start", "on_validation_set_end", "on_validation_end"),
    *("on_epoch_end", "should_stop_training", "on_train_end"),
]


@pytest.mark.parametrize("hook", ALLOWED)
def test_numbers_are_added_up_over_the_processes(tiny, hook):
    def work(rank):
        found = []

        def add(trainer):
            value = torch.tensor(rank + 1)
            found.append(trainer.total({"a": value, "step": 0.1 * (rank + 1), "none": 0}))

        make(calling(hook, add)).train()
        assert found
        assert found == [{"a": 3.0, "step": 0.1 + 0.2, "none": 0.0}] * len(found)

    assert tiny.run_ranks(work) == [0, 0]


@pytest.mark.parametrize("hook", ["on_batch_end", "on_forward_end", "on_validation_batch_end"])
def test_alone_the_numbers_are_what_they_are(hook):
    found = []
    make(calling(hook, lambda trainer: found.append(trainer.total({"a": 2})))).train()
    assert found
    assert found == [{"a": 2.0}] * len(found)


@pytest.mark.parametrize("hook", ["on_batch_start", "on_forward_end", "on_validation_batch_end"])
def test_a_sum_where_the_calls_of_processes_differ_is_refused(tiny, hook):
    def work(rank):
        callback = calling(hook, lambda trainer: trainer.total({"a": 1}))
        with pytest.raises(CallbackError, match=r"trainer\.total is called inside an update"):
            make(callback).train()

    assert tiny.run_ranks(work) == [0, 0]


def test_other_names_in_another_process_are_refused_in_all(tiny):
    def work(rank):
        callback = calling("on_epoch_end", lambda trainer: trainer.total({f"a{rank}": 1}))
        with pytest.raises(CallbackError, match="the processes have other names: a0 and a1"):
            make(callback).train()

    assert tiny.run_ranks(work) == [0, 0]


def test_a_sum_that_one_process_does_not_ask_for_names_it(tiny):
    def work(rank):
        callback = calling(
            "on_epoch_end", lambda trainer: trainer.total({"a": 1}) if rank else None
        )
        with pytest.raises(Exception, match=r"come to trainer\.total|has failed"):
            make(callback, epochs=2).train()

    assert tiny.run_ranks(work) == [0, 0]


@pytest.mark.parametrize(
    ("values", "text"),
    [({"a": "b"}, "'a' must be a number"), ({1: 2}, "must be a str"), ([1], "must be a mapping")],
)
def test_what_is_no_number_is_refused(values, text):
    callback = calling("on_epoch_end", lambda trainer: trainer.total(values))
    with pytest.raises(CallbackError, match=rf"trainer\.total: .*{text}"):
        make(callback).train()


def test_another_thread_is_refused():
    found = []

    def add(trainer):
        def work():
            try:
                trainer.total({"a": 1})
            except RuntimeError as error:
                found.append(str(error))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    make(calling("on_epoch_end", add)).train()
    assert "another thread than that of the loop" in found[0]
