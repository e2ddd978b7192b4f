"""What a callback holds is given back, whichever way a run ends, and its last state is kept."""

import signal
import threading

import pytest

from trainer import ConfigError
from trainer_callback import CallbackError, TrainerCallback, UsageError


class Holder(TrainerCallback):
    """Holds a thread and a file, as a monitor does."""

    def __init__(self, place, calls=None):
        self.place = place
        self.calls = [] if calls is None else calls
        self.stop = threading.Event()
        self.thread = None
        self.file = None

    def on_train_start(self):
        self.calls.append("on_train_start")
        self.thread = threading.Thread(target=self.stop.wait, daemon=True)
        self.thread.start()
        self.file = self.place.open("w")

    def on_train_end(self):
        self.calls.append("on_train_end")

    def close(self):
        self.calls.append("close")
        if self.thread is not None:
            self.stop.set()
            self.thread.join()
            self.file.close()

    def has_given_back(self):
        return self.thread is None or (not self.thread.is_alive() and self.file.closed)


def raiser(hook, error, **attributes):
    def fails(self):
        raise error

    return type("Faulty", (TrainerCallback,), {hook: fails, **attributes})()


@pytest.mark.parametrize(
    ("other", "error", "calls"),
    [
        (TrainerCallback(), None, ["on_train_start", "on_train_end", "close"]),
        (raiser("on_step_end", OSError()), CallbackError, None),
        (raiser("on_train_end", OSError()), CallbackError, None),
        (raiser("on_train_start", UsageError("not so")), UsageError, None),
        (raiser("on_step_end", KeyboardInterrupt()), KeyboardInterrupt, None),
        (raiser("on_log", SystemExit()), CallbackError, None),
    ],
)
def test_a_callback_is_closed_once_whichever_way_the_run_ends(tiny, tmp_path, other, error, calls):
    calls = calls or ["on_train_start", "on_train_end", "close"]
    holder = Holder(tmp_path / "held")
    trainer = tiny.trainer(tmp_path / "run", callbacks=[holder, other], max_steps=3)
    if error is None:
        trainer.train()
    else:
        with pytest.raises(error):
            trainer.train()
    assert holder.calls == calls
    assert holder.has_given_back()


def test_a_callback_is_closed_where_the_snapshot_is_refused(tiny, tmp_path):
    tiny.trainer(tmp_path / "run", max_steps=2).train()
    refuses = raiser("on_snapshot_load", UsageError("not this one"))
    holder = Holder(tmp_path / "held")
    with pytest.raises(UsageError, match="not this one"):
        tiny.trainer(tmp_path / "run", callbacks=[holder, refuses]).train(resume=True)
    assert holder.calls == ["on_train_end", "close"]
    holder.calls.clear()
    with pytest.raises(ConfigError, match="nothing to resume"):
        tiny.trainer(tmp_path / "none", callbacks=[holder], max_steps=1).train(resume=True)
    assert holder.calls == []  # no run, and nothing was held


def test_a_callback_is_closed_after_a_signal(tiny, tmp_path):
    def work():
        holder = Holder(tmp_path / "held")
        kill = raiser("on_step_end", None)
        type(kill).on_step_end = lambda self: signal.raise_signal(signal.SIGTERM)
        result = tiny.trainer(tmp_path / "run", callbacks=[holder, kill]).train()
        return result.exit_code if holder.calls[-1] == "close" else 1

    assert tiny.child(work).wait() == 143


def test_a_callback_that_is_switched_off_is_closed_at_once_and_never_again(tiny, tmp_path):
    holder = Holder(tmp_path / "held")
    type(holder).critical = False
    try:
        seen = []
        holder.on_epoch_start = lambda: 1 / 0
        after = TrainerCallback()
        after.on_epoch_start = lambda: seen.append((list(holder.calls), holder.has_given_back()))
        tiny.trainer(tmp_path / "run", callbacks=[holder, after], max_steps=2).train()
    finally:
        del type(holder).critical
    assert seen == [(["on_train_start", "close"], True)]
    assert holder.calls == ["on_train_start", "close"]


def test_the_same_objects_can_be_used_again(tiny, tmp_path):
    holder = Holder(tmp_path / "held")
    for name in ("one", "two"):
        holder.stop.clear()
        tiny.trainer(tmp_path / name, callbacks=[holder], max_steps=1).train()
    assert holder.calls == 2 * ["on_train_start", "on_train_end", "close"]


def test_a_failure_of_close_is_told_and_keeps_nobody_from_being_closed(tiny, tmp_path, caplog):
    def fails(self):
        raise SystemExit("why")

    faulty = type("Faulty", (TrainerCallback,), {"close": fails})()
    holder = Holder(tmp_path / "held")
    result = tiny.trainer(tmp_path / "run", callbacks=[faulty, holder], max_steps=1).train()
    assert result.status == "finished"
    assert holder.has_given_back()
    assert "Faulty (not installed) failed in close: SystemExit: why." in caplog.messages


class Counts(TrainerCallback):
    """Counts updates, and fails when it is told to."""

    critical = False

    def __init__(self, at=None):
        self.count = 0
        self.loaded = None
        self.at = at

    def on_step_end(self):
        self.count += 1

    def on_snapshot_save(self):
        return {"count": self.count}

    def on_snapshot_load(self, state):
        self.loaded = self.count = state["count"]


class FailsLater(Counts):
    def on_batch_start(self):
        if self.count == self.at:
            raise OSError("why")


class FailsToSave(Counts):
    def on_snapshot_save(self):
        if self.count == self.at:
            raise OSError("why")
        return super().on_snapshot_save()


class SavesNonsense(Counts):
    def on_snapshot_save(self):
        return {"count": object() if self.count == self.at else self.count}


@pytest.mark.parametrize("cls", [FailsLater, FailsToSave, SavesNonsense])
def test_the_last_good_state_of_a_switched_off_callback_is_carried_along(
    tiny, tmp_path, caplog, cls
):
    settings = {"snapshot_interval": 2, "snapshot_epochs": False}
    faulty = cls(at=4)
    result = tiny.trainer(tmp_path, callbacks=[faulty], max_steps=6, **settings).train()
    assert result.switched_off == (cls.__name__,)
    good = 4 if cls is FailsLater else 2
    assert tiny.newest_state(tmp_path)["callback_state"][cls.__name__] == {"count": good}
    again = cls()
    tiny.trainer(tmp_path, callbacks=[again], max_steps=7, **settings).train(resume=True)
    assert again.loaded == good
    assert f"absent from update {good} to 6" in caplog.text


def test_a_state_that_was_loaded_is_carried_along_too(tiny, tmp_path):
    tiny.trainer(tmp_path, callbacks=[FailsLater()], max_steps=3).train()
    faulty = FailsLater(at=3)
    tiny.trainer(tmp_path, callbacks=[faulty], max_steps=5).train(resume=True)
    assert tiny.newest_state(tmp_path)["callback_state"]["FailsLater"] == {"count": 3}


def test_a_state_that_is_carried_along_is_a_copy(tiny, tmp_path):
    class Grows(FailsLater):
        def on_train_start(self):
            self.counts = []

        def on_step_end(self):
            super().on_step_end()
            self.counts.append(self.count)

        def on_snapshot_save(self):
            return {"count": self.count, "counts": self.counts}

    tiny.trainer(tmp_path, callbacks=[Grows(at=3)], max_steps=6, snapshot_epochs=False).train()
    assert tiny.newest_state(tmp_path)["callback_state"]["Grows"]["counts"] == [1, 2]


def test_a_callback_that_fails_in_on_train_end_is_named_in_the_result(tiny, tmp_path):
    faulty = raiser("on_train_end", OSError("why"), critical=False)
    result = tiny.trainer(tmp_path, callbacks=[faulty], max_steps=1).train()
    assert result.status == "finished"
    assert result.switched_off == ("Faulty",)


def test_a_state_that_nobody_reads_is_not_called_restored(tiny, tmp_path, caplog):
    class Forgets(TrainerCallback):
        def on_snapshot_save(self):
            return {"n": 1}

    class Looks(Forgets):
        def on_snapshot_load(self, checkpoint):
            pass

    class Deaf(Forgets):
        def on_snapshot_load(self):
            pass

    tiny.trainer(tmp_path, callbacks=[Forgets(), Looks(), Deaf()], max_steps=2).train()
    caplog.set_level("INFO")
    tiny.trainer(tmp_path, callbacks=[Forgets(), Looks(), Deaf()], max_steps=3).train(resume=True)
    table = next(text for text in caplog.messages if text.startswith("state of the callbacks"))
    rows = {line.split()[0]: line.split("  ")[-1].strip() for line in table.splitlines()[1:]}
    assert {name: rows[name] for name in ("Forgets", "Looks", "Deaf")} == {
        "Forgets": "not read",
        "Looks": "restored",
        "Deaf": "not read",
    }
    assert "Deaf (not installed) has a state in the snapshot and does not read it" in caplog.text


def test_a_callback_with_a_state_key_finds_its_state_under_its_class_name(tiny, tmp_path):
    class AsInTheSeed(TrainerCallback):
        count, loaded = 0, None

        def __init__(self, state_key=None):
            self.state_key = state_key

        def on_step_end(self):
            self.count += 1 if self.state_key is None else 10

        def on_snapshot_save(self):
            return {"count": self.count}

        def on_snapshot_load(self, trainer, checkpoint):
            self.loaded = checkpoint.get("callback_state", {}).get("AsInTheSeed")

    def make():
        return [AsInTheSeed(), AsInTheSeed("mine")]

    tiny.trainer(tmp_path, callbacks=make(), max_steps=2).train()
    callbacks = make()
    tiny.trainer(tmp_path, callbacks=callbacks, max_steps=3).train(resume=True)
    assert [each.loaded for each in callbacks] == [{"count": 2}, {"count": 20}]
    assert set(tiny.newest_state(tmp_path)["callback_state"]) >= {"AsInTheSeed", "mine"}
