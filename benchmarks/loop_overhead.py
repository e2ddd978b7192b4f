"""What a trainer adds to one update of a hand-written loop: ours with everything that is on by
default, and the peers that are installed, with 0, 1, 5 and 20 callbacks on the hooks of the batch.

A tiny model (`workload`) makes the trainer visible. Every side trains the same model on the same
batches and must end with the same weights. Bars: at most 10 µs per update without callbacks, at
most 15 µs with 20.

*ours* is `Trainer`, which writes nothing by default; *ours, with output_dir* also logs to
`metrics.jsonl` every 10 updates, and saves the final model. *ours, gradients unchecked* does not
read the gradients for NaN and infinities before each update, which none of the peers does.
*pluggy by hand* and *list by hand* are what hooks cost without a trainer: the hand-written loop
with two calls per update.
"""

from __future__ import annotations

import logging
import random
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pluggy
import torch
from measure import Row, describe_pairs, is_installed, make_parser, print_table, write_json
from peer_trainers import PEERS, Train
from torch import nn
from workload import TimingLoader, build, loss_of

from trainer import Run, Trainer, TrainerConfig
from trainer_callback import TrainerCallback, hookimpl

BASE = "by hand"
COUNTS = (0, 1, 5, 20)
Results = dict[str, dict[str, Row]]
"""Side -> number of callbacks -> figures."""

TOLERANCE = {"Keras on torch": 0.01}
"""Its own AdamW adds epsilon elsewhere. All others must end with equal weights."""


class Listener(TrainerCallback):
    """Hears the hooks of the batch, and does nothing."""

    def __init__(self, number: int) -> None:
        self.state_key = str(number)

    @hookimpl
    def on_batch_start(self) -> None: ...  # type: ignore[override]

    @hookimpl
    def on_batch_end(self) -> None: ...  # type: ignore[override]


def by_ours(
    loader: TimingLoader, callbacks: int, output_dir: str | None = None, *, checks: bool = True
) -> nn.Module:
    model, optimizer = build()
    Trainer(
        model,
        optimizer,
        loader,
        loss_fn=loss_of,
        config=TrainerConfig(
            epochs=1,
            output_dir=None if output_dir is None else Path(output_dir),
            check_gradients=checks,
        ),
        callbacks=[Listener(number) for number in range(callbacks)],
        progress=False,
    ).train()
    return model


def by_ours_unchecked(loader: TimingLoader, callbacks: int) -> nn.Module:
    return by_ours(loader, callbacks, checks=False)


def by_ours_writing(loader: TimingLoader, callbacks: int) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        return by_ours(loader, callbacks, folder)


def by_run(loader: TimingLoader, callbacks: int) -> nn.Module:
    model, optimizer = build()
    run = Run(
        model,
        optimizer,
        config=TrainerConfig(epochs=1),
        callbacks=[Listener(number) for number in range(callbacks)],
    )
    with run.start():
        for _ in run.epochs():
            for batch in run.batches(loader):
                run.backward(loss_of(run.module, batch))
                run.step()
    return model


def by_pluggy(loader: TimingLoader, callbacks: int) -> nn.Module:
    plugins = pluggy.PluginManager("trainer")
    plugins.add_hookspecs(TrainerCallback)
    for number in range(callbacks):
        plugins.register(Listener(number))
    hook = plugins.hook
    return train_with(
        loader,
        lambda: hook.on_batch_start(trainer=None, batch_idx=0, batch=None),
        lambda: hook.on_batch_end(trainer=None, batch_idx=0, loss=None, outputs=None),
    )


def by_list(loader: TimingLoader, callbacks: int) -> nn.Module:
    listeners = [Listener(number) for number in range(callbacks)]
    starts = [listener.on_batch_start for listener in listeners]
    ends = [listener.on_batch_end for listener in listeners]

    def call(methods: Sequence[Callable[[], None]]) -> None:
        for method in methods:
            method()

    return train_with(loader, lambda: call(starts), lambda: call(ends))


def train_with(
    loader: TimingLoader, on_start: Callable[[], object], on_end: Callable[[], object]
) -> nn.Module:
    model, optimizer = build()
    for batch in loader:
        on_start()
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        on_end()
    return model


OURS: dict[str, tuple[Train, tuple[int, ...]]] = {
    "ours": (by_ours, COUNTS),
    "ours, gradients unchecked": (by_ours_unchecked, COUNTS),
    "ours, with output_dir": (by_ours_writing, COUNTS),
    "a loop over Run": (by_run, COUNTS),
    "list by hand": (by_list, COUNTS[1:]),
    "pluggy by hand": (by_pluggy, COUNTS),
}


class Side:
    """One trainer with one number of callbacks, and its figures over all rounds."""

    def __init__(self, name: str, train: Train, callbacks: int) -> None:
        self.name, self._train, self.callbacks = name, train, callbacks
        self.pairs: list[tuple[float, float]] = []
        self.set_ups: list[float] = []

    def run(self) -> None:
        loader = TimingLoader()
        model = self._train(loader, self.callbacks)
        self.pairs += loader.pairs
        self.set_ups.append(loader.set_up)
        vector = nn.utils.parameters_to_vector
        apart = (vector(model.parameters()) - vector(loader.model.parameters())).abs().max().item()
        if not apart <= TOLERANCE.get(self.name, 0.0):
            raise SystemExit(f"{self.name} ended {apart:.1e} away from the hand-written loop")

    def row(self) -> Row:
        pairs = [(1e6 * by_hand, 1e6 * by_trainer) for by_hand, by_trainer in self.pairs]
        return {**describe_pairs(pairs), "set_up_ms": 1e3 * statistics.median(self.set_ups)}


def main() -> None:
    arguments = make_parser(__doc__, rounds=15).parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    installed = {name: rest for name, (module, *rest) in PEERS.items() if is_installed(module)}
    sides = [
        Side(name, train, count)
        for name, (train, counts) in {**OURS, **installed}.items()
        for count in counts
    ]
    for number in range(arguments.rounds + 1):
        for side in random.Random(number).sample(sides, len(sides)):
            side.run()
            if number == 0:  # imports, caches
                side.pairs.clear()
                side.set_ups.clear()
    results: Results = {}
    for side in sides:
        results.setdefault(side.name, {})[str(side.callbacks)] = side.row()
    left_out = sorted(PEERS.keys() - installed.keys())
    print_results(results)
    print(f"\nLeft out, not installed: {', '.join(left_out) or 'none'}.")
    write_json(arguments.json, results, left_out=left_out, rounds=arguments.rounds)


def print_results(results: Results) -> None:
    by_hand = statistics.median(
        row["median"] - row["difference"] for counts in results.values() for row in counts.values()
    )
    print(f"µs per update beside the hand-written loop ({by_hand:.0f} µs): median and quartiles.")
    head = ("callbacks", *map(str, COUNTS), "set-up, ms")
    print_table(head, (write_row(name, counts) for name, counts in results.items()))


def write_row(name: str, counts: dict[str, Row]) -> list[str]:
    cells = [
        "{difference:.1f} ({difference_low:.1f} … {difference_high:.1f})".format(**counts[count])
        if count in counts
        else "-"
        for count in map(str, COUNTS)
    ]
    return [name, *cells, f"{statistics.median(row['set_up_ms'] for row in counts.values()):.1f}"]


if __name__ == "__main__":
    main()
