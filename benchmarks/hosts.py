"""What five plugins add to one update of somebody else's trainer, beside the same trainer with one
empty callback of its own. The plugins do nothing at the start and the end of each batch; what is
measured is the host. Bars: at most 20 µs in Hugging Face, at most 40 in Lightning.

The two runs are two threads that take turns every 20 updates, so that the machine is as quick for
the one as for the other. What counts is the processor time of the thread in such a chunk: the
difference of the same low quantiles of both sides. A host that is not installed is left out.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from loop_overhead import Listener
from measure import is_installed, make_parser, print_table
from measure import write_json as write
from torch import Tensor, nn
from workload import BATCHES, CHUNK, LEARNING_RATE, UPDATES, Batch, build, loss_of


class Clock:
    """The batches of a run, and the processor time of each chunk of them.

    Attributes:
        seconds: of an update, for each whole chunk but the first.
    """

    def __init__(self, hand_over: Callable[[], None]) -> None:
        """Calls `hand_over` before each chunk; that takes no processor time of this thread."""
        self.seconds: list[float] = []
        self._hand_over = hand_over

    def __len__(self) -> int:
        return UPDATES

    def __iter__(self) -> Iterator[Batch]:
        clock, begun = time.thread_time, 0.0
        for number, batch in enumerate(BATCHES):
            if number % CHUNK == 0:
                if number > CHUNK:
                    self.seconds.append((clock() - begun) / CHUNK)
                self._hand_over()
                begun = clock()
            yield batch


Train = Callable[[Clock], nn.Module]
"""Trains on a loader; returns the model."""

QUANTILES = (0.02, 0.05, 0.1, 0.25)
"""Low ones: a busy machine only adds."""

BARS = {"Hugging Face": 20.0, "Lightning": 40.0}
"""Host -> µs."""


def make_listeners() -> list[object]:
    return [Listener(number) for number in range(5)]


class Named:
    """The batches of a loader as mappings, as a Hugging Face trainer wants them."""

    def __init__(self, loader: Clock) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for x, y in self._loader:
            yield {"x": x, "y": y}


def in_transformers(loader: Clock, prepare: Callable[[Any], object]) -> nn.Module:
    import transformers

    own, optimizer = build()

    class Trainer(transformers.Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            return Named(loader)

        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
            return loss_of(model, (inputs["x"], inputs["y"]))

    off = {"save_strategy": "no", "logging_strategy": "no", "report_to": "none"}
    with tempfile.TemporaryDirectory() as folder:
        args = transformers.TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            lr_scheduler_type="constant",
            use_cpu=True,
            disable_tqdm=True,
            **off,
        )
        trainer = Trainer(own, args, optimizers=(optimizer, None))
        prepare(trainer)
        trainer.train()
    return own


def with_empty_transformers(loader: Clock) -> nn.Module:
    from transformers import TrainerCallback

    names = [name for name in vars(TrainerCallback) if name.startswith("on_")]
    empty = type("Empty", (TrainerCallback,), dict.fromkeys(names, _do_nothing))
    return in_transformers(loader, lambda trainer: trainer.add_callback(empty()))


def with_plugins_transformers(loader: Clock) -> nn.Module:
    from trainer_transformers import attach

    return in_transformers(loader, lambda t: attach(t, make_listeners(), discover=False))


def in_lightning(loader: Clock, make_callback: Callable[[str], Any]) -> nn.Module:
    import lightning
    import torch

    own, _ = build()

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = own

        def training_step(self, batch: Batch) -> Tensor:
            return loss_of(self.model, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=LEARNING_RATE)

    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with tempfile.TemporaryDirectory() as folder:
        lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            callbacks=[make_callback(folder)],
            enable_model_summary=False,
            default_root_dir=folder,
            **off,
        ).fit(Module(), loader)
    return own


def with_empty_lightning(loader: Clock) -> nn.Module:
    from lightning.pytorch import Callback

    names = [name for name in vars(Callback) if name.startswith("on_")]
    empty = type("Empty", (Callback,), dict.fromkeys(names, _do_nothing))
    return in_lightning(loader, lambda folder: empty())


def with_plugins_lightning(loader: Clock) -> nn.Module:
    from trainer_lightning import Plugins

    return in_lightning(loader, lambda folder: Plugins(make_listeners(), discover=False))


def _do_nothing(self: object, *arguments: Any, **named: Any) -> None:
    """Is called by the host."""


HOSTS: Mapping[str, tuple[str, Train, Train]] = {
    "Hugging Face": (
        "trainer_transformers",
        with_empty_transformers,
        with_plugins_transformers,
    ),
    "Lightning": ("trainer_lightning", with_empty_lightning, with_plugins_lightning),
}
"""Host -> the module to look for, how it trains with an empty callback, and with five plugins."""


class Turns:
    """Two threads of which one runs at a time."""

    def __init__(self) -> None:
        self._mine = [threading.Semaphore(1), threading.Semaphore(0)]
        self._is_alone = False

    def hand_over(self, side: int) -> None:
        """Lets the other go on until it hands over, or has ended."""
        if not self._is_alone:
            self._mine[1 - side].release()
            self._mine[side].acquire()

    @contextlib.contextmanager
    def live(self, side: int) -> Iterator[None]:
        """The whole life of a thread."""
        self._mine[side].acquire()
        try:
            yield
        finally:
            self._is_alone = True
            self._mine[1 - side].release()


def run_pair(empty: Train, plugins: Train) -> list[tuple[float, float]]:
    """Trains both ways in turn; returns the µs of each pair of updates."""
    turns, clocks = Turns(), list[Clock]()
    for side in (0, 1):
        clocks.append(Clock(partial(turns.hand_over, side)))

    def live(side: int, train: Train) -> None:
        with turns.live(side):
            train(clocks[side])

    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with quiet[0], quiet[1], ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(live, 0, empty), pool.submit(live, 1, plugins)]:
            done.result()
    pairs = zip(clocks[0].seconds, clocks[1].seconds, strict=True)
    return [(1e6 * base, 1e6 * own) for base, own in pairs]


def measure(host: str, rounds: int) -> dict[str, list[float]]:
    """Returns µs of an update: low quantiles with an empty callback, and what five plugins add."""
    _, empty, plugins = HOSTS[host]
    run_pair(empty, plugins)  # does not count
    pairs = [pair for _ in range(rounds) for pair in run_pair(empty, plugins)]
    base, own = (sorted(side) for side in zip(*pairs, strict=True))
    places = [int(len(pairs) * share) for share in QUANTILES]
    return {
        "empty": [base[place] for place in places],
        "added": [own[place] - base[place] for place in places],
    }


def main() -> None:
    options = make_parser(__doc__, rounds=40).parse_args()
    for name in ("lightning.pytorch", "lightning.fabric", "transformers", "trainer"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    hosts = [name for name, (module, *_) in HOSTS.items() if is_installed(module)]
    found = {name: measure(name, options.rounds) for name in hosts}
    rows = [
        [name, _span(sides["empty"]), _span(sides["added"]), f"{BARS[name]:.0f}"]
        for name, sides in found.items()
    ]
    print("µs per update: low quantiles with an empty callback, and what five plugins add.")
    print_table(["host", "empty callback", "five plugins add", "bar"], rows)
    write(options.json, found, rounds=options.rounds)


def _span(values: list[float]) -> str:
    return f"{min(values):.0f} to {max(values):.0f}"


if __name__ == "__main__":
    main()
