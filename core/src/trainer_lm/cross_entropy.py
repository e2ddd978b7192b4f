"""The loss of a language model's last layer, without all of its logits in memory at once.

12,288 tokens of GPT-2 take 1.3 GB, forward and backward, and 6.9 GB by logits and cross-entropy one
after the other, in about as much time: on a CPU 0.79 of it for the default model, 0.94 (bf16) and
1.06 (fp32) for GPT-2. So all sizes go this way.

`torch.nn.functional.linear_cross_entropy` is for this as well (torch 2.13; 2.10 does not have it).
Autocast does not reach it. With inputs in bf16 its loss is in bf16, 1 % off, and so is the sum of
the weight's gradients over the parts; it is opaque to the compiler, counts no hits, and took ten
times as long on a CPU.

Letters: N tokens, C width of the model, V size of the vocabulary.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["sum_cross_entropy"]

_MOST: Final = 2**27
"""Logits at a time: some 2,700 tokens of GPT-2, half a GB in float32. For each part a gradient of
the whole weight is added to the sum. A card pays for that with memory traffic (by count, and not
measured, 2 % of an update of GPT-2), which smaller parts would multiply.
"""


_MOST_IN_HALF: Final = 2048
"""Tokens at a time in fp16, which ends at 65,504: the gradient of the weight is a sum of theirs,
which no loss scale divides. They may have the same label, and a channel of `hidden` a mean of 31.
"""


def sum_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, size: int | None = None, count_hits: bool
) -> tuple[Tensor, Tensor | None]:
    """Returns the sum of the tokens' cross-entropies in nats, 0-dim, in float32 or wider; and, if
    asked for, how many labels are the likeliest token, 0-dim int64.

    Logits have the dtype of autocast. The sum can be differentiated once.

    Args:
        hidden: (N, C), what the last layer is applied to.
        weight: (V, C), of the last layer, which has no bias.
        labels: (N,) int64, 0 to `size` - 1; also -100 is an error.
        size: of the vocabulary, which V may exceed: the tokens behind it are never the likeliest.
        count_hits: whether hits are asked for.

    Raises:
        RuntimeError: a label is out of range, found by the device; the gradient is to be
            differentiated again.
    """
    if not torch.is_grad_enabled():
        hidden, weight = hidden.detach(), weight.detach()
    wanted = (size, count_hits)
    total, hits = _Sum.apply(hidden, weight, labels, wanted)  # type: ignore[no-untyped-call]
    return total, hits


def _dtype_of_products(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    is_cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if is_cast else hidden.dtype


def _count_parts(tokens: int, size: int, dtype: torch.dtype) -> int:
    parts = -(-tokens * size // _MOST)
    return max(parts, -(-tokens // _MOST_IN_HALF)) if dtype == torch.float16 else parts


class _Sum(torch.autograd.Function):
    """Computes the gradients of a sum while its logits are there; the way back scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, wanted: tuple[int | None, bool]
    ) -> tuple[Tensor, Tensor | None]:
        size, count_hits = wanted
        of_hidden, of_weight = ctx.needs_input_grad[:2]
        dtype = _dtype_of_products(hidden)
        wide = torch.promote_types(dtype, torch.float32)
        narrow, parts = weight.to(dtype), _count_parts(len(labels), weight.shape[0], dtype)
        minus_one = torch.full((1, 1), -1.0, dtype=wide, device=hidden.device)
        totals, hits, hidden_slopes, weight_slope = [], [], [], None
        for own, targets in zip(hidden.chunk(parts), labels.chunk(parts), strict=True):
            rows = own.to(dtype)
            logits = F.linear(rows, narrow)
            if count_hits:
                hits.append((logits[:, :size].argmax(1) == targets).sum())
            logs = F.log_softmax(logits, 1, dtype=wide)
            totals.append(-logs[:, :size].gather(1, targets[:, None]).sum())
            if not (of_hidden or of_weight):
                continue
            # Of the sum with respect to the logits: the probabilities, less 1 at the label.
            less = minus_one.expand(len(rows), 1)
            slopes = logs.exp_().scatter_add_(1, targets[:, None], less).to(dtype)
            if of_hidden:
                hidden_slopes.append((slopes @ narrow).to(hidden.dtype))
            if of_weight:
                slope = (slopes.T @ rows).to(wide)
                weight_slope = slope if weight_slope is None else weight_slope.add_(slope)
            del logits, logs, slopes  # before those of the next part are made
        ctx.save_for_backward(torch.cat(hidden_slopes) if of_hidden else None, weight_slope)
        return torch.stack(totals).sum(), torch.stack(hits).sum() if count_hits else None

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: object) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            raise RuntimeError(
                "the gradient of this loss cannot be differentiated again, so create_graph=True "
                "would leave its part out. Take cross_entropy of the model's logits instead."
            )
        slopes = (None if slope is None else slope * scale for slope in ctx.saved_tensors)
        return (*slopes, None, None)
