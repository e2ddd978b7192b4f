"""What a trainer costs on a card: GPT-2 with 124 M parameters, random tokens, bf16, compiled, fused
AdamW, by hand, nanoGPT's way, ours with and without plugins, and the trainers of others.

    python benchmarks/gpu.py [--json PATH]              on one card, under six minutes
    python benchmarks/gpu.py --tiny --device cpu --no_compile     tries every line, measures nothing

The sides take turns of 30 to 100 updates in one process, in another order each round; what is
reported is the median over the rounds, and of the differences to the first side of the same round.
*Waits* are those that torch warns of (`torch.cuda.set_sync_debug_mode`), per update. MFU is by
nanoGPT's formula over `--peak_tflops`. A side that fails is left out, and said; what was measured
is written to PATH as soon as it is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import logging
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from gpu_sides import BASE, EACH, FULL, PLAIN, SIDES, TENTH, Side
from gpu_task import Clock, Task, make_task
from measure import Row, make_parser, print_table, run_rounds, summarise, write_json
from snapshot import Ours

from trainer_lm.options import ModelOptions

LARGE = ModelOptions(block_size=1024, n_layer=12, n_head=12, n_embd=768, dropout=0.0)
TINY = ModelOptions(block_size=8, n_layer=2, n_head=2, n_embd=16, dropout=0.0)

SHORT = (BASE, PLAIN, FULL)
"""The sides of the smaller batch."""


def measure(
    task: Task, sides: Mapping[str, Side], rounds: int, left_out: dict[str, str]
) -> dict[str, Row]:
    """Returns side -> seconds of an update, and differences to the first side; one that fails goes
    to `left_out`, with why.
    """

    def take_turn(name: str, updates: int, *, watch: bool = False) -> Clock:
        clock = Clock(task, updates, watch=watch)
        try:
            if name not in left_out:
                sides[name].train(task, clock)
            if clock.seconds == 0:
                left_out.setdefault(name, "it took fewer updates")
        except Exception as error:  # of somebody else's trainer; the others are worth having
            left_out[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
            print(f"{name} failed: {left_out[name]}", file=sys.stderr)
        clock.stop_watching()
        gc.collect()
        return clock

    ways: dict[str, Callable[[], float]] = {
        name: lambda name=name, side=side: take_turn(name, side.updates).seconds
        for name, side in sides.items()
    }
    figures = run_rounds(ways, rounds)
    clocks = {
        name: take_turn(name, min(side.updates, 20), watch=True) for name, side in sides.items()
    }
    if BASE in left_out:
        sys.exit(f"there is nothing to compare with: {BASE} failed ({left_out[BASE]}).")
    whole = {name: each for name, each in figures.items() if name not in left_out}
    found = summarise(whole, BASE)
    for name, row in found.items():
        if (waits := clocks[name].waits) is not None:
            row["waits"] = waits / min(sides[name].updates, 20)
        row["mfu"] = task.flops() / row["median"]
    return found


def print_sides(
    task: Task, found: Mapping[str, Row], peak: float, left_out: Mapping[str, str]
) -> None:
    print(f"\nbatch {task.batch_size} x {task.options.block_size}, medians:")
    rows = []
    for name, row in found.items():
        row["mfu"] /= peak
        row["percent"] = 100 * row["difference"] / found[next(iter(found))]["median"]
        cells = [f"{1e3 * row['median']:.2f}", f"{row['percent']:+.2f}", f"{100 * row['mfu']:.1f}"]
        rows.append((name, *cells, f"{row['waits']:.2f}" if "waits" in row else "-"))
    rows += [(name, why, "-", "-", "-") for name, why in left_out.items()]
    print_table(("side", "ms", "% over by hand", "MFU, %", "waits an update"), rows)


def print_monitor(found: Mapping[str, Row]) -> dict[str, float]:
    """Prints and returns what one measurement of the gradient monitor adds to its update, ms."""
    plain = found[PLAIN]["median"]
    times = {
        "of every update": 1e3 * (found[EACH]["median"] - plain),
        "of every 10th": 10e3 * (found[TENTH]["median"] - plain),
    }
    print_table(("a measurement", "ms"), ((name, f"{ms:.2f}") for name, ms in times.items()))
    return times


def measure_snapshots(task: Task, rounds: int, place: Path) -> dict[str, float]:
    """Returns seconds, and bytes a second, of the snapshots of the model with its AdamW state."""
    optimizer = task.make_optimizer()
    for parameter in task.plain.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    tensors = [*task.plain.parameters()]
    tensors += [each for state in optimizer.state.values() for each in state.values()]
    size = sum(each.nbytes for each in tensors)
    found: dict[str, Any] = {"bytes": size, "memcpy": time_memcpy(task.device, size, rounds)}
    for name in ("first", "prepared first"):
        ours = Ours(task.plain, optimizer, place / name, device=task.device.type)
        if name == "prepared first":
            began = time.perf_counter()
            ours.view.store.prepare(tensors)
            for thread in threading.enumerate():
                if thread.name == "snapshot-memory":
                    thread.join()
            found["preparing"] = time.perf_counter() - began
        found[name], _ = save(ours)
        times = [save(ours) for _ in range(rounds)]
        ours.view.store.end()
    found["blocked"] = statistics.median(blocked for blocked, _ in times)
    found["durable"] = statistics.median(durable for _, durable in times)
    return found


def save(ours: Ours) -> tuple[float, float]:
    """Returns how long training waits for a snapshot, and when that is durable."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    wait = ours.start()
    blocked = time.perf_counter() - began
    wait()
    return blocked, time.perf_counter() - began


def time_memcpy(device: torch.device, size: int, rounds: int) -> float:
    """Returns the seconds of one copy of as many bytes into memory that is pinned already."""
    on_card = device.type == "cuda"
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.zeros(size, dtype=torch.uint8, pin_memory=on_card)
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        target.copy_(source, non_blocking=on_card)
        if on_card:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    del target
    empty = getattr(torch.accelerator, "empty_host_cache", None)  # not in every torch
    if on_card and empty is not None:
        empty()  # or a snapshot might find it
    return statistics.median(times[1:])


def print_snapshots(found: Mapping[str, float]) -> None:
    print(f"\nsnapshots of {found['bytes'] / 1e9:.2f} GB:")
    names = ("memcpy", "blocked", "first", "prepared first", "preparing", "durable")
    rows = [(n, f"{1e3 * found[n]:.1f}", f"{found[n] / found['memcpy']:.2f}") for n in names]
    print_table(("", "ms", "x a copy into pinned memory"), rows)
    print(f"\nwritten at {found['bytes'] / found['durable'] / 1e9:.2f} GB/s.")


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__, rounds=2)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model that any CPU trains")
    parser.add_argument("--no_compile", action="store_true")
    parser.add_argument("--sides", nargs="+", choices=[*SIDES], help="with the first and the plain")
    parser.add_argument("--peak_tflops", type=float, default=989.4, help="H100, H200: 989.4")
    return parser.parse_args()


def main() -> None:
    began, arguments = time.monotonic(), parse()
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    device, options = torch.device(arguments.device), TINY if arguments.tiny else LARGE
    if arguments.tiny:
        torch.set_num_threads(1)  # several would only wait for each other
    sides = {
        name: dataclasses.replace(side, updates=4) if arguments.tiny else side
        for name, side in SIDES.items()
        if not arguments.sides or name in (BASE, PLAIN, *arguments.sides)
    }
    there = {name: side for name, side in sides.items() if side.is_there}
    left_out = {name: "not installed" for name in sides if name not in there}
    peak = 1e12 * arguments.peak_tflops
    vocabulary, batches = (64, (4, 2)) if arguments.tiny else (50_304, (32, 12))
    facts = {"vocabulary": vocabulary, "compiled": not arguments.no_compile}
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # it would go on uncompiled
    large = make_task(device, batches[0], options, **facts)
    results: dict[str, Any] = {"large": measure(large, there, arguments.rounds, left_out)}
    print_sides(large, results["large"], peak, left_out)
    if {EACH, TENTH, PLAIN} <= results["large"].keys():
        results["monitor_ms"] = print_monitor(results["large"])
    card = torch.cuda.get_device_name() if device.type == "cuda" else arguments.device

    def write() -> float:
        seconds = time.monotonic() - began
        write_json(arguments.json, results, card=card, seconds=seconds, left_out=left_out)
        return seconds

    write()
    small = make_task(device, batches[1], options, **facts, shared=large)
    some = {name: there[name] for name in SHORT if name in results["large"]}
    failed: dict[str, str] = {}
    results["small"] = measure(small, some, arguments.rounds, failed)
    left_out.update({f"{name}, batch {batches[1]}": why for name, why in failed.items()})
    print_sides(small, results["small"], peak, failed)
    write()
    with tempfile.TemporaryDirectory() as folder:
        results["snapshots"] = measure_snapshots(small, arguments.rounds, Path(folder))
    print_snapshots(results["snapshots"])
    seconds = write()
    graphs = torch._dynamo.utils.counters["stats"].get("unique_graphs", 0)
    print(f"\n{card}, {seconds:.0f} s in all, {graphs} graphs compiled.")


if __name__ == "__main__":
    main()
