"""The GPT that `train-lm` trains, its optimizer and the schedule of its learning rate.

Knows nothing of text, files or the training loop. Letters: B rows of a batch, T tokens in a row,
C width of the model (`n_embd`), H heads, D = C / H width of a head, V size of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer_callback import UsageError

from .cross_entropy import sum_cross_entropy
from .options import ModelOptions, OptimizerOptions

__all__ = ["GPT", "TokenSums", "make_optimizer", "make_scheduler"]


class TokenSums(NamedTuple):
    """Sums over the tokens of a batch, 0-dim.

    Attributes:
        total: of their cross-entropies, in nats.
        hits: how many of them are the likeliest one; None in training.
    """

    total: Tensor
    hits: Tensor | None


class GPT(nn.Module):
    """A decoder-only transformer: pre-norm, learned positions, no biases, tied embeddings.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2, 2019), for
    the blocks and the initialisation; Press and Wolf, arXiv:1608.05859, for the tied embeddings.

    Args:
        vocab_size: V, number of distinct tokens.
        options: the other sizes.

    Attributes:
        vocab_size: V. Up to a multiple of `pad_vocab` there are more rows of weights, tokens that
            are never seen and never sampled; the loss learns at once that they are unlikely.
        n_layer, n_embd: the sizes by which others, such as `throughput`, estimate its work.

    Raises:
        UsageError: `vocab_size` is below 1.
    """

    def __init__(self, vocab_size: int, options: ModelOptions) -> None:
        super().__init__()
        if vocab_size < 1:
            raise UsageError(
                f"GPT: vocab_size must be at least 1, got {vocab_size}. Use that of the tokenizer."
            )
        self.block_size: int = options.block_size
        self.n_layer: int = options.n_layer
        self.n_embd: int = options.n_embd
        self.vocab_size: int = vocab_size
        rows = math.ceil(vocab_size / options.pad_vocab) * options.pad_vocab
        self.token_embedding: nn.Embedding = nn.Embedding(rows, options.n_embd)
        self.position_embedding: nn.Embedding = nn.Embedding(options.block_size, options.n_embd)
        self.dropout: nn.Dropout = nn.Dropout(options.dropout)
        self.blocks: nn.ModuleList = nn.ModuleList(_Block(options) for _ in range(options.n_layer))
        self.final_norm: nn.LayerNorm = nn.LayerNorm(options.n_embd, bias=False)
        self.apply(_initialise)
        # Each layer adds two branches to the stream; scaled so, depth does not raise its variance.
        for name, parameter in self.named_parameters():
            if name.endswith("to_residual.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * options.n_layer))

    def forward(
        self, input_ids: Tensor, labels: Tensor | None = None, *, summed: bool = False
    ) -> Any:
        """Returns the loss where `labels` are given, else the logits.

        Args:
            input_ids: (B, T) int64, T at most `block_size`.
            labels: (B, T) int64, the token that follows each of `input_ids`.
            summed: sums over the tokens are wanted, not their mean.

        Returns:
            With labels the mean cross-entropy, 0-dim, in nats per token, or a `TokenSums`; without,
            logits (B, T, V).

        Raises:
            ValueError: T exceeds `block_size`.
        """
        length = input_ids.shape[1]
        if length > self.block_size:
            raise ValueError(f"GPT: {length} tokens do not fit into block_size {self.block_size}")
        # (B, T, C) + (T, C)
        stream = self.token_embedding(input_ids) + self.position_embedding.weight[:length]
        stream = self.dropout(stream)
        for block in self.blocks:
            stream = block(stream)
        stream, weight = self.final_norm(stream), self.token_embedding.weight
        if labels is None:
            return F.linear(stream, weight)[..., : self.vocab_size]  # (B, T, V)
        count_hits = summed and not self.training
        total, hits = sum_cross_entropy(
            stream.flatten(0, 1),
            weight,
            labels.flatten(),
            size=self.vocab_size,
            count_hits=count_hits,
        )
        return TokenSums(total, hits) if summed else total / labels.numel()

    @torch.no_grad()
    def generate(
        self,
        prompt_ids: Tensor,
        n: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Returns the prompt with `n` sampled tokens after it; the model's mode is left as it was.

        Args:
            prompt_ids: (B, T) int64, T at least 1; what exceeds `block_size` is forgotten.
            n: tokens to add.
            temperature: below 1 makes likely tokens likelier; 0 always takes the likeliest.
            top_k: choose among the k likeliest tokens only.
            generator: source of randomness, on the device of the prompt.

        Returns:
            (B, T + n) int64.

        Raises:
            UsageError: an empty prompt, or a negative `n` or `temperature`, or `top_k` below 1.
        """
        if prompt_ids.shape[1] < 1 or n < 0 or temperature < 0 or (top_k is not None and top_k < 1):
            raise UsageError(
                f"GPT.generate: got a prompt of {prompt_ids.shape[1]} tokens, n={n}, "
                f"temperature={temperature}, top_k={top_k}. "
                "Give 1 token or more, n and temperature of 0 or more, top_k of 1 or more."
            )
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        ids = prompt_ids
        try:
            for _ in range(n):
                logits = self(ids[:, -self.block_size :])[:, -1].float()  # (B, V)
                ids = torch.cat((ids, _sample(logits, temperature, top_k, generator)), dim=1)
        finally:
            for module, mode in modes:
                module.training = mode
        return ids


class _Block(nn.Module):
    """Attention, then a perceptron, each added to the residual stream (B, T, C)."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(options.n_embd, bias=False)
        self.attention = _Attention(options)
        self.perceptron_norm = nn.LayerNorm(options.n_embd, bias=False)
        self.perceptron = _Perceptron(options)

    def forward(self, stream: Tensor) -> Tensor:
        stream = stream + self.attention(self.attention_norm(stream))
        out: Tensor = stream + self.perceptron(self.perceptron_norm(stream))
        return out


class _Attention(nn.Module):
    """Causal self-attention: each token looks at itself and at those before it."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.n_head = options.n_head
        self.dropout = options.dropout
        self.to_heads = nn.Linear(options.n_embd, 3 * options.n_embd, bias=False)
        self.to_residual = nn.Linear(options.n_embd, options.n_embd, bias=False)
        self.residual_dropout = nn.Dropout(options.dropout)

    def forward(self, stream: Tensor) -> Tensor:
        # One product for queries, keys and values: (B, T, 3C) -> three of (B, H, T, D).
        # The way back puts three gradients of (B, T, C) side by side, in the one copy it needs.
        parts = self.to_heads(stream).chunk(3, dim=2)
        query, key, value = (part.unflatten(2, (self.n_head, -1)).transpose(1, 2) for part in parts)
        dropout = self.dropout if self.training else 0.0
        mixed = _attend(query, key, value, dropout).transpose(1, 2).flatten(2)  # (B, T, C)
        out: Tensor = self.residual_dropout(self.to_residual(mixed))
        return out


class _Perceptron(nn.Module):
    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.to_hidden = nn.Linear(options.n_embd, 4 * options.n_embd, bias=False)
        self.to_residual = nn.Linear(4 * options.n_embd, options.n_embd, bias=False)
        self.residual_dropout = nn.Dropout(options.dropout)

    def forward(self, stream: Tensor) -> Tensor:
        out: Tensor = self.residual_dropout(self.to_residual(F.gelu(self.to_hidden(stream))))
        return out


def make_optimizer(model: nn.Module, options: OptimizerOptions) -> torch.optim.AdamW:
    """Returns AdamW over the parameters that require a gradient; only matrices decay, not vectors.

    The gains of the norms set a scale and gain nothing from being pulled to 0. The fused kernel is
    used where the device has one.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = all(parameter.device.type in ("cpu", "cuda", "mps", "xpu") for parameter in parameters)
    return torch.optim.AdamW(
        groups, lr=options.learning_rate, betas=(options.beta1, options.beta2), fused=fused
    )


def make_scheduler(
    optimizer: torch.optim.Optimizer, options: OptimizerOptions, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Returns the schedule of the learning rate, to be stepped once per update.

    Args:
        optimizer: its present rates are the highest ones.
        options: warm-up and shape.
        total_steps: updates of the whole run; what comes after them keeps the last rate.

    Raises:
        UsageError: `total_steps` is below 1.
    """
    if total_steps < 1:
        raise UsageError(
            f"the schedule needs a run of at least 1 update, got {total_steps}. "
            "Use more --epochs or a smaller --batch_size."
        )
    warmup = options.warmup_steps
    if warmup is None:
        warmup = min(100, total_steps // 10)
    shape = _SHAPES[options.lr_schedule]

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)  # the first update moves already
        return shape(min(1.0, (step - warmup) / max(1, total_steps - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


_SHAPES: dict[str, Callable[[float], float]] = {
    # Progress 0..1 after the warm-up -> share of the highest rate.
    "cosine": lambda progress: 0.1 + 0.45 * (1.0 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1.0 - progress,
    "constant": lambda _: 1.0,
}


def _attend(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """Three of (B, H, T, D) -> (B, H, T, D), each token from itself and those before it.

    On a CPU in float32 always: the backward kernel for bf16 takes 15 times as long (torch 2.13),
    half of an update.
    """
    if query.dtype == torch.bfloat16 and query.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):
            return _attend(query.float(), key.float(), value.float(), dropout)
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)


def _sample(
    logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> Tensor:
    """One token per row: logits (B, V) float32 -> (B, 1) int64."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -math.inf)
    return torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)
