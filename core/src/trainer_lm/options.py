"""What `train-lm` lets a person choose about text, model and optimizer; becomes its flags.

Each field is a flag, with the type, default, choices and help found here. Imports neither torch nor
numpy, so that `train-lm --help` does not pay for them.
"""

# No `from __future__ import annotations`: the flags are derived from the annotations themselves.

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from trainer_callback import UsageError

__all__ = ["ModelOptions", "OptimizerOptions", "SampleOptions", "TextOptions"]

_MOST_TOKENS: Final = 2**20
"""Four times the largest vocabularies there are; the library of bpe allocates for all at once."""

_MOST_WORKERS: Final = 2**10
_MOST_LAYERS: Final = 10_000


@dataclass(frozen=True)
class TextOptions:
    """The text to train on, and how it becomes batches of tokens.

    Args:
        dataset: pydoc (Python's own language reference, always there), wikitext, wikitext-103,
            a text file, a folder with train and validation files, or NAME[:CONFIG] of a Hugging
            Face dataset
        data_dir: folder with the files of the named dataset, instead of the network
        tokenizer: a token is a byte, a character, or a piece of a word (bpe, learnt from the text)
        vocab_size: number of tokens, for bpe only
        cache_dir: where tokens are kept between runs; none is trainer-lm in the user's cache
        batch_size: blocks per batch
        num_workers: processes that load batches; 0 loads them in the training process
    """

    dataset: str = "pydoc"
    data_dir: Path | None = None
    tokenizer: Literal["byte", "char", "bpe"] = "byte"
    vocab_size: int = 4096
    cache_dir: Path | None = None
    batch_size: int = 12
    num_workers: int = 0

    def __post_init__(self) -> None:
        if not self.dataset:
            raise UsageError(
                "--dataset is empty. Give a name such as pydoc, or the path of a file or folder."
            )
        if self.vocab_size < 256:
            raise UsageError(
                f"--vocab_size must be at least 256, got {self.vocab_size}. "
                "A bpe vocabulary starts with the 256 bytes; use --vocab_size 4096."
            )
        _require_at_least("--vocab_size", self.vocab_size, 256, _MOST_TOKENS)
        _require_at_least("--batch_size", self.batch_size, 1)
        _require_at_least("--num_workers", self.num_workers, 0, _MOST_WORKERS)


@dataclass(frozen=True)
class ModelOptions:
    """The size of the GPT.

    Args:
        block_size: tokens the model sees at once
        n_layer: transformer layers
        n_head: attention heads per layer
        n_embd: width of the model; a multiple of n_head
        dropout: share of activations dropped while training
        pad_vocab: round the vocabulary up to a multiple of this, inside the model; a GPU is faster
            with 64 or 128
    """

    block_size: int = 64
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    dropout: float = 0.0
    pad_vocab: int = 1

    def __post_init__(self) -> None:
        _require_at_least("--block_size", self.block_size, 1)
        _require_at_least("--n_layer", self.n_layer, 1, _MOST_LAYERS)
        _require_at_least("--n_head", self.n_head, 1)
        _require_at_least("--n_embd", self.n_embd, 1)
        if self.n_embd % self.n_head:
            wider = self.n_head * math.ceil(self.n_embd / self.n_head)
            raise UsageError(
                f"--n_embd must be a multiple of --n_head, got {self.n_embd} and {self.n_head}. "
                f"Use --n_embd {wider}."
            )
        _require_share("--dropout", self.dropout, "0.1")
        _require_at_least("--pad_vocab", self.pad_vocab, 1, _MOST_TOKENS)


@dataclass(frozen=True)
class OptimizerOptions:
    """AdamW and the schedule of its learning rate.

    Args:
        learning_rate: the highest rate, reached after the warm-up; wider models want a lower one
        weight_decay: decay of the weight matrices, relative to the rate; vectors do not decay
        warmup_steps: updates over which the rate rises; none is a tenth of the run, at most 100
        lr_schedule: after the warm-up, cosine falls to a tenth, linear to 0, constant stays
        beta1: decay of the running mean of the gradients
        beta2: decay of the running mean of the squared gradients
    """

    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    warmup_steps: int | None = None
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    beta1: float = 0.9
    beta2: float = 0.99

    def __post_init__(self) -> None:
        if not 0.0 < self.learning_rate < math.inf:
            raise UsageError(
                f"--learning_rate must be above 0, got {self.learning_rate}. "
                "Use --learning_rate 1e-3 to begin with."
            )
        if not 0.0 <= self.weight_decay < math.inf:
            raise UsageError(
                f"--weight_decay must be 0 or more, got {self.weight_decay}. "
                "Use --weight_decay 0 for none."
            )
        if self.warmup_steps is not None:
            _require_at_least("--warmup_steps", self.warmup_steps, 0)
        _require_share("--beta1", self.beta1, "0.9")
        _require_share("--beta2", self.beta2, "0.99")


@dataclass(frozen=True)
class SampleOptions:
    """The samples of text, which go to writers such as TensorBoard.

    Args:
        sample_interval: updates between two samples of text; none is one at the end of the run
    """

    sample_interval: int | None = None

    def __post_init__(self) -> None:
        if self.sample_interval is not None:
            _require_at_least("--sample_interval", self.sample_interval, 1)


def _require_at_least(flag: str, value: int, least: int, most: int = 2**31 - 1) -> None:
    if value < least:
        raise UsageError(
            f"{flag} must be at least {least}, got {value}. Use {flag} {least} or more."
        )
    if value > most:
        raise UsageError(f"{flag} must be at most {most}, got {value}. Use {flag} {most} or less.")


def _require_share(flag: str, value: float, example: str) -> None:
    if not 0.0 <= value < 1.0:
        raise UsageError(
            f"{flag} must be at least 0 and below 1, got {value}. Use {flag} {example}."
        )
