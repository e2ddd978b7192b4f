"""A callback that was not there for some updates: its state tells the update that it belongs to."""

import json

from trainer_callback import TrainerCallback


class Keeps(TrainerCallback):
    def __init__(self):
        self.found = "nothing was loaded"

    def on_snapshot_load(self, checkpoint):
        self.found = checkpoint["callback_state"].get(type(self).__name__)

    def on_snapshot_save(self, trainer, epoch, step):
        return {"step": step}


class Counts(Keeps):
    """Its number means nothing if it misses an update."""

    needs_every_update = True


def run(tiny, place, steps, *callbacks, resume=True):
    tiny.trainer(place, callbacks=callbacks, epochs=9, max_steps=steps).train(resume=resume)


def absent_for_a_while(tiny, place, make, *, steps=(4, 6, 7)):
    """Runs with the callback, without it, and with a new one of the kind, which is returned."""
    run(tiny, place, steps[0], make(), resume=False)
    for stop in steps[1:-1]:
        run(tiny, place, stop)
    back = make()
    run(tiny, place, steps[-1], back)
    return back


def table(caplog):
    texts = [text for text in caplog.messages if text.startswith("state of the callbacks:")]
    return texts[-1]


def test_a_state_that_comes_back_is_restored_and_its_update_is_told(tiny, tmp_path, caplog):
    caplog.set_level("INFO", "trainer")
    assert absent_for_a_while(tiny, tmp_path, Keeps).found == {"step": 4}
    assert "restored, from update 4 of 6" in table(caplog)
    warnings = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert warnings[-1] == (
        "Keeps (not installed) was absent from update 4 to 6: it goes on from its state of update "
        "4, and knows nothing of what came between."
    )


def test_one_that_needs_every_update_starts_fresh(tiny, tmp_path, caplog):
    caplog.set_level("INFO", "trainer")
    assert absent_for_a_while(tiny, tmp_path, Counts).found is None
    assert "fresh: its state is of update 4, and it was absent until 6" in table(caplog)


def test_the_update_is_kept_over_several_runs_without_the_callback(tiny, tmp_path, caplog):
    caplog.set_level("INFO", "trainer")
    steps = (3, 4, 6, 7)
    assert absent_for_a_while(tiny, tmp_path, Counts, steps=steps).found is None
    assert "fresh: its state is of update 3, and it was absent until 6" in table(caplog)


def test_a_callback_that_was_never_away_is_restored(tiny, tmp_path, caplog):
    caplog.set_level("INFO", "trainer")
    for stop in (3, 6):
        callback = Counts()
        run(tiny, tmp_path, stop, callback, resume="auto")
    assert callback.found == {"step": 3}
    assert "absent" not in caplog.text


def test_what_comes_back_before_the_next_update_has_missed_nothing(tiny, tmp_path, caplog):
    run(tiny, tmp_path, 4, Counts(), resume=False)
    run(tiny, tmp_path, 4)
    back = Counts()
    run(tiny, tmp_path, 6, back)
    assert back.found == {"step": 4}
    assert "was absent" not in caplog.text


def test_a_stale_state_is_not_migrated_where_it_is_not_used(tiny, tmp_path):
    run(tiny, tmp_path, 4, Counts(), resume=False)
    run(tiny, tmp_path, 6)
    newer = type("Counts", (Counts,), {"state_version": 2})()  # without migrate_state
    run(tiny, tmp_path, 7, newer)
    assert newer.found is None


def test_a_manifest_that_knows_no_updates_means_its_own(tiny, tmp_path, caplog):
    from trainer.snapshots.manifest import seal
    from trainer.snapshots.snapshot import list_snapshots

    run(tiny, tmp_path, 4, Counts(), resume=False)
    file = list_snapshots(tmp_path / "snapshots")[0] / "manifest.json"
    manifest = json.loads(file.read_bytes())
    for writer in manifest["plugins"].values():
        del writer["update"]
    file.write_bytes(seal(manifest))
    run(tiny, tmp_path, 6)
    back = Counts()
    run(tiny, tmp_path, 7, back)
    assert back.found is None
    assert "was absent from update 4 to 6: it needs every update" in caplog.text


def test_a_callback_finds_the_state_of_its_earlier_name_and_carries_none_along(
    tiny, tmp_path, caplog
):
    class Renamed(Keeps):
        state_key_aliases = ("Oldest", "Keeps")

    caplog.set_level("INFO", "trainer")
    run(tiny, tmp_path, 4, Keeps(), resume=False)
    first, second = Renamed(), Renamed()
    run(tiny, tmp_path, 6, first)
    assert first.found == {"step": 4}
    assert "carried along" not in caplog.text
    run(tiny, tmp_path, 7, second)
    assert second.found == {"step": 6}


def test_a_state_that_another_callback_of_the_run_has_is_not_taken_by_an_alias(tiny, tmp_path):
    class Renamed(Keeps):
        state_key_aliases = ("Keeps",)

    run(tiny, tmp_path, 4, Keeps(), resume=False)
    old, new = Keeps(), Renamed()
    run(tiny, tmp_path, 6, old, new)
    assert old.found == {"step": 4}
    assert new.found is None
