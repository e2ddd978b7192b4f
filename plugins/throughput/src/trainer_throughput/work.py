"""How much there is in a batch, and how many floating-point operations it stands for.

Letters: B rows of a batch, T tokens in a row, N parameters, L layers, C width of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

__all__ = ["Unit", "count_batch", "estimate_flops"]

Unit = Literal["tokens", "items"]


def count_batch(batch: Any) -> tuple[int, Unit]:
    """Returns the tokens of a batch with `input_ids` (padding included), or else its items: the
    first dimension of its first tensor.
    """
    if isinstance(batch, Mapping) and hasattr(batch.get("input_ids"), "numel"):
        return int(batch["input_ids"].numel()), "tokens"
    return _first_dimension(batch) or 1, "items"


def estimate_flops(model: torch.nn.Module, batch: Any) -> float | None:
    """Returns the FLOPs per token that training a transformer takes: 6 N + 12 L C T.

    Source: Chowdhery et al., "PaLM" (arXiv:2204.02311), appendix B. The second term is attention;
    it is left out where `model.config` does not tell L and C by the names that transformers uses.
    N counts all parameters, as there.

    Args:
        batch: (B, T) in `input_ids`.

    Returns:
        None where the batch has no tokens: there is no rule then.
    """
    if count_batch(batch)[1] != "tokens":
        return None
    parameters = sum(parameter.numel() for parameter in model.parameters())
    layers = _read_config(model, "num_hidden_layers", "n_layer")
    width = _read_config(model, "hidden_size", "n_embd")
    length = int(batch["input_ids"].shape[-1])
    return 6.0 * parameters + 12.0 * layers * width * length


def _first_dimension(value: Any) -> int:
    if hasattr(value, "shape"):
        return int(value.shape[0]) if value.shape else 0
    parts = value.values() if isinstance(value, Mapping) else value
    if isinstance(value, (Mapping, list, tuple)):
        return next((size for part in parts if (size := _first_dimension(part))), 0)
    return 0


def _read_config(model: torch.nn.Module, *names: str) -> int:
    config = getattr(model, "config", None)
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int)), 0)
