"""Text to batches: two data loaders over blocks of tokens that lie in memory-mapped files.

Letters: B blocks of a batch, T tokens of a block (`block_size`), N tokens of a text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from trainer_callback import UsageError

from .cache import TokenCache
from .options import TextOptions
from .text import Corpus
from .tokenizer import CharTokenizer, TokenArray, Tokenizer

__all__ = ["Batch", "Blocks", "CorpusSummary", "make_loaders"]

Batch: TypeAlias = dict[str, torch.Tensor]
"""`input_ids` and `labels`, each (B, T) int64: the labels are the same text, one token later."""


@dataclass(frozen=True)
class CorpusSummary:
    """What became of a corpus.

    Attributes:
        name: what was asked for, for people.
        tokenizer: what the tokens mean.
        train_tokens: tokens of the training text.
        validation_bytes: size of the validation text in UTF-8.
        validation_tokens: its tokens.
        notes: one sentence for each thing a person may not expect, those of the corpus included.
    """

    name: str
    tokenizer: Tokenizer
    train_tokens: int
    validation_bytes: int
    validation_tokens: int
    notes: tuple[str, ...]

    def bits_per_byte(self, val_loss: float) -> float:
        """Returns a validation loss (nats per token) as bits per byte, whatever the tokenizer."""
        return val_loss / math.log(2) * self.validation_tokens / self.validation_bytes


class Blocks(Dataset[Batch]):
    """A text of N tokens as (N - 1) // T blocks, side by side; what is left at the end is not used.

    Args:
        source: an .npy file of tokens, 1-D, which is mapped and not read; or the tokens themselves.
        block_size: T.

    Attributes:
        tokens: (N,), the tokens.
    """

    def __init__(self, source: Path | TokenArray, block_size: int) -> None:
        self.source = source
        self.block_size = block_size
        self.tokens: TokenArray = source if not isinstance(source, Path) else _map(source)
        shape = (max(0, len(self.tokens) - 1) // block_size, block_size + 1)
        # Neighbours share a token, the last label of one and the first input of the next.
        self._blocks: TokenArray = np.lib.stride_tricks.as_strided(
            self.tokens,
            shape,
            (block_size * self.tokens.itemsize, self.tokens.itemsize),
            subok=False,
            writeable=False,
        )

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> Batch:
        """Returns one block, (T,) int64 each."""
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Returns the blocks of a batch, (B, T) int64 each and contiguous, from one gather."""
        rows = self._blocks[indices]  # (B, T + 1)
        return {
            "input_ids": torch.from_numpy(rows[:, :-1].astype(np.int64)),
            "labels": torch.from_numpy(rows[:, 1:].astype(np.int64)),
        }

    def __reduce__(self) -> tuple[type[Blocks], tuple[Path | TokenArray, int]]:
        """A loader process that is spawned maps the file again; it is not sent the tokens."""
        return Blocks, (self.source, self.block_size)


def make_loaders(
    corpus: Corpus, options: TextOptions, block_size: int, *, pin_memory: bool = False
) -> tuple[DataLoader[Batch], DataLoader[Batch], CorpusSummary]:
    """Returns the loaders of training and validation batches, and what became of the text.

    An epoch is one pass over the blocks of the training text, shuffled, less an incomplete last
    batch. Validation keeps the order and leaves out none.

    Args:
        options: tokenizer, batch size, cache folder and loader processes.
        block_size: T.
        pin_memory: puts batches where a CUDA device copies from faster.

    Raises:
        UsageError: a text is shorter than one block, the training text has no full batch, a
            `cache_dir` that was asked for cannot be written, or a library is missing.
    """
    cache = TokenCache(options.cache_dir)
    tokenizer = cache.tokenizer(options, corpus.train)
    train = Blocks(cache.tokens(corpus.train, tokenizer), block_size)
    validation = Blocks(cache.tokens(corpus.validation, tokenizer), block_size)
    _check_sizes(corpus.name, train, validation, options.batch_size)
    unlearnt, unknown = _unlearnt(tokenizer, options), _unknown(tokenizer, validation.tokens)
    summary = CorpusSummary(
        name=corpus.name,
        tokenizer=tokenizer,
        train_tokens=len(train.tokens),
        validation_bytes=len(corpus.validation),
        validation_tokens=len(validation.tokens),
        notes=(*corpus.notes, *cache.notes, *unlearnt, *unknown),
    )
    make_loader = partial(
        DataLoader,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        collate_fn=_as_gathered,
        pin_memory=pin_memory,
    )
    return make_loader(train, shuffle=True, drop_last=True), make_loader(validation), summary


def _map(path: Path) -> TokenArray:
    tokens: TokenArray = np.load(path, mmap_mode="r")
    return tokens


def _as_gathered(batch: Any) -> Any:
    """`Blocks.__getitems__` has made a batch already. A module's function, so that it pickles."""
    return batch


def _check_sizes(name: str, train: Blocks, validation: Blocks, batch_size: int) -> None:
    for part, blocks in (("training", train), ("validation", validation)):
        if len(blocks) == 0:
            raise UsageError(
                f"--dataset {name}: its {part} text has {len(blocks.tokens)} tokens, and "
                f"--block_size {blocks.block_size} needs at least {blocks.block_size + 1}. "
                "Use a smaller --block_size or a longer text."
            )
    if len(train) < batch_size:
        raise UsageError(
            f"--dataset {name}: its training text makes {len(train)} blocks of {train.block_size} "
            f"tokens, fewer than one batch of --batch_size {batch_size}. "
            f"Use --batch_size {len(train)} or a smaller --block_size."
        )


def _unlearnt(tokenizer: Tokenizer, options: TextOptions) -> tuple[str, ...]:
    count = tokenizer.vocab_size
    if options.tokenizer != "bpe" or count >= options.vocab_size:
        return ()
    return (f"the text gives {count} tokens of bpe, fewer than --vocab_size {options.vocab_size}",)


def _unknown(tokenizer: Tokenizer, tokens: TokenArray) -> tuple[str, ...]:
    if not isinstance(tokenizer, CharTokenizer):
        return ()
    count = len(tokens) - np.count_nonzero(tokens != tokenizer.unknown)
    if count == 0:
        return ()
    note = (
        f"{count} of the {len(tokens)} characters of the validation text are not in the training "
        "text: they count as one unknown character, which flatters the bits per byte"
    )
    return (note,)
