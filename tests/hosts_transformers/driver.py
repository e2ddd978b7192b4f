"""The runs of `tests/hosts/scenarios.py` in a Hugging Face trainer, as a command:

    python driver.py PLACE [WORD of a case's name]...

prints, for each case, what differs from our own trainer.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any, Final

import transformers

from trainer_transformers import attach

sys.path.insert(0, str(Path(__file__).parent.parent / "hosts"))  # tests are not installed
import scenarios

MARKS: Final = {
    "clipping, and a short window": "approximate: the gradient of a window of 2 of 3 micro-batches "
    "is divided in another order, so the last bits differ",
    "fp16": "this host cannot: accelerate drops fp16 on a CPU, silently, and trains in fp32",
    "mirror": "this host cannot: its checkpoints are no snapshots, which alone are mirrored",
}
"""Case -> why it is not the same."""


def make_trainer(case: Any, place: Path, **options: Any) -> transformers.Trainer:
    """Returns the trainer of `case`, whose output directory is `place`."""
    model, optimizer = scenarios.make_model(case.classes)
    settings: dict[str, Any] = {
        "output_dir": str(place),
        "per_device_train_batch_size": scenarios.B,
        "per_device_eval_batch_size": 8,
        "gradient_accumulation_steps": case.window,
        "num_train_epochs": case.epochs,
        "max_steps": case.max_steps or -1,
        "max_grad_norm": case.clip or 0.0,
        "bf16": case.precision == "bf16",
        "fp16": case.precision == "fp16",
        "lr_scheduler_type": "linear" if case.linear else "constant",
        "eval_strategy": "epoch" if case.validate_every is None else "steps",
        "eval_steps": case.validate_every,
        "save_strategy": "epoch" if case.save_every is None else "steps",
        "save_steps": case.save_every or 500,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
        **options,
    }
    return InOrder(
        model,
        transformers.TrainingArguments(**settings),
        train_dataset=scenarios.make_data(0, case.rows, case.classes),
        eval_dataset=scenarios.make_data(1, 8, case.classes),
        optimizers=(optimizer, None),
    )


class InOrder(transformers.Trainer):
    """Takes its data in their order, as our loader does."""

    def _get_train_sampler(self, *arguments: Any) -> Any:
        import torch

        return torch.utils.data.SequentialSampler(self.train_dataset)


def train_there(case: Any, rank: int) -> dict[str, Any]:
    """The run in a Hugging Face trainer."""
    place, ends = case.place / "there", scenarios.Ends()
    trainer = make_trainer(case, place)
    attach(trainer, [*case.plugins(), ends], discover=False)
    resume = case.resumes and any(place.glob("checkpoint-*"))
    with contextlib.suppress(Exception):
        trainer.train(resume_from_checkpoint=resume or None)
    found: dict[str, Any] = scenarios.summarise(ends.result, trainer.model, place / "plugins", rank)
    return found


def compare(case: Any, place: Path) -> list[str]:
    """Returns where the run differs from that of our own trainer."""
    place.mkdir(parents=True, exist_ok=True)
    ours = scenarios.run_case(case, scenarios.train_at_home, place)
    theirs = scenarios.run_case(case, train_there, place)
    return list(scenarios.differences(ours, theirs))


if __name__ == "__main__":
    _, root, *words = sys.argv
    for number, case in enumerate(scenarios.CASES):
        if all(word in case.name for word in words):
            try:
                found = compare(case, Path(root) / f"{number:02d}")
            except Exception as error:
                found = [f"{type(error).__name__}: {error}"]
            mark = MARKS.get(case.name, "DIFFERS").partition(":")[0]
            print(mark if found else "same", f"{number:02d}", case.name, flush=True)
            for line in found[:4]:
                print("      ", line[:300], flush=True)
