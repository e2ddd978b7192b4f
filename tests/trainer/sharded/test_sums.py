"""Losses that are sums, of models that are sharded: the gradient is that of all items."""

import pytest
import torch
from torch import nn

from trainer import Loss

COUNTS = (2, 7, 5, 3, 0, 6, 1, 4)
"""Items of each batch: the four of an update, or pair of processes, differ."""


def make_batches():
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(8, 7, 4, generator=generator, dtype=torch.float64)
    return [(rows[i], torch.arange(7) < count) for i, count in enumerate(COUNTS)]


def sum_of(model, batch):
    rows, mask = batch
    return Loss((model(rows)[..., 0].square() * mask).sum(), mask.sum())


def train_in_full(batches):
    """Weights of two epochs in plain torch, with four batches an update as one; and the loss."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, 1)).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(2):
        total = items = 0
        for start in (0, 4):
            rows, mask = (torch.cat(each) for each in zip(*batches[start : start + 4], strict=True))
            loss = sum_of(model, (rows, mask))
            optimizer.zero_grad()
            (loss.total / loss.count).backward()
            optimizer.step()
            total, items = total + float(loss.total.detach()), items + int(loss.count)
    return model.state_dict(), total / items


@pytest.mark.parametrize("divided", [True, False])
@pytest.mark.parametrize("steps", [1, 2])
def test_the_gradient_of_two_processes_with_unequal_counts_is_that_of_all_items(
    tiny, tmp_path, sharded, divided, steps
):
    batches = make_batches()
    if steps == 1:  # two batches of each pair as one
        batches = [
            tuple(torch.cat(each) for each in zip(*batches[i : i + 2], strict=True))
            for i in range(0, 8, 2)
        ]

    def work(rank):
        trainer = sharded.trainer(
            tmp_path,
            divided=divided,
            batches=batches,
            validated=batches,
            loss_fn=sum_of,
            max_grad_norm=None,
            gradient_accumulation_steps=steps,
        )
        result = trainer.train()
        torch.save((result.train_loss, result.val_loss), tmp_path / f"loss-{rank}")

    assert tiny.run_ranks(work) == [0, 0]
    expected, train_loss = train_in_full(make_batches())
    found = torch.load(tmp_path / "final/state.pt")["model"]
    assert sharded.apart(found, expected) < 1e-12
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, 1)).double()
    model.load_state_dict(expected)
    with torch.no_grad():
        val_loss = sum(sum_of(model, each).total for each in batches) / sum(COUNTS)
    for rank in (0, 1):
        losses = torch.load(tmp_path / f"loss-{rank}")
        assert losses == pytest.approx((train_loss, float(val_loss)), abs=1e-12)
