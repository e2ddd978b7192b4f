"""The runs of `tests/hosts/scenarios.py` in a Lightning trainer, as a command:

    python driver.py PLACE [WORD of a case's name]...

prints, for each case, what differs from our own trainer.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path
from typing import Any, Final

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torchdata.stateful_dataloader import StatefulDataLoader

from trainer_lightning import Plugins

sys.path.insert(0, str(Path(__file__).parent.parent / "hosts"))  # tests are not installed
import scenarios

_SHORT = (
    "approximate: Lightning divides each loss of a window by its full size, so the gradient of a "
    "short one is a part of the mean's"
)

MARKS: Final = {
    "a short last window": _SHORT,
    "clipping, and a short window": _SHORT,
    "killed inside an epoch, short windows": _SHORT,
    "a limit of updates, inside an epoch": "approximate: Lightning does not validate there",
    "fp16": "this host cannot: on a CPU, Lightning trains in bf16 instead, and says so",
    "mirror": "this host cannot: its checkpoints are no snapshots, which alone are mirrored",
}
"""Case -> why it is not the same."""


class There(pl.LightningModule):
    """The model of the scenarios, as a module of Lightning."""

    def __init__(self, case: Any) -> None:
        super().__init__()
        model, _ = scenarios.make_model(case.classes)
        self.first, self.last, self.case = model.first, model.last, case

    forward = scenarios.TinyModel.forward

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return scenarios.loss_of(self, batch)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        loss, outputs = scenarios.answer(self, batch)
        self.log("val_loss", loss, batch_size=len(batch["x"]))
        return outputs

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=scenarios.RATE)
        if not self.case.linear:
            return optimizer
        last = self.case.updates
        make = torch.optim.lr_scheduler.LambdaLR
        schedule = make(optimizer, lambda n: max(0, last - n) / last)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def make_loader(case: Any, rank: int) -> StatefulDataLoader:
    """Returns the batches of this process, as our loader gives them."""
    rows = list(range(case.rows))
    batches = [rows[start : start + scenarios.B] for start in range(0, case.rows, scenarios.B)]
    share = batches[rank :: case.processes]
    return StatefulDataLoader(scenarios.make_data(0, case.rows, case.classes), batch_sampler=share)


def make_trainer(case: Any, place: Path, callbacks: list[Any]) -> pl.Trainer:
    named = {"dirpath": place / "kept", "filename": "{step}", "save_top_k": -1}
    saves = [ModelCheckpoint(**named)]
    if case.save_every is not None:  # and at the end, as ours does
        saves = [ModelCheckpoint(**named, every_n_train_steps=case.save_every)]
        saves += [ModelCheckpoint(**named, every_n_epochs=case.epochs)]
    precision = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    return pl.Trainer(
        max_epochs=case.epochs,
        max_steps=case.max_steps or -1,
        accelerator="cpu",
        devices=case.processes,
        strategy="ddp" if case.processes > 1 else "auto",
        use_distributed_sampler=False,
        precision=precision[case.precision],  # type: ignore[arg-type]
        accumulate_grad_batches=case.window,
        gradient_clip_val=case.clip,
        val_check_interval=case.validate_every,
        log_every_n_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=place,
        callbacks=[*callbacks, *saves],
    )


def train_there(case: Any, rank: int) -> dict[str, Any]:
    """The run in a Lightning trainer."""
    warnings.simplefilter("ignore")
    place, ends = case.place / "there", scenarios.Ends()
    entry = Plugins([*case.plugins(), ends], discover=False)
    module, trainer = There(case), make_trainer(case, place, [entry])
    kept = list((place / "kept").glob("*.ckpt"))
    kept = sorted(kept, key=lambda path: (int(path.stem.split("=")[1]), path.stem))
    own = torch.utils.data.DataLoader(scenarios.make_data(1, 8, case.classes), batch_size=8)
    newest = kept[-1] if case.resumes and kept else None
    with contextlib.suppress(Exception):
        trainer.fit(module, make_loader(case, rank), own, ckpt_path=newest)
    found: dict[str, Any] = scenarios.summarise(ends.result, module, place / "plugins", rank)
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
