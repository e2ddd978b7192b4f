"""How statistics are computed: what is read, what is copied, and that both ways agree."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.step import gradient_stats
from trainer.step.gradients import Gradients

LARGE = 1000
"""Elements: fewer are those of a table, or of a bias."""


class Traffic(TorchDispatchMode):
    """Counts the bytes of large tensors that operators read and write, and copies to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.calls = self.waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.waits += name in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")
        self.calls += 1
        touched = [*tree_leaves((args, kwargs)), *tree_leaves(result)]
        if not func.is_view and not name.startswith(("empty", "new_empty", "resize_")):
            once = {  # what is both read and written is so many bytes twice
                (each.data_ptr(), each.numel(), i < len(tree_leaves((args, kwargs)))): each
                for i, each in enumerate(touched)
                if isinstance(each, Tensor) and each.numel() >= LARGE
            }
            self.bytes += sum(each.numel() * each.element_size() for each in once.values())
        return result


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computes as on a device, with the CPU's own operators."""
    monkeypatch.setattr(gradient_stats, "_limit", lambda device: 1 << 24)
    monkeypatch.setattr(
        gradient_stats, "_reduce_in_cache", lambda x, scratch: gradient_stats._reduce_on_device(x)
    )


def make_model(*shapes: tuple[int, ...]) -> nn.Module:
    model = nn.ParameterList([nn.Parameter(torch.empty(shape)) for shape in shapes])
    generator = torch.Generator().manual_seed(0)
    for parameter in model:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return model


BLOCK = ((96,), (288, 96), (288,), (96, 96), (96,), (384, 96), (384,), (96, 384))
GPT = ((6000, 96), (128, 96), *BLOCK * 12)
"""The shapes of GPT-2 small, an eighth as wide."""


def test_on_a_device_the_norm_reads_once_and_the_full_set_at_most_8_times(on_device: None) -> None:
    model = make_model(*GPT)
    gradients = Gradients(model)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    layers = {str(at): gradients.names[at : at + 8] for at in range(0, len(GPT), 8)}
    groups = {**layers, **{f"own {name}": (name,) for name in gradients.names}}
    with Traffic() as norm:
        gradients.total_norm()
    with Traffic() as full:
        gradients.stats(groups)
    assert norm.bytes <= 1.1 * size
    assert full.bytes <= 8 * size
    assert norm.waits == full.waits == 0
    assert norm.calls < 30
    assert full.calls < 250  # with all views


def test_index_tensors_are_made_once_for_a_structure(
    on_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = Gradients(make_model((7, 3), (3,), (3,)))
    groups = {"all": gradients.names, "first": gradients.names[:1]}
    gradients.stats(groups)
    made: list[object] = []
    make = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *a, **k: made.append(a) or make(*a, **k))
    for parameter in gradients._parameters.values():
        parameter.grad = torch.randn(parameter.shape)
    gradients.stats(groups)
    assert not made
    gradients.stats({"all": gradients.names})
    assert made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_device_and_a_cpu_find_the_same(dtype: torch.dtype) -> None:
    x = torch.randn(6, 5000, dtype=dtype) * 1e-3 + 1e-2
    x[1, :70] = 0
    x[2, 3], x[2, 5], x[2, 7] = math.nan, math.inf, -math.inf
    x[3] = -1e-12
    x[4, 0] = -0.0
    x[5] = 0
    near = gradient_stats._reduce_in_cache(x, torch.empty(0, dtype=dtype))
    far = gradient_stats._reduce_on_device(x)
    for ours, theirs in zip(near, far, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-30, equal_nan=True)
    assert near[gradient_stats._NONFINITE].tolist() == [0, 0, 3, 0, 0, 0]
    assert near[gradient_stats._ZEROS].tolist() == [0, 70, 0, 0, 1, 5000]


@pytest.mark.parametrize("norm_type", [0.5, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_device_has_the_numbers_of_a_cpu(
    request: pytest.FixtureRequest, norm_type: float, dtype: torch.dtype
) -> None:
    model = make_model((300, 5), (300,), (300,), (), (0, 4)).to(dtype)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape).to(dtype)
    groups = {"all": [*Gradients(model).names], "two": Gradients(model).names[:2]}
    expected = Gradients(model).stats(groups, norm_type)
    request.getfixturevalue("on_device")
    found = Gradients(model).stats(groups, norm_type)
    torch.testing.assert_close(found.values, expected.values, rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(found.total_norm, expected.total_norm)
    assert found.values.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
