"""Text classification: texts of different lengths, packed without padding, and their accuracy."""

import random

import torch
from torch import nn
from torch.utils.data import DataLoader

from trainer import Trainer, TrainerConfig

GOOD, BAD = ["great", "lovely", "clever", "warm"], ["dull", "awful", "clumsy", "cold"]
OTHER = ["the", "film", "a", "plot", "is", "was", "and", "its", "actors", "with", "very", "music"]
WORDS = {word: number for number, word in enumerate(GOOD + BAD + OTHER)}


def make_text(label: int) -> tuple[str, int]:
    said = random.choices(GOOD if label else BAD, k=3) + random.choices(BAD if label else GOOD)
    return " ".join(said + random.choices(OTHER, k=random.randint(4, 20))), label


def pack(items: list[tuple[str, int]]) -> tuple[torch.Tensor, ...]:
    """Returns all tokens behind each other, where each text begins, and the labels."""
    texts = [torch.tensor([WORDS[word] for word in text.split()]) for text, _ in items]
    begins = torch.tensor([0, *map(len, texts[:-1])]).cumsum(0)
    return torch.cat(texts), begins, torch.tensor([label for _, label in items])


def loss_fn(model, batch):
    logits = model(*batch[:2])
    return nn.functional.cross_entropy(logits, batch[2]), logits


random.seed(0)
torch.manual_seed(0)
texts = [make_text(n % 2) for n in range(1000)]
model = nn.EmbeddingBag(len(WORDS), 2)
trainer = Trainer(
    model,
    torch.optim.AdamW(model.parameters(), lr=0.05),
    DataLoader(texts[:800], batch_size=32, shuffle=True, collate_fn=pack),
    DataLoader(texts[800:], batch_size=64, collate_fn=pack),
    loss_fn=loss_fn,
    metrics={"accuracy": lambda logits, batch: logits.argmax(1) == batch[2]},
    batch_size=lambda batch: len(batch[2]),  # which cannot be seen in a packed batch
    config=TrainerConfig(epochs=3),
)
trainer.train()
print(f"accuracy {trainer.metrics['val_accuracy']:.3f}")
