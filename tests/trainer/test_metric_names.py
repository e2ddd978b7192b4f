"""Callbacks know before the first step which metrics a run will have."""

import torch
from torch import nn

from trainer import Run, Trainer, TrainerConfig
from trainer_callback import TrainerCallback

CORE = ["loss", "learning_rate", "skipped_updates", "train_loss"]


class Silent(TrainerCallback):
    logs_metrics = ()


def make_trainer(val_loader=None, callbacks=(), metrics=None, **config):
    model = nn.Linear(4, 1)
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01),
        [torch.ones(2, 4)] * 4,
        val_loader,
        loss_fn=lambda model, batch: (model(batch).mean(), model(batch)),
        metrics=metrics,
        config=TrainerConfig(**{"epochs": 1, "log_interval": 1, **config}),
        callbacks=list(callbacks),
        discover=False,
    )


def test_they_are_those_of_the_loop_the_sets_and_the_callbacks():
    metrics = {"size": lambda outputs, batch: outputs[:, 0]}
    batches = [torch.ones(2, 4)]
    names = make_trainer(batches, [Silent()], metrics).run.view.metric_names
    assert names == [*CORE, "val_loss", "val_size"]
    both = {"a": batches, "b": batches}
    names = make_trainer(both, [TrainerCallback()], metrics, max_grad_norm=1).run.view.metric_names
    of_sets = ["val_loss", "val_size", "a/loss", "a/size", "b/loss", "b/size"]
    assert names == [*CORE, *of_sets, "grad_norm", "*"]


def test_a_run_has_no_others():
    class Keeps(Silent):
        def __init__(self):
            self.names = set()

        def on_log(self, trainer, metrics, step):
            self.names.update(metrics)

    callback = Keeps()
    trainer = make_trainer([torch.ones(2, 4)], [callback], max_grad_norm=1)
    trainer.train()
    assert callback.names == {*trainer.run.view.metric_names} - {"skipped_updates"}


def test_nobody_knows_those_of_a_loop_of_ones_own():
    model = nn.Linear(4, 1)
    run = Run(model, torch.optim.SGD(model.parameters(), lr=0.01), validate=dict)
    assert run.view.metric_names is None


def test_all_processes_know_those_of_all(tiny):
    class Says(Silent):
        logs_metrics = ("gap",)

    def work(rank):
        callbacks = [Says()] if rank else []
        assert make_trainer(callbacks=callbacks).run.view.metric_names == [*CORE, "gap"]

    assert tiny.run_ranks(work) == [0, 0]
