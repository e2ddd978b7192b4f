"""One tiny run, in our `Trainer` and in a Lightning trainer: same model, batches and order."""

from __future__ import annotations

import json
import math

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from trainer import Trainer, TrainerConfig
from trainer_lightning import Plugins

SIZE, BATCHES, VALIDATION, EPOCHS = 4, 6, 5, 3


def add_layers(module):
    torch.manual_seed(3)
    module.first, module.second = nn.Linear(4, 4), nn.Linear(4, 1)


def apply_layers(module, inputs):
    return module.second(torch.tanh(module.first(inputs)))


def loss_of(module, batch):
    return nn.functional.mse_loss(module(batch[0]).float(), batch[1])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        add_layers(self)

    forward = apply_layers


class Module(pl.LightningModule):
    """What a user writes."""

    def __init__(self, **options):
        super().__init__()
        add_layers(self)
        self.options = options

    forward = apply_layers

    def training_step(self, batch, batch_idx):
        return loss_of(self, batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", loss_of(self, batch), batch_size=len(batch[0]))

    def configure_optimizers(self):
        return make_optimizer(self, **self.options)


def make_optimizer(module, rate=0.05):
    return torch.optim.AdamW(module.parameters(), lr=rate)


def make_data(seed, batches, last=SIZE):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn((batches - 1) * SIZE + last, 4, generator=generator)
    return torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))


def make_loader(seed, batches, *, kind=torch.utils.data.DataLoader, last=SIZE):
    return kind(make_data(seed, batches, last), batch_size=SIZE)


class Cut(pl.Callback):
    """Breaks the run off, as a crash does."""

    def __init__(self, step, hook="on_train_batch_start"):
        self.step, self.hook = step, hook
        setattr(self, hook, self._cut)

    def _cut(self, trainer, *rest):
        if trainer.global_step == self.step:
            raise ConnectionError("cut")


def train_home(place, plugins, *, epochs=EPOCHS, window=1, data=None, validation=True, **options):
    """Returns the result and the model of a run of ours."""
    net = Net()
    optimizer = make_optimizer(net)
    settings = {"log_interval": 1, "max_grad_norm": None, "device": "cpu", **options}
    config = TrainerConfig(
        output_dir=place, epochs=epochs, gradient_accumulation_steps=window, **settings
    )
    trainer = Trainer(
        *(net, optimizer, make_loader(0, BATCHES) if data is None else data),
        val_loader=make_loader(1, VALIDATION) if validation else None,
        loss_fn=loss_of,
        config=config,
        callbacks=plugins,
        discover=False,
        progress=False,
    )
    return trainer.train(), net


def make_host(place, plugins, *, epochs=EPOCHS, window=1, others=(), entry=None, **options):
    """Returns a Lightning trainer with plugins, and the callback that has them."""
    entry = entry or Plugins(plugins, discover=False)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[entry, *others],
        default_root_dir=place,
        accumulate_grad_batches=window,
        **{"log_every_n_steps": 1, **options},
    )
    return trainer, entry


def train_host(place, plugins, *, data=None, validation=True, ckpt_path=None, module=None, **named):
    """Returns the result, the module, and the trainer, of a run in Lightning."""
    trainer, entry = make_host(place, plugins, **named)
    module = module or Module()
    trainer.fit(
        module,
        make_loader(0, BATCHES) if data is None else data,
        make_loader(1, VALIDATION) if validation else None,
        ckpt_path=ckpt_path,
    )
    return entry.result, module, trainer


def save_each(place, **options):
    """A checkpoint behind each epoch, or as `options` say."""
    return ModelCheckpoint(dirpath=place / "kept", filename="{step}", save_top_k=-1, **options)


def read_records(place):
    """Returns the lines of metrics.jsonl, without times and costs."""
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in ("_time", "callback_costs")} for line in lines
    ]


def assert_same_records(found, expected):
    """Numbers are equal, but for means of a validation, which Lightning computes in float32."""
    assert len(found) == len(expected)
    for own, other in zip(found, expected, strict=True):
        assert own.keys() == other.keys()
        for name, value in own.items():
            if "val_" in name and isinstance(value, float) and math.isfinite(value):
                assert math.isclose(value, other[name], rel_tol=1e-6), name
            else:
                assert value == other[name] or value != value, (own, other, name)


def assert_same_weights(module, net):
    for name, value in net.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name


def outcome(result):
    return (result.status, result.stop_reason, result.stopped_by, result.steps, result.epochs)


def assert_same_run(place, found, home, expected):
    """Decisions, records and weights of the run in `place` are those of the one at `home`.

    Args:
        found: result and module of Lightning.
        expected: result and model of ours.
    """
    assert outcome(found[0]) == outcome(expected[0])
    assert_same_records(read_records(place / "plugins"), read_records(home))
    assert_same_weights(found[1], expected[1])
