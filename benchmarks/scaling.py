"""What an update costs as a run grows: in callbacks, in parameters, in updates.

- callbacks (0 to 50 on the hooks of the batch): µs over the hand-written loop;
- parameters (1e4 to 1e8): our update as a multiple of the hand-written one;
- updates (100,000 of a tiny model, with `metrics.jsonl` and 100 validations): memory of the
  process, and µs per update.

Writes `scaling.svg` beside the JSON.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from loop_overhead import by_ours
from measure import Row, describe_pairs, make_parser, print_table, write_json
from torch import nn
from workload import LEARNING_RATE, TimingLoader, loss_of

from trainer import Trainer, TrainerConfig
from trainer_callback import TrainerCallback

CALLBACKS = (0, 1, 2, 5, 10, 20, 35, 50)
PARAMETERS = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
UPDATES = 100_000
SAMPLES = 100


def measure_callbacks(rounds: int) -> dict[str, Row]:
    pairs: dict[int, list[tuple[float, float]]] = {count: [] for count in CALLBACKS}
    for number in range(rounds + 1):
        for count in CALLBACKS:
            loader = TimingLoader()
            by_ours(loader, count)
            if number:
                pairs[count] += [(1e6 * a, 1e6 * b) for a, b in loader.pairs]
    return {str(count): describe_pairs(found) for count, found in pairs.items()}


def measure_parameters(rounds: int) -> dict[str, Row]:
    rows = {}
    for count in PARAMETERS:
        chunk = 20 if count < 1e6 else 4 if count < 1e8 else 1
        pairs: list[tuple[float, float]] = []
        for _ in range(rounds if count < 1e7 else 1):
            loader = TimingLoader(make_build(count), updates=7 * chunk, chunk=chunk)
            model, optimizer = make_build(count)()
            Trainer(
                *(model, optimizer, loader),
                loss_fn=loss_of,
                config=TrainerConfig(epochs=1),
                progress=False,
            ).train()
            pairs += [(1e6 * a, 1e6 * b) for a, b in loader.pairs]
        rows[str(count)] = describe_pairs(pairs)
    return rows


def make_build(count: int) -> Callable[[], tuple[nn.Module, torch.optim.Optimizer]]:
    """Returns what makes a perceptron of about `count` parameters."""
    width = int(count**0.5)

    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, 1))
        return model, torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)

    return build


class Sampler(TrainerCallback):
    """Notes memory and time every so many updates."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._page = os.sysconf("SC_PAGE_SIZE") / 2**20
        self._before = time.perf_counter()

    def on_step_end(self, trainer: Any) -> None:  # type: ignore[override]
        if trainer.step % (UPDATES // SAMPLES) == 0:
            now = time.perf_counter()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            spent = 1e6 * (now - self._before) / (UPDATES // SAMPLES)
            self.rows.append({"updates": trainer.step, "mb": pages * self._page, "us": spent})
            self._before = now


def measure_updates() -> dict[str, Any]:
    torch.manual_seed(0)
    batches = [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(1000)]
    model, sampler = nn.Linear(4, 1), Sampler()
    with tempfile.TemporaryDirectory() as folder:
        result = Trainer(
            model,
            torch.optim.SGD(model.parameters(), lr=1e-3),
            batches,
            batches[:10],
            loss_fn=loss_of,
            config=TrainerConfig(epochs=UPDATES // len(batches), output_dir=Path(folder)),
            callbacks=[sampler],
            progress=False,
        ).train()
        log = (Path(folder) / "metrics.jsonl").stat().st_size
    return {"samples": sampler.rows, "history": len(result.history), "metrics_mb": log / 2**20}


def draw(results: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "scaling"  # the same picture from the same figures
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3), layout="constrained")
    rows = results["callbacks"]
    axes[0].plot([int(x) for x in rows], [row["difference"] for row in rows.values()], "o-")
    axes[0].set(xlabel="callbacks", ylabel="µs per update over a hand-written loop", ylim=0)
    rows = results["parameters"]
    axes[1].plot([int(x) for x in rows], [row["ratio"] for row in rows.values()], "o-")
    axes[1].set(xlabel="parameters", ylabel="multiple of a hand-written loop", xscale="log")
    samples = results["updates"]["samples"]
    axes[2].plot([row["updates"] for row in samples], [row["mb"] for row in samples])
    axes[2].set(xlabel="updates", ylabel="memory of the process, MB", ylim=0)
    figure.savefig(path, metadata={"Date": None})


def print_results(results: dict[str, Any]) -> None:
    print("µs per update over the hand-written loop, by number of callbacks:")
    rows = results["callbacks"]
    print_table(
        ("callbacks", *rows), [("µs", *(f"{row['difference']:.1f}" for row in rows.values()))]
    )
    print("\nOne update as a multiple of the hand-written one, by number of parameters:")
    rows = results["parameters"]
    by_hand = [(row["median"] - row["difference"]) / 1e3 for row in rows.values()]
    print_table(
        ("parameters", *(f"{float(count):.0e}" for count in rows)),
        [
            ("ms by hand", *(f"{each:.2f}" for each in by_hand)),
            ("multiple", *(f"{row['ratio']:.3f}" for row in rows.values())),
        ],
    )
    samples = results["updates"]["samples"]
    first, last = samples[len(samples) // 10], samples[-1]
    print(
        f"\n{last['updates']:,} updates: {first['mb']:.1f} MB after a tenth of them, "
        f"{last['mb']:.1f} MB at the end; {results['updates']['history']} entries of history, "
        f"{results['updates']['metrics_mb']:.1f} MB of `metrics.jsonl`.\n\n![scaling](scaling.svg)"
    )


def main() -> None:
    arguments = make_parser(__doc__, rounds=10).parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    results = {
        "updates": measure_updates(),
        "callbacks": measure_callbacks(arguments.rounds),
        "parameters": measure_parameters(max(1, arguments.rounds // 2)),
    }
    print_results(results)
    if arguments.json is not None:
        draw(results, Path(__file__).parent / "scaling.svg")
    write_json(arguments.json, results, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
