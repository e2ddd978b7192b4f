"""`train_loss` of batches with different numbers of items."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trainer import ConfigError, Trainer, TrainerConfig
from trainer_callback import TrainerCallback

ROWS = torch.arange(10.0, dtype=torch.float64).square()


class Losses(nn.Module):
    """Whose loss is the mean of its batch, and whose weight never moves."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, batch):
        return self.weight * batch.mean()


def first_of(model, batch):
    return model(batch[0])


def make(loader, *, batch_size=None, callbacks=(), **config):
    model = Losses()
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        loader,
        loss_fn=first_of,
        batch_size=batch_size,
        callbacks=list(callbacks),
        discover=False,
        config=TrainerConfig(**{"epochs": 1, **config}),
    )


def load(rows=ROWS, size=4):
    return DataLoader(TensorDataset(rows), batch_size=size)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_short_last_batch_counts_by_its_items(steps):
    result = make(load(), gradient_accumulation_steps=steps).train()
    assert result.train_loss == pytest.approx(float(ROWS.mean()), rel=1e-14)


def test_an_epoch_behind_one_with_a_short_last_batch_begins_anew():
    result = make(load(), epochs=3).train()
    assert result.train_loss == pytest.approx(float(ROWS.mean()), rel=1e-14)


def test_batches_of_any_loader_count_as_the_function_says():
    batches = [(ROWS[:1],), (ROWS[1:7],), (ROWS[7:],)]
    result = make(batches, batch_size=lambda batch: len(batch[0])).train()
    assert result.train_loss == pytest.approx(float(ROWS.mean()), rel=1e-14)


def test_the_logged_loss_is_weighted_alike():
    class Log(TrainerCallback):
        def on_log(self, metrics):
            seen.extend(value for name, value in metrics.items() if name == "loss")

    seen = []
    make(load(), callbacks=[Log()], log_interval=3).train()
    assert seen == [pytest.approx(float(ROWS.mean()), rel=1e-14)]


def test_a_resume_before_the_short_batch_counts_it_by_its_items(tmp_path):
    class Stopper(TrainerCallback):
        def should_stop_training(self, trainer):
            return trainer.step == 2

    place = {"output_dir": tmp_path / "run"}
    make(load(), callbacks=[Stopper()], **place).train()
    result = make(load(), **place).train(resume=True)
    assert result.steps == 3
    assert result.train_loss == pytest.approx(float(ROWS.mean()), rel=1e-14)


def test_short_batches_of_one_process_count_by_their_items_in_all(tiny, tmp_path):
    def work(rank):
        result = make(load(ROWS[:7], size=4)).train()  # four rows in one process, three in another
        (tmp_path / str(rank)).write_text(repr(result.train_loss))

    assert tiny.run_ranks(work) == [0, 0]
    for rank in (0, 1):
        found = float((tmp_path / str(rank)).read_text())
        assert found == pytest.approx(float(ROWS[:7].mean()), rel=1e-14)


def test_a_batch_size_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="batch_size answered 'four' for a batch"):
        make([(ROWS,)], batch_size=lambda batch: "four").train()


def test_a_batch_size_that_takes_no_batch_is_refused_at_construction():
    with pytest.raises(ConfigError, match=r"batch_size takes a function, .* called with a batch"):
        make(load(), batch_size=lambda: 4)
