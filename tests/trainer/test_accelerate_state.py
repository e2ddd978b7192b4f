"""What a run keeps in Accelerate's own checkpoints, and finds there again."""

import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trainer import Run, TrainerConfig
from trainer.testing import Recorder
from trainer_early_stopping import EarlyStoppingCallback
from trainer_ema import EMACallback

accelerate = pytest.importorskip("accelerate")


def make_script(place, *, window=1, callbacks=None, epochs=4):
    """What such a script begins with."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=window)
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    inputs = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(inputs), batch_size=4, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    callbacks = (
        [EMACallback(), EarlyStoppingCallback(patience=9)] if callbacks is None else callbacks
    )
    run = Run(
        model,
        optimizer,
        accelerator=accelerator,
        callbacks=callbacks,
        discover=False,
        config=TrainerConfig(
            epochs=epochs, output_dir=place, log_interval=1, snapshot_interval=None
        ),
        validate=lambda: {"val_loss": float(run.model.weight.detach().abs().sum())},
    )
    return accelerator, run, model, loader


class GoneError(Exception):
    """The process is gone."""


def train(accelerator, run, model, loader, *, save_at=None, folder=None, stop_at=None, early=False):
    with run.start():
        for _ in run.epochs():
            for (inputs,) in run.batches(loader):
                with accelerator.accumulate(model):
                    run.backward((run.module(inputs) - inputs.sum(1, keepdim=True)).square().mean())
                    run.step()
                is_here = early == (run.position.step != run.position.update)
                if save_at is not None and run.position.step == save_at and is_here:
                    accelerator.save_state(folder)
                    save_at = None
                if run.position.step == stop_at:
                    raise GoneError
    return run


def read_lines(place):
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    dropped = ("_time", "callback_costs")
    return [{name: line[name] for name in line if name not in dropped} for line in lines]


@pytest.mark.parametrize("step", [6, 8], ids=["behind an epoch's last update", "inside an epoch"])
def test_a_run_goes_on_from_a_checkpoint_of_accelerate_as_if_nothing_had_happened(step, tmp_path):
    whole = train(*make_script(tmp_path / "whole"))
    script = make_script(tmp_path / "cut")
    with pytest.raises(GoneError):
        train(*script, save_at=step, folder=tmp_path / "kept", stop_at=step + 3)
    script = make_script(tmp_path / "cut")
    script[0].load_state(tmp_path / "kept")
    again = train(*script)
    assert again.result.history == whole.result.history
    assert read_lines(tmp_path / "cut") == read_lines(tmp_path / "whole")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


def test_what_accelerate_saves_itself_is_not_saved_twice(tmp_path):
    train(*make_script(None), save_at=3, folder=tmp_path / "kept")
    kept = torch.load(tmp_path / "kept" / "custom_checkpoint_0.pkl", weights_only=True)
    assert not {"model", "optimizer", "scheduler", "scaler"} & kept["state"].keys()
    assert {"EMACallback", "EarlyStoppingCallback"} <= kept["state"]["callback_state"].keys()


def test_the_end_of_the_batch_comes_before_the_checkpoint_and_once(tmp_path):
    heard = Recorder()
    script = make_script(None, callbacks=[heard], epochs=1)
    train(*script, save_at=2, folder=tmp_path / "kept")
    hooks = [call.hook for call in heard.calls if call.hook in ("on_batch_end", "on_snapshot_save")]
    assert hooks == ["on_batch_end"] * 2 + ["on_snapshot_save"] + ["on_batch_end"] * 4


def test_a_checkpoint_inside_an_update_is_refused(tmp_path):
    script = make_script(None, window=2)
    with pytest.raises(RuntimeError, match="inside update 3"):
        train(*script, save_at=2, folder=tmp_path / "kept", early=True)


def test_a_checkpoint_is_loaded_before_the_run_starts(tmp_path):
    train(*make_script(None), save_at=3, folder=tmp_path / "kept")
    accelerator, run, _, _ = make_script(None)
    with run.start(), pytest.raises(RuntimeError, match=r"before run\.start"):
        accelerator.load_state(tmp_path / "kept")


def test_a_checkpoint_that_says_nothing_of_the_run_is_said(tmp_path, caplog):
    script = make_script(None)
    train(*script)
    script[0].save_state(tmp_path / "kept")
    accelerator, *_ = make_script(None)
    accelerator.load_state(tmp_path / "kept")
    assert "was saved outside the run" in caplog.text
