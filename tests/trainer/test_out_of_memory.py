"""Wherever a run, or a pass outside one, runs out of memory, a line says what to change."""

import pytest
import torch
from torch import nn

from trainer import Trainer, TrainerConfig
from trainer.engine.memory import OutOfMemoryError, explain_memory
from trainer_callback import RunError, TrainerCallback

CUDA = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 1 GiB.\nSee documentation"
UPDATE = r"smaller batch_size and as much more of gradient_accumulation_steps, precision='bf16'"
BEHIND = r"Use smaller batches, also in a validation, precision='bf16', or a smaller model, which a"


def fail(*arguments, **named):
    raise torch.OutOfMemoryError(CUDA)


class Greedy(nn.Linear):
    """Has too little memory at one place."""

    def __init__(self, place):
        super().__init__(4, 1)
        self.place = place

    def forward(self, x):
        if self.place == ("forward" if self.training else "validation"):
            fail()
        return Backward.apply(super().forward(x), self.place == "backward")

    def to(self, *where, **named):
        return fail() if self.place == "move" else super().to(*where, **named)


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, fails):
        ctx.fails = fails
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return fail() if ctx.fails else (gradient, None)


class GreedySGD(torch.optim.SGD):
    fails = False

    def step(self, closure=None):
        return fail() if self.fails else super().step(closure)


def make(place, output_dir=None, callbacks=(), **config):
    model = Greedy(place)
    optimizer = GreedySGD(model.parameters(), lr=0.1)
    optimizer.fails = place == "step"
    batches = [torch.ones(2, 4)] * 3
    return Trainer(
        model,
        optimizer,
        batches,
        batches[:1],
        loss_fn=lambda model, batch: model(batch).mean(),
        config=TrainerConfig(epochs=1, output_dir=output_dir, device="cpu", **config),
        callbacks=callbacks,
        discover=False,
    )


@pytest.mark.parametrize("place", ["forward", "backward", "step", "validation"])
def test_an_update_that_has_too_little_is_to_become_smaller(place, tmp_path):
    trainer = make(place, tmp_path)
    validates = place == "validation"
    with pytest.raises(OutOfMemoryError, match=BEHIND if validates else UPDATE) as caught:
        trainer.train()
    at = "behind update 3" if validates else "update 1"
    where = f"the device is out of memory in epoch 0, {at} when 20.00 GiB more were wanted"
    assert str(caught.value).startswith(where)
    assert "\n" not in str(caught.value)
    assert trainer.run.result.exit_code == 1


@pytest.mark.parametrize(
    ("error", "device", "said"),
    [
        (torch.OutOfMemoryError(CUDA), "device", "CUDA out of memory"),
        (RuntimeError("CUDA error: out of memory\nmore"), "device", "CUDA error: out of memory"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
            "device",
            "CUBLAS_STATUS_ALLOC_FAILED",
        ),
        (
            RuntimeError(
                "MPS backend out of memory (MPS allocated: 18 GB). Tried to allocate 9 MB"
            ),
            "device",
            "MPS backend out of memory",
        ),
        (
            RuntimeError("err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"),
            "host",
            "DefaultCPUAllocator: can't allocate memory",
        ),
        (
            RuntimeError("unable to mmap 4096 bytes from file <f>: Cannot allocate memory (12)"),
            "host",
            "Cannot allocate memory",
        ),
        (OSError(12, "Cannot allocate memory"), "host", "Cannot allocate memory"),
    ],
)
def test_whatever_says_so_is_told_of_with_its_words(error, device, said):
    """Others look for the words: those that try again with a smaller batch."""
    found = explain_memory(error, "here")
    assert isinstance(found, OutOfMemoryError)
    assert str(found).startswith(f"the {device} is out of memory here")
    assert str(found).endswith(f" ({said}.)")
    assert found.__cause__ is error


@pytest.mark.parametrize("error", [RunError("out of memory"), ValueError("out of memory")])
def test_what_means_something_else_stays_as_it_is(error):
    assert explain_memory(error, "here") is error


def test_accelerate_tries_again_with_a_smaller_batch():
    memory = pytest.importorskip("accelerate.utils.memory")
    sizes = []

    @memory.find_executable_batch_size(starting_batch_size=8)
    def train(batch_size):
        sizes.append(batch_size)
        return make("forward" if batch_size > 6 else None).train()

    assert train().status == "finished"
    assert sizes == [8, 7, 6]


@pytest.mark.parametrize("hook", ["on_train_start", "on_step_end", "on_validation_start"])
def test_a_callback_that_has_too_little_is_named(hook):
    average = type("Average", (TrainerCallback,), {hook: lambda self: fail()})()
    advice = f"Use a {UPDATE}" if hook == "on_step_end" else BEHIND
    named = rf"more were wanted: Average \(.*\) failed in {hook}\. {advice}"
    with pytest.raises(OutOfMemoryError, match=named) as caught:
        make(None, callbacks=[average]).train()
    assert "\n" not in str(caught.value)


def test_the_copy_of_a_snapshot_that_has_too_little_is_told_of(tmp_path, monkeypatch):
    def fail_on_host(*arguments):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 GB")

    monkeypatch.setattr("trainer.snapshots.writer.CpuCopier._walk", fail_on_host)
    with pytest.raises(OutOfMemoryError, match="host is out of memory in epoch 0, behind update 1"):
        make(None, tmp_path, snapshot_interval=1).train()


def test_a_model_that_its_device_cannot_hold_is_told_of():
    said = r"out of memory where the model moves to cpu when 20.00 GiB .* Use a smaller model"
    with pytest.raises(OutOfMemoryError, match=said):
        make("move")


def test_a_resume_that_has_too_little_is_told_of(tmp_path, monkeypatch):
    make(None, tmp_path).train()
    monkeypatch.setattr(GreedySGD, "load_state_dict", fail)
    with pytest.raises(OutOfMemoryError, match=r"out of memory at the start of the run when 20"):
        make(None, tmp_path).train(resume=True)


def test_an_end_that_has_too_little_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.engine.session.gather_weights", fail)
    with pytest.raises(OutOfMemoryError, match=r"out of memory at the end of the run when 20"):
        make(None, tmp_path).train()


@pytest.mark.parametrize("call", ["predict", "evaluate"])
def test_a_pass_outside_a_run_is_told_of_by_its_name(call):
    trainer, data = make("validation"), [torch.ones(2, 4)]
    way = {"predict_fn": lambda model, batch: model(batch)} if call == "predict" else {}
    said = rf"out of memory in trainer\.{call} when 20.00 GiB .* Use smaller batches"
    with pytest.raises(OutOfMemoryError, match=said):
        getattr(trainer, call)(data, **way)
