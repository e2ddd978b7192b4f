import dataclasses
import math
import pickle

import pytest
import torch

from trainer import Trainer, TrainerConfig, TrainResult
from trainer.result import ModelWeights
from trainer_lm.job import _validated
from trainer_lm.measures import METRICS, Perplexity, loss_of, perplexity_inputs
from trainer_lm.model import GPT, make_optimizer
from trainer_lm.options import ModelOptions, OptimizerOptions


def make_model():
    torch.manual_seed(0)
    return GPT(11, ModelOptions(block_size=7, n_layer=1, n_head=2, n_embd=16))


def make_batch(rows, seed=0):
    ids = torch.randint(11, (rows, 8), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:].clone()}


def train(loss_fn, batches, val_batches=None, **config):
    model = make_model()
    trainer = Trainer(
        model,
        make_optimizer(model, OptimizerOptions()),
        batches,
        val_batches,
        loss_fn=loss_fn,
        metrics=METRICS if val_batches else None,
        metric_inputs=perplexity_inputs if val_batches else None,
        config=TrainerConfig(**{"epochs": 2, "max_grad_norm": 1.0, **config}),
        discover=False,
    )
    return model, trainer.train()


def test_batches_of_equal_length_train_the_same_weights_as_by_their_means() -> None:
    batches = [make_batch(3, seed) for seed in range(5)]
    (mean, by_mean), (summed, by_sum) = train(None, batches), train(loss_of, batches)
    for one, other in zip(mean.parameters(), summed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert by_sum.train_loss == pytest.approx(by_mean.train_loss, rel=1e-6)


def test_accumulated_batches_of_any_length_train_the_weights_of_the_whole_batch() -> None:
    whole = make_batch(6)
    cut = [{name: value[part] for name, value in whole.items()} for part in (range(1), range(1, 6))]
    one, _ = train(loss_of, [whole])
    other, _ = train(loss_of, cut, gradient_accumulation_steps=2)
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(left, right, atol=1e-6)


def test_accuracy_and_perplexity_are_those_of_all_tokens() -> None:
    batches = [make_batch(rows, rows) for rows in (3, 3, 1)]
    model, result = train(loss_of, batches, batches)
    whole = {name: torch.cat([each[name] for each in batches]) for name in batches[0]}
    with torch.no_grad():
        logits, labels = model.eval()(whole["input_ids"]).flatten(0, 1), whole["labels"].flatten()
    hits = (logits.argmax(1) == labels).double().mean()
    loss = torch.nn.functional.cross_entropy(logits.double(), labels)
    found = result.history[-1]
    assert found["val_loss"] == pytest.approx(float(loss), rel=1e-6)
    assert found["val_accuracy"] == float(hits)
    assert found["val_perplexity"] == math.exp(found["val_loss"])


@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_a_batch_is_read_to_know_its_loss_and_what_it_counts(training) -> None:
    model = make_model().to("meta").train(training)  # a device whose numbers cannot be read
    batch = {name: tensor.to("meta") for name, tensor in make_batch(3).items()}
    loss = loss_of(model, batch)
    assert (type(loss.count), loss.count) == (int, 21)
    assert perplexity_inputs(loss.outputs, batch)[1] == 21
    if not training:
        assert METRICS["accuracy"](loss.outputs, batch)[1] == 21


def test_a_batch_in_training_counts_no_hits_and_keeps_no_logits() -> None:
    model, batch = make_model(), make_batch(3)
    in_training, in_validation = (
        loss_of(model.train(mode), batch).outputs for mode in (True, False)
    )
    assert in_training.hits is None
    assert all(value.ndim == 0 for value in in_validation)


def test_the_perplexity_of_several_processes_is_that_of_all_tokens() -> None:
    parts = [Perplexity() for _ in range(3)]
    for count, part in enumerate(parts):
        part.update(torch.tensor(2.0 * count), count)  # the first has no batch
    first, *others = (pickle.loads(pickle.dumps(part)) for part in parts)
    first.merge(others)
    assert first.compute() == math.exp(2)
    first.update(torch.tensor(1e6), 1)
    assert first.compute() == math.inf


def test_the_summary_is_of_the_weights_that_the_model_has() -> None:
    rows = [{"step": step, "epoch": step, "val_loss": float(step)} for step in (1, 2, 3)]
    result = TrainResult("stopped", "patience", "", None, 3, 3, 1.0, 3.0, [*rows, {"step": 4}])
    assert _validated(result) is rows[2]
    restored = dataclasses.replace(result, weights=ModelWeights("restored", 2, 2, rows[1]))
    assert _validated(restored) is rows[1]
    assert _validated(dataclasses.replace(result, history=[])) is None
