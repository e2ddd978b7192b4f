"""What became NaN or infinite becomes no snapshot, no finished model and no kept weights."""

import math

import pytest
import torch
from torch import nn

from trainer import NonFiniteError, Trainer, TrainerConfig
from trainer.snapshots.snapshot import list_snapshots
from trainer.snapshots.state_file import load_state
from trainer_callback import CallbackError, TrainerCallback
from trainer_tool.cli import main


class Net(nn.Module):
    def __init__(self, mask=None):
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("mask", torch.zeros(3) if mask is None else mask)
        self.register_buffer("lazy", None)

    def forward(self, x):
        return self.layer(x).square().mean()


class Spoil(TrainerCallback):
    """Puts `value` into a tensor of the trainer behind update `step`."""

    def __init__(self, find, value=math.nan, step=7):
        self.find, self.value, self.step = find, value, step

    def on_step_end(self, trainer):
        if trainer.step == self.step:
            with torch.no_grad():
                self.find(trainer).view(-1)[0] = self.value


def make(place, *callbacks, model=None, batches=10, **options):
    model = model or Net()
    settings = {"epochs": 1, "snapshot_interval": 2, "keep_snapshots": 2, **options}
    return Trainer(
        model,
        torch.optim.SGD([model.layer.weight, model.layer.bias], lr=0.1, momentum=0.9),
        [torch.ones(2, 4)] * batches,
        config=TrainerConfig(output_dir=place, **settings),
        callbacks=[*callbacks],
        discover=False,
    )


def weight(trainer):
    return trainer.model.layer.bias  # the loss of a bias that is infinite is, too


def momentum(trainer):
    return trainer.optimizer.state[trainer.model.layer.weight]["momentum_buffer"]


class Ends(TrainerCallback):
    def on_train_end(self, trainer, result):
        self.status = result.status


TENSORS = {
    "frozen": (lambda trainer: trainer.model.frozen, math.inf, "'frozen' is infinite"),
    "frozen, NaN": (lambda trainer: trainer.model.frozen, math.nan, "'frozen' is NaN"),
    "buffer": (lambda trainer: trainer.model.mask, math.nan, "the buffer 'mask' is NaN"),
}


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("kind", TENSORS)
def test_what_became_nan_or_infinite_ends_the_run_and_leaves_the_good_snapshots(
    tmp_path, kind, sync
):
    find, value, text = TENSORS[kind]
    ends = Ends()
    trainer = make(tmp_path, Spoil(find, value), ends, batches=100, snapshot_sync=sync)
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    assert str(caught.value).startswith(f"{text}, so the snapshot of update 8 was not written.")
    assert "step-00000006 is finite." in str(caught.value)
    assert ends.status == "failed"
    names = [each.name for each in list_snapshots(tmp_path / "snapshots")]
    assert names == ["step-00000006", "step-00000004"]
    assert not (tmp_path / "final").exists()
    assert trainer.step < 12
    assert make(tmp_path).train(resume=True).status == "finished"


def test_a_state_of_the_optimizer_that_became_infinite_is_refused_at_the_last_update(tmp_path):
    spoil = Spoil(momentum, math.inf, step=10)
    with pytest.raises(NonFiniteError, match=r"^'optimizer\.state\.0\.momentum_buffer' is inf"):
        make(tmp_path, spoil).train()
    assert list_snapshots(tmp_path / "snapshots")[0].name == "step-00000008"


@pytest.mark.parametrize("place", [True, False])
def test_a_run_whose_last_weights_are_not_finite_has_not_finished(tmp_path, place):
    ends = Ends()
    options = {} if place else {"snapshot_interval": None}
    spoil = Spoil(weight, math.inf, step=10)
    with pytest.raises(NonFiniteError, match=r"'layer\.bias' is infinite"):
        make(tmp_path / "run" if place else None, spoil, ends, **options).train()
    assert ends.status == "failed"


def test_numbers_whose_sum_is_too_large_are_finite(tmp_path):
    most = torch.finfo(torch.float32).max

    def find(trainer):
        trainer.model.frozen[1] = most
        return trainer.model.frozen

    assert make(tmp_path, Spoil(find, most)).train().status == "finished"
    state, _ = load_state(list_snapshots(tmp_path / "snapshots")[0])
    assert state["model"]["frozen"].tolist() == [most, most]


def test_infinities_that_cancel_are_found(tmp_path):
    def find(trainer):
        trainer.model.frozen[1] = -math.inf
        return trainer.model.frozen

    with pytest.raises(NonFiniteError, match=r"'frozen' is infinite"):
        make(tmp_path, Spoil(find, math.inf)).train()


def test_the_finished_model_is_finite(tmp_path):
    class Restore(TrainerCallback):
        def on_train_end(self, trainer):
            with torch.no_grad():
                trainer.model.layer.weight.fill_(math.nan)

    with pytest.raises(NonFiniteError, match=r"'layer.weight' is NaN, so final/ was not written"):
        make(tmp_path, Restore()).train()
    assert not (tmp_path / "final").exists()


def test_kept_weights_are_finite(tmp_path):
    class Keeps(TrainerCallback):
        def on_epoch_end(self, trainer):
            with torch.no_grad():
                trainer.model.layer.weight.fill_(math.nan)
            trainer.save_weights("mine")

    with pytest.raises(CallbackError, match=r"Keeps .*'layer.weight' is NaN, so weights/mine was"):
        make(tmp_path, Keeps()).train()
    assert not (tmp_path / "weights" / "mine").exists()


@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_what_was_not_finite_at_the_start_is_no_fault(tmp_path, value):
    def build():
        model = Net(torch.tensor([0.0, value, 1.0]))
        model.frozen.data.fill_(value)
        return model

    assert make(tmp_path, model=build()).train().status == "finished"
    assert make(tmp_path, model=build(), epochs=2).train(resume=True).status == "finished"
    assert main(["snapshot", "verify", str(tmp_path)]) == 0


def test_a_mask_that_was_infinite_at_the_start_must_not_become_nan(tmp_path):
    model = Net(torch.tensor([0.0, -math.inf]))
    with pytest.raises(NonFiniteError, match="the buffer 'mask' is NaN"):
        make(tmp_path, Spoil(lambda trainer: trainer.model.mask), model=model).train()


def test_a_buffer_that_becomes_infinite_is_told_of_once_and_kept(tmp_path, caplog):
    class Build(TrainerCallback):
        def on_step_end(self, trainer):
            trainer.model.lazy = torch.tensor([0.0, -math.inf])

    assert make(tmp_path, Build()).train().status == "finished"
    told = [line for line in caplog.messages if "has become infinite" in line]
    assert len(told) == 1
    assert told[0].startswith("the buffer 'lazy' has become infinite.")
    state, _ = load_state(tmp_path / "final")
    assert state["model"]["lazy"].tolist() == [0.0, -math.inf]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_any_float_is_looked_at_in_any_layout(tmp_path, dtype):
    class Odd(TrainerCallback):
        def on_step_end(self, trainer):
            if trainer.step == 3:
                trainer.model.mask = torch.tensor([[0.0, math.nan]]).to(dtype)

    with pytest.raises(NonFiniteError, match="the buffer 'mask' is NaN"):
        make(tmp_path, Odd()).train()


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch: sparse CSR is in beta
@pytest.mark.parametrize("kind", ["to_sparse", "to_sparse_csr", "complex"])
def test_sparse_and_complex_tensors_are_looked_at(tmp_path, kind):
    class Odd(TrainerCallback):
        def on_step_end(self, trainer):
            if trainer.step == 3:
                bad = torch.tensor([[0.0, math.nan]])
                trainer.model.mask = bad * 1j if kind == "complex" else getattr(bad, kind)()

    with pytest.raises(NonFiniteError, match="the buffer 'mask' is NaN"):
        make(tmp_path, Odd()).train()


def test_tensors_of_several_pieces_are_looked_at_to_the_end(tmp_path):
    class Odd(TrainerCallback):
        def on_step_end(self, trainer):
            if trainer.step == 3:
                trainer.model.mask = torch.zeros(100_000)
                trainer.model.mask[-1] = math.nan

    with pytest.raises(NonFiniteError, match="the buffer 'mask' is NaN"):
        make(tmp_path, Odd()).train()


@pytest.mark.parametrize("batches", [20, 200])
def test_what_is_not_finite_ends_all_processes(tiny, tmp_path, batches):
    """The main process alone looks at what it writes; the others are told at the next snapshot."""

    def work(rank):
        spoil = Spoil(lambda trainer: trainer.model.frozen, math.inf)
        with pytest.raises(NonFiniteError, match="'frozen' is infinite"):
            make(tmp_path / "run", spoil, batches=batches).train()

    assert tiny.run_ranks(work) == [0, 0]
    assert not (tmp_path / "run" / "final").exists()


def test_a_refused_write_of_the_main_process_ends_all_processes(tiny, tmp_path):
    class Link(TrainerCallback):
        def on_train_start(self, trainer):
            if trainer.is_main_process:
                (trainer.output_dir / "snapshots").write_text("in the way")

    def work(rank):
        with pytest.raises(Exception, match="could not be written") as caught:
            make(tmp_path / "run", Link(), batches=100).train()
        assert type(caught.value).__name__ == "SaveError"

    assert tiny.run_ranks(work) == [0, 0]


class SetRate(TrainerCallback):
    """Sets a setting of the optimizer's last group behind update `step`."""

    def __init__(self, value, step, name="lr"):
        self.value, self.step, self.name = value, step, name

    def on_step_end(self, trainer):
        if trainer.step == self.step:
            trainer.optimizer.param_groups[-1][self.name] = self.value


@pytest.mark.parametrize("place", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf, "0.1", torch.tensor(math.nan), 1j])
def test_a_learning_rate_that_no_update_can_use_is_told_behind_the_last_update(
    tmp_path, place, value
):
    ends = Ends()
    options = {} if place else {"snapshot_interval": None}
    with pytest.raises(NonFiniteError) as caught:
        make(tmp_path if place else None, SetRate(value, 10), ends, **options).train()
    assert str(caught.value) == (
        f"the learning rate of group 0 of SGD has become {value!r}; look at what sets it, a "
        "scheduler or a callback. That was found behind update 10."
    )
    assert ends.status == "failed"
    assert not (tmp_path / "final").exists()
    if place:
        assert list_snapshots(tmp_path / "snapshots")[0].name == "step-00000008"


def test_a_setting_of_the_optimizer_that_became_nan_is_told_too(tmp_path):
    with pytest.raises(NonFiniteError, match=r"^momentum of group 0 of SGD has become nan"):
        make(tmp_path, SetRate(math.nan, 10, "momentum")).train()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_tensor_among_the_settings_that_became_nan_or_infinite_is_refused(tmp_path, value):
    """Optimizers that find their own rate keep it there."""
    what = r"^'optimizer\.param_groups\[0\]\.d' is (NaN|infinite), so the snapshot of update 10"
    with pytest.raises(NonFiniteError, match=what):
        make(tmp_path, SetRate(torch.tensor([1.0, value]), 10, "d")).train()
    assert list_snapshots(tmp_path / "snapshots")[0].name == "step-00000008"


@pytest.mark.parametrize("options", [{"log_interval": 1}, {"log_interval": 100}])
@pytest.mark.parametrize("value", [math.nan, "0.1"])
def test_what_a_bad_learning_rate_does_to_an_update_is_told_with_its_cause(
    tmp_path, value, options
):
    trainer = make(tmp_path, SetRate(value, 5), **options)
    with pytest.raises(NonFiniteError, match=r"learning rate of group 0 of SGD has become"):
        trainer.train()


def test_a_learning_rate_that_was_removed_is_told(tmp_path):
    class Remove(TrainerCallback):
        def on_step_end(self, trainer):
            if trainer.step == 5:
                del trainer.optimizer.param_groups[0]["lr"]

    with pytest.raises(NonFiniteError, match="group 0 of SGD has lost its learning rate 'lr'"):
        make(tmp_path, Remove()).train()
