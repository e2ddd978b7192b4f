"""What a measured update costs: the core's norms and statistics beside what others do for less.

    python benchmarks/gradient_stats.py [--json PATH] [--threads 1] [--rounds 15]

Every way is run once per round, in turn, in one process; a ratio is the median over the rounds of
the quotients of one round, so that a machine that changes its speed changes both sides.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from trainer.step.gradients import Gradients

WIDTH = 768
LAYERS = 12
BASELINE = "one read pass"


def shapes_of_gpt() -> list[tuple[int, ...]]:
    """124 M parameters in 148 tensors, as GPT-2 small has them."""
    block = [
        *[(WIDTH,), (WIDTH,), (3 * WIDTH, WIDTH), (3 * WIDTH,), (WIDTH, WIDTH), (WIDTH,)],
        *[(WIDTH,), (WIDTH,), (4 * WIDTH, WIDTH), (4 * WIDTH,), (WIDTH, 4 * WIDTH), (WIDTH,)],
    ]
    return [(50257, WIDTH), (1024, WIDTH), *block * LAYERS, (WIDTH,), (WIDTH,)]


CASES: dict[str, list[tuple[int, ...]]] = {
    "124 M in 148 tensors": shapes_of_gpt(),
    "2,000 tensors of 1,000": [(1000,)] * 2000,
}


def make_model(shapes: Sequence[tuple[int, ...]]) -> nn.Module:
    """A module with gradients of these shapes, twelve tensors to a layer.

    The gradients are pieces of one buffer, as DistributedDataParallel has them, so that the one
    read pass reads the very bytes that the statistics read: other pages may be a third slower.
    """
    model = nn.Module()
    layers = nn.ModuleList()
    for start in range(0, len(shapes), 12):
        parameters = [nn.Parameter(torch.empty(shape)) for shape in shapes[start : start + 12]]
        layers.append(nn.ParameterList(parameters))
    model.layers = layers
    everything = list(model.parameters())
    flat = torch.randn(sum(parameter.numel() for parameter in everything)) * 1e-3
    pieces = flat.split([parameter.numel() for parameter in everything])
    for parameter, piece in zip(everything, pieces, strict=True):
        parameter.grad = piece.view(parameter.shape)
    return model


def make_ways(model: nn.Module) -> dict[str, Callable[[], object]]:
    """Returns name -> what is timed. Each ends with its numbers on the host."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.as_strided(grads[0], (sum(grad.numel() for grad in grads),), (1,))
    gradients = Gradients(model)
    groups: dict[str, list[str]] = {}
    for name in gradients.names:
        groups.setdefault(".".join(name.split(".")[:2]), []).append(name)

    def total_norm() -> float:
        return gradients.total_norm().item()

    def full_set() -> list[float]:
        stats = gradients.stats(groups)
        return torch.cat([stats.total_norm[None], stats.values.flatten()]).tolist()

    def five_reductions() -> list[tuple[float, ...]]:
        return [
            (
                g.norm().item(),
                g.abs().max().item(),
                g.mean().item(),
                g.std().item(),
                (g == 0).sum().item(),
            )
            for g in grads
        ]

    ways: dict[str, Callable[[], object]] = {
        BASELINE: lambda: flat.sum().item(),
        "core: global and per-tensor norms": total_norm,
        "core: full set per layer, fetched": full_set,
        "torch._foreach_norm, stacked, tolist": lambda: torch.stack(
            list(torch._foreach_norm(grads))
        ).tolist(),
        "torch.nn.utils.get_total_norm": lambda: nn.utils.get_total_norm(grads).item(),
        "loop of .norm().item()": lambda: [g.norm().item() for g in grads],
        "loop of five reductions, .item() each": five_reductions,
    }
    if importlib.util.find_spec("lightning") is not None:
        from lightning.pytorch.utilities import grad_norm

        ways["lightning: grad_norm"] = lambda: {
            name: float(value) for name, value in grad_norm(model, 2).items()
        }
    return ways


def measure(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    base = times[BASELINE]
    return {
        name: {
            "milliseconds": 1e3 * statistics.median(seconds),
            "passes": statistics.median(a / b for a, b in zip(seconds, base, strict=True)),
        }
        for name, seconds in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    results = {}
    for case, shapes in CASES.items():
        results[case] = measure(make_ways(make_model(shapes)), options.rounds)
        print(f"\n{case}, {options.threads} thread(s), median of {options.rounds} rounds")
        print(f"  {'':40} {'ms':>8} {'read passes':>12}")
        for name, numbers in results[case].items():
            print(f"  {name:40} {numbers['milliseconds']:8.1f} {numbers['passes']:12.2f}")
    if importlib.util.find_spec("lightning") is None:
        print("\nleft out: lightning's grad_norm, which is not installed")
    if options.json is not None:
        facts = {"torch": torch.__version__, "threads": options.threads, "rounds": options.rounds}
        options.json.write_text(json.dumps({**facts, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
