"""Metrics against scikit-learn on all predictions at once, however batches and shares are cut:
functions, objects of torchmetrics and of one's own, in validations and in `evaluate`.
"""

import pytest
import torch
import torchmetrics
from sklearn import metrics as sk
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trainer import Trainer, TrainerConfig

CLASSES = 3
CUTS = [(23, 5), (20, 4), (9, 9), (37, 3)]
"""Items and batch size: a short last batch, a round that is not full, processes without any."""


class Balanced:
    """An object of somebody's own: the mean recall of the classes."""

    def reset(self):
        self.counts = torch.zeros(CLASSES, CLASSES, dtype=torch.long)

    def update(self, preds, target):
        places = target * CLASSES + preds.argmax(1)
        self.counts += places.bincount(minlength=CLASSES**2).view(CLASSES, CLASSES)

    def compute(self):
        return (self.counts.diag() / self.counts.sum(1)).mean()

    def merge(self, others):
        for other in others:
            self.counts += other.counts


def torch_metric(name, **options):
    return getattr(torchmetrics, name)("multiclass", num_classes=CLASSES, **options)


CLASSIFYING = {
    "right": lambda outputs, batch: outputs.argmax(1) == batch[1],
    "nats": lambda outputs, batch: nn.functional.cross_entropy(outputs, batch[1], reduction="none"),
    "right_of_2": lambda outputs, batch: (
        ((outputs.argmax(1) == batch[1]) & (batch[1] < 2)).sum(),
        (batch[1] < 2).sum(),
    ),
    "balanced": Balanced(),
    "f1": torch_metric("F1Score", average="macro"),
    "recall": torch_metric("Recall", average="none"),
    "kappa": torch_metric("CohenKappa"),
    "matthews": torch_metric("MatthewsCorrCoef"),
    "area": torch_metric("AUROC"),
    "precision": torch_metric("AveragePrecision"),
}
REGRESSING = {
    "near": lambda outputs, batch: ((outputs - batch[1]).abs() < 1)[:, 0],
    "squared": lambda outputs, batch: (outputs - batch[1]).square()[:, 0],
    "mae": torchmetrics.MeanAbsoluteError(),
    "r2": torchmetrics.R2Score(),
    "pearson": torchmetrics.PearsonCorrCoef(),
    "explained": torchmetrics.ExplainedVariance(),
}


def of_classes(logits, labels):
    guess, shares, some = logits.argmax(1), logits.double().softmax(1), labels < 2
    recalls = sk.recall_score(labels, guess, average=None)
    return {
        "loss": sk.log_loss(labels, shares),
        "right": sk.accuracy_score(labels, guess),
        "nats": sk.log_loss(labels, shares),
        "right_of_2": sk.accuracy_score(labels[some], guess[some]),
        "balanced": sk.balanced_accuracy_score(labels, guess),
        "f1": sk.f1_score(labels, guess, average="macro"),
        **{f"recall_{place}": value for place, value in enumerate(recalls)},
        "kappa": sk.cohen_kappa_score(labels, guess),
        "matthews": sk.matthews_corrcoef(labels, guess),
        "area": sk.roc_auc_score(labels, shares, multi_class="ovr", average="macro"),
        "precision": sk.average_precision_score(
            nn.functional.one_hot(labels, CLASSES), shares, average="macro"
        ),
    }


def of_numbers(outputs, targets):
    centred = [each - each.mean() for each in (outputs.double(), targets.double())]
    pearson = (centred[0] * centred[1]).mean() / (centred[0].std(0) * centred[1].std(0))
    return {
        "loss": sk.mean_squared_error(targets, outputs),
        "near": sk.accuracy_score((outputs - targets).abs() < 1, torch.ones_like(targets).bool()),
        "squared": sk.mean_squared_error(targets, outputs),
        "mae": sk.mean_absolute_error(targets, outputs),
        "r2": sk.r2_score(targets, outputs),
        "pearson": float(pearson) * len(targets) / (len(targets) - 1),
        "explained": sk.explained_variance_score(targets, outputs),
    }


TASKS = {
    "classes": (CLASSIFYING, of_classes, nn.functional.cross_entropy, CLASSES),
    "numbers": (REGRESSING, of_numbers, nn.functional.mse_loss, 1),
}


def make_data(count, kind):
    generator = torch.Generator().manual_seed(count)
    inputs = torch.randn(count, 4, generator=generator)
    noise = torch.randn(count, 1, generator=generator)
    labels = torch.arange(count) % CLASSES
    inputs[:, 0] += labels
    return TensorDataset(inputs, labels if kind == "classes" else inputs[:, :1] + noise)


def check(kind, count, size):
    given, reference, loss, width = TASKS[kind]

    def loss_fn(model, batch):
        outputs = model(batch[0])
        return loss(outputs, batch[1]), outputs

    torch.manual_seed(0)
    model, data = nn.Linear(4, width), make_data(count, kind)
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        DataLoader(make_data(16, kind), batch_size=4),
        DataLoader(data, batch_size=size),
        loss_fn=loss_fn,
        metrics=given,
        config=TrainerConfig(epochs=2),
        discover=False,
    )
    row = trainer.train().history[-1]
    measured = trainer.evaluate(DataLoader(data, batch_size=size))
    outputs = trainer.predict(DataLoader(data, batch_size=size), everywhere=True)
    with torch.no_grad():
        assert (outputs - model(data.tensors[0])).abs().max() < 1e-6
    expected = reference(outputs, data.tensors[1])
    for found, prefix in ((row, "val"), (measured, "test")):
        wanted = {f"{prefix}_{name}": value for name, value in expected.items()}
        assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    assert measured.keys() == {f"test_{name}" for name in expected}


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize(("count", "size"), CUTS)
def test_each_metric_is_that_of_scikit_learn_on_all_predictions(tiny, count, size, processes, kind):
    def work(rank):
        check(kind, count, size)

    if processes == 1:
        assert tiny.child(lambda: work(0)).wait() == 0
    else:
        assert tiny.run_ranks(work, count=processes) == [0] * processes
