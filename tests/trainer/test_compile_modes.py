"""Modes of torch.compile, and float32 that is rounded on a card's tensor cores."""

import logging

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from trainer import ConfigError, Trainer, TrainerConfig
from trainer.processes import device as devices
from trainer.step.compiled import guard_outputs, make_compiler
from trainer.step.precision import Precision
from trainer_callback import TrainerCallback
from trainer_lm.cli import make_parser
from trainer_lm.settings import Settings

CUDA = torch.device("cuda")


class Keeps(TrainerCallback):
    """Keeps the outputs and losses of all batches, as no graph's memory does."""

    def __init__(self):
        self.outputs, self.losses = [], []

    def on_batch_end(self, loss, outputs):
        self.outputs.append(outputs)
        self.losses.append(loss)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x):
        outputs = self.linear(x)
        return {"loss": outputs.square().mean(), "outputs": [outputs, "a word"]}


class Replays(Net):
    """Writes what it returns to the same memory in each call, as replays of a CUDA graph do."""

    def __init__(self):
        super().__init__()
        self.memory = {"outputs": torch.zeros(2, 1), "loss": torch.zeros(())}

    @torch._dynamo.disable
    def forward(self, x):
        made = super().forward(x)
        outputs, loss = (
            _Write.apply(value, self.memory[name].detach())
            for name, value in (("outputs", made["outputs"][0]), ("loss", made["loss"]))
        )
        return {"loss": loss, "outputs": [outputs, "a word"]}


class _Write(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, memory):
        ctx.mark_dirty(memory)
        return memory.copy_(value)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def in_place(model):
    model.compile(mode="reduce-overhead")
    return model


def by_forward(model):
    model.forward = torch.compile(model.forward, mode="reduce-overhead")
    return model


WAYS = {
    None: lambda model: model,
    "wrapped": lambda model: torch.compile(model, mode="reduce-overhead"),
    "in place": in_place,
    "forward": by_forward,
}


def make(callbacks=(), net=Net, compiled=None, **config):
    torch.manual_seed(0)
    model = WAYS[compiled](net())
    batches = [torch.full((2, 4), float(n)) for n in range(3)]
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01),
        batches,
        batches,
        loss_fn=lambda model, batch: model(batch),
        config=TrainerConfig(epochs=1, device="cpu", **config),
        callbacks=callbacks,
        discover=False,
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_a_mode_trains_as_no_compilation_does_and_copies_its_outputs(caplog):
    caplog.set_level(logging.INFO)
    results = []
    for mode in (False, "reduce-overhead"):
        keeps = Keeps()
        trainer = make([keeps], compile=mode, gradient_accumulation_steps=3)
        trainer.train()
        places = {each["outputs"][0].data_ptr() for each in keeps.outputs}
        assert len(places) == 3
        results.append((trainer.model.linear.weight, keeps.losses))
    assert torch.allclose(results[0][0], results[1][0])
    assert torch.allclose(torch.stack(results[0][1]), torch.stack(results[1][1]))
    text = "'reduce-overhead' records CUDA graphs, and cpu has none: it is compiled without them."
    assert text in caplog.text


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("theirs", ["", "wrapped", "in place", "forward"])
@pytest.mark.parametrize("accumulated", [1, 3])
def test_nothing_is_read_of_memory_that_the_next_call_of_a_graph_has_overwritten(
    theirs, accumulated
):
    mode = {"compiled": theirs} if theirs else {"compile": "reduce-overhead"}
    results = []
    for how in ({}, {"net": Replays, **mode}):
        keeps = Keeps()
        trainer = make([keeps], gradient_accumulation_steps=accumulated, **how)
        result = trainer.train()
        outputs = torch.stack([each["outputs"][0] for each in keeps.outputs])
        losses = torch.stack(keeps.losses)
        means = torch.tensor([result.train_loss, result.val_loss])
        predicted = trainer.predict([torch.ones(2, 4), torch.zeros(2, 4)])["outputs"]
        results.append((outputs, losses, means, torch.stack([each[0] for each in predicted])))
    for plain, replayed in zip(*results, strict=True):
        assert torch.allclose(plain, replayed)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_a_part_that_is_compiled_in_place_has_what_leaves_the_model_copied():
    model = nn.Sequential(nn.Linear(4, 4), in_place(nn.Linear(4, 1)))
    memory = torch.zeros(2, 1)
    model[1].forward = torch._dynamo.disable(lambda x: memory.copy_(x[:, :1]))
    guard_outputs(model)
    with torch.no_grad():
        first, second = model(torch.ones(2, 4)), model(torch.zeros(2, 4))
    assert not torch.equal(first, second)


def test_graphs_that_are_asked_for_everywhere_have_their_outputs_copied():
    with torch._inductor.config.patch({"triton.cudagraphs": True}):
        model = make_compiler(TrainerConfig(compile=True), CUDA)(Net())
    assert len(model._forward_hooks) == 1


def test_outputs_are_copied_once_for_all_runs_of_a_model_and_without_graphs_not_at_all():
    graphs, plain = (torch.compile(Net(), mode=mode) for mode in ("reduce-overhead", None))
    for model in (graphs, graphs, plain):
        guard_outputs(model)
    assert [len(model._forward_hooks) for model in (graphs, plain)] == [1, 0]
    model = in_place(Net())
    guard_outputs(model)
    once = model._compiled_call_impl
    guard_outputs(model)
    assert model._compiled_call_impl is once


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_the_smaller_last_batch_of_a_set_compiles_nothing_more():
    torch._dynamo.reset()
    counters["stats"].clear()
    trainer = make(compile=True)
    trainer.train()
    trainer.evaluate([torch.ones(rows, 4) for rows in (5, 5, 3)])
    assert counters["stats"]["unique_graphs"] == 2  # of training, and of evaluation


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_graphs_with_accumulation_are_refused_on_a_card(mode):
    config = TrainerConfig(compile=mode, gradient_accumulation_steps=2)
    with pytest.raises(ConfigError, match="would overwrite the gradients of the one before"):
        make_compiler(config, CUDA)
    assert make_compiler(TrainerConfig(compile=mode), CUDA) is not None
    config = TrainerConfig(compile="max-autotune-no-cudagraphs", gradient_accumulation_steps=2)
    assert make_compiler(config, CUDA) is not None


@pytest.mark.parametrize("value", ["yes", "reduce_overhead", None, 2])
def test_what_is_no_mode_is_refused(value):
    with pytest.raises(ConfigError, match="compile must be one of False, True, reduce-overhead, "):
        TrainerConfig(compile=value)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--compile"], True),
        (["--compile", "true"], True),
        (["--compile=no"], False),
        (["--no_compile"], False),
        (["--compile", "max-autotune"], "max-autotune"),
        (["--compile", "--quiet"], True),
        ([], False),
    ],
)
def test_the_flag_takes_a_mode_or_stands_alone(words, value):
    parser = make_parser([], ())
    assert Settings.read(parser.parse_args(words), [], parser).training.compile == value


def test_tf32_is_refused_where_there_is_none():
    with pytest.raises(ConfigError, match=r"precision is 'tf32', which CUDA cards have .* and cpu"):
        make(precision="tf32")


def test_tf32_is_set_while_a_run_lasts():
    assert torch.get_float32_matmul_precision() == "highest"
    with Precision("tf32", CUDA).setting():
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == "highest"
    with Precision("fp32", CUDA).setting():
        assert torch.get_float32_matmul_precision() == "highest"


def test_a_card_that_could_be_faster_is_told_of_once(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A Card")
    for _ in range(2):
        assert devices.choose_precision("fp32", CUDA) == "fp32"
    assert caplog.text.count("A Card multiplies matrices several times as fast with") == 1
    assert "precision='tf32'" in caplog.text
