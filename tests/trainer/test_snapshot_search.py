"""Callbacks that bring a snapshot before a run looks for one."""

import multiprocessing
import os
import shutil

import pytest
import torch
from torch import nn

from trainer import ConfigError, Trainer, TrainerConfig
from trainer_callback import PluginError, TrainerCallback, UsageError


def make_trainer(*callbacks, place, **settings):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    config = TrainerConfig(
        **{"epochs": 1, "device": "cpu", "snapshot_interval": 1, "output_dir": place, **settings}
    )
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        [torch.ones(2, 4) * (n + 1) for n in range(4)],
        loss_fn=lambda model, batch: model(batch).square().mean(),
        config=config,
        callbacks=callbacks,
        discover=False,
    )


class Bring(TrainerCallback):
    """Copies the run of another directory."""

    def __init__(self, source):
        self.source, self.ids, self.closed = source, [], 0

    def on_snapshot_search(self, trainer):
        self.ids.append(trainer.run_id)
        if trainer.run_id == "":
            shutil.copytree(self.source, trainer.output_dir, dirs_exist_ok=True)

    def close(self):
        self.closed += 1


@pytest.fixture
def source(tmp_path):
    make_trainer(place=tmp_path / "source", max_steps=2).train()
    (tmp_path / "source" / ".lock").unlink()
    return tmp_path / "source"


@pytest.mark.parametrize("resume", [True, "auto"])
def test_a_run_goes_on_from_what_a_callback_has_brought(tmp_path, source, resume):
    whole = make_trainer(place=tmp_path / "whole")
    whole.train()
    bring = Bring(source)
    trainer = make_trainer(bring, place=tmp_path / "new")
    trainer.train(resume)
    assert bring.ids == [""]
    assert torch.equal(trainer.model.weight, whole.model.weight)
    record = (tmp_path / "new" / ".run.json").read_text()
    assert trainer.run.view.run_id in record
    assert trainer.run.view.run_id in (source / ".run.json").read_text()


def test_it_is_told_the_id_of_the_run_that_is_there(tmp_path, source):
    bring = Bring(source)
    make_trainer(bring, place=tmp_path / "new", max_steps=3).train(True)
    trainer = make_trainer(bring, place=tmp_path / "new")
    trainer.train(True)
    assert bring.ids == ["", trainer.run.view.run_id]


def test_it_is_not_called_for_a_fresh_start_a_named_snapshot_or_a_dry_run(tmp_path, source):
    bring = Bring(source)
    make_trainer(bring, place=tmp_path / "fresh").train()
    newest = max((source / "snapshots").iterdir())
    make_trainer(bring, place=tmp_path / "named").train(newest)
    make_trainer(bring, place=tmp_path / "dry", dry_run=True).train("auto")
    assert bring.ids == []


def test_where_nothing_is_brought_a_resume_is_refused_as_ever(tmp_path):
    class Empty(TrainerCallback):
        def on_snapshot_search(self):
            pass

    with pytest.raises(ConfigError, match="there is nothing to resume in"):
        make_trainer(Empty(), place=tmp_path / "new").train(True)
    assert make_trainer(Empty(), place=tmp_path / "auto").train("auto").steps == 4


def test_one_that_refuses_the_run_closes_all_and_leaves_the_directory_free(tmp_path, source):
    class Refuses(TrainerCallback):
        def on_snapshot_search(self):
            raise UsageError("the shelf is locked.")

    bring = Bring(source)
    with pytest.raises(PluginError, match=r"Refuses \(not installed\): the shelf is locked"):
        make_trainer(bring, Refuses(), place=tmp_path / "new").train("auto")
    assert bring.closed == 1
    assert make_trainer(place=tmp_path / "new").train("auto").steps == 4


def test_one_that_fails_and_is_not_critical_is_switched_off(tmp_path, caplog):
    class Fails(TrainerCallback):
        critical = False

        def on_snapshot_search(self):
            raise OSError("no network")

    result = make_trainer(Fails(), place=tmp_path / "new").train("auto")
    assert result.switched_off == ("Fails",)
    assert "Fails (not installed) failed in on_snapshot_search: OSError: no network" in caplog.text


def test_the_directory_is_held_meanwhile(tmp_path, source):
    class Look(TrainerCallback):
        def on_snapshot_search(self, trainer):
            context = multiprocessing.get_context("spawn")
            other = context.Process(target=take, args=(trainer.output_dir,))
            other.start()
            other.join()
            self.code = other.exitcode

    look = Look()
    make_trainer(look, place=tmp_path / "new").train("auto")
    assert look.code == 7


def take(place):
    try:
        make_trainer(place=place).train("auto")
    except ConfigError as error:
        os._exit(7 if "is in use by process" in str(error) else 1)
