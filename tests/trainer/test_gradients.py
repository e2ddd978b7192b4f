"""Norms, clipping and statistics of gradients, against computations of their own in float64."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainer import ConfigError
from trainer.step.gradients import Gradients


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def make_model(**gradients: Tensor | None) -> nn.Module:
    """A module with one parameter per gradient, of its shape and dtype."""
    model = nn.Module()
    for name, gradient in gradients.items():
        shape, dtype = (
            ((3,), torch.float32) if gradient is None else (gradient.shape, gradient.dtype)
        )
        parameter = nn.Parameter(torch.zeros(shape, dtype=dtype))
        parameter.grad = gradient
        model.register_parameter(name, parameter)
    return model


def read(gradients: Gradients, *args: object, **options: object) -> dict[str, dict[str, float]]:
    stats = gradients.stats(*args, **options)  # type: ignore[arg-type]
    return {
        row: dict(zip(stats.columns, values, strict=True))
        for row, values in zip(stats.rows, stats.values.tolist(), strict=True)
    }


def expect(*gradients: Tensor, norm_type: float = 2.0) -> dict[str, float]:
    """All columns, computed at once over one long vector in float64."""
    x = torch.cat([gradient.double().flatten() for gradient in gradients])
    return {
        "norm": torch.linalg.vector_norm(x, norm_type).item(),
        "rms": x.square().mean().sqrt().item(),
        "max_abs": x.abs().max().item(),
        "mean": x.mean().item(),
        "std": x.std(correction=0).item(),
        "zero_fraction": (x == 0).double().mean().item(),
        "nonfinite": (~x.isfinite()).sum().item(),
    }


SHAPES = {"weight": (40, 30), "bias": (40,), "scalar": (), "same": (40,), "long": (3, 400_001)}


@pytest.mark.parametrize("norm_type", [0.5, 1.0, 2.0, 3.0, math.inf])
def test_statistics_of_each_parameter_agree_with_float64(norm_type: float) -> None:
    known = {name: torch.randn(shape) * 1e-3 + 1e-4 for name, shape in SHAPES.items()}
    known["bias"][3:9] = 0
    found = read(Gradients(make_model(**known)), norm_type=norm_type)
    assert list(found) == list(known)
    for name, gradient in known.items():
        expected = expect(gradient, norm_type=norm_type)
        assert found[name] == pytest.approx(expected, rel=2e-5, abs=1e-12), name


def test_groups_are_combined_exactly_and_may_overlap() -> None:
    known = {name: torch.randn(shape) + 5 * i for i, (name, shape) in enumerate(SHAPES.items())}
    groups = {"tail": ["same", "long"], "head": ["bias", "weight"], "all": list(known)}
    found = read(Gradients(make_model(**known)), groups)
    assert list(found) == ["head", "all", "tail"]  # in the order of the model
    for row, names in groups.items():
        expected = expect(*(known[name] for name in names))
        assert found[row] == pytest.approx(expected, rel=1e-5, abs=1e-9), row


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_no_order_of_the_norm_overflows_or_underflows(scale: float) -> None:
    known = {"a": torch.rand(50) * scale, "b": torch.rand(70) * scale}
    found = read(Gradients(make_model(**known)), {"ab": ["a", "b"]}, norm_type=20.0)
    exact = expect(known["a"] / scale, known["b"] / scale, norm_type=20.0)["norm"]
    assert found["ab"]["norm"] == pytest.approx(exact * scale, rel=1e-5)


@pytest.mark.parametrize("value", [0.1, -3.0, 1e-20])
def test_equal_entries_have_no_spread(value: float) -> None:
    found = read(Gradients(make_model(a=torch.full((1000,), value), b=torch.full((77,), value))))
    for row in found.values():
        assert row["std"] <= 1e-6 * abs(value)
        assert row["rms"] == pytest.approx(abs(value), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_measured_in_float32(dtype: torch.dtype) -> None:
    known = (torch.randn(300, 7) * 0.1).to(dtype)
    gradients = Gradients(make_model(a=known, b=torch.randn(5)))
    assert read(gradients)["a"] == pytest.approx(expect(known), rel=1e-5)
    together = [known.double().flatten(), gradients._parameters["b"].grad.double()]
    assert gradients.total_norm().item() == pytest.approx(torch.cat(together).norm().item())


def test_complex_gradients_count_as_pairs() -> None:
    known = torch.randn(6, dtype=torch.complex64)
    found = read(Gradients(make_model(a=known)))["a"]
    assert found == pytest.approx(expect(torch.view_as_real(known)), rel=1e-5)


def test_the_norm_of_a_large_tensor_is_right_to_1e_5() -> None:
    known = torch.randn(9_000_000) * 1e-3
    gradients = Gradients(make_model(a=known))
    exact = known.double().norm().item()
    assert gradients.total_norm().item() == pytest.approx(exact, rel=1e-5)
    assert read(gradients)["a"]["norm"] == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_entries_are_counted_and_not_averaged_away(bad: float) -> None:
    known = {"a": torch.randn(50), "b": torch.randn(2, 600_000), "c": torch.randn(4)}
    known["b"][1, 7] = known["b"][0, 9] = bad
    known["b"][0, :5] = 0
    found = read(Gradients(make_model(**known)))
    assert [row["nonfinite"] for row in found.values()] == [0, 2, 0]
    assert found["b"]["zero_fraction"] == pytest.approx(5 / 1_200_000)
    assert not any(math.isfinite(found["b"][name]) for name in ("norm", "rms", "max_abs", "std"))
    assert found["a"] == pytest.approx(expect(known["a"]), rel=1e-5)


def test_counts_are_added_up_in_float64() -> None:
    many = 1 << 24  # the first count to which a float32 cannot add 1
    known = {"a": torch.full((many,), math.nan), "b": torch.tensor([math.nan])}
    known["c"] = known["b"].clone()
    found = read(Gradients(make_model(**known)), {"all": list(known)})
    assert found["all"]["nonfinite"] == many + 2


def test_negative_zero_is_zero() -> None:
    found = read(Gradients(make_model(a=torch.tensor([-0.0, 0.0, 1.0, -1.0]))))["a"]
    assert (found["zero_fraction"], found["max_abs"]) == (0.5, 1.0)


def test_a_missing_gradient_is_not_zero() -> None:
    model = make_model(a=torch.ones(3), frozen=None, lost=None)
    model.frozen.requires_grad_(False)
    stats = Gradients(model).stats({"all": ["a", "frozen", "lost"], "none": ["frozen", "lost"]})
    assert stats.rows == ("all",)
    assert stats.disconnected == ("lost",)
    assert stats.values[0, stats.columns.index("rms")].item() == 1


def test_no_gradient_at_all_has_no_rows_and_norm_0() -> None:
    stats = Gradients(make_model(a=None)).stats()
    assert stats.rows == ()
    assert stats.values.shape == (0, len(stats.columns))
    assert stats.total_norm.item() == 0


def test_an_empty_gradient_contributes_nothing() -> None:
    found = read(Gradients(make_model(a=torch.zeros(0, 4), b=torch.ones(2))), {"ab": ["a", "b"]})
    assert found["ab"] == pytest.approx(expect(torch.ones(2)))


def test_tied_weights_count_once_under_either_name() -> None:
    model = nn.Module()
    model.first, model.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    model.second.weight = model.first.weight
    model.first.weight.grad = torch.ones(3, 3)
    gradients = Gradients(model)
    assert gradients.names == ("first.weight",)
    assert gradients.total_norm().item() == 3
    found = read(gradients, {"a": ["second.weight"], "b": ["first.weight", "second.weight"]})
    assert found["a"]["norm"] == found["b"]["norm"] == 3


def test_of_sparse_gradients_the_values_are_measured() -> None:
    model = nn.Embedding(10, 3, sparse=True)
    model(torch.tensor([1, 1, 4])).pow(2).sum().backward()
    gradient = model.weight.grad
    assert gradient is not None
    assert not gradient.is_coalesced()
    found = read(Gradients(model))["weight"]
    assert found == pytest.approx(expect(gradient.to_dense()[[1, 4]]), rel=1e-5, abs=1e-9)
    assert not gradient.is_coalesced()  # a reader changes nothing


def test_gradients_that_are_not_contiguous_are_measured() -> None:
    known = torch.randn(30, 20).t()
    assert read(Gradients(make_model(a=known)))["a"] == pytest.approx(expect(known), rel=1e-5)


def test_clipping_is_that_of_torch_bit_by_bit() -> None:
    known = {name: torch.randn(shape) for name, shape in SHAPES.items() if name != "long"}
    ours, theirs = (
        make_model(**{name: gradient.clone() for name, gradient in known.items()}) for _ in "ab"
    )
    norm, clipped = Gradients(ours).clip(0.5)
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
    assert torch.equal(norm, expected)
    assert clipped.item() is True
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)  # type: ignore[arg-type]


def test_a_small_gradient_is_not_clipped() -> None:
    known = torch.randn(5)
    gradients = Gradients(make_model(a=known.clone()))
    _, clipped = gradients.clip(1e3)
    assert clipped.item() is False
    assert torch.equal(gradients._parameters["a"].grad, known)  # type: ignore[arg-type]


def test_sparse_gradients_are_clipped_with_the_others() -> None:
    model = nn.Embedding(10, 3, sparse=True)
    model(torch.tensor([1, 1, 4])).pow(2).sum().backward()
    gradients = Gradients(model)
    gradients.clip(0.25)
    assert gradients.total_norm().item() == pytest.approx(0.25)


def test_statistics_before_clipping_change_no_bit_of_it() -> None:
    known = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    results = []
    for with_stats in (False, True):
        model = make_model(**{name: gradient.clone() for name, gradient in known.items()})
        gradients = Gradients(model)
        if with_stats:
            gradients.stats({"some": ["bias", "long"]}, 3.0)
        norm, _ = gradients.clip(0.1)
        results.append([norm, *(p.grad for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)  # type: ignore[arg-type]


def test_multiply_scales_every_gradient() -> None:
    gradients = Gradients(make_model(a=torch.ones(4), b=torch.ones(5)))
    assert gradients.total_norm().item() == 3
    gradients.multiply(2.0)
    assert gradients.total_norm().item() == 6


class Calls(TorchDispatchMode):
    """Counts the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_from_the_device() -> None:
    gradients = Gradients(make_model(a=torch.randn(9), b=torch.tensor([1.0, math.nan])))
    with Calls() as calls:
        gradients.stats({"ab": ["a", "b"]})
        gradients.clip(1.0)
    assert "_local_scalar_dense" not in calls.counts
    assert "_foreach_norm" in calls.counts


def test_clipping_reads_the_gradients_once() -> None:
    gradients = Gradients(make_model(a=torch.randn(9), b=torch.randn(9)))
    with Calls() as calls:
        gradients.clip(1.0)
    assert calls.counts["_foreach_norm"] == 1
    assert calls.counts["_foreach_mul_"] == 1


def test_a_gradient_that_somebody_changed_is_measured_again() -> None:
    model = make_model(a=torch.ones(4))
    gradients = Gradients(model)
    assert gradients.total_norm().item() == 2
    model.a.grad.mul_(3)
    assert gradients.total_norm().item() == 6
    model.a.grad.data.mul_(2)  # which raises no version counter
    assert gradients.total_norm().item() == 12
    model.a.grad.numpy()[:] = 1
    assert gradients.stats().total_norm.item() == 2
    model.a.grad = torch.zeros(4)
    assert gradients.total_norm().item() == 0


def test_a_group_of_an_unknown_parameter_is_refused_with_names_that_exist() -> None:
    with pytest.raises(ValueError, match=r"group 'x' names 'c'.* It has a, b"):
        Gradients(make_model(a=torch.ones(1), b=torch.ones(1))).stats({"x": ["a", "c"]})


@pytest.mark.parametrize("norm_type", [0.0, -1.0, math.nan])
def test_a_norm_of_no_order_is_refused(norm_type: float) -> None:
    with pytest.raises(ValueError, match="norm_type must be above 0"):
        Gradients(make_model(a=torch.ones(1))).stats(norm_type=norm_type)


def test_gradients_are_dropped_whether_or_not_the_optimizer_has_them() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.AdamW(model[0].parameters())
    gradients = Gradients(model, optimizer)
    optimizer.add_param_group({"params": [*model[1].parameters()]})
    for drop in (gradients.start, gradients.drop, gradients.finish):
        model(torch.ones(1, 2)).sum().backward()
        drop()
        assert all(parameter.grad is None for parameter in model.parameters())


def test_an_optimizer_with_a_zero_grad_of_its_own_has_it_called_once_an_update() -> None:
    calls = []

    class Own(torch.optim.SGD):
        def zero_grad(self, set_to_none: bool = True) -> None:
            calls.append(set_to_none)
            super().zero_grad(set_to_none)

    model = nn.Linear(2, 2)
    own = Gradients(model, Own(model.parameters(), lr=0.1))
    own.drop()
    own.finish()
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    plain.zero_grad = lambda set_to_none=True: calls.append("patched")  # type: ignore[assignment]
    Gradients(model, plain).finish()
    assert calls == [True, "patched"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [5, 300_000])  # few: in one call; more: by their norm
def test_a_gradient_that_is_not_finite_is_found_and_named(
    bad: float, dtype: torch.dtype, size: int
) -> None:
    model = make_model(a=torch.ones(3), b=torch.ones(size, dtype=dtype), c=None)
    gradients = Gradients(model)
    assert math.isfinite(gradients.check())
    assert gradients.find_bad() is None
    model.b.grad[-1] = bad
    assert not math.isfinite(gradients.check())
    assert gradients.find_bad() == "b"
    model.b.grad[-1] = 1
    assert math.isfinite(gradients.check())


def test_the_check_changes_no_bit_of_a_gradient() -> None:
    known = torch.tensor([1e-45, -0.0, 3e-42, 3.4e38, -1.7])
    model = make_model(a=known.clone(), b=torch.zeros(0, 3))
    Gradients(model).check()
    assert torch.equal(model.a.grad.view(torch.int32), known.view(torch.int32))


def test_sparse_and_complex_gradients_are_checked() -> None:
    model = nn.Embedding(10, 3, sparse=True)
    model(torch.tensor([1, 1, 4])).pow(2).sum().backward()
    for module in (model, make_model(a=torch.ones(3, dtype=torch.complex64))):
        gradients = Gradients(module)
        assert math.isfinite(gradients.check())
        gradients.multiply(math.nan)
        assert not math.isfinite(gradients.check())
    assert gradients.find_bad() == "a"


def test_an_optimizer_that_gets_a_parameter_of_somebody_else_is_refused() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients = Gradients(model, optimizer)
    gradients.follow()
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    with pytest.raises(ConfigError, match=r"1 of 3 parameters .*parameter 0 of group 1.*\(3,\)"):
        gradients.follow()


def test_parameters_that_come_to_the_model_and_the_optimizer_are_clipped_and_dropped() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients = Gradients(model, optimizer)
    model.append(nn.Linear(2, 1))
    optimizer.add_param_group({"params": [*model[1].parameters()]})
    model(torch.ones(1, 2)).sum().backward()
    gradients.follow()
    assert gradients.names[-1] == "1.bias"
    expected = nn.utils.get_total_norm([p.grad for p in model.parameters()])
    assert gradients.total_norm() == expected
    gradients.finish()
    assert model[1].bias.grad is None


def test_what_several_processes_average_cannot_change() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[0].bias.requires_grad_(False)
    gradients = Gradients(model, optimizer, fixed=True)
    gradients.follow()
    model[0].bias.requires_grad_()
    with pytest.raises(ConfigError, match=r"0\.bias is trained and was frozen when the run"):
        gradients.follow()
    model[0].bias.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"1\.bias is frozen and was trained when the run"):
        gradients.follow()


def make_pair(**options: bool) -> tuple[nn.ModuleDict, Gradients]:
    """Two layers with a gradient each, [3, 4] and [6, 8], of which the optimizer has the first."""
    model = nn.ModuleDict(
        {"own": nn.Linear(2, 1, bias=False), "other": nn.Linear(2, 1, bias=False)}
    )
    model["own"].weight.grad = torch.tensor([[3.0, 4.0]])
    model["other"].weight.grad = torch.tensor([[6.0, 8.0]])
    optimizer = torch.optim.SGD(model["own"].parameters(), lr=0.1)
    return model, Gradients(model, optimizer, **options)


def test_an_optimizers_own_parameters_alone_are_measured_and_clipped() -> None:
    model, gradients = make_pair(only_optimized=True)
    assert gradients.names == ("own.weight",)
    assert gradients.outside == []
    assert gradients.total_norm().item() == 5
    norm, clipped = gradients.clip(1.0)
    assert (norm.item(), clipped.item()) == (5, True)
    assert gradients.total_norm().item() == pytest.approx(1)
    gradients.multiply(2.0)
    assert gradients.total_norm().item() == pytest.approx(2)
    assert model["other"].weight.grad.tolist() == [[6, 8]]


def test_without_the_restriction_all_parameters_of_the_model_are_measured_and_clipped() -> None:
    model, gradients = make_pair()
    assert gradients.total_norm().item() == pytest.approx(125**0.5)
    gradients.clip(1.0)
    assert model["other"].weight.grad.norm() < 1
    gradients.drop()
    assert model["other"].weight.grad is None


@pytest.mark.parametrize("drop", ["start", "drop", "finish"])
def test_an_optimizers_own_gradients_alone_are_dropped(drop: str) -> None:
    model, gradients = make_pair(only_optimized=True)
    getattr(gradients, drop)()
    assert model["own"].weight.grad is None
    assert model["other"].weight.grad.tolist() == [[6, 8]]


def test_an_optimizers_own_gradients_alone_are_checked() -> None:
    model, gradients = make_pair(only_optimized=True)
    model["other"].weight.grad.fill_(math.nan)
    assert math.isfinite(gradients.check())
    assert gradients.find_bad() is None
    model["own"].weight.grad.fill_(math.inf)
    assert not math.isfinite(gradients.check())
    assert gradients.find_bad() == "own.weight"


def test_of_a_group_an_optimizers_own_parameters_alone_are_in_the_statistics() -> None:
    model, gradients = make_pair(only_optimized=True)
    groups = {"both": ["own.weight", "other.weight"], "other": ["other.weight"]}
    found = read(gradients, groups)
    assert list(found) == ["both"]
    assert found["both"]["norm"] == 5
    assert list(read(gradients)) == ["own.weight"]
    model["own"].weight.grad = model["other"].weight.grad = None
    assert gradients.stats().disconnected == ("own.weight",)
    with pytest.raises(ValueError, match="names 'third', which is no parameter of the model"):
        gradients.stats({"x": ["third"]})


def test_a_parameter_that_comes_to_the_optimizer_is_its_own_from_then_on() -> None:
    for fixed in (False, True):
        model, gradients = make_pair(only_optimized=True, fixed=fixed)
        optimizer = gradients._optimizer
        assert optimizer is not None
        optimizer.add_param_group({"params": [*model["other"].parameters()]})
        gradients.follow()
        assert gradients.names == ("own.weight", "other.weight")
        assert gradients.total_norm().item() == pytest.approx(125**0.5)
        del optimizer.param_groups[0]
        gradients.follow()
        assert gradients.total_norm().item() == 10


def test_what_is_another_optimizers_is_not_left_out(caplog: pytest.LogCaptureFixture) -> None:
    _, gradients = make_pair(only_optimized=True)
    gradients.start()
    gradients.follow()
    assert not caplog.records


def test_several_processes_may_freeze_the_parameters_of_another_optimizer() -> None:
    model, gradients = make_pair(only_optimized=True, fixed=True)
    model["other"].requires_grad_(False)
    gradients.follow()
    model["own"].requires_grad_(False)
    with pytest.raises(ConfigError, match=r"own\.weight is frozen and was trained"):
        gradients.follow()
