"""What does not fit is refused before the first step, and the message names it."""

import pytest
import torch
from torch import nn

from trainer import ConfigError, Trainer, TrainerConfig
from trainer.snapshots.snapshot import list_snapshots
from trainer_callback import SnapshotError, StateError, TrainerCallback


def make(place, model=None, optimizer=torch.optim.AdamW, scheduler=False, **options):
    model = model or nn.Sequential(nn.Linear(4, 1))
    made = optimizer(model.parameters(), lr=0.1)
    return Trainer(
        model,
        made,
        [torch.ones(2, 4)] * 3,
        loss_fn=lambda model, batch: model(batch).square().mean(),
        scheduler=torch.optim.lr_scheduler.StepLR(made, 2) if scheduler else None,
        config=TrainerConfig(output_dir=place, **{"epochs": 1, **options}),
        discover=False,
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model": nn.Sequential(nn.Linear(4, 2))}, r"'0.weight' is of shape \(2, 4\) .* in the"),
        ({"model": nn.Sequential(nn.Linear(4, 1, bias=False))}, "has '0.bias', which the model"),
        ({"model": nn.Linear(4, 1)}, "has no 'weight', which the model has"),
        ({"model": nn.Sequential(nn.Linear(4, 1).double())}, "float64"),
        ({"optimizer": torch.optim.SGD}, "with the optimizer AdamW, and this run has SGD"),
        ({"scheduler": True}, "without a scheduler, and this run has StepLR"),
    ],
)
def test_a_snapshot_that_does_not_fit_is_refused(tmp_path, changes, text):
    make(tmp_path / "run").train()
    with pytest.raises(SnapshotError, match=text):
        make(tmp_path / "run", **changes).train(resume=True)


def test_nothing_to_resume(tmp_path):
    with pytest.raises(ConfigError, match="there is nothing to resume in"):
        make(tmp_path / "run").train(resume=True)
    with pytest.raises(ConfigError, match="there is nothing to resume without output_dir"):
        make(None).train(resume=True)
    assert make(tmp_path / "run").train(resume="auto").status == "finished"


def test_state_that_a_snapshot_cannot_keep_is_refused_with_its_path(tmp_path):
    class Odd(nn.Linear):
        def get_extra_state(self):
            return {"made": [object()]}

        def set_extra_state(self, state):
            pass

    with pytest.raises(StateError, match=r"model.0._extra_state.made\[0\] is a builtins.object"):
        make(tmp_path, model=nn.Sequential(Odd(4, 1))).train()


def test_state_of_an_absent_callback_is_carried_along(tmp_path, caplog):
    class Counter(TrainerCallback):
        def __init__(self, step_size=2):
            self.step_size, self.count = step_size, 0

        def on_step_end(self, trainer):
            self.count += 1

        def on_snapshot_save(self, trainer):
            return {"count": self.count}

        def on_snapshot_load(self, trainer, checkpoint):
            self.count = checkpoint["callback_state"]["Counter"]["count"]

    def train(epochs, *callbacks):
        trainer = make(tmp_path, epochs=epochs)
        with_callbacks = Trainer(
            trainer.model,
            trainer.optimizer,
            [torch.ones(2, 4)] * 3,
            loss_fn=lambda model, batch: model(batch).square().mean(),
            config=trainer.config,
            callbacks=callbacks,
            discover=False,
        )
        with_callbacks.train(resume="auto")

    caplog.set_level("INFO")
    train(1, Counter())
    train(2)
    assert "the snapshot has state of Counter, which is not in this run" in caplog.text
    counter = Counter(step_size=5)
    train(3, counter)
    assert counter.count == 6
    assert "Counter.step_size was 2 in the snapshot's run and is 5." in caplog.text
    assert len(list_snapshots(tmp_path / "snapshots")) == 3
