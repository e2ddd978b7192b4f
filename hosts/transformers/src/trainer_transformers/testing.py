"""The Hugging Face trainer for the contract of callbacks: see `trainer.testing.HostTask`."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch.utils.data import DataLoader, default_collate

from trainer.testing import HostTask

from .attach import attach

__all__ = ["train"]


class _Regression(transformers.Trainer):  # type: ignore[misc]
    """Takes its data in their order; a batch is a list of inputs and targets."""

    task: HostTask

    def get_train_dataloader(self) -> Any:
        loader = DataLoader(self.train_dataset, batch_size=self.task.batch_size)
        return self.accelerator.prepare(loader)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **named: Any
    ) -> Any:
        loss, outputs = self.task.compute_loss(model, inputs)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        with torch.no_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss, None, None


def train(task: HostTask) -> None:
    """Trains it in a Hugging Face trainer, with `attach`; it resumes by `resume_from_checkpoint`.
    Raises what `train` does.
    """
    arguments = transformers.TrainingArguments(
        output_dir=str(task.place),
        num_train_epochs=task.epochs,
        per_device_eval_batch_size=task.batch_size,
        gradient_accumulation_steps=task.window,
        max_grad_norm=task.max_grad_norm or 0.0,
        lr_scheduler_type="constant",
        eval_strategy="epoch",
        save_strategy="steps",
        save_steps=task.save_interval,
        logging_steps=task.log_interval,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = _Regression(
        task.model,
        arguments,
        data_collator=default_collate,
        train_dataset=task.data[0],
        eval_dataset=task.data[1],
        optimizers=(task.make_optimizer(), None),
    )
    trainer.task = task
    trainer.remove_callback(transformers.PrinterCallback)
    attach(trainer, task.callbacks, discover=False, output_dir=task.output_dir)
    trainer.train(resume_from_checkpoint=task.resumes or None)
