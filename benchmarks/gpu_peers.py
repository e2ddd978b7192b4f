"""The trainers of others, on the task of `gpu.py`, with bf16 and a clip by a norm of 1, less what
prints or writes files.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from gpu_task import Clock, Task, loss_of
from torch import Tensor, nn

READ_EVERY = 10
"""Updates between two readings of the loss."""


class Whole(nn.Module):
    """Around the shared model, for trainers that put something in the place of `forward`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Tensor) -> Any:
        return loss_of(self.model, batch)


def by_lightning(task: Task, clock: Clock) -> None:
    import lightning

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = task.model

        def training_step(self, batch: Mapping[str, Tensor]) -> Any:
            return loss_of(self.model, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return task.make_optimizer()

        def configure_gradient_clipping(self, *arguments: Any, **named: Any) -> None:
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)  # its own refuses a fused optimizer

    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with tempfile.TemporaryDirectory() as folder:
        lightning.Trainer(
            max_epochs=1,
            accelerator="gpu" if task.device.type == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed",
            enable_model_summary=False,
            default_root_dir=folder,
            **off,
        ).fit(Module(), clock)


def by_transformers(task: Task, clock: Clock) -> None:
    import transformers
    from accelerate.state import AcceleratorState

    class HuggingFace(transformers.Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            return clock

        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            return model(**inputs)

    AcceleratorState._reset_state(True)
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            bf16=True,
            max_grad_norm=1.0,
            logging_steps=READ_EVERY,
            lr_scheduler_type="constant",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=task.device.type == "cpu",
        )
        optimizer = task.make_optimizer()
        trainer = HuggingFace(Whole(task.model), settings, optimizers=(optimizer, None))
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()


def by_accelerate(task: Task, clock: Clock) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    accelerator = Accelerator(mixed_precision="bf16", cpu=task.device.type == "cpu")
    model, optimizer = accelerator.prepare(Whole(task.model), task.make_optimizer())
    total = torch.zeros((), device=task.device)
    for number, batch in enumerate(clock, 1):
        loss = model(**task.move(batch))
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total += loss.detach()
        if number % READ_EVERY == 0:
            total.item()
            total.zero_()
