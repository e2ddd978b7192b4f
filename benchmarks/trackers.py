"""What trackers cost a run: their hooks while it logs in every update, and a server that is dead.
Needs the environment of `make trackers`. Bars: at most 30 µs for `on_log`, 400 with W&B online; at
most 15 s for a dead server, from start to end.

W&B's server is the stand-in of the tests. A dead one refuses the connection, or takes it and never
answers; what it costs is the whole of a short run, less the same run without a tracker.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from measure import Row, make_parser, print_table
from measure import write_json as write

from trainer.testing import make_tiny_trainer
from trainer_callback import TrackerCallback
from trainer_mlflow import MLflowCallback
from trainer_trackio import TrackioCallback
from trainer_wandb import WandbCallback

UPDATES = 2000
REFUSED = "http://127.0.0.1:1"

LOGGING: Mapping[str, Callable[[], TrackerCallback]] = {
    "MLflow": MLflowCallback,
    "MLflow, live": lambda: MLflowCallback(live=True),
    "trackio": TrackioCallback,
    "W&B, offline": WandbCallback,
    "W&B, online": lambda: WandbCallback(mode="online"),
}
DEAD: Mapping[str, Callable[[str], TrackerCallback]] = {
    "MLflow": MLflowCallback,
    "W&B": lambda _: WandbCallback(mode="online"),
}


def run(*callbacks: object, updates: int) -> float:
    """Returns the seconds of a whole run that logs in every update."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        settings = {"batches": 50, "epochs": updates, "snapshot_interval": 100}
        place = Path(folder, "run")
        make_tiny_trainer(callbacks, output_dir=place, max_steps=updates, **settings).train()
        return time.perf_counter() - begun


def measure_on_log(make: Callable[[], TrackerCallback]) -> Row:
    """Returns median, mean and 99th percentile of a call, µs."""
    callback = make()
    spent: list[float] = []

    class Timed(type(callback)):  # type: ignore[misc]
        def on_log(self, event: int) -> None:
            begun = time.perf_counter_ns()
            super().on_log(event)
            spent.append((time.perf_counter_ns() - begun) / 1000)

    callback.__class__ = Timed
    run(callback, updates=UPDATES)
    assert len(spent) >= UPDATES
    late = statistics.quantiles(spent, n=100)[-1]
    return {"median": statistics.median(spent), "mean": statistics.mean(spent), "99 %": late}


@contextlib.contextmanager
def deaf() -> Iterator[str]:
    """The address of a server that takes a connection, and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def measure_dead(make: Callable[[str], TrackerCallback], address: str) -> float:
    """Returns the seconds that a server there costs."""
    os.environ["WANDB_BASE_URL"] = address
    return run(make(address), updates=2) - run(updates=2)


def print_rows(found: Mapping[str, Row]) -> None:
    head = next(iter(found.values()))
    rows = ([name, *(f"{value:.1f}" for value in row.values())] for name, row in found.items())
    print_table(["", *head], rows)


def main() -> None:
    options = make_parser(__doc__, rounds=3).parse_args()
    logging.getLogger("trainer").setLevel(logging.ERROR)
    os.environ["WANDB_API_KEY"] = "a" * 40
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.trackers.test_wandb import serving

    found: dict[str, Row] = {}
    with serving() as server:
        os.environ["WANDB_BASE_URL"] = server.url
        for name, make in LOGGING.items():
            found[name] = measure_on_log(make)
        assert server.rows
    print("µs of a call of `on_log`:")
    print_rows(found)
    dead: dict[str, Row] = {}
    with deaf() as silent:
        for name, of in DEAD.items():
            costs = {
                place: max(measure_dead(of, address) for _ in range(options.rounds))
                for place, address in (("refuses", REFUSED), ("never answers", silent))
            }
            dead[name] = costs
    print(f"\nSeconds that a dead server costs, the most of {options.rounds} runs:")
    print_rows(dead)
    write(options.json, {"on_log": found, "dead": dead})


if __name__ == "__main__":
    main()
