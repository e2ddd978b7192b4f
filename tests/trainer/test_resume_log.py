"""What the log of a resume tells: the call order, and what became of each state."""

import pytest

from trainer_callback import PluginError, TrainerCallback
from trainer_callback.calls.manager import Plugin
from trainer_callback.discovery import find_version


class Keeps(TrainerCallback):
    """Has a state; another class with the same code is made for each name."""

    def on_snapshot_save(self, trainer, epoch, step):
        return {"step": step}

    def on_snapshot_load(self, state):
        self.loaded = state


def make(name, version="1.0", **attributes):
    callback = type(name.capitalize(), (Keeps,), attributes)()
    return Plugin(callback, name, f"dist-{name}", version)


def table(caplog):
    texts = [text for text in caplog.messages if text.startswith("state of the callbacks:")]
    assert len(texts) == 1
    return [tuple(line.strip().split("  ")) for line in texts[0].splitlines()[1:]]


def resume(tiny, place, caplog, *callbacks):
    """A run of one epoch with `old`, `gone` and `same`, which is then resumed with `callbacks`."""
    first = [make("old"), make("gone", "0.9"), make("same")]
    tiny.trainer(place, callbacks=first, epochs=1).train()
    caplog.set_level("INFO")
    tiny.trainer(place, callbacks=callbacks, epochs=2).train(resume=True)


def cells(rows):
    return {who: verdict.strip() for who, *_, verdict in rows}


def test_each_callback_has_a_row_with_its_verdict(tiny, tmp_path, caplog):
    def migrate(self, state, old_version):
        return {**state, "from": old_version}

    class Stateless(TrainerCallback):
        pass

    newer = make("old", "2.0", state_version=2, migrate_state=migrate)
    resume(tiny, tmp_path, caplog, newer, make("same"), make("new"), Stateless())
    assert cells(table(caplog)) == {
        "old (dist-old 2.0)": "migrated",
        "same (dist-same 1.0)": "restored",
        "new (dist-new 1.0)": "fresh",
        f"metrics_file (trainer-core {find_version('trainer-core')})": "restored",
        "Gone (dist-gone 0.9)": "carried along",
    }


def test_every_refusal_is_in_the_table_and_the_first_one_ends_the_resume(tiny, tmp_path, caplog):
    class Old(Keeps):
        state_version = 2

    class Same(Keeps):
        pass

    others = Plugin(Old(), "old", "dist-old", "2.0"), Plugin(Same(), "same", "dist-other", "1.0")
    with pytest.raises(
        PluginError, match=r"old \(dist-old 2\.0\) cannot read the snapshot's state"
    ):
        resume(tiny, tmp_path, caplog, *others)
    assert list(cells(table(caplog)).values())[:2] == ["refused", "refused"]
    assert "the snapshot's state 'Same' was written by dist-same 1.0" in caplog.text


def test_the_call_order_is_the_same_after_a_resume(tiny, tmp_path, caplog):
    caplog.set_level("INFO")
    for epochs in (1, 2):
        callbacks = [make("second", after=("first",)), make("third"), make("first")]
        tiny.trainer(tmp_path, callbacks=callbacks, epochs=epochs).train(resume="auto")
    told = [text for text in caplog.messages if text.startswith("callbacks in call order: ")]
    assert len(told) == 2
    assert told[0] == told[1]
    names = [each.split(" (")[0] for each in told[0].split(": ")[1].split(", ")]
    assert names == ["third", "first", "second", "metrics_file", "progress"]
