"""A small GPT on a text: `trainer` against the same model, data and optimizer in a plain
hand-written loop.

The recipe is the character-level one known from nanoGPT for a CPU: 4 layers, 4 heads, width 128,
blocks of 64, batches of 12, 2,000
updates. Both sides run in one process, some updates of each in turn; they end with the same
weights.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from measure import describe_machine, write_json
from torch import nn

from trainer import Trainer, TrainerConfig
from trainer.loaders import EpochLoader
from trainer_callback import TrainerCallback
from trainer_lm.data import make_loaders
from trainer_lm.memory import keep_freed_memory
from trainer_lm.model import GPT, make_optimizer, make_scheduler
from trainer_lm.options import ModelOptions, OptimizerOptions, TextOptions
from trainer_lm.text import Corpus, load_text

MODEL = ModelOptions(block_size=64, n_layer=4, n_head=4, n_embd=128, dropout=0.0)
OPTIMIZER = OptimizerOptions(learning_rate=1e-3, warmup_steps=100)


class Times(TrainerCallback):
    """Notes when each update ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self) -> None:  # type: ignore[override]
        self.ends.append(time.perf_counter())


def train_by_hand(text: TextOptions, corpus: Corpus, steps: int) -> tuple[nn.Module, list[float]]:
    model, optimizer, scheduler, train, _ = build(text, corpus, steps)
    batches = EpochLoader(train, 0, "train")  # so that both sides see the same batches
    model.train()
    ends, epoch = [time.perf_counter()], 0
    while len(ends) <= steps:
        for batch, _ in batches.iterate(epoch):
            loss = model(**batch)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            ends.append(time.perf_counter())
            if len(ends) > steps:
                break
        epoch += 1
    return model, ends


def build(text: TextOptions, corpus: Corpus, steps: int) -> Any:
    torch.manual_seed(0)
    train, validation, facts = make_loaders(corpus, text, MODEL.block_size)
    model = GPT(facts.tokenizer.vocab_size, MODEL)
    optimizer = make_optimizer(model, OPTIMIZER)
    return model, optimizer, make_scheduler(optimizer, OPTIMIZER, steps), train, validation


def train_by_trainer(
    text: TextOptions, corpus: Corpus, steps: int
) -> tuple[nn.Module, list[float], float]:
    model, optimizer, scheduler, train, validation = build(text, corpus, steps)
    times = Times()
    trainer = Trainer(
        model,
        optimizer,
        train,
        validation,
        scheduler=scheduler,
        config=TrainerConfig(epochs=10**6, max_steps=steps, max_grad_norm=1.0),
        callbacks=[times],
        discover=False,
    )
    times.ends.append(time.perf_counter())
    result = trainer.train()
    assert result.val_loss is not None
    return model, times.ends, result.val_loss


def tokens_per_second(ends: list[float], tokens: int) -> float:
    steps = [end - start for start, end in pairwise(ends)]
    return tokens / statistics.median(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="pydoc", help="a text file; default the embedded one")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=1, help="runs of each side")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    text = TextOptions(dataset=arguments.dataset, tokenizer="char", batch_size=12)
    corpus = load_text(text)
    tokens = text.batch_size * MODEL.block_size
    rows: list[dict[str, float]] = []
    keep_freed_memory()
    for _ in range(arguments.pairs):
        by_hand, hand_ends = train_by_hand(text, corpus, arguments.steps)
        by_trainer, trainer_ends, val_loss = train_by_trainer(text, corpus, arguments.steps)
        same = all(
            torch.equal(a, b)
            for a, b in zip(by_hand.parameters(), by_trainer.parameters(), strict=True)
        )
        rows.append(
            {
                "by hand, tokens/s": tokens_per_second(hand_ends, tokens),
                "trainer, tokens/s": tokens_per_second(trainer_ends, tokens),
                "validation loss": val_loss,
                "bits per character": val_loss / math.log(2),
                "same weights": float(same),
                "peak memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
        print(rows[-1])
    write_json(arguments.json, {**describe_machine(["torch", "trainer-core"]), "results": rows})


if __name__ == "__main__":
    main()
