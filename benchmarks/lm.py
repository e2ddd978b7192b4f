"""A small GPT on a text: `train-lm`'s pieces against a plain script written the way nanoGPT's is,
with the same sizes, data, batch and schedule.

The recipe is the character-level one known from nanoGPT for a CPU: 4 layers, 4 heads, width 128,
blocks of 64, batches of 12, 2,000 updates. Each side has a process of its own; they take turns of
20 updates. The bar: 1.2 times the script's tokens per second, at the same or a lower validation
loss. The validation loss is that of the whole validation text after the last update. On a machine
with other work to do, the ratio of processor time tells more than that of tokens per second.

    python benchmarks/lm.py --dataset TEXT [--recipe gpt2 --device cuda --sides ...]

The recipe `gpt2` (124 M parameters, blocks of 1,024, bf16, compiled) is for a GPU.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from measure import Row, describe_pairs, make_parser, print_table, write_json
from nanogpt import NanoGPT, train
from torch import Tensor, nn

from trainer import Trainer, TrainerConfig
from trainer.processes.rng import seed_rng
from trainer_callback import TrainerCallback
from trainer_lm.data import Batch, make_loaders
from trainer_lm.memory import keep_freed_memory, use_large_pages
from trainer_lm.model import GPT, make_optimizer, make_scheduler
from trainer_lm.options import ModelOptions, OptimizerOptions, TextOptions
from trainer_lm.text import Corpus, load_text

TURN = 20
"""Updates of one turn; the first turn does not count."""


@dataclass(frozen=True)
class Recipe:
    model: ModelOptions
    optimizer: OptimizerOptions
    batch_size: int
    vocab_size: int | None
    """None: that of the text's characters."""
    sides: tuple[str, ...]


RECIPES = {
    "char": Recipe(
        ModelOptions(block_size=64, n_layer=4, n_head=4, n_embd=128, dropout=0.0),
        OptimizerOptions(learning_rate=1e-3, warmup_steps=100),
        batch_size=12,
        vocab_size=None,
        sides=("nanogpt", "trainer", "trainer+bf16"),
    ),
    "gpt2": Recipe(
        ModelOptions(block_size=1024, n_layer=12, n_head=12, n_embd=768, dropout=0.0),
        OptimizerOptions(learning_rate=6e-4, warmup_steps=100, beta2=0.95),
        batch_size=12,
        vocab_size=50_304,
        sides=("nanogpt+bf16+compile", "trainer+bf16+compile"),
    ),
}


@dataclass(frozen=True)
class Job:
    """What each side is told.

    Attributes:
        side: `nanogpt` or `trainer`, and what is on: `+bf16`, `+compile`.
    """

    side: str
    recipe: Recipe
    dataset: str
    steps: int
    device: str
    threads: int

    def has(self, option: str) -> bool:
        return option in self.side.split("+")


class Turns:
    """One side's end of the pipe: tells the seconds that each turn took, by the clock and of the
    processor, and waits for the next one.
    """

    def __init__(self, pipe: Connection, device: str) -> None:
        self._pipe, self._cuda = pipe, device.startswith("cuda")
        self._updates, self._began = 0, (0.0, 0.0)

    def wait(self) -> None:
        self._pipe.recv()
        self._began = (time.perf_counter(), time.process_time())

    def update_done(self) -> None:
        self._updates += 1
        if self._updates % TURN == 0:
            if self._cuda:
                torch.cuda.synchronize()
            clock, processor = self._began
            self._pipe.send((time.perf_counter() - clock, time.process_time() - processor))
            self.wait()


class TurnsCallback(TrainerCallback):
    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def on_batch_end(self) -> None:  # type: ignore[override]
        self._turns.update_done()


def run_side(job: Job, pipe: Connection) -> None:
    """The process of one side: sends the seconds of each turn, then its result."""
    torch.set_num_threads(job.threads)
    logging.disable(logging.WARNING)  # that TurnsCallback, which waits, is expensive
    turns = Turns(pipe, job.device)
    run = run_nanogpt if job.side.startswith("nanogpt") else run_trainer
    val_loss = run(job, split(job.dataset), turns)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pipe.send({"val_loss": val_loss, "peak_mb": peak})


def split(dataset: str) -> Corpus:
    """Returns the text divided where nanoGPT divides it."""
    corpus = load_text(TextOptions(dataset=dataset))
    text = (corpus.train + corpus.validation).decode()
    cut = int(len(text) * 0.9)
    return Corpus(text[:cut].encode(), text[cut:].encode(), corpus.name)


def run_nanogpt(job: Job, corpus: Corpus, turns: Turns) -> float:
    options, data, validation, vocab_size = prepare(job, corpus)
    torch.manual_seed(1337)
    model = NanoGPT(vocab_size, job.recipe.model).to(job.device)
    turns.wait()
    train(
        model,
        data.dataset.tokens,
        options.batch_size,
        job.steps,
        job.recipe.optimizer,
        bf16=job.has("bf16"),
        compile=job.has("compile"),
        update_done=turns.update_done,
    )
    return validate(model, lambda batch: model(batch["input_ids"], batch["labels"]), validation)


def run_trainer(job: Job, corpus: Corpus, turns: Turns) -> float:
    keep_freed_memory()
    if job.device == "cpu":
        use_large_pages()
    _, data, validation, vocab_size = prepare(job, corpus)
    seed_rng(1337)
    model = GPT(vocab_size, job.recipe.model).to(job.device)
    optimizer = make_optimizer(model, job.recipe.optimizer)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            optimizer,
            data,
            scheduler=make_scheduler(optimizer, job.recipe.optimizer, job.steps),
            config=TrainerConfig(
                epochs=10**6,
                max_steps=job.steps,
                max_grad_norm=1.0,
                output_dir=Path(folder),
                seed=1337,
                device=job.device,
                precision="bf16" if job.has("bf16") else "fp32",
                compile=job.has("compile"),
            ),
            callbacks=[TurnsCallback(turns)],
            progress=False,
        )
        turns.wait()
        trainer.train()
    return validate(model, lambda batch: model(**batch), validation)


def prepare(job: Job, corpus: Corpus) -> tuple[TextOptions, Any, Any, int]:
    options = TextOptions(dataset=job.dataset, tokenizer="char", batch_size=job.recipe.batch_size)
    pin = job.device.startswith("cuda")
    data, validation, facts = make_loaders(
        corpus, options, job.recipe.model.block_size, pin_memory=pin
    )
    vocab_size = job.recipe.vocab_size or facts.tokenizer.vocab_size
    return options, data, validation, vocab_size


@torch.no_grad()
def validate(model: nn.Module, loss_of: Callable[[Batch], Tensor], batches: Any) -> float:
    """Returns the mean loss per token, nats."""
    model.eval()
    device = next(model.parameters()).device
    total = count = 0.0
    for batch in batches:
        moved = {name: tensor.to(device) for name, tensor in batch.items()}
        size = moved["labels"].numel()
        total, count = total + loss_of(moved).item() * size, count + size
    return total / count


def measure(jobs: list[Job]) -> tuple[dict[str, list[tuple[float, float]]], dict[str, Any]]:
    """Returns side -> seconds of each turn, by the clock and of the processor; side -> result."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for job in jobs:
        pipes[job.side], theirs = context.Pipe()
        processes.append(context.Process(target=run_side, args=(job, theirs), daemon=True))
        processes[-1].start()
        theirs.close()  # so that the end of a process is seen here
    seconds: dict[str, list[tuple[float, float]]] = {job.side: [] for job in jobs}
    for turn in range(jobs[0].steps // TURN):
        for side in random.Random(turn).sample(list(pipes), len(pipes)):
            pipes[side].send("go")
            spent = pipes[side].recv()
            if turn:
                seconds[side].append(spent)
    results = {}
    for side, pipe in pipes.items():
        pipe.send("validate")
        results[side] = pipe.recv()
    for process in processes:
        process.join()
    return seconds, results


def main() -> None:
    parser = make_parser(__doc__, rounds=1)
    parser.add_argument("--dataset", default=os.environ.get("LM_TEXT", "pydoc"))
    parser.add_argument("--recipe", choices=RECIPES, default="char")
    parser.add_argument("--sides", nargs="+", help="NAME[+bf16][+compile], the script's first")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="more need idle cores")
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.recipe]
    sides = arguments.sides or recipe.sides
    facts = (recipe, arguments.dataset, arguments.steps, arguments.device, arguments.threads)
    seconds, results = measure([Job(side, *facts) for side in sides])
    tokens = TURN * recipe.batch_size * recipe.model.block_size
    rows: dict[str, Row] = {}
    for side in sides:
        turns = [*zip(seconds[sides[0]], seconds[side], strict=True)]
        pairs = [(tokens / a, tokens / b) for (a, _), (b, _) in turns]
        processor = statistics.median(a / b for (_, a), (_, b) in turns)
        rows[side] = {**describe_pairs(pairs), "processor": processor, **results[side]}
    print(
        f"{arguments.steps:,} updates on {Path(arguments.dataset).name}, {arguments.device}, "
        f"{arguments.threads} thread(s). Medians over turns of {TURN} updates."
    )
    print_table(
        ("", "tokens/s", "ratio", "of processor time", "validation loss, nats", "peak memory, MB"),
        (
            (
                side,
                f"{row['median']:,.0f}",
                f"{row['ratio']:.3f}",
                f"{row['processor']:.3f}",
                f"{row['val_loss']:.4f}",
                f"{row['peak_mb']:.0f}",
            )
            for side, row in rows.items()
        ),
    )
    write_json(
        arguments.json,
        rows,
        steps=arguments.steps,
        dataset=Path(arguments.dataset).name,
        threads=arguments.threads,
    )


if __name__ == "__main__":
    main()
