"""Snapshots that leave out a frozen base, and resumes that take it from the model."""

import pytest
import torch
from torch import nn

from trainer import ConfigError, Trainer, TrainerConfig
from trainer.snapshots.snapshot import list_snapshots
from trainer_callback import ResumeError, TrainerCallback
from trainer_early_stopping import EarlyStoppingCallback

BASE = {"base.weight", "base.bias", "alias.weight", "alias.bias"}


class Adapted(nn.Module):
    """A frozen layer, tied to another name, and a low-rank adapter beside it."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.base = nn.Linear(8, 8)
        self.base.weight.data = torch.randn(8, 8, generator=generator)
        self.base.bias.data = torch.randn(8, generator=generator)
        self.base.requires_grad_(False)
        self.alias = self.base
        self.down = nn.Linear(8, 2, bias=False)
        self.up = nn.Linear(2, 8, bias=False)
        self.norm = nn.BatchNorm1d(8)
        for layer in (self.down, self.up):
            layer.weight.data = 0.1 * torch.ones_like(layer.weight)

    def forward(self, inputs):
        return self.norm(self.base(inputs) + self.up(self.down(inputs)))


def make(place, model=None, callbacks=(), **config):
    model = Adapted() if model is None else model
    data = list(torch.randn(12, 4, 8, generator=torch.Generator().manual_seed(1)))
    trained = [each for each in model.parameters() if each.requires_grad]
    return Trainer(
        model,
        torch.optim.AdamW(trained, lr=0.05),
        data,
        data[:2],
        loss_fn=lambda model, batch: (model(batch) - 1).square().mean(),
        callbacks=list(callbacks),
        discover=False,
        config=TrainerConfig(
            **{"epochs": 2, "output_dir": place, "snapshot_frozen": False, **config}
        ),
    )


def newest(place):
    path = list_snapshots(place / "snapshots")[0]
    return torch.load(path / "state.pt", weights_only=True)


def test_a_snapshot_has_a_digest_of_the_frozen_base_and_a_resume_is_exact(tmp_path):
    whole, cut = Adapted(), Adapted()
    make(tmp_path / "whole", whole).train()
    make(tmp_path / "cut", max_steps=7).train()
    state = newest(tmp_path / "cut")
    assert set(state["left_out"]) == BASE
    assert BASE.isdisjoint(state["model"])
    make(tmp_path / "cut", cut).train(resume=True)
    assert all(map(torch.equal, whole.state_dict().values(), cut.state_dict().values()))


def test_the_finished_model_is_whole(tmp_path):
    model = Adapted()
    make(tmp_path / "run", model).train()
    final = torch.load(tmp_path / "run" / "final" / "state.pt", weights_only=True)["model"]
    assert all(torch.equal(final[name], value) for name, value in model.state_dict().items())


def test_a_resume_on_another_base_is_refused(tmp_path):
    make(tmp_path / "run", max_steps=7).train()
    with pytest.raises(ResumeError, match=r"left out the frozen 'base.weight', and the model's"):
        make(tmp_path / "run", Adapted(seed=3)).train(resume=True)


def test_a_run_that_saves_everything_resumes_from_a_snapshot_without_the_base(tmp_path):
    make(tmp_path / "run", max_steps=7).train()
    make(tmp_path / "run", max_steps=9, snapshot_frozen=True).train(resume=True)
    assert "left_out" not in newest(tmp_path / "run") or newest(tmp_path / "run")["left_out"] == {}
    assert set(newest(tmp_path / "run")["model"]) >= BASE
    assert make(tmp_path / "run", Adapted(seed=3)).train(resume=True).status == "finished"


@pytest.mark.parametrize("how", ["in place", "by data", "unfrozen"])
def test_what_a_callback_has_changed_is_saved(tmp_path, how):
    class Changes(TrainerCallback):
        def on_step_end(self, trainer):
            bias = trainer.model.base.bias
            if trainer.step == 3 and how == "in place":
                bias.add_(1.0)
            elif trainer.step == 3 and how == "by data":
                bias.data[0] = 7.0
            elif trainer.step == 3:
                bias.requires_grad_()

    whole, cut = Adapted(), Adapted()
    make(tmp_path / "whole", whole, [Changes()]).train()
    make(tmp_path / "cut", None, [Changes()], max_steps=7).train()
    state = newest(tmp_path / "cut")
    assert set(state["left_out"]) == {"base.weight", "alias.weight"}
    assert {"base.bias", "alias.bias"} <= set(state["model"])
    make(tmp_path / "cut", cut, [Changes()]).train(resume=True)
    assert all(map(torch.equal, whole.state_dict().values(), cut.state_dict().values()))


def test_the_best_weights_come_from_a_snapshot_without_the_base(tmp_path):
    stopper = EarlyStoppingCallback(patience=5)
    make(tmp_path / "run", None, [stopper], snapshot_epochs=True, keep_snapshots=9).train()
    trainer = make(tmp_path / "run", None, [], epochs=2, snapshot_epochs=True)
    path = list_snapshots(tmp_path / "run" / "snapshots")[-1]
    step = int(path.name.split("-")[1])
    view = trainer.run.view
    source = view.load_weights("gone", "no digest", fallback_step=step)
    assert path.name in source


def test_a_model_without_anything_frozen_is_refused(tmp_path):
    model = Adapted().requires_grad_()
    with pytest.raises(ConfigError, match="snapshot_frozen=False leaves out frozen parameters"):
        make(tmp_path / "run", model)


def test_two_processes_resume_with_the_base_of_each(tiny, tmp_path):
    def work(rank, **config):
        model = Adapted()
        make(tmp_path / "run", model, **config).train(resume="auto")
        torch.save(model.state_dict(), tmp_path / f"{rank}.pt")

    def plain(rank):
        model = Adapted()
        make(tmp_path / "plain", model).train()
        torch.save(model.state_dict(), tmp_path / f"plain{rank}.pt")

    assert tiny.run_ranks(plain) == [0, 0]
    assert tiny.run_ranks(lambda rank: work(rank, max_steps=4)) == [0, 0]
    assert set(newest(tmp_path / "run")["left_out"]) == BASE
    assert tiny.run_ranks(work) == [0, 0]
    for rank in (0, 1):
        one, other = (torch.load(tmp_path / f"{name}{rank}.pt") for name in ("plain", ""))
        assert all(map(torch.equal, one.values(), other.values()))
