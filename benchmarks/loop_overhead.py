"""What a trainer adds to one update: a hand-written loop, ours with everything that is on by
default, and the peers that are installed.

A tiny model (64 -> 64 -> 1, batch 32, AdamW) makes the trainer visible. Every side trains the same
model on the same batches and must end
with the same weights. Bars: at most 10 µs per update without callbacks, at most 15 µs with 20 on
the hooks of the batch.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable

import torch
from measure import (
    describe_machine,
    is_installed,
    print_table,
    read_arguments,
    run_rounds,
    summarise,
    write_json,
)
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from trainer import Trainer, TrainerConfig
from trainer_callback import TrainerCallback

UPDATES = 400
Batch = tuple[Tensor, Tensor]
torch.manual_seed(0)
BATCHES: list[Batch] = [(torch.randn(32, 64), torch.randn(32, 1)) for _ in range(UPDATES)]
WEIGHTS: dict[str, Tensor] = {}
"""Side -> its weights at the end of the last round."""


def build() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    return mse_loss(model(batch[0]), batch[1])


def timed(name: str, train: Callable[[], nn.Module]) -> Callable[[], float]:
    """Times one training of `UPDATES` updates, its set-up included, in µs per update."""

    def run() -> float:
        start = time.perf_counter()
        model = train()
        seconds = time.perf_counter() - start
        WEIGHTS[name] = nn.utils.parameters_to_vector(model.parameters()).detach()
        return seconds / UPDATES * 1e6

    return run


def by_hand() -> nn.Module:
    model, optimizer = build()
    model.train()
    for batch in BATCHES:
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model


class Listener(TrainerCallback):
    """Hears the hooks of the batch, and does nothing."""

    def __init__(self, number: int) -> None:
        self.state_key = str(number)

    def on_batch_start(self) -> None: ...  # type: ignore[override]

    def on_batch_end(self) -> None: ...  # type: ignore[override]


def by_trainer(callbacks: int) -> Callable[[], nn.Module]:
    def train() -> nn.Module:
        model, optimizer = build()
        Trainer(
            model,
            optimizer,
            BATCHES,
            loss_fn=loss_of,
            config=TrainerConfig(epochs=1),
            callbacks=[Listener(number) for number in range(callbacks)],
        ).train()
        return model

    return train


def by_ignite() -> nn.Module:
    from ignite.engine import Engine

    model, optimizer = build()
    model.train()

    def step(engine: object, batch: Batch) -> float:
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    Engine(step).run(BATCHES, max_epochs=1)
    return model


def by_accelerate() -> nn.Module:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    own, own_optimizer = build()
    model, optimizer = accelerator.prepare(own, own_optimizer)
    model.train()
    for batch in BATCHES:
        loss = loss_of(model, batch)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return own


def by_fabric() -> nn.Module:
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    own, own_optimizer = build()
    model, optimizer = fabric.setup(own, own_optimizer)
    model.train()
    for batch in BATCHES:
        loss = loss_of(model, batch)
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return own


def by_lightning() -> nn.Module:
    import lightning

    own, _ = build()

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = own

        def training_step(self, batch: Batch) -> Tensor:
            return loss_of(self.model, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Module(), BATCHES)
    return own


PEERS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "ignite": ("ignite", by_ignite),
    "accelerate": ("accelerate", by_accelerate),
    "Lightning Fabric": ("lightning", by_fabric),
    "Lightning Trainer, bare": ("lightning", by_lightning),
}


def main() -> None:
    arguments = read_arguments(str(__doc__), rounds=21)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    sides = {"by hand": by_hand}
    sides |= {f"ours, {count} callbacks": by_trainer(count) for count in (0, 1, 5, 20)}
    sides |= {name: train for name, (module, train) in PEERS.items() if is_installed(module)}
    left_out = [name for name, (module, _) in PEERS.items() if not is_installed(module)]
    ways = {name: timed(name, train) for name, train in sides.items()}
    rows = summarise(run_rounds(ways, arguments.rounds), "by hand")
    for name, weights in WEIGHTS.items():
        if not torch.equal(weights, WEIGHTS["by hand"]):
            raise SystemExit(f"{name} ended with other weights than the hand-written loop")
    print_table("one update", rows, "µs")
    print(f"\nleft out, not installed: {', '.join(left_out) or 'none'}")
    machine = describe_machine(
        ["torch", "pluggy", "trainer-core", "pytorch-ignite", "accelerate", "lightning"]
    )
    write_json(arguments.json, {**machine, "results": rows, "left_out": left_out})


if __name__ == "__main__":
    main()
