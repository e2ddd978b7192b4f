"""Segmentation: which pixels of a noisy image belong to a disc; IoU; the best IoU's weights.

Early stopping watches a metric that a callback logs, and higher is better.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trainer import Trainer, TrainerConfig
from trainer_callback import TrainerCallback
from trainer_early_stopping import EarlyStoppingCallback


def make_discs(count: int) -> TensorDataset:
    """Returns images and masks, both of shape (count, 1, 24, 24)."""
    y, x = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
    middle, radius = 6 + 12 * torch.rand(2, count, 1, 1), 3 + 4 * torch.rand(count, 1, 1)
    masks = ((y - middle[0]) ** 2 + (x - middle[1]) ** 2 < radius**2).float()[:, None]
    return TensorDataset(masks + 0.7 * torch.randn_like(masks), masks)


class IoU(TrainerCallback):
    """Pixels in both found and true disc, over those in either, of a whole validation."""

    def on_validation_start(self):
        self.both, self.either = 0, 0

    def loss_fn(self, model, batch):
        images, masks = batch
        logits = model(images)
        if not model.training:
            found, true = logits > 0, masks > 0.5
            self.both, self.either = (
                self.both + (found & true).sum(),
                self.either + (found | true).sum(),
            )
        return nn.functional.binary_cross_entropy_with_logits(logits, masks)

    def on_validation_end(self, trainer, metrics):
        if metrics:
            trainer.log({"val_iou": float(self.both / self.either)})


torch.manual_seed(0)
layers = [nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 16, 5, padding=2), nn.ReLU()]
model, iou = nn.Sequential(*layers, nn.Conv2d(16, 1, 1)), IoU()
stopper = EarlyStoppingCallback(monitor="val_iou", mode="max", patience=3)
Trainer(
    model,
    torch.optim.AdamW(model.parameters(), lr=3e-3),
    DataLoader(make_discs(320), batch_size=16, shuffle=True),
    DataLoader(make_discs(80), batch_size=40),
    loss_fn=iou.loss_fn,
    config=TrainerConfig(epochs=8),
    callbacks=[iou, stopper],
).train()
print(f"best epoch {stopper.best_epoch}")
print(f"iou {stopper.best:.3f}")
