"""`trainer.log`: what it takes, from where it may be called, and that nothing of it is lost."""

import decimal
import json
import math
import os
import threading

import numpy
import pytest
import torch

from trainer_callback import CallbackError, TrainerCallback, UsageError, hookimpl


def read(place):
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "callback_costs" not in line]


class Heard(TrainerCallback):
    """Keeps what is logged under some names, with the update and the thread."""

    def __init__(self, *names):
        self.names = names
        self.values = []
        self.texts = []
        self.threads = set()

    def on_log(self, trainer, metrics, step):
        found = [(step, name, value) for name, value in metrics.items() if name in self.names]
        self.values += found
        if found:
            self.threads.add(threading.get_ident())

    def on_log_text(self, name, text):
        self.texts.append(text)
        self.threads.add(threading.get_ident())


class Unprintable:
    def __repr__(self):
        raise OSError("no text")


@pytest.mark.parametrize(
    ("metrics", "error", "words"),
    [
        ({0: 0.9}, TypeError, "the name of a metric must be a str that is not empty, got 0."),
        ({"": 0.9}, TypeError, "the name of a metric must be a str that is not empty, got ''."),
        ({"step": 77}, ValueError, "'step' stands in every line of metrics.jsonl already."),
        ({"epoch": 7.0}, ValueError, "'epoch' stands in every line of metrics.jsonl already."),
        ({"x": "0.5"}, TypeError, "'x' must be a number, got '0.5'."),
        ({"x": b"1"}, TypeError, "'x' must be a number, got b'1'."),
        ({"x": None}, TypeError, "'x' must be a number, got None."),
        ({"x": 1j}, TypeError, "'x' must be a number, got 1j."),
        ({"x": numpy.complex64(1j)}, TypeError, "'x' must be a number, got"),
        ({"x": torch.tensor(1j)}, TypeError, "'x' must be a number, got"),
        ({"x": torch.ones(2)}, TypeError, "'x' must be a number, got tensor([1., 1.])."),
        ({"x": numpy.ones(2)}, TypeError, "'x' must be a number, got array([1., 1.])."),
        ({"x": torch.ones((), device="meta")}, TypeError, "'x' must be a number, got"),
        ({"x": [1.0]}, TypeError, "'x' must be a number, got [1.0]."),
        ({"x": 10**400}, TypeError, "'x' must be a number, got 1000"),
        ({"x": Unprintable()}, TypeError, "'x' must be a number, got a Unprintable."),
        ([("x", 1.0)], TypeError, "metrics must be a mapping of names to numbers, got"),
        (None, TypeError, "metrics must be a mapping of names to numbers, got None."),
    ],
)
def test_a_wrong_call_is_refused_where_it_is_made(tiny, metrics, error, words):
    class Logs(TrainerCallback):
        critical = False

        def on_epoch_end(self, trainer):
            with pytest.raises(error) as caught:
                trainer.log({"good": 1.0, **metrics} if isinstance(metrics, dict) else metrics)
            self.said = str(caught.value)
            assert "good" not in trainer.metrics

    logs = Logs()
    result = tiny.trainer(None, callbacks=[logs], snapshot_interval=None, epochs=1).train()
    assert result.switched_off == ()
    assert logs.said.startswith(f"trainer.log: {words}"), logs.said


def test_a_wrong_call_of_a_callback_is_its_own_failure(tiny):
    class Logs(TrainerCallback):
        def on_step_end(self, trainer):
            trainer.log({0: 0.9})

    with pytest.raises(CallbackError, match=r"^Logs \(not installed\) failed in on_step_end: Type"):
        tiny.trainer(None, callbacks=[Logs(), Heard()], snapshot_interval=None).train()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, 1.0),
        (numpy.float32(0.5), 0.5),
        (numpy.bool_(True), 1.0),
        (numpy.array(3), 3.0),
        (torch.tensor(2), 2.0),
        (torch.tensor([0.25]), 0.25),
        (torch.tensor(True), 1.0),
        (torch.tensor(1.5, requires_grad=True), 1.5),
        (decimal.Decimal("0.5"), 0.5),
        (math.inf, math.inf),
    ],
)
def test_whatever_is_one_number_is_logged_as_a_float(tiny, value, expected):
    class Logs(TrainerCallback):
        def on_epoch_end(self, trainer):
            trainer.log({"x": value})

    heard = Heard("x")
    tiny.trainer(None, callbacks=[Logs(), heard], snapshot_interval=None, epochs=1).train()
    assert [(type(value), value) for _, _, value in heard.values] == [(float, expected)]


class Sampler(TrainerCallback):
    """Logs from a thread of its own, as monitors of a machine do, until the run ends."""

    def __init__(self, count=2000):
        self.count = count

    def on_train_start(self, trainer):
        self.thread = threading.Thread(target=self.sample, args=(trainer,))
        self.thread.start()

    def sample(self, trainer):
        for number in range(self.count):
            trainer.log({"sampled": float(number)})
        trainer.log_text("note", "the thread is done")

    def on_train_end(self):
        self.thread.join()


def test_what_a_thread_logs_is_sent_in_the_thread_of_the_loop_and_none_of_it_is_lost(
    tiny, tmp_path
):
    heard = Heard("sampled")
    tiny.trainer(tmp_path, callbacks=[Sampler(), heard]).train()
    assert heard.threads == {threading.get_ident()}
    assert [value for _, _, value in heard.values] == [float(n) for n in range(2000)]
    assert heard.texts == ["the thread is done"]
    assert [line["sampled"] for line in read(tmp_path) if "sampled" in line] == [
        float(number) for number in range(2000)
    ]


def test_a_wrong_call_in_a_thread_is_refused_there(tiny):
    caught = []

    class Logs(TrainerCallback):
        def on_step_end(self, trainer):
            def log():
                with pytest.raises(TypeError) as error:
                    trainer.log({"x": "0.5"})
                caught.append(str(error.value))

            thread = threading.Thread(target=log)
            thread.start()
            thread.join()

    tiny.trainer(None, callbacks=[Logs()], snapshot_interval=None, max_steps=1).train()
    assert caught == ["trainer.log: 'x' must be a number, got '0.5'. Use float(...)."]


def test_a_snapshot_that_a_thread_asks_for_is_taken_at_the_next_boundary(tiny, tmp_path):
    class Asks(TrainerCallback):
        def on_step_end(self, trainer):
            if trainer.step == 3:
                thread = threading.Thread(target=trainer.request_snapshot)
                thread.start()
                thread.join()

    trainer = tiny.trainer(
        tmp_path, callbacks=[Asks()], snapshot_interval=None, snapshot_epochs=False, max_steps=5
    )
    trainer.train()
    assert [path.name for path in sorted((tmp_path / "snapshots").iterdir())] == [
        "step-00000003",
        "step-00000005",
    ]


def test_a_call_after_the_end_of_a_run_is_refused_in_any_thread(tiny):
    trainer = tiny.trainer(None, snapshot_interval=None, max_steps=1)
    trainer.train()
    said = []

    def call():
        for name, arguments in (("log", ({"x": 1.0},)), ("log_text", ("a", "b"))):
            with pytest.raises(RuntimeError) as caught:
                getattr(trainer, name)(*arguments)
            said.append(str(caught.value))

    call()
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert len(said) == 4
    assert all(text.startswith("the run is over, so nobody would hear of this.") for text in said)


def test_a_call_in_a_process_that_was_forked_off_is_refused(tiny, tmp_path):
    class Forks(TrainerCallback):
        def on_step_end(self, trainer):
            if trainer.step == 1:
                child = os.fork()
                if child == 0:
                    try:
                        trainer.log({"x": 1.0})
                    except RuntimeError as error:
                        os._exit(0 if "another process" in str(error) else 1)
                    os._exit(2)
                assert os.waitpid(child, 0)[1] == 0

    tiny.trainer(tmp_path, callbacks=[Forks()], max_steps=2).train()
    assert not any("x" in line for line in read(tmp_path))


class Everywhere(TrainerCallback):
    """Logs in each hook in which writers may not be open yet, or no more."""

    def on_snapshot_load(self, trainer):
        trainer.log({"early": 1.0})

    def on_train_start(self, trainer):
        trainer.log({"early": 2.0})
        assert trainer.metrics["early"] == 2.0  # seen at once

    def on_exception(self, trainer):
        trainer.log({"late": 3.0})

    @hookimpl(wrapper=True)
    def on_train_end(self, trainer):
        trainer.log({"late": 4.0})
        yield
        trainer.log({"late": 5.0})


class Writer(TrainerCallback):
    """Opens at the start, as a writer does."""

    def __init__(self):
        self.open = False
        self.got = []

    def on_train_start(self):
        self.open = True

    def on_log(self, metrics):
        assert self.open
        self.got += [value for name, value in metrics.items() if name in ("early", "late")]


def test_nothing_that_is_logged_around_a_run_is_lost(tiny, tmp_path):
    tiny.trainer(tmp_path, max_steps=2).train()
    writer = Writer()
    trainer = tiny.trainer(tmp_path, callbacks=[Everywhere(), writer], max_steps=4)
    trainer.log({"early": 0.0})
    trainer.log_text("note", "before")
    trainer.train(resume=True)
    assert writer.got == [0.0, 1.0, 2.0, 4.0, 5.0]
    lines = read(tmp_path)
    assert [line["early"] for line in lines if "early" in line] == [0.0, 1.0, 2.0]
    assert [line["late"] for line in lines if "late" in line] == [4.0, 5.0]
    assert [line["step"] for line in lines if "early" in line] == [2, 2, 2]


def test_what_is_logged_in_a_run_that_fails_at_its_start_is_written(tiny, tmp_path):
    class Refuses(TrainerCallback):
        def on_train_start(self):
            raise UsageError("not so")

    trainer = tiny.trainer(tmp_path, callbacks=[Everywhere(), Refuses()])
    with pytest.raises(UsageError, match="not so"):
        trainer.train()
    values = [line.get("early", line.get("late")) for line in read(tmp_path)]
    assert values == [2.0, 3.0, 4.0, 5.0]


def test_a_writer_that_fails_at_what_waited_is_blamed(tiny):
    class Fails(TrainerCallback):
        def on_log(self, metrics):
            if "early" in metrics:
                raise OSError("why")

    with pytest.raises(CallbackError, match=r"^Fails \(not installed\) failed in on_log: OSErr"):
        tiny.trainer(None, callbacks=[Everywhere(), Fails()], snapshot_interval=None).train()


def test_a_callback_that_logs_whenever_something_is_logged_is_told_what_to_do(tiny):
    class Echo(TrainerCallback):
        def on_log(self, trainer):
            trainer.log({"again": 1.0})

    with pytest.raises(CallbackError, match=r"inside on_log.*Log it in another hook") as caught:
        tiny.trainer(None, callbacks=[Echo()], snapshot_interval=None, epochs=1).train()
    assert len(str(caught.value)) < 1000


def test_a_callback_that_logs_a_text_whenever_one_is_logged_is_told_what_to_do(tiny):
    class Echo(TrainerCallback):
        def on_epoch_start(self, trainer):
            trainer.log_text("a", "b")

        def on_log_text(self, trainer, name, text):
            trainer.log_text(name, text)

    with pytest.raises(CallbackError, match=r"inside on_log_text 20 times.*in another hook") as got:
        tiny.trainer(None, callbacks=[Echo()], snapshot_interval=None, epochs=1).train()
    assert len(str(got.value)) < 1000
