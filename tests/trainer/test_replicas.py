"""Processes that train copies of one model: copies that drift apart end the run, and say why."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from trainer import Trainer, TrainerConfig
from trainer.processes.group import join_ranks
from trainer.processes.replicas import ReplicaError, check_replicas
from trainer.snapshots.snapshot import list_snapshots
from trainer.snapshots.state_file import load_state
from trainer_callback import TrainerCallback
from trainer_callback.calls.manager import CallbackManager


def make(place, *callbacks, model=None, **config):
    torch.manual_seed(7)
    model = model or nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    data = torch.arange(96.0).reshape(24, 4).sin()
    return Trainer(
        model,
        torch.optim.AdamW(model.parameters(), lr=0.01),
        DataLoader(data, batch_size=2, shuffle=True),  # six updates of two processes
        DataLoader(data[:8], batch_size=4),
        loss_fn=lambda model, batch: model(batch).square().mean(),
        config=TrainerConfig(output_dir=place, **{"epochs": 1, **config}),
        callbacks=callbacks,
        discover=False,
    )


class Noise(TrainerCallback):
    """Adds to one gradient what the process draws, from the given update on."""

    def __init__(self, start=0):
        self.start = start

    def on_backward_end(self, trainer):
        if trainer.step >= self.start:
            gradient = trainer.model[2].weight.grad
            gradient.add_(torch.randn_like(gradient))


def test_copies_that_drift_apart_end_the_run_at_the_next_snapshot(tiny, tmp_path):
    def work(rank):
        with pytest.raises(ReplicaError) as caught:
            make(tmp_path, Noise(start=3), snapshot_interval=2).train()
        text = str(caught.value)
        assert "at update 4, '2.weight' of process 1 is not that of process 0" in text
        assert "Noise" in text
        assert "metrics_file" not in text

    assert tiny.run_ranks(work) == [0, 0]
    (kept,) = list_snapshots(tmp_path / "snapshots")
    assert load_state(kept)[0]["progress"]["step"] == 2
    assert not (tmp_path / "final").exists()


def test_copies_that_drift_apart_are_noticed_at_a_validation(tiny):
    def work(rank):
        with pytest.raises(ReplicaError, match="at update 6"):
            make(None, Noise()).train()

    assert tiny.run_ranks(work) == [0, 0]


def test_a_single_bit_of_one_process_is_noticed(tiny):
    class Flips(TrainerCallback):
        def on_step_end(self, trainer):
            if trainer.rank == 1 and trainer.step == 5:
                bits = trainer.model[0].bias.detach().view(torch.int32)
                bits[3] ^= 1

    def work(rank):
        with pytest.raises(ReplicaError, match=r"'0\.bias' of process 1"):
            make(None, Flips()).train()

    assert tiny.run_ranks(work) == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("turns", [True, False])
def test_a_change_in_a_parameter_of_any_dtype_is_noticed(tiny, dtype, turns):
    def work(rank):
        ranks = join_ranks("cpu")
        turned = torch.ones(3, 2, dtype=dtype).t()
        model = nn.ParameterList([turned if turns else turned.contiguous()])
        check_replicas(model, ranks, CallbackManager(), 1)
        with torch.no_grad():
            model[0][1, 2] += rank
        with pytest.raises(ReplicaError, match="'0' of process 1"):
            check_replicas(model, ranks, CallbackManager(), 2)

    assert tiny.run_ranks(work) == [0, 0]


def test_statistics_of_each_process_and_draws_of_dropout_are_no_drift(tiny, tmp_path):
    def work(rank):
        options = {"epochs": 3, "eval_interval": 1, "snapshot_interval": 1}
        return tiny.trainer(tmp_path, **options).train().exit_code

    assert tiny.run_ranks(work) == [0, 0]


def test_the_same_noise_in_all_processes_is_no_drift(tiny, tmp_path):
    class SameNoise(TrainerCallback):
        def __init__(self):
            self.generator = torch.Generator().manual_seed(1)

        def on_backward_end(self, trainer):
            for parameter in trainer.model.parameters():
                noise = torch.randn(parameter.shape, generator=self.generator)
                parameter.grad.add_(noise)

    assert tiny.run_ranks(lambda rank: make(tmp_path, SameNoise()).train().exit_code) == [0, 0]


def test_the_manuals_gradient_noise_is_the_same_in_all_processes_and_after_a_resume(tiny, tmp_path):
    manual = (Path(__file__).parents[2] / "CALLBACKS.md").read_text()
    section = manual.split("### Add gradient noise\n")[1]
    names = {}
    exec(section.split("```python\n")[1].split("```")[0], names)
    recipe = names["GradientNoiseCallback"]

    def work(rank, *places):
        for place, cuts in places:
            for steps in cuts:
                noise = recipe(eta=0.1)
                make(place, noise, max_steps=steps, snapshot_interval=1).train(resume="auto")

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert tiny.run_ranks(lambda rank: work(rank, (whole, [6]), (cut, [3, 6]))) == [0, 0]
    assert tiny.difference(tiny.newest_state(whole), tiny.newest_state(cut)) is None
    work(0, (tmp_path / "alone", [6]))  # of one process, so that there was some noise at all
    make(tmp_path / "none", max_steps=6).train()
    one, none = (tiny.newest_state(tmp_path / name)["model"] for name in ("alone", "none"))
    assert not torch.equal(one["2.weight"], none["2.weight"])


class Tokens(nn.Linear):
    """Counts what it has seen, which is another number in each process."""

    def __init__(self):
        super().__init__(4, 1)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, batch):
        if self.training:
            self.seen += int(batch[0, 0] * 1000)
        return super().forward(batch)


def test_a_buffer_that_counts_otherwise_in_another_process_is_told_once(tiny, tmp_path, caplog):
    def work(rank):
        model = nn.Sequential(nn.BatchNorm1d(4), Tokens())
        assert make(tmp_path, model=model, snapshot_interval=2).train().exit_code == 0
        text = "the buffer 1.seen is not in process 1 what it is in the main process"
        assert caplog.text.count(text) == (rank == 0)
        assert "the buffer 0" not in caplog.text

    assert tiny.run_ranks(work, seconds=20) == [0, 0]
