"""Image classification: small digits, a convolution, accuracy and a confusion matrix."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trainer import Trainer, TrainerConfig

DIGITS = """
111 010 111 111 101 111 111 111 111 111
101 110 001 001 101 100 100 001 101 101
101 010 111 111 111 111 111 001 111 111
101 010 100 001 001 001 101 001 101 001
111 111 111 111 001 111 111 001 111 111
"""


def make_images(count: int) -> TensorDataset:
    """Digits of 3 x 5 pixels somewhere in an image of 8 x 8, under noise: (count, 1, 8, 8)."""
    rows = [[[int(p) for p in digit] for digit in row.split()] for row in DIGITS.split("\n")[1:-1]]
    digits = torch.tensor(rows).transpose(0, 1).float()
    labels = torch.randint(10, (count,))
    images = 0.15 * torch.randn(count, 1, 8, 8)
    for image, label in zip(images, labels, strict=True):
        top, left = torch.randint(4, ()), torch.randint(6, ())
        image[0, top : top + 5, left : left + 3] += digits[label]
    return TensorDataset(images, labels)


def loss_fn(model, batch):
    logits = model(batch[0])
    return nn.functional.cross_entropy(logits, batch[1]), logits


torch.manual_seed(0)
layers = [nn.Conv2d(1, 32, 5), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU()]
model, test = nn.Sequential(*layers, nn.Linear(64, 10)), make_images(500)
trainer = Trainer(
    model,
    torch.optim.AdamW(model.parameters(), lr=2e-3),
    DataLoader(make_images(3000), batch_size=64, shuffle=True),
    DataLoader(make_images(500), batch_size=250),
    loss_fn=loss_fn,
    metrics={"accuracy": lambda logits, batch: logits.argmax(1) == batch[1]},
    config=TrainerConfig(epochs=14),
)
trainer.train()

# Row: what it is. Column: what it was taken for.
guesses = trainer.predict(DataLoader(test, batch_size=250)).argmax(1)
confusion = (test.tensors[1] * 10 + guesses).bincount(minlength=100).view(10, 10)
accuracy = trainer.evaluate(DataLoader(test, batch_size=250))["test_accuracy"]
print(confusion, f"accuracy {accuracy:.3f}", sep="\n")
