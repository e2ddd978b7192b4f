"""Plugins that a program has not named: those of the environment, and of Lightning's command."""

from __future__ import annotations

import importlib.metadata
import os

import pytest

pytest.importorskip("lightning")

SCRIPT = """
    import sys
    import {package} as pl, torch
    from torch import nn
    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1)
        def training_step(self, batch, batch_idx):
            return self.layer(batch).square().mean()
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)
    {more}
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, callbacks={callbacks},
                         enable_progress_bar=False, enable_model_summary=False)
    names = [type(each).__name__ for each in trainer.callbacks if "Plugins" in type(each).__name__]
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(8, 2), batch_size=2))
    plugins = [each for each in trainer.callbacks if "Plugins" in type(each).__name__]
    ran = plugins[0].result.callback_costs if plugins else ()
    print("CALLBACKS", *names, "RAN", *sorted(ran))
    """


def run_with(run_script, *, package="lightning.pytorch", callbacks="[]", more="", code=0, **names):
    taken = {each: value for each, value in os.environ.items() if not each.startswith("TRAINER_")}
    script = SCRIPT.format(package=package, callbacks=callbacks, more=more)
    return run_script(script, env={**taken, **names}, code=code)


def test_both_packages_of_lightning_ask_our_factory():
    for package in ("lightning.pytorch", "pytorch_lightning"):
        group = importlib.metadata.entry_points(group=f"{package}.callbacks_factory")
        assert [each.value for each in group] == ["trainer_lightning.factory:make_callbacks"]


def test_nothing_is_added_unless_the_environment_asks(run_script):
    assert "CALLBACKS RAN\n" in run_with(run_script)


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_the_environment_names_plugins(package, run_script):
    output = run_with(run_script, package=package, TRAINER_CALLBACKS="throughput, ema")
    assert "CALLBACKS EnvironmentPlugins RAN ema" in output
    assert "throughput" in output


def test_the_environment_names_a_file_of_options(run_script, tmp_path):
    (tmp_path / "run.yaml").write_text("epochs: 9\nema: true\nema_decay: 0.5\nthroughput: false\n")
    output = run_with(run_script, TRAINER_CONFIG="run.yaml")
    assert "CALLBACKS EnvironmentPlugins RAN ema metrics_file" in output


def test_plugins_of_the_environment_join_those_of_the_program(run_script):
    more = "from trainer_lightning import Plugins"
    callbacks = '[Plugins(["throughput"])]'
    output = run_with(run_script, more=more, callbacks=callbacks, TRAINER_CALLBACKS="ema")
    assert "CALLBACKS Plugins EnvironmentPlugins RAN ema metrics_file throughput" in output


def test_a_name_that_is_not_installed_ends_the_program(run_script):
    output = run_with(run_script, TRAINER_CALLBACKS="emma", code=1)
    assert "emma" in output
    assert "ema" in output


def test_the_command_of_lightning_takes_plugins_by_class_path(run_script, tmp_path):
    pytest.importorskip("jsonargparse")
    (tmp_path / "plugins.yaml").write_text(
        """
trainer:
  max_epochs: 1
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  callbacks:
    - class_path: trainer_lightning.Plugins
      init_args:
        entries: [throughput, {ema: {decay: 0.5}}]
"""
    )
    output = run_script(
        """
        import torch
        from torch import nn
        import lightning.pytorch as pl
        from lightning.pytorch.cli import LightningCLI
        class Module(pl.LightningModule):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(2, 1)
            def training_step(self, batch, batch_idx):
                return self.layer(batch).square().mean()
            def train_dataloader(self):
                return torch.utils.data.DataLoader(torch.ones(8, 2), batch_size=2)
            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)
        cli = LightningCLI(Module, args=["fit", "--config", "plugins.yaml"])
        print("RAN", cli.trainer.callbacks[0].result.status)
        """
    )
    assert "RAN finished" in output
