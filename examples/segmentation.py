"""Segmentation: which pixels of a noisy image belong to a disc; IoU; the best IoU's weights.

Early stopping watches the metric, and higher is better.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trainer import Trainer, TrainerConfig
from trainer_early_stopping import EarlyStoppingCallback


def make_discs(count: int) -> TensorDataset:
    """Returns images and masks, both of shape (count, 1, 24, 24)."""
    y, x = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
    middle, radius = 6 + 12 * torch.rand(2, count, 1, 1), 3 + 4 * torch.rand(count, 1, 1)
    masks = ((y - middle[0]) ** 2 + (x - middle[1]) ** 2 < radius**2).float()[:, None]
    return TensorDataset(masks + 0.7 * torch.randn_like(masks), masks)


def loss_fn(model, batch):
    logits = model(batch[0])
    return nn.functional.binary_cross_entropy_with_logits(logits, batch[1]), logits


def iou(logits, batch):
    """Returns the pixels in both found and true disc, and those in either: total and count."""
    found, true = logits > 0, batch[1] > 0.5
    return (found & true).sum(), (found | true).sum()


torch.manual_seed(0)
layers = [nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 16, 5, padding=2), nn.ReLU()]
model = nn.Sequential(*layers, nn.Conv2d(16, 1, 1))
stopper = EarlyStoppingCallback(monitor="val_iou", mode="max", patience=3)
Trainer(
    model,
    torch.optim.AdamW(model.parameters(), lr=3e-3),
    DataLoader(make_discs(320), batch_size=16, shuffle=True),
    DataLoader(make_discs(80), batch_size=40),
    loss_fn=loss_fn,
    metrics={"iou": iou},
    config=TrainerConfig(epochs=8),
    callbacks=[stopper],
).train()
print(f"best epoch {stopper.best_epoch}")
print(f"iou {stopper.best:.3f}")
