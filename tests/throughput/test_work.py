"""What is in a batch, and what it costs."""

from types import SimpleNamespace

import numpy
import pytest
import torch
from torch import nn

from trainer_lm.model import GPT
from trainer_lm.options import ModelOptions
from trainer_throughput.work import count_batch, estimate_flops


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"input_ids": torch.zeros(4, 8), "labels": torch.zeros(4, 8)}, (32, "tokens")),
        (SimpleNamespace(input_ids=torch.zeros(4, 8)), (32, "tokens")),
        ([{"input_ids": torch.zeros(7)}, {"input_ids": torch.zeros(5)}], (12, "tokens")),
        ({"image": torch.zeros(5, 3, 2), "label": torch.zeros(5)}, (5, "items")),
        (torch.zeros(6, 2), (6, "items")),
        ((torch.zeros(7, 2), torch.zeros(7)), (7, "items")),
        ([{"x": torch.zeros(8)}, {"x": torch.zeros(9)}, {"x": torch.zeros(2)}], (3, "items")),
        ([SimpleNamespace(x=torch.zeros(8))] * 3, (3, "items")),
        (SimpleNamespace(x=torch.zeros(3, 5), y=torch.zeros(3)), (3, "items")),
        (
            nn.utils.rnn.pack_sequence([torch.zeros(5), torch.zeros(4), torch.zeros(1)]),
            (3, "items"),
        ),
        ((nn.utils.rnn.pack_sequence([torch.zeros(5)] * 3), torch.zeros(3)), (3, "items")),
        (["a", "bc", "def"], (3, "items")),
        ({"text": ["a", "bc", "def"], "label": torch.zeros(3), "name": "x"}, (3, "items")),
        (((torch.zeros(3, 2), torch.zeros(3, 9)), torch.zeros(3)), (3, "items")),
        (numpy.zeros((3, 2)), (3, "items")),
    ],
)
def test_a_batch_is_counted(batch, expected):
    assert count_batch(batch) == (*expected, True)


@pytest.mark.parametrize(
    "batch",
    [
        torch.tensor(1.0),
        "no tensor",
        {"input_ids": None},
        None,
        (torch.zeros(3, 2), torch.zeros(5)),
        {"mask": torch.zeros(1, 9), "x": torch.zeros(3, 9)},
        [torch.zeros(3, 8, 8)] * 5,
    ],
)
def test_a_count_that_is_not_certain_says_so(batch):
    assert count_batch(batch)[2] is False


def test_the_flops_of_a_transformer_count_parameters_and_attention():
    model = nn.Linear(10, 10, bias=False)
    batch = {"input_ids": torch.zeros(2, 16)}
    assert estimate_flops(model, batch) == 6 * 100
    model.config = SimpleNamespace(num_hidden_layers=3, hidden_size=5)
    assert estimate_flops(model, batch) == 6 * 100 + 12 * 3 * 5 * 16


def test_attention_counts_where_the_model_itself_tells_its_sizes():
    model = GPT(11, ModelOptions(block_size=8, n_layer=3, n_head=2, n_embd=16))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    estimate = estimate_flops(model, {"input_ids": torch.zeros(2, 8)})
    assert estimate == 6 * parameters + 12 * 3 * 16 * 8


def test_the_estimate_is_what_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    width, length, layers = 64, 32, 2
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    model.config = SimpleNamespace(num_hidden_layers=layers, hidden_size=width)
    inputs = torch.randn(2, length, width, requires_grad=True)
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        model(inputs).sum().backward()
    estimate = estimate_flops(model, {"input_ids": torch.zeros(2, length)})
    assert estimate == pytest.approx(counter.get_total_flops() / (2 * length), rel=0.02)


def test_other_models_have_no_estimate():
    assert estimate_flops(nn.Linear(2, 2), torch.zeros(3, 2)) is None
