"""A small GPT trained the way nanoGPT's script does it: the hand-written side of `lm.py`.

After Karpathy's nanoGPT (MIT licence, github.com/karpathy/nanoGPT), shortened: batches stacked from
random offsets, its model, its parameter groups, its schedule, a clip, and a loss that is read each
update (`log_interval=1` of its CPU recipe). Letters: B, T, C, V as in `trainer_lm.model`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer_lm.options import ModelOptions, OptimizerOptions


class LayerNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, None, 1e-5)


class Attention(nn.Module):
    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.c_attn = nn.Linear(options.n_embd, 3 * options.n_embd, bias=False)
        self.c_proj = nn.Linear(options.n_embd, options.n_embd, bias=False)
        self.n_head, self.n_embd = options.n_head, options.n_embd

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)
        q = q.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)
        v = v.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.0, is_causal=True)
        y = y.transpose(1, 2).contiguous().view(b, t, c)
        out: Tensor = self.c_proj(y)
        return out


class Perceptron(nn.Module):
    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.c_fc = nn.Linear(options.n_embd, 4 * options.n_embd, bias=False)
        self.gelu = nn.GELU()
        self.c_proj = nn.Linear(4 * options.n_embd, options.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(self.gelu(self.c_fc(x)))
        return out


class Block(nn.Module):
    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = LayerNorm(options.n_embd), LayerNorm(options.n_embd)
        self.attn, self.mlp = Attention(options), Perceptron(options)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class NanoGPT(nn.Module):
    def __init__(self, vocab_size: int, options: ModelOptions) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab_size, options.n_embd)
        self.wpe = nn.Embedding(options.block_size, options.n_embd)
        self.h = nn.ModuleList(Block(options) for _ in range(options.n_layer))
        self.ln_f = LayerNorm(options.n_embd)
        self.lm_head = nn.Linear(options.n_embd, vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                deep = name.endswith("c_proj.weight")
                std = 0.02 / math.sqrt(2 * options.n_layer) if deep else 0.02
                nn.init.normal_(parameter, mean=0.0, std=std)

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        """(B, T) int64 each -> the mean cross-entropy, 0-dim."""
        positions = torch.arange(0, idx.size(1), dtype=torch.long, device=idx.device)
        x = self.wte(idx) + self.wpe(positions)
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)


def get_batch(data: Any, batch: int, block: int, device: torch.device) -> tuple[Tensor, Tensor]:
    ix = torch.randint(len(data) - block, (batch,))
    x = torch.stack([torch.from_numpy(data[i : i + block].astype(np.int64)) for i in ix])
    y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + block].astype(np.int64)) for i in ix])
    if device.type == "cuda":
        return (
            x.pin_memory().to(device, non_blocking=True),
            y.pin_memory().to(device, non_blocking=True),
        )
    return x.to(device), y.to(device)


def get_lr(step: int, steps: int, options: OptimizerOptions) -> float:
    warmup, highest = options.warmup_steps or 0, options.learning_rate
    if step < warmup:
        return highest * (step + 1) / (warmup + 1)
    ratio = (step - warmup) / (steps - warmup)
    return 0.1 * highest + 0.5 * (1.0 + math.cos(math.pi * ratio)) * 0.9 * highest


def train(
    model: NanoGPT,
    data: Any,
    batch_size: int,
    steps: int,
    options: OptimizerOptions,
    *,
    bf16: bool,
    compile: bool,
    update_done: Callable[[], None],
) -> None:
    """Trains `model` on `data`, the tokens (N,), uint16."""
    device = next(model.parameters()).device
    block_size = model.wpe.num_embeddings
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": options.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=options.learning_rate,
        betas=(options.beta1, options.beta2),
        **({"fused": True} if device.type == "cuda" else {}),
    )
    autocast = torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()
    forward = torch.compile(model) if compile else model
    x, y = get_batch(data, batch_size, block_size, device)
    for step in range(steps):
        lr = get_lr(step, steps, options)
        for group in optimizer.param_groups:
            group["lr"] = lr
        with autocast:
            loss = forward(x, y)
        x, y = get_batch(data, batch_size, block_size, device)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        update_done()
