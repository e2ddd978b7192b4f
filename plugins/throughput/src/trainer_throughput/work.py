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


def count_batch(batch: Any) -> tuple[int, Unit, bool]:
    """Returns the tokens of a batch with `input_ids` (padding included), or else its items; and
    whether that is certain.

    Items are the length of a list of dicts, objects or texts, the sequences of a PackedSequence, or
    the first dimension of the tensors: certain where all of these agree.
    """
    tokens = _count_tokens(batch)
    if tokens is not None:
        return tokens, "tokens", True
    sizes: list[int] = []
    clear = _collect_sizes(batch, sizes)
    return (sizes[0] if sizes else 1), "items", clear and len({*sizes}) == 1


def estimate_flops(model: torch.nn.Module, batch: Any) -> float | None:
    """Returns the FLOPs per token that training a transformer takes: 6 N + 12 L C T.

    Source: Chowdhery et al., "PaLM" (arXiv:2204.02311), appendix B. The second term is attention;
    it is left out where neither `model.config` nor the model itself tells L and C, by the names
    that transformers uses. N counts all parameters, as there.

    Args:
        batch: (B, T) in `input_ids`.

    Returns:
        None where the batch has no tokens: there is no rule then.
    """
    if count_batch(batch)[1] != "tokens":
        return None
    parameters = sum(parameter.numel() for parameter in model.parameters())
    layers = _read_size(model, "num_hidden_layers", "n_layer")
    width = _read_size(model, "hidden_size", "n_embd")
    first = batch[0] if isinstance(batch, list) else batch
    ids = first["input_ids"] if isinstance(first, Mapping) else first.input_ids
    length = int(ids.shape[-1])
    return 6.0 * parameters + 12.0 * layers * width * length


def _count_tokens(batch: Any) -> int | None:
    if isinstance(batch, list) and batch:
        counts = [_count_tokens(item) for item in batch]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(batch) else None
    is_mapping = isinstance(batch, Mapping)
    found: Any = batch.get("input_ids") if is_mapping else getattr(batch, "input_ids", None)
    return int(found.numel()) if hasattr(found, "numel") else None


def _collect_sizes(value: Any, sizes: list[int]) -> bool:
    """Adds to `sizes` what may be the number of items; returns False where it may be another."""
    if hasattr(value, "batch_sizes"):  # a PackedSequence
        sizes.append(int(value.batch_sizes[0]))
    elif hasattr(value, "shape"):
        sizes += [int(value.shape[0])] if value.shape else []
    elif isinstance(value, list) and value and not any(hasattr(each, "shape") for each in value):
        parts = [_collect_sizes(each, []) for each in value if isinstance(each, (list, tuple))]
        sizes.append(len(value))
        return not parts
    elif isinstance(value, (Mapping, list, tuple)):
        parts = [*(value.values() if isinstance(value, Mapping) else value)]
        shapes = {tuple(getattr(part, "shape", ())) for part in parts}
        alike = len(parts) > 2 and len(shapes) == 1 and () not in shapes
        clear = [_collect_sizes(part, sizes) for part in parts]
        return all(clear) and not (isinstance(value, list) and alike)
    elif hasattr(value, "__dict__"):
        return _collect_sizes(vars(value), sizes)
    return True


def _read_size(model: torch.nn.Module, *names: str) -> int:
    places = (getattr(model, "config", None), model)
    values = (getattr(place, name, None) for place in places for name in names)
    return next((value for value in values if isinstance(value, int)), 0)
