"""What is measured, against computations on the gradients that a second callback saw."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainer import Trainer
from trainer_callback import TrainerCallback
from trainer_gradient_monitor import GradientMonitorCallback
from trainer_gradient_monitor.arithmetic import copy_weights, update_ratios

Make = Callable[..., Trainer]
RecordOf = Callable[[Path], list[dict[str, Any]]]


class Witness(TrainerCallback):
    """Keeps what the gradients were before clipping and the weights before and after each step."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        self.before: list[dict[str, Tensor]] = []
        self.after: list[dict[str, Tensor]] = []
        self.clipped: list[bool] = []

    def on_backward_end(self, trainer: Any) -> None:
        named = list(trainer.model.named_parameters())
        self.gradients.append({n: p.grad.clone() for n, p in named if p.grad is not None})
        self.before.append({n: p.detach().clone() for n, p in named})

    def on_gradients_clipped(self, clipped: Tensor) -> None:  # type: ignore[override]
        self.clipped.append(bool(clipped))

    def on_step_end(self, trainer: Any) -> None:  # type: ignore[override]
        self.after.append({n: p.detach().clone() for n, p in trainer.model.named_parameters()})


def run(
    make: Make, tmp_path: Path, monitor: GradientMonitorCallback, **options: Any
) -> tuple[Witness, Trainer]:
    witness = Witness()
    trainer = make(monitor, tmp_path, others=[witness], **options)
    assert trainer.train().status == "finished"
    return witness, trainer


def join(tensors: dict[str, Tensor], prefix: str) -> Tensor:
    return torch.cat([t.double().flatten() for n, t in tensors.items() if n.startswith(prefix)])


def layer(line: dict[str, Any], name: str) -> dict[str, Any]:
    columns = dict(line["layers"])
    place = columns.pop("name").index(name)
    return {column: values[place] for column, values in columns.items()}


CASES = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 3},
    "clipped": {"max_grad_norm": 0.01},
    "accumulated and clipped": {"gradient_accumulation_steps": 4, "max_grad_norm": 0.01},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16", "max_grad_norm": 0.01},
}


@pytest.mark.parametrize("case", CASES)
def test_statistics_agree_with_float64(
    make: Make, record_of: RecordOf, tmp_path: Path, case: str
) -> None:
    monitor = GradientMonitorCallback(report=False, monitor_interval=1)
    witness, _ = run(make, tmp_path, monitor, **CASES[case])
    lines = record_of(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, len(witness.gradients) + 1))
    for line, gradients, before, after in zip(
        lines, witness.gradients, witness.before, witness.after, strict=True
    ):
        assert line["layers"]["name"] == ["blocks.0", "blocks.1", "head"]
        assert line["total_norm_pre_clip"] == pytest.approx(join(gradients, "").norm().item())
        for name in line["layers"]["name"]:
            x, found = join(gradients, name), layer(line, name)
            change = join(after, name) - join(before, name)
            expected = {
                "norm_pre_clip": x.norm().item(),
                "rms_pre_clip": x.square().mean().sqrt().item(),
                "max_abs_pre_clip": x.abs().max().item(),
                "mean_pre_clip": x.mean().item(),
                "std_pre_clip": x.std(correction=0).item(),
                "zero_fraction_pre_clip": (x == 0).double().mean().item(),
                "nonfinite_pre_clip": 0.0,
                "update_ratio": (change.norm() / join(before, name).norm()).item(),
            }
            assert found.pop("verdict") == "healthy"
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_every_name_of_a_gradient_says_that_it_is_before_clipping(
    make: Make, record_of: RecordOf, tmp_path: Path
) -> None:
    monitor = GradientMonitorCallback(report=False, monitor_histogram=True)
    _, trainer = run(make, tmp_path, monitor, max_grad_norm=1.0)
    line = record_of(tmp_path)[-1]
    about_gradients = set(line["layers"]) - {"name", "verdict", "update_ratio"}
    about_gradients |= {name for name in line if "norm" in name or "ratio" in name}
    about_gradients |= {name for name in line if "nonfinite" in name or "histogram" in name}
    about_gradients |= {name for name in trainer.metrics if "norm" in name or "ratio" in name}
    about_gradients.discard("grad_norm")  # the trainer's own
    assert len(about_gradients) == 7 + 2 + 2 + 2
    assert all(name.endswith("_pre_clip") for name in about_gradients)


def test_without_update_ratio_and_histogram_there_is_none(
    make: Make, record_of: RecordOf, tmp_path: Path
) -> None:
    run(make, tmp_path, GradientMonitorCallback(report=False, monitor_update_ratio=False))
    line = record_of(tmp_path)[-1]
    assert line["layers"]["update_ratio"] == [None] * 3
    assert "histogram_pre_clip" not in line


def test_only_measured_updates_copy_the_weights(make: Make, tmp_path: Path) -> None:
    copies: list[int] = []

    class Counting(GradientMonitorCallback):
        def on_backward_end(self, trainer: Any) -> None:
            with Calls() as calls:
                super().on_backward_end(trainer)
            copies.append(calls.counts["_to_copy"])

    monitor = Counting(report=False, monitor_interval=5, monitor_at_snapshots=False)
    run(make, tmp_path, monitor)
    assert [step for step, count in enumerate(copies, 1) if count] == [5, 10, 15, 20]


def test_nothing_is_hooked_onto_tensors_or_modules(make: Make, tmp_path: Path) -> None:
    hooked: list[object] = []

    class Look(TrainerCallback):
        def on_backward_end(self, trainer: Any) -> None:
            model = trainer.model
            hooked.extend(p._backward_hooks for p in model.parameters())
            hooked.extend(p._post_accumulate_grad_hooks for p in model.parameters())
            for module in model.modules():
                hooked.extend([module._forward_hooks, module._forward_pre_hooks])
                hooked.extend([module._backward_hooks, module._backward_pre_hooks])

    monitor = GradientMonitorCallback(report=False, monitor_interval=1)
    make(monitor, tmp_path, others=[Look()]).train()
    assert hooked
    assert not any(hooked)


def test_clip_factor_rate_and_flow_ratio(make: Make, record_of: RecordOf, tmp_path: Path) -> None:
    monitor = GradientMonitorCallback(report=False, monitor_interval=4, monitor_at_snapshots=False)
    witness, _ = run(make, tmp_path, monitor, max_grad_norm=0.15, snapshot_interval=3)
    lines = record_of(tmp_path)
    assert len({line["clip_factor"] == 1.0 for line in lines}) == 2  # the limit is in between
    for line, end in zip(lines, range(4, 21, 4), strict=True):
        gradients = witness.gradients[end - 1]
        norm = join(gradients, "").norm().item()
        assert line["clip_factor"] == pytest.approx(min(1.0, 0.15 / (norm + 1e-6)), rel=1e-5)
        assert line["clipped_updates"] == sum(witness.clipped[end - 4 : end])
        assert line["updates"] == 4
        first, last = (
            join(gradients, name).square().mean().sqrt() for name in ("blocks.0", "head")
        )
        assert line["flow_ratio_pre_clip"] == pytest.approx((first / last).item(), rel=1e-5)


def test_without_clipping_there_is_no_clip_factor(
    make: Make, record_of: RecordOf, tmp_path: Path
) -> None:
    run(make, tmp_path, GradientMonitorCallback(report=False))
    assert record_of(tmp_path)[0]["clip_factor"] is None


def test_other_norms_and_levels(make: Make, record_of: RecordOf, tmp_path: Path) -> None:
    monitor = GradientMonitorCallback(
        report=False, monitor_level="parameter", monitor_norm_type=math.inf
    )
    witness, _ = run(make, tmp_path, monitor)
    line, gradients = record_of(tmp_path)[-1], witness.gradients[-1]
    assert line["layers"]["name"] == list(gradients)
    expected = [gradient.abs().max().item() for gradient in gradients.values()]
    assert line["layers"]["norm_pre_clip"] == pytest.approx(expected)


def test_filters_leave_the_total_norm_alone(
    make: Make, record_of: RecordOf, tmp_path: Path
) -> None:
    monitor = GradientMonitorCallback(
        report=False, monitor_include="*.weight", monitor_exclude=["head.*"]
    )
    witness, _ = run(make, tmp_path, monitor)
    line, gradients = record_of(tmp_path)[-1], witness.gradients[-1]
    assert line["layers"]["name"] == ["blocks.0", "blocks.1"]
    assert line["total_norm_pre_clip"] == pytest.approx(join(gradients, "").norm().item())
    expected = gradients["blocks.0.0.weight"].norm().item()
    assert layer(line, "blocks.0")["norm_pre_clip"] == pytest.approx(expected)


class Odd(nn.Module):
    """A sparse embedding, a tied weight, a frozen layer and one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 4, sparse=True)
        self.first = nn.Linear(4, 4, bias=False)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.first.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(self.tied(self.first(self.embed(x)).tanh()))


def test_sparse_tied_frozen_and_disconnected_parameters(
    make: Make, record_of: RecordOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="trainer.gradient_monitor")
    monitor = GradientMonitorCallback(report=False, monitor_depth=1)
    batches = [torch.tensor([1, 1, 5])] * 3
    witness, _ = run(
        make, tmp_path, monitor, model=Odd(), batches=batches, optimizer=torch.optim.SGD, epochs=1
    )
    line, gradients = record_of(tmp_path)[-1], witness.gradients[-1]
    assert line["layers"]["name"] == ["embed", "first"]
    assert line["disconnected"] == ["unused.weight", "unused.bias"]
    values = gradients["embed.weight"].coalesce().values().double()
    assert layer(line, "embed")["rms_pre_clip"] == pytest.approx(
        values.square().mean().sqrt().item(), rel=1e-5
    )
    assert layer(line, "first")["norm_pre_clip"] == pytest.approx(
        gradients["first.weight"].norm().item(), rel=1e-5
    )
    assert "disconnected, they require a gradient and got none: unused.weight" in caplog.text
    assert monitor.state.verdicts["unused"] == "disconnected"
    assert "frozen" not in monitor.state.verdicts


def test_parameters_in_bf16(make: Make, record_of: RecordOf, tmp_path: Path) -> None:
    model = nn.Linear(8, 1).bfloat16()
    batches = [torch.randn(4, 8, dtype=torch.bfloat16) for _ in range(3)]
    monitor = GradientMonitorCallback(report=False, monitor_level="global")
    witness, _ = run(make, tmp_path, monitor, model=model, batches=batches, epochs=1)
    line = record_of(tmp_path)[-1]
    norm = join(witness.gradients[-1], "").norm().item()
    change = join(witness.after[-1], "") - join(witness.before[-1], "")
    assert line["total_norm_pre_clip"] == pytest.approx(norm, rel=1e-5)
    assert layer(line, "global")["norm_pre_clip"] == pytest.approx(norm, rel=1e-5)
    assert layer(line, "global")["update_ratio"] == pytest.approx(
        (change.norm() / join(witness.before[-1], "").norm()).item(), rel=1e-5
    )


def test_the_histogram_counts_magnitudes_in_powers_of_two(
    make: Make, record_of: RecordOf, tmp_path: Path
) -> None:
    known = torch.tensor([0.0, 2.0**-30, 2.0**-24, 1.99 * 2.0**-24, -1.0, 1.5, 255.0, -256.0, 1e9])

    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(9))

        def forward(self, x: Tensor) -> Tensor:
            return (self.weight * known).sum()

    monitor = GradientMonitorCallback(report=False, monitor_histogram=True)
    options = {"loss_fn": lambda model, batch: model(batch), "batches": [torch.ones(1)]}
    run(make, tmp_path, monitor, model=Given(), epochs=1, **options)
    histogram = record_of(tmp_path)[0]["histogram_pre_clip"]
    counts = {i: share * 9 for i, share in enumerate(histogram["shares"][0]) if share}
    edges = histogram["log2_edges"]
    assert (edges[0], edges[-1], len(histogram["shares"][0])) == (-24, 8, len(edges) + 1)
    # bin 0 is below the first edge, bin i from edge i - 1 on; the zero is in none
    expected = {0: 1, 1: 2, edges.index(0) + 1: 2, edges.index(7) + 1: 1, len(edges): 2}
    assert counts == pytest.approx(expected)


class Calls(TorchDispatchMode):
    """Counts the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_a_measured_update_is_fetched_in_one_copy(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[torch.dtype] = []
    singles: list[int] = []
    to_list = torch.Tensor.tolist

    def counting_to_list(tensor: Tensor) -> Any:
        fetched.append(tensor.dtype)
        return to_list(tensor)

    class Counting(GradientMonitorCallback):
        def on_backward_end(self, trainer: Any) -> None:
            with Calls() as calls:
                super().on_backward_end(trainer)
            singles.append(calls.counts["_local_scalar_dense"])

        def on_step_end(self, trainer: Any, skipped: bool) -> None:
            with Calls() as calls:
                super().on_step_end(trainer, skipped)
            singles.append(calls.counts["_local_scalar_dense"])

    monkeypatch.setattr(torch.Tensor, "tolist", counting_to_list)
    monitor = Counting(monitor_interval=5, monitor_at_snapshots=False, monitor_histogram=True)
    make(monitor, tmp_path, max_grad_norm=0.01).train()
    # Lists of integers are a CPU's own choice of blocks to look at twice; no device is asked that.
    assert fetched.count(torch.float32) == 4
    assert torch.float64 not in fetched
    assert sum(singles) == 0


def test_gradients_of_float64_are_measured_in_their_own_width(
    make: Make, record_of: RecordOf, tmp_path: Path
) -> None:
    """Beyond the largest float32, 3.4e38, nothing is infinite yet."""

    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large = nn.Parameter(torch.tensor([0.5, -0.25, 0.0], dtype=torch.float64))
            self.small = nn.Parameter(torch.tensor([0.5], dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.large * 1e60).sum() + (self.small * 1e-60).sum()

    monitor = GradientMonitorCallback(
        monitor_interval=1, monitor_histogram=True, on_nonfinite="stop", vanish_threshold=0.0
    )
    trainer = make(
        monitor,
        tmp_path,
        model=Steep(),
        loss_fn=lambda model, batch: model(batch),
        optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=1e-70),
        epochs=1,
    )
    assert trainer.train().status == "finished"
    line = record_of(tmp_path)[-1]
    assert line["total_norm_pre_clip"] == pytest.approx(3**0.5 * 1e60)
    assert line["layers"]["norm_pre_clip"] == pytest.approx([3**0.5 * 1e60, 1e-60])
    assert line["layers"]["rms_pre_clip"] == pytest.approx([1e60, 1e-60])
    assert line["layers"]["max_abs_pre_clip"] == pytest.approx([1e60, 1e-60])
    assert line["layers"]["mean_pre_clip"] == pytest.approx([1e60, 1e-60])
    assert line["layers"]["nonfinite_pre_clip"] == [0, 0]
    assert line["layers"]["verdict"] == ["healthy", "healthy"]
    large, small = line["histogram_pre_clip"]["shares"]
    assert (large[-1], small[0]) == (1.0, 1.0)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, math.inf])
def test_statistics_of_float64_are_those_of_float64(norm_type: float) -> None:
    from trainer.step.gradients import Gradients

    model = nn.Linear(300, 7, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = 1e-100 * torch.randn(
            parameter.shape, dtype=torch.float64, generator=generator
        )
    stats = Gradients(model).stats(norm_type=norm_type)
    grad = model.weight.grad
    assert grad is not None
    found = dict(zip(stats.columns, stats.values[0].tolist(), strict=True))
    assert found["norm"] == pytest.approx(
        float(torch.linalg.vector_norm(grad.flatten(), norm_type))
    )
    assert found["max_abs"] == float(grad.abs().max())
    assert found["mean"] == pytest.approx(float(grad.mean()))
    assert found["nonfinite"] == 0


def test_index_tensors_are_made_at_the_first_measurement_only(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    create = torch.tensor

    class Counting(GradientMonitorCallback):
        def on_backward_end(self, trainer: Any) -> None:
            monkeypatch.setattr(
                torch, "tensor", lambda *a, **k: made.append(trainer.step) or create(*a, **k)
            )
            super().on_backward_end(trainer)

        def on_step_end(self, trainer: Any, skipped: bool) -> None:
            super().on_step_end(trainer, skipped)
            monkeypatch.undo()

    make(Counting(report=False, monitor_interval=1), tmp_path, max_grad_norm=1.0).train()
    assert made
    assert {*made} <= {0, 1}  # step 0 before the first update, 1 behind it


@pytest.mark.parametrize("width", [8, 2048])
def test_the_update_ratio_waits_for_nothing_and_takes_a_dozen_operators(width: int) -> None:
    """On `meta` whatever would wait for a value raises."""
    trained = {
        str(row): [
            nn.Parameter(torch.empty(width, width, device="meta")),
            nn.Parameter(torch.empty(width, device="meta")),
        ]
        for row in range(50)
    }
    with Calls() as calls:
        ratios = update_ratios(copy_weights(trained), trained, torch.device("meta"))
    assert ratios.shape == (50,)
    foreach = {name: count for name, count in calls.counts.items() if "foreach" in name}
    assert foreach == {"_foreach_copy_": 1, "_foreach_norm": 2, "_foreach_sub_": 1}
    idle = {"alias", "detach", "empty_like", "promote_types", "select", "unbind", "view"}
    assert sum(count for name, count in calls.counts.items() if name not in idle) <= 25
