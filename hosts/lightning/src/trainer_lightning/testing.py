"""The Lightning trainer for the contract of callbacks: see `trainer.testing.HostTask`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from trainer.testing import HostTask

from .callback import Plugins
from .framework import package

__all__ = ["train"]


class _Regression(package.LightningModule):  # type: ignore[misc]
    def __init__(self, task: HostTask) -> None:
        super().__init__()
        self.task, self.net = task, task.model.net

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.net(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        loss, outputs = self.task.compute_loss(self, batch)
        return {"loss": loss, "outputs": outputs.detach()}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss, _ = self.task.compute_loss(self, batch)
        self.log("val_loss", loss, batch_size=len(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.task.make_optimizer()


class _Loader(DataLoader[Any]):
    """Goes on inside an epoch, as a StatefulDataLoader does."""

    _done, _skipped = 0, 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._done, self._skipped = self._skipped, 0
        for batch in itertools.islice(super().__iter__(), self._done, None):
            self._done += 1
            yield batch
        self._done = 0

    def state_dict(self) -> dict[str, int]:
        return {"done": self._done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._skipped = state["done"]


def train(task: HostTask) -> None:
    """Trains it in a Lightning trainer, with `Plugins`; it resumes by `ckpt_path`. Raises what
    `fit` does.
    """
    saving = package.callbacks.ModelCheckpoint
    named = {"dirpath": task.place / "kept", "filename": "{step}", "save_top_k": -1}
    trainer = package.Trainer(
        max_epochs=task.epochs,
        accelerator="cpu",
        devices=1,
        accumulate_grad_batches=task.window,
        gradient_clip_val=task.max_grad_norm,
        log_every_n_steps=task.log_interval,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=task.place,
        callbacks=[
            Plugins(task.callbacks, discover=False, output_dir=task.output_dir),
            saving(**named, every_n_train_steps=task.save_interval),
            saving(**named, every_n_epochs=task.epochs),
        ],
    )
    first, second = task.data
    newest = _find_newest(task.place / "kept") if task.resumes else None
    loaders = _Loader(first, batch_size=task.batch_size), DataLoader(second, task.batch_size)
    trainer.fit(_Regression(task), *loaders, ckpt_path=newest)


def _find_newest(folder: Path) -> Path:
    return max(folder.glob("*.ckpt"), key=lambda path: int(path.stem.rpartition("=")[2]))
