"""The loop with a divided model: it does what one process does with a whole one."""

import math

import pytest
import torch
from torch import nn

from trainer import Trainer, TrainerConfig
from trainer.data.loaders import EmptyLoaderError
from trainer.processes.group import join_ranks
from trainer.processes.replicas import ReplicaError
from trainer.snapshots.snapshot import list_snapshots
from trainer.step.losses import NonFiniteError
from trainer_callback import TrainerCallback
from trainer_ema import EMACallback
from trainer_gradient_monitor import GradientMonitorCallback


@pytest.mark.parametrize("steps", [1, 2])
def test_two_ranks_train_a_divided_model_as_one_trains_a_whole_one(tiny, sharded, tmp_path, steps):
    alone, both = tmp_path / "alone", tmp_path / "both"
    sharded.trainer(alone, divided=False, gradient_accumulation_steps=2 * steps).train()

    def work(rank):
        trainer = sharded.trainer(both, gradient_accumulation_steps=steps)
        return trainer.train().exit_code

    assert tiny.run_ranks(work) == [0, 0]
    assert sharded.same_log(sharded.read_log(alone), sharded.read_log(both))
    one, two = tiny.newest_state(alone)["model"], tiny.newest_state(both)["model"]
    assert sharded.apart(one, two) < 1e-12


def test_no_process_holds_whole_gradients_between_micro_batches(tiny, sharded):
    class Looks(TrainerCallback):
        seen = 0

        def on_batch_end(self, trainer, batch_idx):
            if batch_idx % 2 == 0:  # inside an update
                gradient = trainer.model[0].weight.grad
                assert gradient.to_local().numel() < gradient.numel()
                self.seen += 1

    def work(rank):
        looks = Looks()
        sharded.trainer(None, callbacks=[looks], gradient_accumulation_steps=2).train()
        assert looks.seen

    assert tiny.run_ranks(work) == [0, 0]


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("hook", ["on_backward_end", "on_step_end", "on_validation_end"])
def test_a_forward_pass_in_a_callback_changes_nothing(tiny, sharded, tmp_path, hook, averaged):
    @torch.no_grad()
    def look(self, trainer):
        trainer.model(torch.ones(2, 4).double())

    def run(place, callbacks):
        if averaged:
            callbacks = [*callbacks, EMACallback(decay=0.9, use_for_validation=True)]
        return sharded.trainer(place, callbacks=callbacks).train().exit_code

    looks = type("Looks", (TrainerCallback,), {hook: look})
    for name, callbacks in (("without", []), ("with", [looks()])):
        assert tiny.run_ranks(lambda rank: run(tmp_path / name, callbacks)) == [0, 0]  # noqa: B023
    assert sharded.read_log(tmp_path / "without") == sharded.read_log(tmp_path / "with")


class Centre(nn.Module):
    """Uses a running mean of its own in training."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(7))

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)
        return x - self.mean


def test_buffers_are_those_of_the_main_process_as_in_a_whole_model(tiny, sharded, tmp_path):
    def run(divided):
        place = tmp_path / str(divided)
        return sharded.trainer(place, divided=divided, norm=Centre()).train().exit_code

    for divided in (True, False):
        assert tiny.run_ranks(lambda rank: run(divided)) == [0, 0]  # noqa: B023
    assert sharded.same_log(*(sharded.read_log(tmp_path / name) for name in ("True", "False")))


def test_copies_start_as_the_main_process_has_them(tiny, sharded, tmp_path):
    """A frozen part, and the copies of a part on a mesh of replicas."""

    def work(rank):
        join_ranks("cpu")
        torch.manual_seed(rank)
        model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        model[0].requires_grad_(False)
        sharded.shard(model[1], mesh=sharded.replicas())
        optimizer = torch.optim.SGD(model[1].parameters())
        config = TrainerConfig(output_dir=None)
        Trainer(model, optimizer, [1, 2, 3, 4], config=config, discover=False)
        part = model[1].weight.to_local().detach()
        torch.save((model[0].weight.detach(), part), tmp_path / f"{rank}.pt")

    assert tiny.run_ranks(work, count=4) == [0] * 4
    frozen, parts = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(4)), strict=True)
    assert all(torch.equal(each, frozen[0]) for each in frozen)
    assert torch.equal(parts[0], parts[2])
    assert torch.equal(parts[1], parts[3])


def test_four_ranks_train_two_divided_copies_as_one_trains_a_whole_model(tiny, sharded, tmp_path):
    """Each copy's parts lie in two processes: sums go over these only."""
    alone, four = tmp_path / "alone", tmp_path / "four"

    def run(place, resume=False, **config):
        monitor = GradientMonitorCallback(monitor_interval=1, monitor_level="parameter")
        settings = {"callbacks": [monitor], "validated": 20, "snapshot_interval": 2, **config}
        trainer = sharded.trainer(place, **settings)
        return trainer.train(resume=resume).exit_code

    run(alone, divided=False, gradient_accumulation_steps=4)
    for settings in ({"max_steps": 2}, {"resume": True}):
        codes = tiny.run_ranks(lambda rank: run(four, mesh=sharded.replicas, **settings), count=4)  # noqa: B023
        assert codes == [0] * 4
    assert sharded.same_log(sharded.read_log(alone), sharded.read_log(four))
    one, two = tiny.newest_state(alone)["model"], tiny.newest_state(four)["model"]
    assert sharded.apart(one, two) < 1e-12


def test_a_loss_function_may_take_its_batch_apart(tiny, sharded):
    def work(rank):
        def loss_fn(model, batch):
            x = batch["x"] if model.training else batch.pop("x")
            return model(x).square().mean()

        batches = [{"x": torch.ones(2, 4).double()} for _ in range(3)]
        trainer = sharded.trainer(None, validated=batches, loss_fn=loss_fn, batches=batches * 2)
        assert math.isfinite(trainer.train().val_loss)

    assert tiny.run_ranks(work) == [0, 0]


@pytest.mark.parametrize("validated", [8, 12, 20])
def test_a_validation_of_any_number_of_batches_counts_each_once(tiny, sharded, tmp_path, validated):
    """Each forward pass takes both processes, also where one has no batch left."""
    alone, both = tmp_path / "alone", tmp_path / "both"
    sharded.trainer(
        alone, divided=False, validated=validated, gradient_accumulation_steps=2
    ).train()

    def work(rank):
        return sharded.trainer(both, validated=validated).train().exit_code

    assert tiny.run_ranks(work) == [0, 0]
    assert sharded.same_log(sharded.read_log(alone), sharded.read_log(both))


def test_a_validation_stream_without_a_batch_for_each_process_ends_both(tiny, sharded):
    def work(rank):
        trainer = sharded.trainer(None, validated=[torch.ones(4, 4).double()])
        with pytest.raises(EmptyLoaderError, match="no batch for one of 2 processes"):
            trainer.train()

    assert tiny.run_ranks(work) == [0, 0]


def test_callbacks_find_the_parts_after_a_validation(tiny, sharded):
    class Looks(TrainerCallback):
        def on_validation_end(self, trainer):
            self.held = {id(p) for p in trainer.model.parameters()}

    def work(rank):
        looks = Looks()
        trainer = sharded.trainer(None, callbacks=[looks])
        trainer.train()
        (group,) = trainer.optimizer.param_groups
        assert looks.held == {id(p) for p in group["params"]}

    assert tiny.run_ranks(work) == [0, 0]


def test_under_fp16_an_overflow_in_one_part_is_skipped_by_both(tiny, sharded):
    class Overflow(nn.Module):
        """The third gradient of its last feature is infinite: of the second process's part."""

        calls = 0

        def forward(self, x):
            if x.requires_grad:
                self.calls += 1
                if self.calls == 3:
                    x.register_hook(lambda g: torch.cat([g[:, :-1], g[:, -1:] * math.inf], 1))
            return x

    class Skips(TrainerCallback):
        seen = ()

        def on_backward_end(self, trainer):
            if trainer.step == 2:
                own = trainer.model[0].weight.grad.to_local()
                assert own.isfinite().all() == (trainer.rank == 0)

        def on_step_end(self, trainer, skipped):
            self.seen = (*self.seen, skipped)

    def work(rank):
        skips = Skips()
        trainer = sharded.trainer(None, callbacks=[skips], norm=Overflow(), precision="fp16")
        trainer.train()
        assert skips.seen == (False, False, True, False, False, False, False, False)
        assert all(p.to_local().isfinite().all() for p in trainer.model.parameters())

    assert tiny.run_ranks(work) == [0, 0]


def test_a_gradient_that_is_not_finite_in_one_part_ends_both(tiny, sharded, tmp_path):
    def work(rank):
        class Spoils(TrainerCallback):
            def on_backward_end(self, trainer):
                if rank == 1 and trainer.step == 2:
                    trainer.model[0].weight.grad.to_local()[0, 0] = math.nan

        trainer = sharded.trainer(None, callbacks=[Spoils()])
        with pytest.raises(NonFiniteError, match="epoch 0, update 3"):
            trainer.train()

    assert tiny.run_ranks(work) == [0, 0]


def test_a_request_of_one_rank_does_not_make_it_measure_alone(tiny, sharded, tmp_path):
    """`gradient_stats` takes both processes, so a snapshot is due in both or in none."""

    class Measures(TrainerCallback):
        measured = 0

        def on_batch_start(self, trainer):
            if trainer.rank == 1 and trainer.step == 1:
                trainer.request_snapshot()

        def on_backward_end(self, trainer):
            if trainer.snapshot_due:
                trainer.gradient_stats()
                self.measured += 1

    def work(rank):
        measures = Measures()
        trainer = sharded.trainer(tmp_path, callbacks=[measures], epochs=1)
        assert trainer.train().exit_code == 0
        assert measures.measured == 1

    assert tiny.run_ranks(work) == [0, 0]
    names = [path.name for path in list_snapshots(tmp_path / "snapshots")]
    assert names == ["step-00000004", "step-00000002"]


def test_divided_copies_that_drift_apart_end_the_run(tiny, sharded):
    class Drifts(TrainerCallback):
        def on_step_end(self, trainer):
            if trainer.rank == 3 and trainer.step == 1:
                with torch.no_grad():
                    trainer.model[0].weight.to_local().add_(1)

    def work(rank):
        trainer = sharded.trainer(None, mesh=sharded.replicas, callbacks=[Drifts()], validated=16)
        with pytest.raises(ReplicaError, match=r"'0\.weight' of process 3 .* of process 1"):
            trainer.train()

    assert tiny.run_ranks(work, count=4) == [0] * 4
