"""SIGTERM and Ctrl-C, sent to real processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from trainer.processes.signals import SignalFlags
from trainer.snapshots.snapshot import list_snapshots
from trainer.snapshots.state_file import load_state
from trainer_callback import SnapshotError, TrainerCallback

pytestmark = pytest.mark.any_loop


class Sender(TrainerCallback):
    """Sends signals to its own process at one hook, and notes the hooks that come after."""

    def __init__(self, hook, at, *numbers, note=None):
        self.hook, self.at, self.numbers, self.note = hook, at, numbers, note
        self.calls, self.sent = 0, False

    def tell(self, hook):
        if self.note is not None and self.sent:
            with self.note.open("a") as file:
                file.write(f"{hook}\n")
        if hook == self.hook and not self.sent:
            self.calls += 1
            if self.calls == self.at:
                self.sent = True
                for number in self.numbers:
                    os.kill(os.getpid(), number)

    def on_train_start(self, trainer, resumed):
        self.tell("on_train_start")

    def on_batch_start(self, trainer, batch_idx, batch):
        self.tell("on_batch_start")

    def on_step_end(self, trainer, skipped):
        self.tell("on_step_end")

    def on_batch_end(self, trainer, batch_idx, loss):
        self.tell("on_batch_end")

    def on_validation_start(self, trainer):
        self.tell("on_validation_start")

    def on_epoch_end(self, trainer, epoch):
        self.tell("on_epoch_end")

    def on_snapshot_save(self, trainer, epoch, step):
        self.tell("on_snapshot_save")

    def on_snapshot_saved(self, trainer, path, epoch, step):
        self.tell("on_snapshot_saved")

    def on_exception(self, trainer, exception):
        self.tell(f"on_exception {type(exception).__name__}")

    def on_train_end(self, trainer, result):
        self.tell(f"on_train_end {result.status}")


def whole_run(tiny, place, **options):
    def work():
        tiny.trainer(place, callbacks=[Sender("", 0)], **options).train()

    assert tiny.child(work).wait() == 0
    return tiny.newest_state(place)


@pytest.mark.parametrize(
    ("hook", "at", "step"),
    [
        ("on_train_start", 1, 0),
        ("on_batch_start", 3, 3),
        ("on_batch_end", 3, 3),
        ("on_step_end", 6, 6),
        ("on_validation_start", 1, 3),
        ("on_validation_start", 2, 6),
        ("on_epoch_end", 1, 6),
        ("on_snapshot_save", 1, 4),  # the decision of update 3 has been made
    ],
)
def test_sigterm(tiny, tmp_path, hook, at, step):
    note = tmp_path / "note"
    options = {"eval_interval": 3, "snapshot_interval": 3}
    whole = whole_run(tiny, tmp_path / "whole", **options)

    def work(resume, *callbacks):
        trainer = tiny.trainer(tmp_path / "run", callbacks=[*callbacks], **options)
        return trainer.train(resume=resume).exit_code

    sender = Sender(hook, at, signal.SIGTERM, signal.SIGTERM, note=note)
    started = time.monotonic()
    assert tiny.child(lambda: work(False, sender)).wait() == 143
    assert time.monotonic() - started < 10
    found = tiny.newest_state(tmp_path / "run")
    assert found["progress"]["step"] == step
    assert note.read_text().split("\n")[-2] == "on_train_end terminated"
    assert not (tmp_path / "run" / "final").exists()
    assert tiny.child(lambda: work(True, Sender("", 0))).wait() == 0
    assert tiny.difference(whole, tiny.newest_state(tmp_path / "run")) is None


def test_sigterm_to_a_run_with_loader_workers(tiny, tmp_path):
    class Group(TrainerCallback):
        def on_step_end(self, trainer, skipped):
            if trainer.step == 2:
                os.killpg(0, signal.SIGTERM)
                os.killpg(0, signal.SIGINT)

    def work(resume, *callbacks):
        os.setpgid(0, 0)
        trainer = tiny.trainer(tmp_path, workers=2, callbacks=callbacks, snapshot_interval=100)
        return trainer.train(resume=resume).exit_code

    assert tiny.child(lambda: work(False, Group())).wait() == 143
    assert tiny.newest_state(tmp_path)["progress"]["step"] == 2
    assert tiny.child(lambda: work(True)).wait() == 0


@pytest.mark.parametrize("way", ["fork", "spawn"])
@pytest.mark.parametrize(("name", "code"), [("TERM", 143), ("INT", 130)])
def test_a_signal_to_a_group_leaves_the_workers_to_finish_the_update(
    tiny, tmp_path, name, code, way
):
    class Group(TrainerCallback):
        def on_batch_start(self, trainer, batch_idx, batch):
            if batch_idx == 0:
                kill = f"kill -{name} -{os.getpgid(0)}"  # from outside, as a batch system does
                subprocess.run(["sh", "-c", kill], start_new_session=True, check=True)
                time.sleep(0.5)  # a worker that obeys would be gone now

    def work():
        os.setpgid(0, 0)
        loader = DataLoader(
            TensorDataset(torch.ones(24, 4)),
            batch_size=4,
            num_workers=2,
            multiprocessing_context=way,
        )
        trainer = tiny.trainer(
            tmp_path,
            loader=loader,
            loss_fn=lambda model, batch: model(batch[0]).square().mean(),
            val=False,
            gradient_accumulation_steps=6,
            callbacks=[Group()],
        )
        return trainer.train().exit_code

    assert tiny.child(work).wait() == code
    progress = tiny.newest_state(tmp_path)["progress"]
    assert (progress["step"], progress["batch_in_epoch"]) == (1, 6)


def test_a_worker_ends_when_its_own_parent_says_so(tiny):
    class Stuck(tiny.items):
        def __getitem__(self, index):
            time.sleep(600)

    from trainer.processes.signals import WorkerShield

    def work():
        batches = iter(DataLoader(Stuck(), num_workers=1, worker_init_fn=WorkerShield(None)))
        time.sleep(1)
        (worker,) = multiprocessing.active_children()
        worker.terminate()
        worker.join(5)
        os._exit(0 if worker.exitcode == 0 else 3 + 0 * len([batches]))

    assert tiny.child(work).wait() == 0


def test_sigterm_before_the_first_batch_of_a_resume_keeps_the_loaders_place(tiny, tmp_path):
    options = {"kind": "stateful", "snapshot_interval": 1, "snapshot_sync": True}

    def work(name, resume, *callbacks):
        trainer = tiny.trainer(tmp_path / name, callbacks=callbacks, **options)
        return trainer.train(resume=resume).exit_code

    assert tiny.child(lambda: work("whole", False)).wait() == 0
    assert tiny.child(lambda: work("one", False, tiny.killer(25))).wait() == -signal.SIGKILL
    (newest, *_) = list_snapshots(tmp_path / "one" / "snapshots")
    assert load_state(newest)[0]["progress"]["batch_in_epoch"] > 0
    sender = Sender("on_train_start", 1, signal.SIGTERM)
    assert tiny.child(lambda: work("two", newest, sender)).wait() == 143
    assert tiny.child(lambda: work("two", True)).wait() == 0
    states = [tiny.newest_state(tmp_path / name) for name in ("whole", "two")]
    for state in states:
        del state["callback_state"]  # each directory has a log of its own
    assert tiny.difference(*states) is None


def test_the_earlier_handler_of_sigterm_is_chained_and_put_back():
    called = []

    def earlier(number, frame):
        called.append(number)
        sys.exit(9)

    before = signal.signal(signal.SIGTERM, earlier)
    try:
        caught = SignalFlags().caught()
        flags = caught.__enter__()
        os.kill(os.getpid(), signal.SIGTERM)
        assert flags.terminated
        assert called == [signal.SIGTERM]
        with pytest.raises(SystemExit, match="9"):
            caught.__exit__(None, None, None)
        assert signal.getsignal(signal.SIGTERM) is earlier
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_child_that_inherits_the_handler_of_sigterm_does_nothing():
    before = signal.signal(signal.SIGTERM, lambda number, frame: os._exit(9))
    try:
        with SignalFlags().caught() as flags:
            child = os.fork()
            if child == 0:
                os.kill(os.getpid(), signal.SIGTERM)
                os._exit(int(flags.terminated))
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with SignalFlags().caught():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_no_handler_is_installed_off_the_main_thread(tiny):
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, trainer, skipped):
            seen.append(signal.getsignal(signal.SIGTERM))

    def work():
        tiny.trainer(None, snapshot_interval=None, epochs=1, callbacks=[Look()]).train()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert set(seen) == {before}


def test_ctrl_c_once(tiny, tmp_path):
    note = tmp_path / "note"

    def work(resume, *callbacks):
        tiny.trainer(tmp_path / "run", callbacks=callbacks).train(resume=resume)

    sender = Sender("on_batch_start", 3, signal.SIGINT, note=note)
    assert tiny.child(lambda: work(False, sender)).wait() == 130
    told = note.read_text().split()
    assert told[:4] == ["on_step_end", "on_batch_end", "on_snapshot_saved", "on_snapshot_save"]
    assert "on_exception KeyboardInterrupt\n" in note.read_text()
    assert note.read_text().endswith("on_train_end interrupted\n")
    assert tiny.newest_state(tmp_path / "run")["progress"]["step"] == 3
    assert tiny.child(lambda: work(True, Sender("", 0))).wait() == 0
    whole = whole_run(tiny, tmp_path / "whole")
    assert tiny.difference(whole, tiny.newest_state(tmp_path / "run")) is None


def test_ctrl_c_twice(tiny, tmp_path):
    note = tmp_path / "note"
    sender = Sender("on_batch_start", 4, signal.SIGINT, signal.SIGINT, note=note)

    def work():
        tiny.trainer(tmp_path / "run", callbacks=[sender]).train()

    assert tiny.child(work).wait() == 130
    assert "on_step_end" not in note.read_text()
    assert tiny.newest_state(tmp_path / "run")["progress"]["step"] == 2


def test_sigterm_whose_snapshot_cannot_be_written_is_a_failure(tiny, tmp_path):
    class Break(TrainerCallback):
        def on_step_end(self, trainer, skipped):
            if trainer.step == 3:
                (trainer.output_dir / "snapshots" / ".tmp-step-00000003").touch()
                (trainer.output_dir / "snapshots").rename(trainer.output_dir / "moved")
                (trainer.output_dir / "snapshots").touch()
                os.kill(os.getpid(), signal.SIGTERM)

    def work():
        try:
            tiny.trainer(tmp_path / "run", callbacks=[Break()], snapshot_sync=True).train()
        except SnapshotError as error:
            (tmp_path / "error").write_text(str(error))
            return 1
        return 0

    assert tiny.child(work).wait() == 1
    assert "step-00000003" in (tmp_path / "error").read_text()
    load_state(tmp_path / "run" / "moved" / "step-00000002")


def test_a_signal_inside_the_last_batch_of_an_epoch_without_validation(tiny, tmp_path):
    whole = whole_run(tiny, tmp_path / "whole", val=False)

    def work(resume, *callbacks):
        trainer = tiny.trainer(tmp_path / "run", callbacks=callbacks, val=False)
        return trainer.train(resume=resume).exit_code

    sender = Sender("on_batch_end", 6, signal.SIGTERM)
    assert tiny.child(lambda: work(False, sender)).wait() == 143
    assert tiny.child(lambda: work(True, Sender("", 0))).wait() == 0
    assert tiny.difference(whole, tiny.newest_state(tmp_path / "run")) is None


def test_a_cut_validation_leaves_no_trace_in_the_random_numbers(tiny, tmp_path):
    def loss_fn(model, batch):
        if not model.training and os.environ.get("CUT") and torch.rand(()) >= 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return model(batch).square().mean()

    whole = whole_run(tiny, tmp_path / "whole", eval_interval=2)

    def work(resume, cut):
        os.environ["CUT"] = cut
        trainer = tiny.trainer(
            tmp_path / "run", loss_fn=loss_fn, eval_interval=2, callbacks=[Sender("", 0)]
        )
        return trainer.train(resume=resume).exit_code

    assert tiny.child(lambda: work(False, "1")).wait() == 143
    assert tiny.child(lambda: work(True, "")).wait() == 0
    assert tiny.difference(whole, tiny.newest_state(tmp_path / "run")) is None
