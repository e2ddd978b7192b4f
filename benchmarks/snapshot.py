"""How long a snapshot blocks training: a model of 124 million parameters with AdamW, 1.5 GB.

Beside a copy of the same bytes in memory and a plain write and sync of them in a thread (the least
that anything can take), `torch.save` and `torch.distributed.checkpoint.async_save`, in turn in one
process; each replaces the files of its last time. *Blocked* is what the training thread waits;
*durable* is until the files are synced and the old ones gone. *Step* is the time of a small
training step, as long as the write goes on, as a multiple of the time without; *idle* is durable
where nothing trains.

    python benchmarks/snapshot.py [--rounds 5] [--json PATH] [--directory PLACE]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from trainer import Run, TrainerConfig
from trainer.snapshots.facts import describe_run

Times = dict[str, list[float]]


def make_model(layers: int, width: int) -> nn.Module:
    """The tensors of GPT-2 small: 12 layers of 768, a vocabulary of 50,257, 1,024 positions."""

    def make_block() -> nn.Module:
        return nn.ModuleList(
            [
                nn.LayerNorm(width),
                nn.Linear(width, 3 * width),
                nn.Linear(width, width),
                nn.LayerNorm(width),
                nn.Linear(width, 4 * width),
                nn.Linear(4 * width, width),
            ]
        )

    parts: list[nn.Module] = [nn.Embedding(50_257, width), nn.Embedding(1_024, width)]
    return nn.ModuleList([*parts, *(make_block() for _ in range(layers)), nn.LayerNorm(width)])


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


class Ours:
    """The trainer's own way: what a run does to save a snapshot, callbacks apart."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, place: Path, device: str = "cpu"
    ) -> None:
        self.config = TrainerConfig(
            output_dir=place, snapshot_interval=1, keep_snapshots=1, device=device
        )
        run = Run(model, optimizer, config=self.config, discover=False, progress=False)
        self.model, self.view, self.checkpoint = model, run.view, run.setup.checkpoint

    def start(self) -> Callable[[], object]:
        position, store = self.view.position, self.view.store
        position.step += 1
        state = self.checkpoint.read(position)
        state |= {"progress": position.state(), "callback_state": {}}
        facts = describe_run(position, self.config, (), self.model)
        store.save(position.step, state, facts, lambda path: None, {})
        return lambda: store.collect(wait=True)


class Disk:
    """A plain write and sync in a thread, 8 MB at a time."""

    def __init__(self, size: int, place: Path) -> None:
        self.bytes = memoryview(torch.ones(size // 4).numpy()).cast("B")
        self.file = place / "plain"

    def start(self) -> Callable[[], object]:
        thread = threading.Thread(target=self.write)
        thread.start()
        return thread.join

    def write(self) -> None:
        new = self.file.with_suffix(".new")
        with new.open("wb") as file:
            for start in range(0, len(self.bytes), 1 << 23):
                file.write(self.bytes[start : start + (1 << 23)])
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.file)


class TorchSave:
    def __init__(self, state: dict[str, Any], place: Path) -> None:
        self.state, self.file = state, place / "state.pt"

    def start(self) -> Callable[[], object]:
        torch.save(self.state, self.file)
        with self.file.open("rb") as file:
            os.fsync(file.fileno())
        return lambda: None


class DcpAsync:
    def __init__(self, state: dict[str, Any], place: Path) -> None:
        self.state, self.place = state, place / "dcp"

    def start(self) -> Callable[[], object]:
        shutil.rmtree(self.place, ignore_errors=True)
        written = dcp.async_save(self.state, checkpoint_id=self.place)
        return written.result


class Copy:
    """A copy into memory that is there already, all bytes in one run, with torch's threads."""

    def __init__(self, size: int) -> None:
        self.source = torch.ones(size // 4)
        self.target = torch.ones(size // 4)

    def start(self) -> Callable[[], object]:
        self.target.copy_(self.source)
        return lambda: None


def measure(
    ways: dict[str, Any], rounds: int, steps: int, step: Callable[[], float]
) -> dict[str, Times]:
    keys = ("blocked", "durable", "step", "idle")
    found: dict[str, Times] = {name: {key: [] for key in keys} for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            quiet = statistics.mean(step() for _ in range(steps))
            gc.collect()
            started = time.perf_counter()
            wait = way.start()
            blocked = time.perf_counter() - started
            waiting = threading.Thread(target=wait)
            waiting.start()
            busy = [step()]
            while waiting.is_alive():
                busy.append(step())
            durable = time.perf_counter() - started
            gc.collect()
            started = time.perf_counter()
            way.start()()
            idle = time.perf_counter() - started
            if number:  # the first round makes the buffers
                times = {"blocked": blocked, "durable": durable, "idle": idle}
                times["step"] = statistics.mean(busy) / quiet
                for key, value in times.items():
                    found[name][key].append(value)
            else:
                found[name]["first"] = [blocked]
    return found


def make_step() -> Callable[[], float]:
    layer = nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 256))
    batch = torch.randn(64, 256)

    def step() -> float:
        started = time.perf_counter()
        layer(batch).square().mean().backward()
        layer.zero_grad()
        return time.perf_counter() - started

    for _ in range(20):
        step()
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300, help="of training without a write")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, help="where to write (default: a temporary one)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    model = make_model(options.layers, options.width)
    optimizer = make_optimizer(model)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    tensors = [*model.parameters()]
    size = 3 * sum(tensor.numel() * 4 for tensor in tensors)
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        place = Path(directory)
        ways = {
            "memcpy": Copy(size),
            "plain write + fsync": Disk(size, place),
            "trainer": Ours(model, optimizer, place / "ours"),
            "torch.save + fsync": TorchSave(state, place),
            "DCP async_save": DcpAsync(state, place),
        }
        found = measure(ways, options.rounds, options.steps, make_step())
    medians = {n: {k: statistics.median(v) for k, v in t.items()} for n, t in found.items()}
    least = medians["memcpy"]["blocked"]
    print(f"{sum(t.numel() for t in tensors):,} parameters, {size / 1e9:.2f} GB, ", end="")
    print(f"{torch.get_num_threads()} threads, medians of {options.rounds} rounds")
    heads = ("blocked s", "x memcpy", "first s", "durable s", "step", "idle s")
    print(" " * 20 + "".join(f"{head:>10}" for head in heads))
    for name, times in medians.items():
        row = [times["blocked"], times["blocked"] / least, times["first"], times["durable"]]
        row += [times["step"], times["idle"]]
        print(f"{name:20}" + "".join(f"{value:10.3f}" for value in row))
    if options.json:
        options.json.write_text(json.dumps({"bytes": size, "medians": medians, "all": found}))


if __name__ == "__main__":
    main()
