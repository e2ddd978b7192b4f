"""Plugins beside what else a trainer has: other callbacks, loggers, copies of themselves."""

import copy
import pickle

import pytest

pytest.importorskip("lightning")

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import LearningRateFinder, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger

from trainer.testing import Recorder
from trainer_callback import UsageError
from trainer_early_stopping import EarlyStoppingCallback
from trainer_ema import EMACallback
from trainer_lightning import Plugins

from .runs import Module, make_host, make_loader, train_host

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("plugin", [EarlyStoppingCallback, EMACallback])
def test_two_that_put_weights_back_are_refused_before_the_first_step(plugin, tmp_path):
    recorder, averaging = Recorder(), StochasticWeightAveraging(swa_lrs=0.01)
    with pytest.raises(UsageError, match=r"StochasticWeightAveraging and .* both put weights"):
        train_host(tmp_path, [plugin(), recorder], others=[averaging])
    assert recorder.calls == []


def test_a_search_for_a_learning_rate_is_no_resume(tmp_path, caplog):
    class Rated(Module):
        lr = 0.01

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=self.lr)

    recorder = Recorder()
    train_host(tmp_path, [], epochs=1)
    search = LearningRateFinder(num_training_steps=5)
    entry = Plugins([recorder], discover=False, strict=True)
    found, *_ = train_host(tmp_path, [], entry=entry, module=Rated(), others=[search], epochs=1)
    assert (found.status, found.steps) == ("finished", 6)
    assert "no state of plugins" not in caplog.text
    assert recorder.of("on_train_start") == [{"resumed": False}]
    assert (tmp_path / "plugins-1").exists()


def test_a_logger_that_another_callback_has_added_stays(tmp_path):
    class Adds(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.loggers = [*trainer.loggers, CSVLogger(tmp_path)]

    *_, trainer = train_host(tmp_path, [], others=[Adds()], epochs=1)
    assert [type(each) for each in trainer.loggers] == [CSVLogger]


def test_they_are_copied_and_pickled_behind_a_run(tmp_path):
    trainer, plugins = make_host(tmp_path, [EarlyStoppingCallback(), EMACallback()], epochs=1)
    trainer.fit(Module(), make_loader(0, 6), make_loader(1, 5))
    assert pickle.loads(pickle.dumps(copy.deepcopy(plugins))).result == plugins.result


def test_plugins_of_the_environment_join_in_each_trainer_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINER_CALLBACKS", "throughput")
    plugins = Plugins([], discover=False)
    for name in ("first", "second"):
        result, *_ = train_host(tmp_path / name, [], entry=plugins, epochs=1)
        assert result.status == "finished"
        assert "throughput" in str(result.callback_costs)
