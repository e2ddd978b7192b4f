"""A set that is measured before and behind a run: exact, and without a trace."""

import gc
import os
import random
import signal
import weakref

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from trainer import ConfigError, Trainer, TrainerConfig
from trainer.testing.recorder import Recorder
from trainer_callback import RunError, TrainerCallback, UsageError


class Items(torch.utils.data.Dataset):
    """Rows that draw from every generator when they are read, and count how often they are."""

    def __init__(self, count):
        generator = torch.Generator().manual_seed(count)
        self.rows = torch.randn(count, 5, generator=generator, dtype=torch.float64)
        self.visits = [0] * count

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.visits[index] += 1
        noise = 0 * (torch.rand(()) + random.random() + numpy.random.rand())
        return self.rows[index, :4] + noise, self.rows[index, 4:]


def loss_and_outputs(model, batch):
    outputs = model(batch[0])
    return nn.functional.mse_loss(outputs, batch[1]), outputs


def is_near(outputs, batch):
    return ((outputs - batch[1]).abs() < 1)[:, 0]


def make(callbacks=(), loss_fn=loss_and_outputs, **config):
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1)]
    model = nn.Sequential(*layers).double()
    model[2].eval()  # a part that somebody has set aside
    return Trainer(
        model,
        torch.optim.AdamW(model.parameters(), lr=0.1),
        DataLoader(Items(16), batch_size=4, shuffle=True),
        loss_fn=loss_fn,
        metrics={"near": is_near} if loss_fn is loss_and_outputs else None,
        config=TrainerConfig(**{"epochs": 2, **config}),
        callbacks=list(callbacks),
        discover=False,
    )


def measured(model, data):
    """What a set has, in plain torch."""
    modes = [each.training for each in model.modules()]
    with torch.no_grad():
        apart = model.eval()(data.rows[:, :4]) - data.rows[:, 4:]
    for each, mode in zip(model.modules(), modes, strict=True):
        each.training = mode
    return {
        "test_loss": pytest.approx(float(apart.square().mean()), abs=1e-12),
        "test_near": pytest.approx(float((apart.abs() < 1).double().mean()), abs=1e-12),
    }


@pytest.mark.parametrize("count", [21, 16, 3])
def test_a_set_is_measured_over_all_items_and_processes(tiny, count):
    def work(rank):
        trainer = make()
        as_train = trainer.evaluate(DataLoader(Items(count), batch_size=4), name="train")
        before = trainer.evaluate(DataLoader(Items(count), batch_size=4))
        assert [*as_train.values()] == [*before.values()]
        assert before == measured(trainer.model, Items(count))
        trainer.train()
        after = trainer.evaluate(DataLoader(Items(count), batch_size=4))
        assert after == measured(trainer.model, Items(count)) != before

    assert tiny.child(lambda: work(0)).wait() == 0
    assert tiny.run_ranks(work) == [0, 0]


def test_each_item_counts_once():
    data = Items(21)
    make().evaluate(DataLoader(data, batch_size=4, shuffle=True))
    assert data.visits == [1] * 21


def test_a_measurement_is_what_the_validation_of_that_set_would_find():
    loader = DataLoader(Items(21), batch_size=4)
    torch.manual_seed(0)
    model = nn.Linear(4, 1).double()
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        DataLoader(Items(16), batch_size=4),
        loader,
        loss_fn=loss_and_outputs,
        metrics={"near": is_near},
        config=TrainerConfig(epochs=1),
        discover=False,
    )
    row = trainer.train().history[-1]
    assert trainer.evaluate(loader, name="val") == {
        "val_loss": row["val_loss"],
        "val_near": row["val_near"],
    }


def state_of(trainer):
    rng = (torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate())
    modes = [each.training for each in trainer.model.modules()]
    gradients = [p.grad for p in trainer.model.parameters()]
    state = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    return rng, modes, gradients, state, dict(trainer.metrics), trainer.step, trainer.epoch


@pytest.mark.parametrize("call", ["evaluate", "predict"])
def test_a_call_leaves_no_trace_and_calls_no_hook(tiny, call):
    recorder = Recorder()
    trainer = make([recorder])
    for turn in range(2):
        for parameter in trainer.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        before, calls = state_of(trainer), len(recorder.calls)
        getattr(trainer, call)(DataLoader(Items(21), batch_size=4))
        after = state_of(trainer)
        assert tiny.difference(before, after) is None
        assert all(one is other for one, other in zip(before[2], after[2], strict=True))
        assert len(recorder.calls) == calls
        if turn == 0:
            trainer.train()


@pytest.mark.parametrize("call", ["evaluate", "predict"])
def test_a_run_with_calls_between_is_the_run_without_them(tiny, tmp_path, call):
    def work(name, calls):
        for limit, resume in ((3, False), (None, True)):
            trainer = make(output_dir=tmp_path / name, snapshot_interval=1, max_steps=limit)
            for going_on in (resume, True):  # the second time there is nothing left to train
                if calls:
                    getattr(trainer, call)(DataLoader(Items(21), batch_size=4))
                trainer.train(resume=going_on)

    work("plain", calls=False)
    work("called", calls=True)
    states = [tiny.newest_state(tmp_path / name) for name in ("plain", "called")]
    assert tiny.difference(*states) is None


@pytest.mark.parametrize("call", ["evaluate", "predict"])
@pytest.mark.parametrize("hook", ["on_train_start", "on_epoch_end", "on_train_end"])
def test_a_call_inside_a_run_is_refused(hook, call):
    owner = []
    calls = {hook: lambda self: getattr(owner[0], call)(DataLoader(Items(8), batch_size=4))}
    owner.append(make([type("Calls", (TrainerCallback,), calls)()], epochs=1))
    with pytest.raises(UsageError, match=f"trainer.{call} is called inside a run"):
        owner[0].train()
    assert (
        getattr(owner[0], call)(DataLoader(Items(8), batch_size=4)) is not None
    )  # later it is not


@pytest.mark.parametrize("call", ["evaluate", "predict"])
def test_a_call_behind_a_run_that_a_signal_has_ended_is_whole(tiny, call):
    class Ends(TrainerCallback):
        def on_step_end(self, trainer):
            os.kill(os.getpid(), signal.SIGTERM)

    def work():
        trainer = make([Ends()])
        assert trainer.train().status == "terminated"
        found = getattr(trainer, call)(DataLoader(Items(21), batch_size=4))
        if call == "evaluate":
            assert found == measured(trainer.model, Items(21))
        else:
            assert len(found) == 21

    assert tiny.child(work).wait() == 0


@pytest.mark.parametrize("call", ["evaluate", "predict"])
def test_a_process_that_fails_in_a_call_ends_the_others(tiny, call):
    def work(rank):
        class Breaks(Items):
            def __getitem__(self, index):
                if rank == 1 and index > 12:
                    raise OSError("the disk is gone")
                return super().__getitem__(index)

        with pytest.raises(Exception, match="the disk is gone"):
            getattr(make(), call)(DataLoader(Breaks(21), batch_size=4))

    assert tiny.run_ranks(work, seconds=30) == [0, 0]


def test_processes_that_call_different_things_are_told(tiny):
    def work(rank):
        loader = DataLoader(Items(21), batch_size=4)
        with pytest.raises(
            RunError, match=r"does not come to trainer\.(evaluate|predict): .* some"
        ):
            make().predict(loader) if rank else make().evaluate(loader)

    assert tiny.run_ranks(work, seconds=30) == [0, 0]


def test_a_process_that_calls_alone_is_told(tiny):
    def work(rank):
        trainer = make()
        trainer.train()
        if rank:
            return
        with pytest.raises(RunError, match=r"nobody comes to trainer\.evaluate.* in all processes"):
            trainer.evaluate(DataLoader(Items(21), batch_size=4))

    assert tiny.run_ranks(work, seconds=30) == [0, 0]


@pytest.mark.parametrize("call", ["evaluate", "predict"])
def test_a_sampler_that_pads_is_refused(tiny, call):
    def work(rank):
        trainer, data = make(), Items(21)
        loader = DataLoader(data, batch_size=4, sampler=DistributedSampler(data, shuffle=False))
        with pytest.raises(
            ConfigError, match=r"which makes 22 items of 21 .* Leave the sampler out"
        ):
            getattr(trainer, call)(loader)

    assert tiny.run_ranks(work) == [0, 0]


@pytest.mark.parametrize(
    ("loader", "name", "text"),
    [
        ([], "test", "the test loader is empty"),
        (torch.ones(4, 4), "test", "the test loader is a Tensor"),
        ({"a": [1]}, "test", r"one loader.*trainer\.evaluate takes one a call"),
        ([1], "a/b", "'a/b' is no name of a set"),
        ([1], None, "None is no name of a set"),
    ],
)
def test_what_is_no_set_is_refused(loader, name, text):
    with pytest.raises(ConfigError, match=text):
        make().evaluate(loader, name)


def test_metrics_that_only_evaluate_measures_are_said(caplog):
    caplog.set_level("INFO", logger="trainer")
    make()
    assert "no val_loader, so near will be measured by trainer.evaluate() only" in caplog.text


def test_a_measurement_computes_in_the_precision_of_the_run():
    seen = []

    def loss_fn(model, batch):
        outputs = model(batch)
        seen.append(outputs.dtype)
        return outputs.square().mean(), outputs

    model = nn.Linear(4, 2)
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        [torch.ones(2, 4)],
        loss_fn=loss_fn,
        config=TrainerConfig(epochs=1, precision="bf16"),
        discover=False,
    )
    trainer.evaluate([torch.ones(2, 4)])
    outputs = trainer.predict([torch.ones(2, 4)])
    own = trainer.predict([torch.ones(2, 4)], predict_fn=lambda model, batch: model(batch))
    assert seen == [torch.bfloat16] * 2
    assert outputs.dtype == own.dtype == torch.bfloat16


def test_a_loader_is_not_kept():
    trainer, data = make(), Items(8)
    trainer.evaluate(DataLoader(data, batch_size=4))
    trainer.predict(DataLoader(data, batch_size=4))
    alive = weakref.ref(data)
    del data
    gc.collect()
    assert alive() is None


def test_a_limit_of_the_validation_does_not_cut_a_measurement():
    trainer, data = make(max_val_batches=1), Items(21)
    trainer.evaluate(DataLoader(data, batch_size=4))
    trainer.predict(DataLoader(data, batch_size=4))
    assert data.visits == [2] * 21


def test_a_set_that_is_called_train_is_measured_whole_by_several_processes(tiny):
    def work(rank):
        trainer = make()
        found = trainer.evaluate(DataLoader(Items(17), batch_size=4), name="train")
        expected = measured(trainer.model, Items(17))
        assert found == {name.replace("test", "train"): each for name, each in expected.items()}

    assert tiny.run_ranks(work) == [0, 0]


@pytest.mark.parametrize("call", ["evaluate", "predict"])
def test_an_exception_in_a_measurement_says_what_the_batch_was(call, caplog):
    trainer = make(loss_fn=lambda model, batch: model(batch))
    with pytest.raises(TypeError) as caught:
        getattr(trainer, call)(DataLoader(Items(4), batch_size=4))
    told = "".join([*getattr(caught.value, "__notes__", ()), *caplog.messages])
    assert "The batch is a list of float64 (4, 4), float64 (4, 1)." in told
