"""`trainer.submit`: work in the background, in order, whose failures and whose end are told."""

import os
import signal
import threading
import time

import pytest

from trainer.view import senders
from trainer_callback import CallbackError, TrainerCallback

PLAIN = {"snapshot_interval": None, "val": False}


class Sends(TrainerCallback):
    """Lets a thread keep each event that is logged."""

    def __init__(self):
        self.sent, self.threads, self.taken = [], set(), []

    def send(self, event):
        self.sent.append(event)
        self.threads.add(threading.get_ident())

    def on_log(self, trainer, event):
        self.taken.append(trainer.submit(self, self.send, event))


def test_jobs_are_done_in_order_in_one_thread_that_ends_with_the_run(tiny):
    sends, before = Sends(), threading.active_count()
    tiny.trainer(None, callbacks=[sends], **PLAIN).train()
    assert sends.sent == [*range(21)]
    assert sends.taken == [True] * 21
    assert len(sends.threads) == 1
    assert threading.get_ident() not in sends.threads
    assert threading.active_count() == before


def test_there_is_no_thread_where_nobody_submits(tiny):
    class Counts(TrainerCallback):
        def on_train_end(self):
            self.count = threading.active_count()

    counts, before = Counts(), threading.active_count()
    tiny.trainer(None, callbacks=[counts], **PLAIN).train()
    assert counts.count == before


def test_a_job_that_fails_is_the_failure_of_its_callback_at_the_next_boundary(tiny):
    class Fails(Sends):
        def send(self, event):
            super().send(event)
            raise OSError("no route")

        def on_step_end(self, trainer):
            while trainer.step == 2 and not self.sent:
                time.sleep(0.01)

    fails = Fails()
    with pytest.raises(CallbackError, match=r"^Fails .* failed in submit: OSError: no route$"):
        tiny.trainer(None, callbacks=[fails], **PLAIN).train()
    assert fails.sent == [0]


def test_one_that_is_not_critical_is_switched_off_and_its_jobs_are_dropped(tiny, caplog):
    class Fails(Sends):
        critical = False

        def send(self, event):
            super().send(event)
            raise OSError("no route")

    fails = Fails()
    result = tiny.trainer(None, callbacks=[fails], **PLAIN).train()
    assert result.switched_off == ("Fails",)
    assert fails.sent == [0]
    assert "failed in submit: OSError: no route. It is not critical" in caplog.text


def test_a_job_that_fails_at_the_very_end_fails_the_run(tiny, tmp_path):
    class Fails(TrainerCallback):
        def on_final_saved(self, trainer):
            trainer.submit(self, self.upload)

        def upload(self):
            time.sleep(0.1)
            raise OSError("no route")

    with pytest.raises(CallbackError, match="failed in submit: OSError: no route"):
        tiny.trainer(tmp_path, callbacks=[Fails()], max_steps=1).train()
    assert (tmp_path / "final").exists()


def test_the_end_of_a_run_waits_for_what_is_submitted_in_its_last_hooks(tiny, tmp_path):
    class Late(Sends):
        def on_train_end(self, trainer):
            trainer.submit(self, lambda: time.sleep(0.1))
            trainer.submit(self, self.send, "end")

        def on_final_saved(self, trainer):
            trainer.submit(self, lambda: time.sleep(0.1))
            trainer.submit(self, self.send, "final")

    late = Late()
    tiny.trainer(tmp_path, callbacks=[late], max_steps=1).train()
    assert late.sent[-2:] == ["end", "final"]


def test_the_end_of_a_run_waits_a_limited_time_and_says_what_was_not_done(
    tiny, caplog, monkeypatch
):
    monkeypatch.setattr(senders, "_PATIENCE", 0.3)
    gate = threading.Event()

    class Stuck(Sends):
        def send(self, event):
            gate.wait()

    stuck = Stuck()
    began = time.monotonic()
    assert tiny.trainer(None, callbacks=[stuck], **PLAIN).train().status == "finished"
    assert time.monotonic() - began < 20
    gate.set()
    assert "Stuck (not installed): 21 jobs in the background were not done in time" in caplog.text


def test_a_full_queue_says_so_and_does_not_wait(tiny):
    gate = threading.Event()

    class Full(TrainerCallback):
        def on_step_end(self, trainer):
            self.taken = [trainer.submit(self, gate.wait) for _ in range(1002)]
            gate.set()

    full = Full()
    tiny.trainer(None, callbacks=[full], max_steps=1, **PLAIN).train()
    assert full.taken == [True] * 1000 + [False] * 2


def test_what_a_job_logs_is_logged(tiny):
    class Logs(TrainerCallback):
        def __init__(self):
            self.got = []

        def on_epoch_end(self, trainer):
            trainer.submit(self, trainer.log, {"delay": 2.0})

        def on_log(self, metrics):
            self.got += [value for name, value in metrics.items() if name == "delay"]

    logs = Logs()
    tiny.trainer(None, callbacks=[logs], **PLAIN).train()
    assert logs.got == [2.0] * 3


def test_several_threads_may_submit(tiny):
    class Several(Sends):
        def on_log(self):
            pass

        def on_step_end(self, trainer):
            ask = lambda: [trainer.submit(self, self.send, n) for n in range(50)]  # noqa: E731
            threads = [threading.Thread(target=ask) for _ in range(4)]
            for each in threads:
                each.start()
            for each in threads:
                each.join()

    several = Several()
    tiny.trainer(None, callbacks=[several], max_steps=1, **PLAIN).train()
    assert sorted(several.sent) == sorted([*range(50)] * 4)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("me", "send"), TypeError, "function must be callable, got 'send'"),
        ((object(), print), TypeError, "is no callback of this run. Write trainer.submit(self,"),
    ],
)
def test_a_wrong_call_is_refused_where_it_is_made(tiny, arguments, error, words):
    class Wrong(TrainerCallback):
        def on_train_start(self, trainer):
            with pytest.raises(error) as caught:
                trainer.submit(*arguments)
            assert words in str(caught.value)

    tiny.trainer(None, callbacks=[Wrong()], max_steps=1, **PLAIN).train()


def test_after_the_run_and_in_a_process_that_was_forked_off_it_is_refused(tiny):
    class Keeps(Sends):
        def on_train_start(self, trainer):
            self.trainer = trainer
            child = os.fork()
            if child == 0:
                try:
                    trainer.submit(self, print)
                except RuntimeError as error:
                    os._exit(0 if "another process" in str(error) else 1)
                os._exit(2)
            assert os.waitpid(child, 0)[1] == 0

    keeps = Keeps()
    tiny.trainer(None, callbacks=[keeps], max_steps=1, **PLAIN).train()
    with pytest.raises(RuntimeError, match="the run is over, so nobody would wait for this"):
        keeps.trainer.submit(keeps, print)


def test_a_signal_cuts_the_wait_at_the_end(tiny, tmp_path):
    class Stuck(TrainerCallback):
        def on_train_end(self, trainer):
            trainer.submit(self, time.sleep, 60)
            (tmp_path / "waits").touch()

    def work():
        return tiny.trainer(tmp_path / "run", callbacks=[Stuck()], max_steps=1).train().exit_code

    child, began = tiny.child(work), time.monotonic()
    while not (tmp_path / "waits").exists():
        time.sleep(0.01)
    time.sleep(0.2)
    child.send(signal.SIGINT)
    assert child.wait(12) == 0
    assert time.monotonic() - began < 12
    assert (tmp_path / "run/final").exists()
