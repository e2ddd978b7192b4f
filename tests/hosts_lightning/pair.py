"""What each of two processes runs, started by torchrun: `python pair.py WHERE SCENARIO`."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, DistributedSampler

sys.path.insert(0, str(Path(__file__).parent.parent))
warnings.simplefilter("ignore")

from hosts_lightning import runs  # noqa: E402

from trainer_callback import TrainerCallback  # noqa: E402
from trainer_early_stopping import EarlyStoppingCallback  # noqa: E402
from trainer_ema import EMACallback  # noqa: E402
from trainer_gradient_monitor import GradientMonitorCallback  # noqa: E402

RANK = int(os.environ["RANK"])


class StopsOne(TrainerCallback):
    """Process 1 alone wants to end the run, and a snapshot before that."""

    def should_stop_training(self, trainer):
        return RANK == 1 and trainer.step == 5

    def on_step_end(self, trainer):
        if RANK == 1 and trainer.step == 2:
            trainer.request_snapshot()


class FailsOne(TrainerCallback):
    """It fails in process 1 alone, and is not critical."""

    critical = False

    def on_step_end(self, trainer):
        if RANK == 1 and trainer.step == 2:
            raise ValueError("weak")


class BreaksOne(TrainerCallback):
    """It fails in process 1 alone, and ends the run."""

    def on_step_end(self, trainer):
        if RANK == 1 and trainer.step == 2:
            raise ValueError("strong")


class Own(TrainerCallback):
    """Each process has a state of its own."""

    state_per_process = True
    seen = 0

    def on_batch_start(self, batch):
        self.seen += int(batch[0][0, 0] > 0)

    def on_snapshot_save(self):
        return {"seen": self.seen}

    def on_snapshot_load(self, state):
        self.seen = state["seen"] if state else 0

    def on_train_end(self, trainer):
        Path(f"seen-{trainer.rank}.txt").write_text(str(self.seen))


class Dies(pl.Callback):
    def on_train_batch_start(self, trainer, *rest):
        if trainer.global_step == 9:
            os.kill(os.getpid(), 9)


class Differs(runs.Module):
    """Each process has a validation loss of its own, which nobody has averaged."""

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", float(self.trainer.global_rank), sync_dist=False)


def make_plugins(scenario):
    if scenario in ("plain", "killed", "resumed"):
        return [
            EarlyStoppingCallback(patience=1, min_delta=0.3),
            EMACallback(),
            GradientMonitorCallback(monitor_interval=1, report=False),
            Own(),
        ]
    made = {"one stops": StopsOne, "one fails": FailsOne, "one breaks": BreaksOne}
    return [made[scenario]()] if scenario in made else []


def share(seed, batches):
    data = runs.make_data(seed, batches)
    sampler = DistributedSampler(data, 2, RANK, shuffle=False)
    return DataLoader(data, batch_size=runs.SIZE, sampler=sampler)


def train(where, scenario):
    place, plugins = Path(where), make_plugins(scenario)
    if where == "home":
        result, model = runs.train_home(place, plugins, data=share(0, 12), max_grad_norm=1.0)
    else:
        others = [runs.save_each(place, save_last=True)]
        others += [Dies()] if scenario == "killed" else []
        result, model, _ = runs.train_host(
            place,
            plugins,
            data=share(0, 12),
            others=others,
            module=Differs() if scenario == "differs" else None,
            ckpt_path="last" if scenario == "resumed" else None,
            strategy="ddp",
            devices=2,
            use_distributed_sampler=False,
            gradient_clip_val=1.0,
        )
    content = {"outcome": runs.outcome(result), "val_loss": result.val_loss}
    content["switched_off"] = result.switched_off
    torch.save(model.state_dict(), f"{where}-{RANK}.pt")
    Path(f"{where}-{RANK}.json").write_text(json.dumps(content))


if __name__ == "__main__":
    train(*sys.argv[1:])
