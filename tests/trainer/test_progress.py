"""What a person sees of a run: in a terminal of 60 and of 120 columns, a dumb one, a pipe."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import re
import struct
import sys
import termios
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from trainer import ConfigError, Run, Trainer, TrainerConfig
from trainer.writers.figures import fit, show_number, show_time, wrap
from trainer_callback import TrainerCallback

EPOCH = re.compile(r"^epoch (\d+)  update (\d+)/(\d+)  train_loss \d+\.\d{4}  ", re.MULTILINE)


class Slow(TrainerCallback):
    """So slow that the bar is drawn some times in a run."""

    def on_step_end(self, trainer, skipped):
        time.sleep(0.02)


class Talks(Slow):
    def on_step_end(self, trainer, skipped):
        super().on_step_end(trainer, skipped)
        if trainer.step % 3 == 0:
            print("printed", trainer.step)
        if trainer.step % 4 == 0:
            logging.getLogger("talks").warning("logged %d", trainer.step)


def loss_and_outputs(model, batch):
    outputs = model(batch)
    return outputs.square().mean(), outputs


def make_trainer(*, batches=12, sets=True, loader=None, callbacks=(), progress=None, **config):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    data = [torch.randn(4, 4) for _ in range(batches)]
    measured = {name: lambda outputs, batch: outputs[:, 0].abs() for name in ("size", "accuracy")}
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01),
        data if loader is None else loader,
        {"clean": data[:2], "noisy": data[2:4]} if sets else None,
        loss_fn=loss_and_outputs,
        metrics=measured if sets else None,
        config=TrainerConfig(**{"epochs": 2, **config}),
        callbacks=list(callbacks),
        discover=False,
        progress=progress,
    )


def rows(text, columns):
    """What a terminal shows behind `text`."""
    shown, place = [""], 0
    for token in re.findall(r"\x1b\[K|[^\x1b]", text):
        if token == "\r":
            place = 0
        elif token == "\n":
            shown, place = [*shown, ""], 0
        elif token == "\x1b[K":
            shown[-1] = shown[-1][:place]
        else:
            if place == columns:
                shown, place = [*shown, ""], 0
            shown[-1] = f"{shown[-1][:place]:{place}}{token}{shown[-1][place + 1 :]}"
            place += 1
    return shown


@pytest.fixture
def terminal(tiny, monkeypatch):
    """Runs work in a process whose standard streams are a terminal; returns what that gets."""

    def run(work, columns=120, **environment):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        for name in ("CI", "COLUMNS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"TERM": "xterm", **environment}.items():
            monkeypatch.setenv(name, value)

        def child():
            os.close(ours)
            sys.stdout = os.fdopen(theirs, "w", buffering=1)
            sys.stderr = os.fdopen(os.dup(theirs), "w", buffering=1)
            logging.basicConfig(format="%(message)s", force=True)
            work()

        process = tiny.child(child)
        os.close(theirs)
        text = b""
        while block := _read(ours):
            text += block
        assert process.wait() == 0
        return text.decode().replace("\r\n", "\n")

    return run


def _read(terminal):
    try:
        return os.read(terminal, 2**16)
    except OSError:  # its other side is closed
        return b""


@pytest.mark.parametrize("columns", [60, 120])
def test_a_terminal_gets_a_bar_and_a_line_per_epoch_with_every_metric(terminal, columns) -> None:
    shown = rows(terminal(lambda: make_trainer(callbacks=[Slow()]).train(), columns), columns)
    assert max(map(len, shown)) < columns
    whole = re.sub(r"\n {4}", "  ", "\n".join(shown))
    first, second = re.findall(r"^epoch [01]  .*", whole, re.MULTILINE)
    assert first.startswith("epoch 0  update 12/24  train_loss ")
    for name in ("train_loss", "clean/loss", "clean/size", "noisy/loss", "noisy/size"):
        assert re.search(rf"  {name} \d+\.\d{{4}}(  |$)", second), name
    assert re.fullmatch(r"24/24  █+  loss \d\.\d{4}  .*after 0:\d\d", shown[-2])
    assert shown[-1] == ""


@pytest.mark.parametrize("columns", [60, 120])
def test_what_is_printed_and_logged_does_not_tear_the_bar(terminal, columns) -> None:
    text = terminal(lambda: make_trainer(sets=False, callbacks=[Talks()]).train(), columns)
    shown = rows(text, columns)
    assert text.count("\x1b[K") > 12  # it was drawn, and made way
    assert [row for row in shown if "printed" in row] == [f"printed {n}" for n in range(3, 25, 3)]
    assert [row for row in shown if "logged" in row] == [f"logged {n}" for n in range(4, 25, 4)]
    assert len([row for row in shown if "█" in row]) == 1


def test_the_bar_waits_for_the_end_of_a_line_that_is_begun(terminal) -> None:
    class Asks(TrainerCallback):
        def on_step_end(self, trainer, skipped):
            if trainer.step == 5:
                print("(debugger) ", end="", flush=True)
            time.sleep(0.15 if trainer.step in (5, 6) else 0)
            if trainer.step == 7:
                print("continue")

    text = terminal(lambda: make_trainer(sets=False, callbacks=[Asks()]).train())
    assert "(debugger) continue\n" in text


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"CI": "true"}])
def test_a_terminal_that_nobody_draws_in_gets_lines_that_fit(terminal, environment) -> None:
    text = terminal(lambda: make_trainer().train(), 60, **environment)
    assert "\x1b" not in text
    assert "\r" not in text
    assert max(map(len, text.splitlines())) < 60
    assert "    noisy/loss" in text or "  noisy/loss" in text


def test_a_pipe_gets_one_line_per_epoch_and_nothing_between(capsys) -> None:
    make_trainer().train()
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert EPOCH.match(first)
    assert EPOCH.match(second)[2] == "24"
    assert "  noisy/accuracy " in first


def test_lines_cost_an_update_nothing(capsys) -> None:
    run = make_trainer().run
    assert run.view.manager.used.isdisjoint(
        {"on_batch_start", "on_forward_end", "on_backward_end", "on_step_end", "on_batch_end"}
    )
    assert not run._passes._listens


def test_progress_false_shows_nothing_and_true_forces_a_bar(capsys) -> None:
    make_trainer(progress=False).train()
    assert capsys.readouterr() == ("", "")
    make_trainer(progress=True).train()
    assert "\x1b[K24/24" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="progress must be None, True or False, got 'bar'"):
        make_trainer(progress="bar")


def test_a_bar_is_drawn_some_times_a_second_however_often_is_logged(capsys) -> None:
    start = time.monotonic()
    make_trainer(sets=False, progress=True, batches=500, log_interval=1).train()
    draws = capsys.readouterr().err.count("\x1b[K")
    assert draws <= 10 * (time.monotonic() - start) + 8


def test_a_validation_inside_an_epoch_gets_a_line_and_what_others_log_with_it(capsys) -> None:
    class Logs(TrainerCallback):
        def on_validation_end(self, trainer, metrics):
            trainer.log({"ema_val_loss": 0.5})

        def on_epoch_end(self, trainer, epoch):
            trainer.log({"gap": 0.25})

    make_trainer(callbacks=[Logs()], eval_interval=8, epochs=1, log_interval=1).train()
    inside, end = capsys.readouterr().err.splitlines()
    assert re.match(
        r"update 8/12  epoch 0  loss \d\.\d{4}  clean/loss .*  ema_val_loss 0.5", inside
    )
    assert end.startswith("epoch 0  update 12/12  train_loss ")
    assert "  ema_val_loss 0.5000  gap 0.2500  " in end


def test_an_epoch_that_is_cut_has_its_line_once(capsys) -> None:
    make_trainer(eval_interval=8, max_steps=8).train()
    inside, end = capsys.readouterr().err.splitlines()
    assert inside.startswith("update 8/8  epoch 0  clean/loss ")
    assert end.startswith("epoch 0  update 8/8  train_loss ")


def test_a_resume_goes_on_counting(tmp_path, capsys) -> None:
    place = {"output_dir": tmp_path / "run", "gradient_accumulation_steps": 5, "epochs": 3}
    make_trainer(**place, max_steps=4).train()
    capsys.readouterr()
    make_trainer(**place).train(resume=True)
    found = EPOCH.findall(capsys.readouterr().err)
    assert found == [("1", "6", "9"), ("2", "9", "9")]


def test_a_loader_without_a_length_has_no_total(capsys) -> None:
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([torch.ones(4) for _ in range(12)])

    make_trainer(loader=DataLoader(Stream(), batch_size=4), sets=False, epochs=1).train()
    assert capsys.readouterr().err.startswith("epoch 0  update 3  train_loss ")


def test_a_loop_without_a_loader_counts_to_its_limit_alone(capsys) -> None:
    model = nn.Linear(4, 1)
    for most in (None, 6):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        run = Run(model, optimizer, config=TrainerConfig(max_steps=most), discover=False)
        with run.start():
            for number in run.updates():
                run.backward(run.module(torch.ones(2, 4)).mean())
                run.step()
                if number == 6:
                    run.stop("enough")
    without, limited = capsys.readouterr().err.splitlines()
    assert without.startswith("epoch 0  update 7  train_loss ")
    assert limited.startswith("epoch 0  update 6/6  train_loss ")


def test_of_several_processes_the_main_one_alone_writes(tiny, tmp_path) -> None:
    def work(rank):
        sys.stderr = (tmp_path / str(rank)).open("w", buffering=1)
        make_trainer(sets=False).train()

    assert tiny.run_ranks(work) == [0, 0]
    assert (tmp_path / "0").read_text().startswith("epoch 0  update 6/12  train_loss ")
    assert (tmp_path / "1").read_text() == ""


def test_streams_and_handlers_are_given_back_where_a_run_fails(capsys, monkeypatch) -> None:
    class Fails(TrainerCallback):
        def on_step_end(self, trainer, skipped):
            print("behind the bar")
            raise RuntimeError("on purpose")

    handler = logging.StreamHandler()
    monkeypatch.setattr(logging.root, "handlers", [handler])
    streams = (sys.stdout, sys.stderr, handler.stream)
    with pytest.raises(Exception, match="on purpose"):
        make_trainer(callbacks=[Fails()], progress=True).train()
    assert (sys.stdout, sys.stderr, handler.stream) == streams
    assert capsys.readouterr().out == "behind the bar\n"


@pytest.mark.parametrize("progress", [None, True])
def test_a_run_goes_on_where_nobody_reads(monkeypatch, progress) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    closed = os.fdopen(writer, "w", buffering=1)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", closed)
        result = make_trainer(progress=progress).train()
    assert result.status == "finished"
    assert result.switched_off == ()
    with pytest.raises(BrokenPipeError):
        closed.close()


def test_no_standard_error_is_no_fault(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert make_trainer().train().status == "finished"


def test_no_number_is_cut() -> None:
    parts = [f"name_{n} {show_number(0.1 * n)}" for n in range(20)]
    for width in (20, 59, 119):
        lines = wrap(parts, width).splitlines()
        assert max(map(len, lines)) <= width
        assert [part for line in lines for part in line.strip().split("  ")] == parts
        assert set(fit([*enumerate(parts)], width)) < set(parts)
    assert wrap(parts, None).count("\n") == 0


def test_numbers_are_as_long_as_they_say_something() -> None:
    numbers = (0.0, 1e-5, -0.5, 12.3456, 123456.7, float("nan"), float("inf"))
    shown = ["0.0000", "1e-05", "-0.5000", "12.3456", "1.235e+05", "nan", "inf"]
    assert [show_number(number) for number in numbers] == shown
    assert [show_time(seconds) for seconds in (5, 65, 3723)] == ["0:05", "1:05", "1:02:03"]
