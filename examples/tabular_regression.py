"""Tabular regression from a CSV: standardised columns, early stopping, the best weights, an RMSE.

python examples/tabular_regression.py [FILE.csv]    the last column is the target; without a file
it makes one.
"""

import csv
import random
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from trainer import Trainer, TrainerConfig
from trainer_early_stopping import EarlyStoppingCallback


def make_csv(path: Path) -> None:
    draw = random.Random(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["area", "rooms", "age", "price"])
        for _ in range(600):
            area, rooms, age = draw.uniform(30, 200), draw.randint(1, 6), draw.uniform(0, 90)
            price = 2.5 * area + 12 * rooms - 0.8 * age + draw.gauss(0, 10)
            writer.writerow([f"{area:.1f}", rooms, f"{age:.1f}", f"{price:.1f}"])


def loss_fn(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    columns, target = batch
    return nn.functional.mse_loss(model(columns), target)


path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("houses.csv")
if len(sys.argv) == 1:
    make_csv(path)
with path.open() as file:
    rows = [[float(value) for value in row] for row in list(csv.reader(file))[1:]]
table = torch.tensor(rows)
mean, deviation = table.mean(0), table.std(0)
table = (table - mean) / deviation

torch.manual_seed(0)
train, val = random_split(TensorDataset(table[:, :-1], table[:, -1:]), [0.8, 0.2])
model = nn.Sequential(nn.Linear(table.shape[1] - 1, 32), nn.ReLU(), nn.Linear(32, 1))
stopper = EarlyStoppingCallback(patience=5)
result = Trainer(
    model,
    torch.optim.AdamW(model.parameters(), lr=1e-2),
    DataLoader(train, batch_size=32, shuffle=True),
    DataLoader(val, batch_size=120),
    loss_fn=loss_fn,
    config=TrainerConfig(epochs=40),
    callbacks=[stopper],
).train()
print(f"{result.stop_reason} after {result.epochs} epochs, best epoch {stopper.best_epoch}")
print(f"rmse {stopper.best**0.5 * deviation[-1].item():.1f}")
