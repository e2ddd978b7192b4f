"""Text classification: texts of different lengths, packed without padding, and their accuracy."""

import random

import torch
from torch import nn
from torch.utils.data import DataLoader

from trainer import Trainer, TrainerConfig
from trainer_callback import TrainerCallback

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


class Accuracy(TrainerCallback):
    def on_validation_start(self):
        self.hits, self.items = 0, 0

    def loss_fn(self, model, batch):
        logits, labels = model(*batch[:2]), batch[2]
        if not model.training:
            self.hits += (logits.argmax(1) == labels).sum().item()
            self.items += len(labels)
        return nn.functional.cross_entropy(logits, labels)

    def on_validation_end(self, trainer, metrics):
        if metrics:
            trainer.log({"val_accuracy": self.hits / self.items})


random.seed(0)
torch.manual_seed(0)
texts = [make_text(n % 2) for n in range(1000)]
model, accuracy = nn.EmbeddingBag(len(WORDS), 2), Accuracy()
trainer = Trainer(
    model,
    torch.optim.AdamW(model.parameters(), lr=0.05),
    DataLoader(texts[:800], batch_size=32, shuffle=True, collate_fn=pack),
    DataLoader(texts[800:], batch_size=64, collate_fn=pack),
    loss_fn=accuracy.loss_fn,
    batch_size=lambda batch: len(batch[2]),  # which cannot be seen in a packed batch
    config=TrainerConfig(epochs=3),
    callbacks=[accuracy],
)
trainer.train()
print(f"accuracy {trainer.metrics['val_accuracy']:.3f}")
