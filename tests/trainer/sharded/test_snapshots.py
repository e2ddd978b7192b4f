"""Snapshots and weights of divided models: files hold the whole, each process takes its part."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from trainer import Trainer, TrainerConfig
from trainer.snapshots.state_file import load_state
from trainer_callback import CallbackError, SnapshotError, StateError, TrainerCallback


def test_a_snapshot_holds_the_whole_and_each_rank_takes_its_part_back(tiny, sharded, tmp_path):
    """Buffers that differ between the processes, and an epoch that is cut in the middle."""

    def work(place, rank, resume, **config):
        trainer = sharded.trainer(place, norm=nn.BatchNorm1d(7), snapshot_interval=2, **config)
        code = trainer.train(resume=resume).exit_code
        assert trainer.model[0].weight.to_local().shape == ((4, 4) if rank == 0 else (3, 4))
        return code

    through, cut = tmp_path / "through", tmp_path / "cut"
    assert tiny.run_ranks(lambda rank: work(through, rank, False)) == [0, 0]
    assert tiny.run_ranks(lambda rank: work(cut, rank, False, max_steps=6)) == [0, 0]
    assert tiny.run_ranks(lambda rank: work(cut, rank, True)) == [0, 0]
    one, two = tiny.newest_state(through), tiny.newest_state(cut)
    for part in ("model", "optimizer", "other_ranks", "rng"):
        assert tiny.difference(one[part], two[part]) is None
    assert one["model"]["0.weight"].shape == (7, 4)
    assert one["optimizer"]["state"][0]["exp_avg"].shape == (7, 4)
    assert sharded.read_log(through) == sharded.read_log(cut)


def test_a_snapshot_of_whole_models_goes_on_divided_and_back(tiny, sharded, tmp_path):
    def work(place, divided, resume, **config):
        trainer = sharded.trainer(place, divided=divided, snapshot_interval=2, **config)
        return trainer.train(resume=resume).exit_code

    through, mixed = tmp_path / "through", tmp_path / "mixed"
    assert tiny.run_ranks(lambda rank: work(through, False, False)) == [0, 0]
    assert tiny.run_ranks(lambda rank: work(mixed, False, False, max_steps=2)) == [0, 0]
    assert tiny.run_ranks(lambda rank: work(mixed, True, True, max_steps=6)) == [0, 0]
    assert tiny.run_ranks(lambda rank: work(mixed, False, True)) == [0, 0]
    assert sharded.same_log(sharded.read_log(through), sharded.read_log(mixed))
    one, two = tiny.newest_state(through), tiny.newest_state(mixed)
    assert sharded.apart(one["model"], two["model"]) < 1e-12


def test_a_snapshot_of_another_model_is_refused_with_the_layer(tiny, sharded, tmp_path):

    assert tiny.run_ranks(lambda rank: sharded.trainer(tmp_path).train().exit_code) == [0, 0]

    def work(rank):
        with pytest.raises(SnapshotError, match=r"2\.weight.*which the model has not"):
            sharded.trainer(tmp_path, norm=nn.Identity()).train(resume=True)

    assert tiny.run_ranks(work) == [0, 0]


def test_the_finished_model_is_whole(tiny, sharded, tmp_path):
    assert tiny.run_ranks(lambda rank: sharded.trainer(tmp_path).train().exit_code) == [0, 0]
    final = load_file(tmp_path / "final" / "model.safetensors")
    assert final["0.weight"].shape == (7, 4)
    state, _ = load_state(tmp_path / "final")
    assert sharded.apart(state["model"], final) == 0
    assert sharded.apart(tiny.newest_state(tmp_path)["model"], final) == 0


def test_tied_weights_are_written_once_and_stay_tied(tiny, sharded, tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x)).square().mean()

    def work(rank):
        torch.manual_seed(0)
        model = Tied()
        sharded.shard(model)
        trainer = Trainer(
            model,
            torch.optim.AdamW(model.parameters(), lr=0.1),
            [torch.ones(2, 4)] * 8,
            config=TrainerConfig(output_dir=tmp_path, epochs=2, snapshot_interval=2),
            discover=False,
        )
        trainer.train(resume="auto")
        assert model.second.weight is model.first.weight

    for _ in range(2):  # the second time they come from the snapshot
        assert tiny.run_ranks(work) == [0, 0]
    weights = tiny.newest_state(tmp_path)["model"]
    assert weights["first.weight"].data_ptr() == weights["second.weight"].data_ptr()
    assert [*load_file(tmp_path / "final" / "model.safetensors")] == ["first.weight"]


def test_saved_weights_are_loaded_bit_by_bit_wherever_they_lie(tiny, sharded, tmp_path):
    class Keeper(TrainerCallback):
        def on_epoch_end(self, trainer, epoch):
            if epoch == 0:
                self.digest = trainer.save_weights("mine")
                self.parts = [p.to_local().clone() for p in trainer.model.parameters()]
                self.mean = trainer.model[2].running_mean.clone()

        def on_train_end(self, trainer):
            assert trainer.load_weights("mine", self.digest) == "weights/mine"
            now = [p.to_local() for p in trainer.model.parameters()]
            assert all(map(torch.equal, self.parts, now))
            assert torch.equal(self.mean, trainer.model[2].running_mean)

    def work(rank):
        trainer = sharded.trainer(tmp_path, callbacks=[Keeper()], norm=nn.BatchNorm1d(7))
        return trainer.train().exit_code

    assert tiny.run_ranks(work) == [0, 0]


class Odd(torch.optim.SGD):
    """Keeps a list and a None per weight, and something that belongs to no weight."""

    def step(self, closure=None):
        self.state["all"]["calls"] = self.state["all"].get("calls", 0) + 1
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter].setdefault("nothing", None)
            history = self.state[parameter].setdefault("history", [])
            history.append(parameter.grad.clone())
            parameter.data.sub_(0.01 * sum(history))


class Factored(torch.optim.SGD):
    """Keeps sums over the columns of each weight."""

    def step(self, closure=None):
        super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["rows"] = parameter.grad.sum(-1)


def test_an_optimizer_may_keep_lists_and_things_of_no_weight(tiny, sharded, tmp_path):
    def work(name, resume=False, **config):
        trainer = sharded.trainer(tmp_path / name, optimizer=Odd, snapshot_interval=2, **config)
        return trainer.train(resume=resume).exit_code

    assert tiny.run_ranks(lambda rank: work("through")) == [0, 0]
    assert tiny.run_ranks(lambda rank: work("cut", max_steps=4)) == [0, 0]
    assert tiny.run_ranks(lambda rank: work("cut", resume=True)) == [0, 0]
    one, two = (tiny.newest_state(tmp_path / name) for name in ("through", "cut"))
    for part in ("model", "optimizer"):
        assert tiny.difference(one[part], two[part]) is None


def test_a_state_that_could_not_be_divided_again_is_not_saved(tiny, sharded, tmp_path):
    def work(rank):
        trainer = sharded.trainer(tmp_path, optimizer=Factored)
        with pytest.raises(StateError, match=r"state\[0\] of Factored has a sharded tensor"):
            trainer.train()

    assert tiny.run_ranks(work) == [0, 0]


@pytest.mark.parametrize("kind", ["fails on one", "answers on one"])
def test_parts_that_not_all_answer_are_no_state(tiny, sharded, tmp_path, kind):
    class Keeps(TrainerCallback):
        critical = False

        def on_snapshot_save(self, trainer):
            if trainer.rank == 1 and kind == "fails on one":
                raise OSError("no space left")
            if trainer.rank == 1 and kind == "answers on one":
                return {"mine": 1}
            return {"mine": trainer.model[0].weight}

    def work(rank):
        trainer = sharded.trainer(tmp_path, callbacks=[Keeps()], snapshot_interval=2)
        if kind == "fails on one":
            assert trainer.train().switched_off == ("Keeps",)
            return
        with pytest.raises(CallbackError, match=r"Keeps .*DTensors in 1 of 2 processes"):
            trainer.train()

    assert tiny.run_ranks(work) == [0, 0]
