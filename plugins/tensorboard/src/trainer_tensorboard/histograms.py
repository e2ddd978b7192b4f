"""A tensor as TensorBoard's histogram, whatever its values are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

__all__ = ["add_histogram"]

_LAST_EDGE: Final = 1e20
"""Of the bins that TensorBoard has by default. It fails where no value is below."""


def add_histogram(writer: Any, name: str, tensor: torch.Tensor, step: int) -> None:
    """Writes the finite values of a tensor; of complex ones the magnitudes, of sparse ones what is
    stored. Nothing is written where there is none.

    Raises:
        Exception: torch or TensorBoard can make none of it.
    """
    import torch

    values = tensor.detach()
    values = values.coalesce().values() if values.layout is torch.sparse_coo else values
    values = values.abs() if values.is_complex() else values
    values = (values if values.dtype is torch.float64 else values.float()).flatten().cpu()
    values = values[values.isfinite()]
    if not values.numel():  # TensorBoard fails at an empty histogram
        return
    peak = float(values.abs().max())
    if peak < _LAST_EDGE:
        writer.add_histogram(name, values, step)
        return
    import numpy

    with numpy.errstate(over="ignore"):  # the sum of squares
        writer.add_histogram(name, values, step, bins=_make_edges(peak))


def _make_edges(peak: float) -> Any:
    """Returns edges that grow by tenths as TensorBoard's do, up to `peak`."""
    import numpy

    count = int((numpy.log(peak) - numpy.log(1e-12)) / numpy.log(1.1)) + 2
    positive = numpy.geomspace(1e-12, peak, count)
    return numpy.concatenate([-positive[::-1], [0.0], positive])
