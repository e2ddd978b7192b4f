"""`trainer.logged`: what was logged, each event once, and the numbers of the events."""

import json
import math
import signal
import threading
import time

import pytest

from trainer.writers.journal import Journal
from trainer.writers.metrics_file import MetricsFile
from trainer_callback import LogRecord, TrainerCallback


class Keeps(TrainerCallback):
    """Keeps the events that it is told, and what the journal has at the start and at the end."""

    def __init__(self):
        self.told, self.texts, self.before, self.after = [], [], [], []

    def on_train_start(self, trainer):
        self.before = [*trainer.logged()]

    def on_log(self, trainer, metrics, step, event, time):
        self.told.append(LogRecord(event, time, step, trainer.epoch, metrics, {}))

    def on_log_text(self, trainer, name, text, step, event, time):
        self.told.append(LogRecord(event, time, step, trainer.epoch, {}, {name: text}))

    def on_epoch_end(self, trainer):
        trainer.log({"worst": math.nan, "most": math.inf, "least": -math.inf})
        trainer.log_text("note", "nan")

    def on_train_end(self, trainer):
        self.after = [*trainer.logged()]


def alike(one, other):
    return repr(one) == repr(other)  # NaN differs from itself


@pytest.mark.parametrize("place", ["run", None])
def test_the_journal_has_what_callbacks_are_told(tiny, tmp_path, place):
    keeps, start = Keeps(), time.time()
    settings = {} if place else {"snapshot_interval": None}
    tiny.trainer(place and tmp_path / place, callbacks=[keeps], **settings).train()
    assert alike(keeps.told, keeps.after)
    assert [record.event for record in keeps.after] == [*range(len(keeps.told))]
    assert len(keeps.told) == 18 + 3 * 3
    assert all(start - 1 < record.time < time.time() for record in keeps.after)
    assert keeps.before == []
    *_, numbers, text = keeps.after
    assert [*map(str, numbers.metrics.values())] == ["nan", "inf", "-inf"]
    assert (text.metrics, text.texts) == ({}, {"note": "nan"})


@pytest.mark.parametrize("at", [3, 17, 40, 63, 80])
def test_a_run_that_was_killed_and_resumed_has_each_event_once(tiny, tmp_path, at):
    whole, run = Keeps(), Keeps()
    tiny.trainer(tmp_path / "whole", callbacks=[whole]).train()

    def train(*callbacks):
        tiny.trainer(tmp_path / "run", callbacks=callbacks).train(resume="auto")

    assert tiny.child(lambda: train(Keeps(), tiny.killer(at))).wait() == -signal.SIGKILL
    train(run)
    times = [dict(vars(record), time=None) for record in (*whole.after, *run.after)]
    assert alike(times[: len(whole.after)], times[len(whole.after) :])
    assert alike(run.told, run.after[len(run.before) :])  # what the killed run lost comes again
    assert alike(run.before, run.after[: len(run.before)])


def test_the_journal_begins_where_it_is_asked_to_and_threads_read_it_too(tiny, tmp_path):
    found = []

    class Asks(TrainerCallback):
        def on_step_end(self, trainer):
            if trainer.step == 5:
                read = lambda: found.extend(trainer.logged(since=2))  # noqa: E731
                thread = threading.Thread(target=read)
                thread.start()
                thread.join()

    tiny.trainer(tmp_path, callbacks=[Asks()], epochs=1).train()
    assert [record.event for record in found] == [2, 3]
    assert [record.step for record in found] == [3, 4]


def test_lines_without_numbers_are_counted(tmp_path):
    old = [b'{"step": 1, "epoch": 0, "loss": 1.0}', b'{"step": 2, "epoch": 0, "text": {"a": "b"}}']
    new = b'{"step": 3, "epoch": 0, "_event": 2, "_time": 1700000000.120, "loss": "nan"}'
    lost = b'{"step": 4, "epoch": 0, "_event": 3, "_time": 1700000000.120, "loss": 2.0}'
    content = b"".join(line + b"\n" for line in (*old, new))
    (tmp_path / "metrics.jsonl").write_bytes(content + lost)
    journal = Journal(MetricsFile(tmp_path / "metrics.jsonl"))
    journal.start({"MetricsFile": {"length": len(content), "unwritten": ""}})
    assert journal.count() == 3
    first, text, last = journal.read(0)
    assert first == LogRecord(0, None, 1, 0, {"loss": 1.0}, {})
    assert text == LogRecord(1, None, 2, 0, {}, {"a": "b"})
    assert (last.event, last.time) == (2, 1700000000.12)
    assert math.isnan(last.metrics["loss"])


def test_lines_that_wait_in_memory_are_there(tmp_path):
    journal = Journal(MetricsFile(tmp_path / "metrics.jsonl"))
    line = json.dumps({"step": 1, "epoch": 0, "_event": 7, "_time": 1.5, "loss": 2.0})
    journal.start({"MetricsFile": {"length": 0, "unwritten": line + "\n"}})
    assert [*journal.read(0)] == [LogRecord(7, 1.5, 1, 0, {"loss": 2.0}, {})]


def test_a_line_of_somebody_else_is_left_out_and_said(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'[1]\n{"step": 1, "epoch": 0, "loss": 1.0}\n')
    journal = Journal(MetricsFile(path))
    journal.start({"MetricsFile": {"length": path.stat().st_size, "unwritten": ""}})
    assert [record.step for record in journal.read(0)] == [1]
    assert [each.message for each in caplog.records] == [
        f"{path}: line 1 is none that a run has written, and is left out."
    ]


def test_memory_says_what_it_has_not_kept(tiny, monkeypatch):
    class Logs(TrainerCallback):
        def on_epoch_end(self, trainer):
            for _ in range(10_000):
                trainer.log({"x": 1.0})
            with pytest.raises(RuntimeError) as caught:
                trainer.logged()
            self.said = str(caught.value)
            self.kept = [*trainer.logged(7)]

    logs = Logs()
    tiny.trainer(None, callbacks=[logs], snapshot_interval=None, epochs=1).train()
    assert logs.said.startswith(
        "trainer.logged: a run without output_dir keeps its last 10000 events, from number 7 on"
    )
    assert [record.event for record in logs.kept] == [*range(7, 10_007)]


@pytest.mark.parametrize("since", [-1, 1.5, "3", None])
def test_a_wrong_number_is_refused(tiny, since):
    class Asks(TrainerCallback):
        def on_train_start(self, trainer):
            with pytest.raises(TypeError, match=r"since must be the number of an event, got"):
                trainer.logged(since)

    tiny.trainer(None, callbacks=[Asks()], snapshot_interval=None, max_steps=1).train()


def test_other_processes_than_the_main_one_are_refused(tiny, tmp_path):
    class Asks(TrainerCallback):
        def on_train_end(self, trainer):
            if trainer.is_main_process:
                assert len([*trainer.logged()]) == 3
            else:
                with pytest.raises(
                    RuntimeError, match=r"this is process 1\. Ask for trainer\.is_m"
                ):
                    trainer.logged()

    def work(rank):
        tiny.trainer(tmp_path, callbacks=[Asks()], max_steps=2, val=False).train()

    assert tiny.run_ranks(work) == [0, 0]


def test_metrics_may_be_called_event_and_time(tiny, tmp_path):
    class Logs(TrainerCallback):
        def on_train_end(self, trainer):
            trainer.log({"event": 1.0, "time": 2.0})
            *_, self.last = trainer.logged()
            with pytest.raises(ValueError, match=r"'_time' stands in every line of metrics.jsonl"):
                trainer.log({"_time": 2.0})

    logs = Logs()
    tiny.trainer(tmp_path, callbacks=[logs], max_steps=1).train()
    assert logs.last.metrics == {"event": 1.0, "time": 2.0}
