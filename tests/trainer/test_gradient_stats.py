"""How statistics are computed: what is read, what is copied, and that both ways agree."""

import math
from collections import Counter

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


class Launches(TorchDispatchMode):
    """Counts the operators that a device is given to compute, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        if not func.is_view and name not in ("empty", "promote_types"):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


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


def make_gpt2(width: int, vocabulary: int) -> nn.Module:
    """The 148 tensors of GPT-2 with their gradients, on `meta`: there is nothing to compute with,
    and whatever would wait for a value raises.
    """
    c = width
    norm, out = [(c,), (c,)], [(c, c), (c,)]
    attention, up, down = [(3 * c, c), (3 * c,)], [(4 * c, c), (4 * c,)], [(c, 4 * c), (c,)]
    block = [*norm, *attention, *out, *norm, *up, *down]
    shapes = [(vocabulary, c), (1024, c), *block * 12, *norm]
    model = nn.ParameterList(nn.Parameter(torch.empty(each, device="meta")) for each in shapes)
    for parameter in model:
        parameter.grad = torch.empty_like(parameter)
    return model


def count_launches(model: nn.Module) -> tuple[Launches, Launches]:
    """Of the norm, and of the full set by layer and by tensor, the second time."""
    gradients = Gradients(model)
    names = gradients.names
    layers = {str(at): names[at : at + 12] for at in range(0, len(names), 12)}
    groups = {**layers, **{f"own {name}": (name,) for name in names}}
    gradients.stats(groups)
    with Launches() as norm:
        gradients.total_norm()
    with Launches() as full:
        gradients.stats(groups)
    return norm, full


def test_nothing_waits_and_launches_are_few_at_the_size_of_gpt2() -> None:
    model = make_gpt2(768, 50_257)
    assert len([*model.parameters()]) == 148
    norm, full = count_launches(model)
    assert norm.found["_foreach_norm"] == 1
    assert norm.found.total() <= 8
    assert full.found.total() <= 200


def test_launches_do_not_grow_with_elements_but_by_the_64_mb_that_are_stacked() -> None:
    """11 operators for 64 MB, which a device reads 7 times meanwhile: 0.1 ms."""
    small, large = count_launches(make_gpt2(96, 6000)), count_launches(make_gpt2(768, 50_257))
    assert small[0].found == large[0].found
    pieces = 124_439_808 / 2**24
    assert large[1].found.total() - small[1].found.total() <= 11 * pieces


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
