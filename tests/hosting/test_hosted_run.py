"""A loop of somebody else's that tells a `HostedRun` what it does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from trainer import Trainer, TrainerConfig
from trainer.hosting import HostedRun, read_state_file, write_state_file
from trainer.testing import Recorder
from trainer_callback import TrainerCallback
from trainer_early_stopping import EarlyStoppingCallback
from trainer_ema import EMACallback
from trainer_gradient_monitor import GradientMonitorCallback

EPOCHS, SIZE, WINDOW = 3, 4, 2


def make_parts():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.05)


def make_batches(seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(5 * SIZE, 4, generator=generator)
    return [(part, part.sum(1, keepdim=True)) for part in inputs.split(SIZE)]


TRAINING, VALIDATION = make_batches(0), make_batches(1)


def loss_of(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def train_by_hand(run, model, optimizer, first=0, last=EPOCHS, folder=None):
    """A loop that knows nothing of ours, but for what it tells `run`."""
    for epoch in range(first, last):
        run.start_epoch(epoch, batches=len(TRAINING))
        for start in range(0, len(TRAINING), WINDOW):
            window = TRAINING[start : start + WINDOW]
            for number, batch in enumerate(window):
                ends, is_last = number + 1 == len(window), batch is TRAINING[-1]
                run.start_batch(batch, is_last=is_last)
                loss = loss_of(model, batch)
                run.end_forward(loss, items=SIZE)
                (loss / len(window)).backward()
                if ends:
                    run.end_backward()
                    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    run.end_clipping(norm, 1.0)
                    optimizer.step()
                    run.end_step(skipped=False)
                    optimizer.zero_grad()
                run.end_batch(ends_update=ends)
            if not is_last and run.decide().stop:
                break
        model.eval()
        run.start_validation()
        with torch.no_grad():
            losses = [loss_of(model, batch).item() for batch in VALIDATION]
        run.end_validation({"val_loss": sum(losses) / len(losses)}, ends_epoch=True)
        model.train()
        run.end_epoch()
        decision = run.decide()
        if folder is not None:
            write_state_file(folder, run.collect())
            run.tell_saved(folder)
            torch.save((model.state_dict(), optimizer.state_dict()), folder / "host.pt")
        if decision.stop:
            break
    return run.end(None)


def make_config(place, **options):
    settings = {"log_interval": 1, "max_grad_norm": 1.0, "gradient_accumulation_steps": WINDOW}
    return TrainerConfig(output_dir=place, epochs=EPOCHS, device="cpu", **settings, **options)


def make_run(model, optimizer, callbacks, place):
    settings = {"host": "A loop", "validates": True, "discover": False}
    return HostedRun(model, optimizer, config=make_config(place), callbacks=callbacks, **settings)


def train_at_home(callbacks, place):
    model, optimizer = make_parts()
    loader = torch.utils.data.DataLoader(TRAINING, batch_size=None)
    trainer = Trainer(
        model,
        optimizer,
        loader,
        val_loader=torch.utils.data.DataLoader(VALIDATION, batch_size=None),
        loss_fn=loss_of,
        config=make_config(place),
        callbacks=callbacks,
        discover=False,
        progress=False,
    )
    return trainer.train(), model


def make_plugins():
    return [
        EarlyStoppingCallback(patience=1),
        EMACallback(),
        GradientMonitorCallback(monitor_interval=1),
    ]


def describe(recorder):
    left_out = {"on_snapshot_save", "on_snapshot_saved", "should_stop_training", "on_final_saved"}
    left_out |= {"on_validation_set_start", "on_validation_set_end", "on_validation_batch_end"}
    return [
        (call.hook, call.step, call.epoch, {**call.arguments}.get("batch_idx"))
        for call in recorder.calls
        if call.hook not in left_out
    ]


def read_lines(place, name):
    lines = (place / name).read_text().splitlines()
    return [line.split('"_time"')[0] for line in lines if "callback_costs" not in line]


def test_callbacks_see_the_calls_that_they_see_in_a_trainer(tmp_path):
    at_home, hosted = Recorder(), Recorder()
    train_at_home([at_home], tmp_path / "home")
    model, optimizer = make_parts()
    run = make_run(model, optimizer, [hosted], tmp_path / "hosted")
    run.open()
    run.begin()
    train_by_hand(run, model, optimizer)
    assert describe(hosted) == describe(at_home)


def test_plugins_decide_record_and_keep_weights_as_in_a_trainer(tmp_path):
    result, expected = train_at_home(make_plugins(), tmp_path / "home")
    model, optimizer = make_parts()
    run = make_run(model, optimizer, make_plugins(), tmp_path / "hosted")
    run.open()
    run.begin()
    found = train_by_hand(run, model, optimizer)
    assert (found.status, found.stop_reason, found.steps) == (
        result.status,
        result.stop_reason,
        result.steps,
    )
    assert found.history == result.history
    assert read_lines(tmp_path / "hosted", "gradient_flow/gradients.jsonl") == read_lines(
        tmp_path / "home", "gradient_flow/gradients.jsonl"
    )
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_state_in_a_checkpoint_is_gone_on_from(tmp_path):
    whole, place = tmp_path / "whole", tmp_path / "cut"
    model, optimizer = make_parts()
    run = make_run(model, optimizer, make_plugins(), whole)
    run.open()
    run.begin()
    expected = train_by_hand(run, model, optimizer)
    model, optimizer = make_parts()
    run = make_run(model, optimizer, make_plugins(), place)
    run.open()
    run.begin()
    train_by_hand(run, model, optimizer, last=1, folder=tmp_path / "checkpoint")
    kept = torch.load(tmp_path / "checkpoint" / "host.pt")
    model, optimizer = make_parts()
    run = make_run(model, optimizer, make_plugins(), place)
    run.open(read_state_file(tmp_path / "checkpoint", 3))
    model.load_state_dict(kept[0])
    optimizer.load_state_dict(kept[1])
    run.begin()
    found = train_by_hand(run, model, optimizer, first=1)
    assert found.history == expected.history
    assert read_lines(place, "metrics.jsonl") == read_lines(whole, "metrics.jsonl")
    assert (place / "gradient_flow/gradients.jsonl").read_bytes() == (
        whole / "gradient_flow/gradients.jsonl"
    ).read_bytes()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda place: (place / "plugins" / "manifest.json").unlink(), "has no state of plugins"),
        (lambda place: (place / "plugins" / "state.pt").write_bytes(b"x"), "state.pt"),
        (lambda place: None, "is of update 3, and the checkpoint of update 4"),
    ],
)
def test_a_state_that_does_not_fit_is_said_and_with_strict_refused(spoil, said, tmp_path, caplog):
    model, optimizer = make_parts()
    run = make_run(model, optimizer, [], None)
    run.open()
    run.begin()
    train_by_hand(run, model, optimizer, last=1, folder=tmp_path)
    spoil(Path(tmp_path))
    assert read_state_file(tmp_path, 4) is None
    assert said in caplog.text
    with pytest.raises(Exception, match="strict=True") as caught:
        read_state_file(tmp_path, 4, strict=True)
    assert said in str(caught.value)


def test_a_second_run_in_a_directory_leaves_the_files_of_the_first(tmp_path):
    for _ in range(2):
        model, optimizer = make_parts()
        run = make_run(model, optimizer, [], tmp_path / "plugins")
        run.open()
        run.begin()
        train_by_hand(run, model, optimizer)
    first, second = tmp_path / "plugins-1", tmp_path / "plugins"
    assert read_lines(first, "metrics.jsonl") == read_lines(second, "metrics.jsonl")


def test_a_run_that_goes_on_without_a_state_stands_where_its_host_does(tmp_path):
    places = []

    class Looks(TrainerCallback):
        def on_setup(self, trainer):
            places.append((trainer.epoch, trainer.step, trainer.batch_in_epoch))

        def on_epoch_start(self, trainer):
            places.append((trainer.epoch, trainer.step, trainer.batch_in_epoch))

    model, optimizer = make_parts()
    run = make_run(model, optimizer, [Looks()], tmp_path / "plugins")
    run.open(resumes=True, place=(1, 5, 4))
    run.begin()
    run.start_epoch(1, batches=len(TRAINING))
    run.end(None)
    assert places == [(1, 5, 4)] * 2


def test_the_end_of_an_epoch_that_is_cut_has_what_was_validated_there(tmp_path):
    recorder = Recorder()
    model, optimizer = make_parts()
    run = make_run(model, optimizer, [recorder], tmp_path / "plugins")
    run.open()
    run.begin()
    run.start_epoch(0, batches=len(TRAINING))
    run.start_validation()
    run.end_validation({"val_loss": 0.5}, ends_epoch=False)
    run.end_epoch(cut=True)
    run.end(None)
    (call,) = recorder.of("on_epoch_end")
    assert call["val_loss"] == 0.5
    assert run.position.history[-1]["val_loss"] == 0.5


def test_a_checkpoint_between_a_validation_and_its_epochs_end_keeps_what_was_found(tmp_path):
    model, optimizer = make_parts()
    run = make_run(model, optimizer, [], tmp_path / "plugins")
    run.open()
    run.begin()
    run.start_epoch(0, batches=1)
    train_batch(run, model)
    run.start_validation()
    run.end_validation({"val_loss": 0.25}, ends_epoch=True)
    saved = run.collect()
    model, optimizer = make_parts()
    run = make_run(model, optimizer, [], tmp_path / "plugins")
    run.open(saved)
    run.begin()
    run.start_epoch(0, batches=1)
    run.end_epoch()
    assert run.position.history[-1]["val_loss"] == 0.25


def test_a_batch_without_a_loss_is_passed_over(tmp_path):
    heard = Recorder()
    model, optimizer = make_parts()
    run = make_run(model, optimizer, [heard], None)
    run.open()
    run.begin()
    run.start_epoch(0, batches=5)
    run.start_batch(TRAINING[0], is_last=False)
    run.end_batch(ends_update=False)
    train_batch(run, model)
    numbers = [{**call.arguments}["batch_idx"] for call in heard.calls if "batch_" in call.hook]
    assert [call.hook for call in heard.calls if "_batch_" in call.hook] == [
        "on_batch_start",
        "on_batch_start",
        "on_batch_end",
    ]
    assert numbers == [0, 1, 1]


def train_batch(run, model):
    run.start_batch(TRAINING[0], is_last=False)
    loss = loss_of(model, TRAINING[0])
    run.end_forward(loss, items=SIZE)
    loss.backward()
    run.end_backward()
    run.end_step(skipped=False)
    run.end_batch(ends_update=True)


BREAKING = """
import os, sys, torch
from trainer import TrainerConfig
from trainer.hosting import HostedRun
torch.manual_seed(0)
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
config = TrainerConfig(device="cpu")
run = HostedRun(model, optimizer, host="A loop", config=config, callbacks=[], discover=False)
run.open()
run.begin()
try:
    run.start_epoch(0, batches=1)
    if os.environ["RANK"] == "1":
        raise RuntimeError("the host broke")
    run.decide()
except BaseException as error:
    run.end(None, error)
    print(f"{type(error).__name__}: {error}")
"""


def test_where_one_process_of_a_host_fails_the_others_hear_of_it(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    words = [sys.executable, "-c", BREAKING]
    others = {**os.environ, **place, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            words, env={**others, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    waits, breaks = (process.communicate(timeout=60)[0] for process in processes)
    assert breaks == "RuntimeError: the host broke\n"
    assert waits.startswith("FixedPointError: ")
    assert "the host broke" in waits
