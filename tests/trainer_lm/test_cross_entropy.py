"""The loss of the last layer in parts, beside logits and torch's cross-entropy."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from trainer_lm import cross_entropy
from trainer_lm.cross_entropy import sum_cross_entropy
from trainer_lm.measures import loss_of
from trainer_lm.model import GPT
from trainer_lm.options import ModelOptions

TOKENS, WIDTH, VOCABULARY = 40, 16, 50
KINDS = {None: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""What autocast makes of products -> how far two ways of computing them may differ."""


@pytest.fixture(params=[10**6, 500], ids=["one part", "four parts"])
def parts(request, monkeypatch):
    monkeypatch.setattr(cross_entropy, "_MOST", request.param)


def make_layer(dtype=torch.float32):
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    weight = (0.3 * torch.randn(VOCABULARY, WIDTH, dtype=dtype)).requires_grad_()
    return hidden, weight, torch.randint(VOCABULARY, (TOKENS,))


def in_parts(hidden, weight, labels):
    return sum_cross_entropy(hidden, weight, labels, count_hits=False)[0]


def plainly(hidden, weight, labels):
    return F.cross_entropy(F.linear(hidden, weight), labels, reduction="sum")


def cast(dtype):
    return torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None)


def differentiate(way, dtype=None, scale=1.0):
    """Returns the loss, and the gradients of the mean times `scale`, divided by it."""
    hidden, weight, labels = make_layer()
    with cast(dtype):
        loss = way(hidden, weight, labels)
    (scale * loss / TOKENS).backward()
    return loss.detach(), hidden.grad / scale, weight.grad / scale


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("dtype", KINDS)
def test_loss_and_gradients_are_those_of_the_plain_way(dtype):
    for ours, plain in zip(
        differentiate(in_parts, dtype), differentiate(plainly, dtype), strict=True
    ):
        assert ours.dtype == torch.float32
        assert torch.allclose(ours, plain, rtol=KINDS[dtype], atol=KINDS[dtype] * plain.abs().max())


@pytest.mark.usefixtures("parts")
def test_a_scaled_loss_in_fp16_has_the_gradients_of_float32():
    exact = differentiate(in_parts)
    for ours, wanted in zip(differentiate(in_parts, torch.float16, 2.0**16), exact, strict=True):
        assert torch.allclose(ours, wanted, rtol=2e-3, atol=2e-3 * wanted.abs().max())


@pytest.mark.usefixtures("parts")
def test_hits_are_the_labels_that_are_likeliest():
    hidden, weight, labels = make_layer()
    labels[::2] = F.linear(hidden, weight).argmax(1)[::2]
    with torch.no_grad():
        total, hits = sum_cross_entropy(hidden, weight, labels, count_hits=True)
    assert hits == (F.linear(hidden, weight).argmax(1) == labels).sum() >= TOKENS / 2
    assert torch.allclose(total, plainly(hidden, weight, labels))
    assert not total.requires_grad


@pytest.mark.usefixtures("parts")
def test_the_gradients_are_those_that_finite_differences_give():
    *inputs, labels = make_layer(torch.float64)
    assert torch.autograd.gradcheck(lambda *given: in_parts(*given, labels), inputs)


@pytest.mark.usefixtures("parts")
def test_a_graph_that_is_kept_gives_the_same_gradients_again():
    hidden, weight, labels = make_layer()
    loss = in_parts(hidden, weight, labels)
    one, other = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_has_no_gradient_and_the_other_has_the_same(frozen):
    layer = make_layer()
    layer[frozen].requires_grad_(False)
    in_parts(*layer).backward()
    assert layer[frozen].grad is None
    wanted = differentiate(in_parts)[2 - frozen]
    assert torch.allclose(layer[1 - frozen].grad / TOKENS, wanted)


@pytest.mark.usefixtures("parts")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_it_compiles_as_one_graph():
    torch._dynamo.reset()
    compiled = torch.compile(in_parts, fullgraph=True)
    for ours, plain in zip(differentiate(compiled), differentiate(in_parts), strict=True):
        assert torch.allclose(ours, plain, atol=1e-6)


class Largest(TorchDispatchMode):
    """Notes the elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        for each in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return made


def make_batch(rows=16, length=8):
    ids = torch.randint(500, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_whole_logits_of_a_batch_never_exist(training, dtype, monkeypatch):
    monkeypatch.setattr(cross_entropy, "_MOST", 8000)
    model = GPT(500, ModelOptions(block_size=8, n_layer=1, n_head=1, n_embd=8)).train(training)
    with Largest() as made, torch.set_grad_enabled(training):
        with cast(dtype):
            loss = loss_of(model, make_batch())
        if training:
            loss.total.backward()
    assert 500 * 8 <= made.elements <= 8000 < 500 * 16 * 8


@pytest.mark.usefixtures("parts")
def test_a_model_learns_from_tied_weights_as_by_its_logits():
    torch.manual_seed(0)
    model, batch = GPT(500, ModelOptions(block_size=8, n_layer=1, n_head=1, n_embd=8)), make_batch()
    logits = model(batch["input_ids"]).flatten(0, 1)
    F.cross_entropy(logits, batch["labels"].flatten(), reduction="sum").backward()
    wanted = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    for rows in (slice(5), slice(5, 16)):  # as micro-batches of an update
        loss_of(model, {name: ids[rows] for name, ids in batch.items()}).total.backward()
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("label", [-100, -1, VOCABULARY])
def test_a_label_out_of_range_is_an_error_also_in_a_validation(label, training):
    *layer, labels = make_layer()
    labels[3] = label
    with (
        torch.set_grad_enabled(training),
        pytest.raises((IndexError, RuntimeError), match="out of bounds"),
    ):
        in_parts(*layer, labels)


@pytest.mark.parametrize("training", [True, False])
def test_a_token_that_is_only_padding_is_no_label_and_no_hit(training):
    options = ModelOptions(block_size=8, n_layer=1, n_head=1, n_embd=8, pad_vocab=64)
    model = GPT(500, options).train(training)
    batch = make_batch()
    model.token_embedding.weight.data[500:] = 100 * model.token_embedding.weight[:1]
    best = model(batch["input_ids"]).argmax(-1)
    assert loss_of(model.eval(), {**batch, "labels": best}).outputs.hits == best.numel()
    batch["labels"][0, 0] = 500
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        loss_of(model.train(training), batch)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("power", [1, 2])
def test_a_second_derivative_is_refused_and_not_left_out(power):
    hidden, weight, labels = make_layer()
    loss = in_parts(hidden, weight, labels) ** power
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(loss, hidden, create_graph=True)


def test_many_tokens_with_one_label_do_not_overflow_in_fp16():
    hidden = torch.full((65536, 2), 2.0)
    weight = torch.zeros(3, 2, requires_grad=True)
    with cast(torch.float16):
        loss = in_parts(hidden, weight, torch.zeros(65536, dtype=torch.int64))
    (loss / 65536).backward()
    assert torch.allclose(weight.grad[:, 0], torch.tensor([-4 / 3, 2 / 3, 2 / 3]), rtol=1e-3)
