"""A run that may kill its process: `main`, for a process of its own.

Options: `losses`, one an epoch; `keep`, the number of snapshots; `early`, the options of early
stopping; `kill`, the hook and the epoch in which the process dies, or `rename` for the moment at
which the file of the best weights is to get its name. Each epoch's weights are noted
in DIRECTORY/epochs.jsonl as a digest; the end is sent to `telling`.
"""

import hashlib
import json
import os
import signal
import sys

import torch
from torch import nn

from trainer import Trainer, TrainerConfig
from trainer_callback import TrainerCallback
from trainer_early_stopping import EarlyStoppingCallback


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(4, 4)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.drop(self.norm(self.first(x)))).square().mean()


class Witness(TrainerCallback):
    def __init__(self, directory, kill):
        self.file = directory / "epochs.jsonl"
        self.kill = kill

    def on_epoch_end(self, trainer, epoch):
        with self.file.open("a") as file:
            note = {"pid": os.getpid(), "epoch": epoch, "digest": digest_of(trainer.model)}
            file.write(json.dumps(note) + "\n")
        self.die_in("on_epoch_end", epoch)

    def on_snapshot_save(self, trainer, epoch, step):
        self.die_in("on_snapshot_save", epoch)

    def on_train_start(self, trainer):
        def audit(event, arguments):
            if event == "os.rename" and "/weights/" in str(arguments[1]):
                self.die_in("rename", trainer.epoch)

        sys.addaudithook(audit)

    def die_in(self, hook, epoch):
        if self.kill == [hook, epoch]:
            os.kill(os.getpid(), signal.SIGKILL)


def digest_of(model):
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def main(telling, directory, losses, keep, early, kill=None):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Model()
    batches = list(torch.randn(4, 8, 4))

    def loss_fn(model, batch):
        return model(batch) if model.training else torch.tensor(losses[trainer.epoch])

    callback = EarlyStoppingCallback(**early)
    trainer = Trainer(
        model,
        torch.optim.AdamW(model.parameters(), lr=0.01),
        batches,
        [torch.zeros(1)],
        loss_fn=loss_fn,
        config=TrainerConfig(
            epochs=len(losses),
            device="cpu",
            output_dir=directory / "run",
            snapshot_epochs=True,
            snapshot_sync=True,
            keep_snapshots=keep,
        ),
        callbacks=[callback, Witness(directory, kill)],
        discover=False,
    )
    result = trainer.train(resume="auto")
    end = {
        "pid": os.getpid(),
        "status": result.status,
        "reason": result.stop_reason,
        "best_epoch": callback.best_epoch,
        "best": callback.best,
        "digest": digest_of(model),
        "tied": model.first.weight is model.last.weight,
    }
    telling.send(end)
