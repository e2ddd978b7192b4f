"""The outputs of a model for a set: in the order of the data, one for each item, on the CPU."""

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    TensorDataset,
    WeightedRandomSampler,
)

from trainer import ConfigError, Loss, Trainer, TrainerConfig
from trainer.data.loaders import EmptyLoaderError
from trainer_callback import UsageError

CLASSES = 3
ROWS = torch.randn(21, 4, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(21) % CLASSES
DATA = TensorDataset(ROWS, LABELS)


def loss_and_logits(model, batch):
    logits = model(batch[0])
    return nn.functional.cross_entropy(logits, batch[1]), logits


def call_model(model, batch):
    return model(batch)


def make(loss_fn=loss_and_logits, model=None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, CLASSES), nn.Dropout(0.5)) if model is None else model
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        DataLoader(DATA, batch_size=4),
        loss_fn=loss_fn,
        config=TrainerConfig(epochs=1),
        discover=False,
        **options,
    )


def logits_of(trainer):
    with torch.no_grad():
        return trainer.model[0](ROWS)


def close(found, expected):
    return found.shape == expected.shape and bool((found - expected).abs().max() < 1e-6)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(DATA)


LOADERS = {
    "a data loader": lambda: DataLoader(DATA, batch_size=4),
    "workers": lambda: DataLoader(DATA, batch_size=4, num_workers=2),
    "a list": lambda: [(ROWS[i : i + 4], LABELS[i : i + 4]) for i in range(0, 21, 4)],
    "a stream": lambda: DataLoader(Stream(), batch_size=4),
    "one batch": lambda: DataLoader(DATA, batch_size=21),
    "batches as items": lambda: DataLoader(DATA, batch_size=1),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_outputs_come_in_the_order_of_the_data(kind):
    trainer = make()
    trainer.train()
    found = trainer.predict(LOADERS[kind]())
    assert close(found, logits_of(trainer))
    assert not found.requires_grad


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("kind", ["a data loader", "workers", "a list", "a stream", "one batch"])
def test_the_shares_of_several_processes_are_one_set_again(tiny, kind, count):
    def work(rank):
        trainer = make()
        found = trainer.predict(LOADERS[kind]())
        everywhere = trainer.predict(LOADERS[kind](), everywhere=True)
        assert close(everywhere, logits_of(trainer))
        assert found is None if rank else torch.equal(found, everywhere)

    assert tiny.run_ranks(work, count=count) == [0] * count


@dataclass(frozen=True)
class Output:
    loss: torch.Tensor | None
    logits: torch.Tensor


Pair = namedtuple("Pair", ["first", "second"])

FORMS = {
    "a pair": (lambda loss, logits: (loss, logits), lambda found: found),
    "a sum": (lambda loss, logits: Loss(4 * loss, 4, logits), lambda found: found),
    "a mapping": (lambda loss, logits: {"loss": loss, "a": logits}, lambda found: found["a"]),
    "an object": (
        lambda loss, logits: SimpleNamespace(loss=loss, a=logits),
        lambda found: found["a"],
    ),
    "a data class": (Output, lambda found: found["logits"]),
    "a named tuple": (
        lambda loss, logits: (loss, Pair(None, {"deep": [logits, 1]})),
        lambda found: torch.cat([each[0] for each in found.second["deep"]]),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_outputs_are_what_stands_beside_the_loss(form):
    answer, read = FORMS[form]

    def loss_fn(model, batch):
        loss, logits = loss_and_logits(model, batch)
        return answer(loss, logits)

    trainer = make(loss_fn)
    found = trainer.predict(DataLoader(DATA, batch_size=4))
    assert close(read(found), logits_of(trainer))


def test_leaves_whose_shapes_differ_are_lists_of_clones(caplog):
    def predict(model, batch):
        logits = model(batch[0])
        width = len(logits)
        return {
            "padded": logits[:, :1].expand(width, width),  # another width in each batch
            "boxes": [{"box": row} for row in logits],  # one for each item
            "text": "of a batch",
            "none": None,
            "mean": logits.mean(),
        }

    trainer = make()
    found = trainer.predict(DataLoader(DATA, batch_size=4), predict_fn=predict)
    logits = logits_of(trainer)
    assert [tuple(each.shape) for each in found["padded"]] == [(4, 4)] * 5 + [(1, 1)]
    assert len(found["boxes"]) == 21
    assert close(torch.stack([each["box"] for each in found["boxes"]]), logits)
    assert found["text"] == ["of a batch"] * 6
    assert found["none"] is None
    assert [each.shape for each in found["mean"]] == [()] * 6
    assert "outputs have the shape () for a batch of 4 items" in caplog.text
    assert found["padded"][0].untyped_storage().nbytes() == 4 * 16  # nothing else is kept alive


def test_outputs_are_clones_that_a_later_batch_does_not_change():
    kept = torch.zeros(4, CLASSES)

    def predict(model, batch):
        return kept.copy_(model(batch[0]))

    trainer = make()
    found = trainer.predict(
        DataLoader(DATA, batch_size=4, drop_last=False),
        predict_fn=lambda m, b: predict(m, b) if len(b[0]) == 4 else m(b[0]),
    )
    assert close(found, logits_of(trainer))


INPUTS = {
    "tensors": lambda: DataLoader(ROWS, batch_size=4),
    "tuples": lambda: DataLoader(TensorDataset(ROWS), batch_size=4),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_data_without_targets_is_predicted_by_a_function(kind):
    trainer = make()

    def predict(model, batch):
        return model(batch if kind == "tensors" else batch[0])

    assert close(trainer.predict(INPUTS[kind](), predict_fn=predict), logits_of(trainer))


def test_a_loss_function_that_fails_without_targets_says_what_to_do(caplog):
    with pytest.raises(IndexError) as caught:
        make().predict(DataLoader(TensorDataset(ROWS), batch_size=4))
    hint = "predict calls loss_fn. Where the data has no targets"
    assert hint in caplog.text
    assert hint in "".join(getattr(caught.value, "__notes__", [hint]))


def test_a_loss_function_that_takes_rows_for_inputs_and_targets_is_noticed(caplog):
    def loss_fn(model, batch):
        outputs = model(batch[0])
        return (outputs.sum() - batch[1].sum()).square(), outputs

    found = make(loss_fn).predict(DataLoader(ROWS[:20], batch_size=4))
    assert isinstance(found, list)
    assert "shape (3,) for a batch of 4 items" in caplog.text
    assert "If loss_fn is not made for such a batch, pass predict_fn=" in caplog.text


@pytest.mark.parametrize(
    "form", [lambda loss: loss, lambda loss: (loss, None), lambda loss: Loss(loss, 1)]
)
def test_a_loss_alone_is_refused(form):
    trainer = make(lambda model, batch: form(model(batch[0]).sum()))
    with pytest.raises(
        ConfigError, match=r"loss_fn has answered a loss alone\. Return \(loss, out"
    ):
        trainer.predict(DataLoader(DATA, batch_size=4))


def test_a_function_without_outputs_is_refused():
    with pytest.raises(ConfigError, match="predict collects outputs, and there are none"):
        make().predict(DataLoader(DATA, batch_size=4), predict_fn=lambda model, batch: None)
    with pytest.raises(ConfigError, match="predict_fn must be a function"):
        make().predict(DataLoader(DATA, batch_size=4), predict_fn=True)


class Own(nn.Module):
    """A model that returns its loss where it is given labels, as those of Hugging Face do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, CLASSES)

    def forward(self, inputs, labels=None):
        logits = self.layer(inputs)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(loss=loss, logits=logits, states=(logits, 2 * logits))


@pytest.mark.parametrize("with_labels", [True, False])
def test_a_model_without_a_loss_function_answers_all_but_its_loss(with_labels):
    rows = [{"inputs": row, "labels": label} for row, label in DATA]
    if not with_labels:
        rows = [{"inputs": row["inputs"]} for row in rows]
    trainer = make(None, Own())
    found = trainer.predict(DataLoader(rows, batch_size=4))
    with torch.no_grad():
        expected = trainer.model.layer(ROWS)
    assert set(found) == {"logits", "states"}
    assert close(found["logits"], expected)
    assert close(found["states"][1], 2 * expected)


def test_a_model_without_a_loss_function_that_takes_no_targets_says_what_to_do(caplog):
    with pytest.raises(UsageError, match="does not take a batch of 2 items"):
        make(None).predict(DataLoader(DATA, batch_size=4))
    assert "predict calls the model with its batch" in caplog.text
    assert close(make(None).predict(DataLoader(ROWS, batch_size=4)), logits_of(make(None)))


ORDERS = {
    "shuffle": (
        lambda: DataLoader(DATA, batch_size=4, shuffle=True),
        r"shuffles \(RandomSampler\)",
    ),
    "weighted": (
        lambda: DataLoader(DATA, 4, sampler=WeightedRandomSampler([1.0] * 21, 21)),
        r"shuffles \(WeightedRandomSampler\)",
    ),
    "divided": (
        lambda: DataLoader(DATA, 3, sampler=DistributedSampler(DATA, 1, 0)),
        "has a DistributedSampler, and each process gets its share by itself",
    ),
    "dropping": (lambda: DataLoader(DATA, 4, drop_last=True), "leaves out the last 1 of 21 items"),
    "passing": (lambda: DataLoader(DATA, 4, num_workers=1, in_order=False), "has in_order=False"),
}


@pytest.mark.parametrize("kind", ORDERS)
def test_a_loader_that_does_not_give_each_item_in_its_order_is_refused(kind):
    loader, text = ORDERS[kind]
    with pytest.raises(ConfigError, match=f"{text}.* Pass DataLoader"):
        make().predict(loader())


def test_a_loader_that_could_leave_out_items_and_does_not_is_taken():
    assert len(make().predict(DataLoader(DATA, 7, drop_last=True))) == 21


def test_a_loader_without_a_batch_is_refused(tiny):
    def work(rank):
        with pytest.raises(EmptyLoaderError, match="the predict loader gave no batch"):
            make().predict(iter(()))

    assert tiny.child(lambda: work(0)).wait() == 0
    assert tiny.run_ranks(work) == [0, 0]


def test_a_loader_that_accelerate_has_divided_is_refused(tiny, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # else Accelerate warns

    def work(rank):
        import accelerate

        loader = accelerate.Accelerator(cpu=True).prepare(DataLoader(DATA, batch_size=4))
        for call in (make().predict, make().evaluate):
            with pytest.raises(ConfigError, match=r"prepared by Accelerate.* Pass the DataLoader"):
                call(loader)

    assert tiny.run_ranks(work) == [0, 0]


def test_the_number_of_items_can_be_told(caplog):
    def collate(rows):
        return torch.stack([row for row, _ in rows], 1)  # items second

    def predict(model, batch):
        return model(batch.transpose(0, 1)[:, :, None].expand(-1, -1, 4)).flatten(0, 1)

    loader = DataLoader(DATA, batch_size=4, collate_fn=collate)
    assert isinstance(make().predict(loader, predict_fn=predict), list)
    assert "shape (16, 3) for a batch of 4 items" in caplog.text
    told = make(batch_size=lambda batch: 4 * batch.shape[1])
    assert told.predict(loader, predict_fn=predict).shape == (84, 3)


def test_a_function_of_other_arguments_is_refused():
    with pytest.raises(ConfigError, match=r"predict_fn must be a function \(model, batch\)"):
        make().predict([torch.ones(2, 4)], predict_fn=lambda batch: batch)
