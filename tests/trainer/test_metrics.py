"""Metrics of validation sets: exact over items, sets and processes, and refused where they are
none.
"""

import json
import logging
import threading
import weakref

import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trainer import ConfigError, Loss, Trainer, TrainerConfig
from trainer.testing.recorder import Recorder
from trainer_callback import TrainerCallback, UsageError
from trainer_early_stopping import EarlyStoppingCallback

CLASSES = 3


def make_data(count, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, generator=generator)
    return TensorDataset(inputs, torch.randint(CLASSES, (count,), generator=generator))


def loss_and_logits(model, batch):
    logits = model(batch[0])
    return nn.functional.cross_entropy(logits, batch[1]), logits


def is_right(outputs, batch):
    return outputs.argmax(1) == batch[1]


def make(val=None, *, loss_fn=loss_and_logits, callbacks=(), metrics=None, inputs=None, **config):
    torch.manual_seed(0)
    model = nn.Linear(4, CLASSES)
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        DataLoader(make_data(16, 0), batch_size=4),
        val,
        loss_fn=loss_fn,
        metrics=metrics,
        metric_inputs=inputs,
        config=TrainerConfig(**{"epochs": 1, **config}),
        callbacks=list(callbacks),
        discover=False,
    )


def loader(count=23, seed=1, size=5):
    return DataLoader(make_data(count, seed), batch_size=size)


def predict(model, data):
    """Logits and labels of a whole set."""
    inputs, labels = data.tensors
    with torch.no_grad():
        return model(inputs), labels


def accuracy(model, data):
    logits, labels = predict(model, data)
    return float((logits.argmax(1) == labels).double().mean())


def test_a_function_of_values_per_item_is_an_exact_mean(tmp_path):
    trainer = make(loader(), metrics={"accuracy": is_right}, output_dir=tmp_path / "run")
    result = trainer.train()
    expected = accuracy(trainer.model, make_data(23, 1))
    assert result.history[-1]["val_accuracy"] == pytest.approx(expected, abs=1e-12)
    assert trainer.metrics["val_accuracy"] == result.history[-1]["val_accuracy"]
    text = (tmp_path / "run/metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert trainer.metrics["val_accuracy"] in [line.get("val_accuracy") for line in lines]


def test_several_sets_have_their_names_and_the_first_is_val():
    sets = {"clean": loader(23, 1), "noisy": loader(9, 2)}
    trainer = make(sets, metrics={"accuracy": is_right})
    found = trainer.train().history[-1]
    for name, data in (("clean", make_data(23, 1)), ("noisy", make_data(9, 2))):
        assert found[f"{name}/accuracy"] == pytest.approx(accuracy(trainer.model, data), abs=1e-12)
        logits, labels = predict(trainer.model, data)
        loss = float(nn.functional.cross_entropy(logits, labels))
        assert found[f"{name}/loss"] == pytest.approx(loss, abs=1e-6)
    assert found["val_loss"] == found["clean/loss"] != found["noisy/loss"]
    assert found["val_accuracy"] == found["clean/accuracy"]
    assert "val/loss" not in found


MADE = {
    "f1": lambda: torchmetrics.F1Score("multiclass", num_classes=CLASSES, average="macro"),
    "auroc": lambda: torchmetrics.AUROC("multiclass", num_classes=CLASSES),
    "per_class": lambda: torchmetrics.Recall("multiclass", num_classes=CLASSES, average="none"),
    "unsynced": lambda: torchmetrics.Accuracy(
        "multiclass", num_classes=CLASSES, sync_on_compute=False
    ),
    "both": lambda: torchmetrics.MetricCollection(
        [
            torchmetrics.Precision("multiclass", num_classes=CLASSES, average="macro"),
            torchmetrics.Recall("multiclass", num_classes=CLASSES, average="macro"),
        ]
    ),
}


def reference(model, data):
    """The values of `MADE` on all predictions at once, in plain torch where that is short."""
    logits, labels = predict(model, data)
    guess = logits.argmax(1)
    hits = torch.tensor([((guess == k) & (labels == k)).sum() for k in range(CLASSES)]).double()
    true = torch.tensor([(labels == k).sum() for k in range(CLASSES)]).double()
    given = torch.tensor([(guess == k).sum() for k in range(CLASSES)]).double()
    recall, precision = hits / true.clamp(min=1), hits / given.clamp(min=1)
    f1 = 2 * hits / (true + given).clamp(min=1)
    scores, areas = logits.softmax(1).double(), []
    for k in range(CLASSES):
        above = scores[labels == k, k][:, None] - scores[labels != k, k][None]
        areas.append(((above > 0).double() + 0.5 * (above == 0).double()).mean())
    return {
        "val_f1": f1.mean(),
        "val_auroc": torch.stack(areas).mean(),
        **{f"val_per_class_{k}": recall[k] for k in range(CLASSES)},
        "val_unsynced": (guess == labels).double().mean(),
        "val_both_MulticlassPrecision": precision.mean(),
        "val_both_MulticlassRecall": recall.mean(),
    }


def check_all(trainer, result, data):
    expected = reference(trainer.model, data)
    found = {name: result.history[-1][name] for name in expected}
    wanted = {name: pytest.approx(float(value), abs=1e-6) for name, value in expected.items()}
    assert found == wanted


@pytest.mark.parametrize("epochs", [1, 2])
def test_torchmetrics_are_those_of_all_predictions_and_start_afresh(epochs, caplog):
    caplog.set_level(logging.INFO)
    given = {name: make_one() for name, make_one in MADE.items()}
    trainer = make(loader(), metrics=given, epochs=epochs)
    check_all(trainer, trainer.train(), make_data(23, 1))
    assert not given["f1"].update_called  # each validation has a copy of its own


@pytest.mark.parametrize(("count", "size"), [(23, 5), (20, 4), (9, 9), (37, 3)])
def test_metrics_are_exact_over_two_processes_and_uneven_shares(tiny, count, size):
    def work(rank):
        given = {"accuracy": is_right, **{name: make_one() for name, make_one in MADE.items()}}
        trainer = make(loader(count, 1, size), metrics=given)
        result = trainer.train()
        data = make_data(count, 1)
        check_all(trainer, result, data)
        found = result.history[-1]["val_accuracy"]
        assert found == pytest.approx(accuracy(trainer.model, data), abs=1e-9)

    assert tiny.run_ranks(work) == [0, 0]


class Hits:
    """An object of somebody's own."""

    def reset(self):
        self.seen = []

    def update(self, preds, target):
        self.seen.append((preds.argmax(1) == target).float())

    def compute(self):
        return torch.cat(self.seen).mean()


class Merging(Hits):
    def merge(self, others):
        for other in others:
            self.seen += other.seen


def test_an_object_of_ones_own_is_updated_and_merged(tiny):
    def work(rank):
        trainer = make(loader(), metrics={"hits": Merging()})
        found = trainer.train().history[-1]["val_hits"]
        assert found == pytest.approx(accuracy(trainer.model, make_data(23, 1)), abs=1e-6)

    assert tiny.child(lambda: work(0)).wait() == 0
    assert tiny.run_ranks(work) == [0, 0]


def test_an_object_that_cannot_be_merged_is_refused_with_several_processes(tiny):
    def work(rank):
        with pytest.raises(ConfigError, match=r"'hits' has no merge\(others\)"):
            make(loader(), metrics={"hits": Hits()})

    assert tiny.run_ranks(work) == [0, 0]


def test_inputs_of_metrics_can_be_told():
    def loss_fn(model, batch):
        logits = model(batch["x"])
        return {"loss": nn.functional.cross_entropy(logits, batch["y"]), "logits": logits}

    data = make_data(23, 1)
    rows = [
        {"x": data.tensors[0][i : i + 5], "y": data.tensors[1][i : i + 5]} for i in range(0, 23, 5)
    ]
    model = nn.Linear(4, CLASSES)

    def make_trainer(inputs):
        return Trainer(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            rows,
            rows,
            loss_fn=loss_fn,
            metrics={"f1": MADE["f1"]()},
            metric_inputs=inputs,
            config=TrainerConfig(epochs=1),
            discover=False,
        )

    with pytest.raises(UsageError, match=r"metric 'f1' needs predictions and targets"):
        make_trainer(None).train()
    result = make_trainer(lambda outputs, batch: (outputs["logits"], batch["y"])).train()
    expected = reference(model, data)["val_f1"]
    assert result.history[-1]["val_f1"] == pytest.approx(float(expected), abs=1e-6)


def test_masked_values_are_a_sum_and_a_count():
    def masked(outputs, batch):
        mask = batch[1] > 0
        return ((outputs.argmax(1) == batch[1]) & mask).sum(), mask.sum()

    trainer = make(loader(), metrics={"masked": masked})
    found = trainer.train().history[-1]["val_masked"]
    logits, labels = predict(trainer.model, make_data(23, 1))
    right = (logits.argmax(1) == labels)[labels > 0]
    assert found == pytest.approx(float(right.double().mean()), abs=1e-12)


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (lambda outputs, batch: is_right(outputs, batch).float().mean(), r"answered shape \(\)"),
        (lambda outputs, batch: outputs[:, :1] == batch[1], r"answered shape \(5, 5\)"),
        (lambda outputs, batch: is_right(outputs, batch)[:2], r"one value per item, shape \(5,\)"),
        (lambda outputs, batch: 0.5, "answered 0.5"),
    ],
)
def test_an_answer_that_is_not_a_value_per_item_is_refused(metric, text):
    with pytest.raises(UsageError, match=text):
        make(loader(), metrics={"accuracy": metric}).train()


@pytest.mark.parametrize("val", [True, False])
@pytest.mark.parametrize(
    "answer",
    [
        lambda loss: loss,
        lambda loss: (loss, None),
        lambda loss: {"loss": loss},
        lambda loss: Loss(4 * loss, 4),
    ],
)
def test_metrics_without_outputs_are_refused_before_the_first_update(answer, val):
    def loss_fn(model, batch):
        return answer(model(batch[0]).mean())

    trainer = make(loader() if val else None, metrics={"a": is_right}, loss_fn=loss_fn)
    before = trainer.model.weight.detach().clone()
    for _ in range(2):  # also where it is tried again
        with pytest.raises(UsageError, match=r"loss_fn has answered a loss alone. Return \(loss"):
            trainer.train()
        assert trainer.step == 0
        assert torch.equal(trainer.model.weight, before)


@pytest.mark.parametrize(
    ("val", "metrics", "text"),
    [
        ({"train": [1]}, None, "'train' is no name of a validation set"),
        ({"a b": [1]}, None, "'a b' is no name of a validation set"),
        ({}, None, "empty mapping"),
        ([1], {"loss": is_right}, "'loss' is no name of a metric"),
        ([1], {"a/b": is_right}, "'a/b' is no name of a metric"),
        ([1], {"f1": torchmetrics.F1Score}, "is the class F1Score"),
        ([1], {"f1": 3}, "metric 'f1' is 3"),
        ([1], [is_right], "metrics must be a mapping"),
    ],
)
def test_what_is_no_set_and_no_metric_is_refused_at_construction(val, metrics, text):
    with pytest.raises(ConfigError, match=text):
        make(val, metrics=metrics)


def test_hooks_surround_each_set_and_follow_each_of_its_batches():
    recorder = Recorder()
    sets = {"clean": loader(9, 1), "noisy": loader(4, 2)}
    make(sets, metrics={"accuracy": is_right}, callbacks=[recorder]).train()
    calls = [call for call in recorder.calls if "validation" in call.hook]
    assert [call.hook.removeprefix("on_validation_") for call in calls] == [
        "start",
        *["set_start", "batch_end", "batch_end", "set_end"],
        *["set_start", "batch_end", "set_end"],
        "end",
    ]
    assert [call.arguments.get("name") for call in calls[1:-1]] == ["clean"] * 4 + ["noisy"] * 3
    batches = recorder.of("on_validation_batch_end")
    assert [each["batch_idx"] for each in batches] == [0, 1, 0]
    assert [tuple(each["outputs"].shape) for each in batches] == [(5, 3), (4, 3), (4, 3)]
    assert batches[0]["loss"].shape == ()
    assert not batches[0]["loss"].requires_grad
    assert {*recorder.of("on_validation_set_end")[0]["metrics"]} == {"loss", "accuracy"}
    assert "noisy/accuracy" in recorder.of("on_validation_end")[0]["metrics"]


def test_a_callback_that_would_wait_for_others_behind_a_validation_batch_is_refused(tiny, tmp_path):
    def work(rank):
        class Waits(TrainerCallback):
            def on_validation_batch_end(self, trainer):
                trainer.save_weights("here")

        trainer = make(loader(), callbacks=[Waits()], output_dir=tmp_path / "run")
        try:
            trainer.train()
        except Exception as error:
            return 7 if "behind a batch of a validation" in str(error) else 8

    assert tiny.run_ranks(work) == [7, 7]


def test_early_stopping_watches_a_metric_of_a_set():
    callback = EarlyStoppingCallback(monitor="noisy/accuracy", patience=1, restore_best=False)
    trainer = make(
        {"clean": loader(), "noisy": loader(9, 2)},
        metrics={"accuracy": is_right},
        callbacks=[callback],
        epochs=40,
    )
    assert trainer.train().stop_reason == "patience"
    assert callback.mode == "max"


def test_a_metric_that_keeps_all_predictions_says_so_once(caplog):
    caplog.set_level(logging.INFO, logger="trainer")
    make(loader(), metrics={"area": MADE["auroc"]()}, epochs=2).train()
    assert caplog.text.count("metric 'area' keeps all predictions of a validation set") == 1


def test_a_loss_function_that_takes_things_out_of_its_batch_does_not_take_them_from_metrics():
    def loss_fn(model, batch):
        labels = batch.pop("y")
        logits = model(batch["x"])
        return nn.functional.cross_entropy(logits, labels), logits

    data = make_data(8, 1)
    model = nn.Linear(4, CLASSES)
    val = DataLoader([{"x": x, "y": y} for x, y in data], batch_size=3)
    result = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        val,
        val,
        loss_fn=loss_fn,
        metrics={"accuracy": lambda outputs, batch: outputs.argmax(1) == batch["y"]},
        config=TrainerConfig(epochs=1),
        discover=False,
    ).train()
    assert result.history[-1]["val_accuracy"] == pytest.approx(accuracy(model, data), abs=1e-12)


def test_inputs_for_no_object_are_refused():
    with pytest.raises(ConfigError, match="metric_inputs has no effect"):
        make(loader(), metrics={"accuracy": is_right}, inputs=lambda outputs, batch: (outputs,))


def test_a_validation_reads_its_metrics_in_one_copy_and_keeps_no_batch(monkeypatch):
    reads, alive = [], []
    for name in ("tolist", "item", "__float__", "__int__", "cpu", "numpy"):
        own = getattr(torch.Tensor, name)

        def count(self, *arguments, name=name, own=own):
            reads.append(name)
            return own(self, *arguments)

        monkeypatch.setattr(torch.Tensor, name, count)

    class Look(TrainerCallback):
        def on_validation_start(self):
            reads.clear()

        def on_validation_batch_end(self, outputs, batch_idx):
            alive.append(weakref.ref(outputs))
            if batch_idx == 999:
                seen.append((len(reads), sum(each() is not None for each in alive)))

        def on_validation_end(self):
            seen.append(list(reads))

    seen = []
    data = [(torch.ones(2, 4), torch.tensor([0, 1]))] * 1000
    trainer = make(
        data,
        metrics={
            "accuracy": is_right,
            "margin": lambda outputs, batch: outputs[:, 0] - outputs[:, 1],
            "f1": torchmetrics.F1Score("multiclass", num_classes=3, average="macro"),
        },
        callbacks=[Look()],
    )
    trainer.train()
    assert seen == [(0, 1), ["tolist"]]


def clip_in_place(outputs, batch):
    return outputs.clamp_(0, 1)[:, 0]


def relabel_in_place(outputs, batch):
    return batch[1].fill_(0) == 0


@pytest.mark.parametrize("metric", [clip_in_place, relabel_in_place])
def test_a_metric_that_changes_what_the_others_read_is_refused(metric):
    metrics = {"first": metric, "accuracy": is_right}
    with pytest.raises(UsageError, match=r"'first' has changed its outputs or batch in place"):
        make(loader(), metrics=metrics).train()


@pytest.mark.parametrize(
    "pair",
    [
        lambda outputs, batch: (outputs.sum(), -1),
        lambda outputs, batch: (outputs.sum(), torch.tensor(-1)),
        lambda outputs, batch: (outputs.sum(), torch.tensor(float("nan"))),
        lambda outputs, batch: (outputs.sum(), (batch[1] > 0).any()),
        lambda outputs, batch: (outputs[:, 0], batch[1] > 0),
        lambda outputs, batch: (outputs[:, 0], len(outputs)),
        lambda outputs, batch: ("many", 3),
    ],
)
def test_a_pair_that_is_no_total_and_count_is_refused(pair):
    with pytest.raises(UsageError, match=r"metric 'a' (answered \(|counted items below 0)"):
        make(loader(), metrics={"a": pair}).train()


@pytest.mark.parametrize("empty", [{}, [], torch.zeros(0)])
def test_an_object_that_answers_nothing_is_refused(empty):
    class Silent(Hits):
        def compute(self):
            return empty

    with pytest.raises(UsageError, match=r"metric 'a' answered .*, without a number"):
        make(loader(), metrics={"a": Silent()}).train()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"metrics": {"a": lambda outputs: outputs}}, r"'a' does not take \(outputs, batch\)"),
        ({"inputs": lambda outputs: outputs}, r"metric_inputs must be a function \(outputs, batch"),
    ],
)
def test_a_function_of_other_arguments_is_refused_at_construction(options, text):
    with pytest.raises(ConfigError, match=text):
        make(loader(), **options)


def test_an_object_that_cannot_be_copied_is_refused_at_construction(tiny):
    class Locked(Merging):
        def __init__(self):
            self.lock = threading.Lock()

    class Local(Merging):
        pass

    with pytest.raises(ConfigError, match=r"metric 'a' cannot be copied .*lock"):
        make(loader(), metrics={"a": Locked()})
    assert "val_a" in make(loader(), metrics={"a": Local()}).train().history[-1]

    def work(rank):
        with pytest.raises(ConfigError, match=r"metric 'a' cannot be copied .*of a class at the"):
            make(loader(), metrics={"a": Local()})

    assert tiny.run_ranks(work) == [0, 0]


def test_an_exception_of_a_metric_says_which_it_is_from(caplog):
    def notes_of(error):
        return [*getattr(error, "__notes__", ()), *caplog.messages]  # Python 3.10 has no notes

    with pytest.raises(TypeError) as caught:
        make(loader(), metrics={"ok": is_right, "bad": lambda outputs, batch: batch["x"]}).train()
    start = "It is from metric 'bad' with float32 (5, 3) and a list of float32"
    assert any(note.startswith(start) for note in notes_of(caught.value))
    r2 = {"r2": torchmetrics.R2Score()}
    with pytest.raises(ValueError, match="two samples") as caught:
        make(loader(1), metrics=r2, inputs=lambda outputs, batch: (outputs[:, 0], batch[1])).train()
    assert "It is from metric 'r2'." in notes_of(caught.value)


@pytest.mark.parametrize(
    "empty", [DataLoader(make_data(2, 1), batch_size=4, drop_last=True), iter(()), []]
)
def test_an_empty_set_is_refused_by_its_name(empty):
    with pytest.raises(Exception, match="the 'b' validation loader"):
        make({"a": loader(), "b": empty}).train()
