"""What is sent, when, and what happens where it cannot be."""

import logging
import threading
import time

import pytest

from trainer_callback import PluginError, TrainerCallback
from trainer_early_stopping import EarlyStoppingCallback
from trainer_mirror import MirrorCallback


def names(place):
    return sorted(str(each.relative_to(place)) for each in place.rglob("*") if each.is_file())


def test_each_copy_is_an_output_directory_with_one_snapshot(make, url, store, tmp_path):
    early = EarlyStoppingCallback(patience=9)
    make(MirrorCallback(url), early, place=tmp_path / "run").train()
    run = tmp_path / "run"
    copy = max(each for each in store.glob("step-*") if each.is_dir())
    snapshot = "snapshots/step-00000008"
    assert {".run.json", "metrics.jsonl", f"{snapshot}/manifest.json"} < {*names(copy)}
    assert any(name.startswith("weights/") for name in names(copy))
    for name in names(copy / snapshot):
        assert (copy / snapshot / name).read_bytes() == (run / snapshot / name).read_bytes()
    assert (run / "metrics.jsonl").read_bytes().startswith((copy / "metrics.jsonl").read_bytes())


def test_the_finished_model_is_sent(make, url, store, tmp_path):
    make(MirrorCallback(url), place=tmp_path / "run").train()
    final = tmp_path / "run" / "final"
    assert names(store / "final") == names(final)
    for name in names(final):
        assert (store / "final" / name).read_bytes() == (final / name).read_bytes()


def test_the_manifest_is_written_behind_all_else_of_the_snapshot(make, url, faults, tmp_path):
    make(MirrorCallback(url), place=tmp_path / "run", epochs=1, snapshot_interval=4).train()
    first = [path for path in faults.writes if "/step-00000004-" in path]
    assert first[-2].endswith("/snapshots/step-00000004/manifest.json")
    assert first[-1].endswith(".json")
    assert "/snapshots/" not in first[-1]


def test_so_many_snapshots_are_kept_there(make, url, store, copies, tmp_path):
    make(
        MirrorCallback(url, keep=3), place=tmp_path / "run", snapshot_interval=1, pause=0.02
    ).train()
    assert copies(store) == [6, 7, 8]
    folders = [each for each in store.glob("step-*") if each.is_dir()]
    assert len(folders) == 3


@pytest.mark.parametrize("fault", ["refuses", "cuts", "losses"])
def test_what_fails_is_tried_again(make, url, store, copies, faults, quick, tmp_path, fault):
    class Break(TrainerCallback):
        def on_epoch_start(self):
            setattr(faults, fault, 3)

    make(MirrorCallback(url), Break(), place=tmp_path / "run", pause=0.02).train()
    assert copies(store)[-1] == 8
    copy = next(each for each in store.glob("step-00000008-*") if each.is_dir())
    state = "snapshots/step-00000008/state.pt"
    assert (copy / state).read_bytes() == (tmp_path / "run" / state).read_bytes()


@pytest.mark.parametrize("faults_", [{"refuses": 10**9}, {"capacity": 2000}], ids=["dead", "full"])
def test_a_store_that_fails_for_ever_costs_two_sentences(
    make, url, faults, quick, tmp_path, caplog, faults_
):
    class Wait(TrainerCallback):
        def on_epoch_end(self, trainer):
            end = time.monotonic() + (30 if trainer.step == 8 else 0)
            while " fails: " not in caplog.text and time.monotonic() < end:
                time.sleep(0.01)

    for name, value in faults_.items():
        setattr(faults, name, value)
    interval = {"snapshot_interval": 4, "snapshot_sync": True}  # one fails before the next comes
    mirror = MirrorCallback(url, retries=2)
    result = make(mirror, Wait(), place=tmp_path / "run", **interval).train()
    assert (result.status, result.switched_off) == ("finished", ())
    said = [each.getMessage() for each in caplog.records if each.name == "trainer.mirror"]
    said = [text for text in said if "waiting for" not in text]
    assert len(said) == 2
    assert f"{url} fails: " in said[0]
    assert f"{url} is without the snapshot of update 8 and final/ (" in said[1]
    assert "It has no snapshot, and the output directory all." in said[1]


def test_a_store_that_fails_is_not_called_slow(make, url, faults, quick, tmp_path, caplog):
    faults.refuses = 10**9
    make(MirrorCallback(url), place=tmp_path / "run", snapshot_interval=1, epochs=4).train()
    assert " fails: " in caplog.text
    assert "is slower" not in caplog.text


def test_a_slow_store_is_sent_the_newest_and_that_is_said_once(
    make, url, store, copies, faults, tmp_path, caplog
):
    faults.delay = 0.1
    make(MirrorCallback(url, keep=9), place=tmp_path / "run", snapshot_interval=1).train()
    assert 1 <= len(copies(store)) < 8
    assert copies(store)[-1] == 8
    assert caplog.text.count("is slower than the snapshots come") == 1


@pytest.mark.slow  # the end of a run waits 15 seconds for what was submitted
def test_training_never_waits_for_a_store_that_hangs(make, url, faults, tmp_path, caplog):
    faults.gate = threading.Event()
    try:
        start = time.monotonic()
        result = make(MirrorCallback(url, wait=0.5), place=tmp_path / "run").train()
        assert result.steps == 8
        assert time.monotonic() - start < 25  # what submit waits for comes on top
    finally:
        faults.gate.set()
    assert "is without the snapshot of update 8 and final/ (no time was left)" in caplog.text


def test_the_newest_snapshot_goes_before_the_finished_model(make, url, store, faults, tmp_path):
    faults.delay = 0.05
    make(MirrorCallback(url, wait=0.0), place=tmp_path / "run").train()
    ends = [path.rpartition("/")[2] for path in faults.writes if path.endswith(".json")]
    named = [each for each in ends if each.startswith(("step-00000008", "final"))]
    assert [each.partition("-")[0] for each in named] == ["step", "final.json"]


def test_a_look_that_comes_late_is_said_and_nothing_is_sent(
    make, url, store, tmp_path, monkeypatch, caplog
):
    make(MirrorCallback(url), place=tmp_path / "one").train()
    before = sorted(store.iterdir())
    monkeypatch.setattr("trainer_mirror.callback._LOOK_SECONDS", 0.0)
    make(MirrorCallback(url), place=tmp_path / "two", pause=0.05).train()
    assert caplog.text.count("Nothing more is sent.") == 1
    assert sorted(store.iterdir()) == before


def test_the_end_of_a_run_waits_for_the_newest(make, url, store, copies, faults, tmp_path, caplog):
    caplog.set_level(logging.INFO, "trainer.mirror")
    faults.delay = 0.05
    make(MirrorCallback(url), place=tmp_path / "run", epochs=1, snapshot_interval=4).train()
    assert copies(store) == [4]
    assert (store / "final" / "manifest.json").exists()
    assert caplog.messages[-1] == f"{url} has the snapshot of update 4."


def test_a_mirror_of_another_run_is_refused_by_name(make, url, tmp_path):
    make(MirrorCallback(url), place=tmp_path / "one").train()
    with pytest.raises(PluginError, match=r"has snapshots of the run \w{12}, and this is run"):
        make(MirrorCallback(url), place=tmp_path / "two").train()
    with pytest.raises(PluginError, match="has snapshots of the run"):
        make(MirrorCallback(url), place=tmp_path / "one", overwrite=True).train()


def test_a_run_whose_mirror_another_one_has_taken_sends_nothing_more(
    make, url, store, tmp_path, caplog
):
    class Other(TrainerCallback):
        def on_snapshot_saved(self):
            assert mirror._is_idle.wait(60)  # else it would write its own name behind this
            for each in store.glob("step-*.json"):
                each.write_text(each.read_text().replace('"run_id": "', '"run_id": "x'))

    mirror = MirrorCallback(url)
    make(mirror, Other(), place=tmp_path / "run").train()
    assert caplog.text.count("Nothing more is sent.") == 1
    assert not (store / "final").exists()


def test_a_resume_from_an_older_snapshot_leaves_no_later_ones_there(
    make, url, store, copies, tmp_path
):
    settings = {"place": tmp_path / "run", "keep_snapshots": 9}
    make(MirrorCallback(url, keep=9), **settings, pause=0.02).train()
    older = tmp_path / "run" / "snapshots" / "step-00000002"
    assert 6 in copies(store)
    make(MirrorCallback(url, keep=9), **settings, max_steps=3).train(older)
    assert copies(store)[-1] == 3


def test_a_snapshot_that_is_there_is_not_sent_again(make, url, faults, tmp_path):
    place = tmp_path / "run"
    make(MirrorCallback(url), place=place, max_steps=4).train()
    faults.writes.clear()
    make(MirrorCallback(url), place=place, max_steps=4).train(True)
    assert not [path for path in faults.writes if "/step-00000004" in path]


def test_nothing_is_left_running(make, url, tmp_path):
    before = {*threading.enumerate()}
    make(MirrorCallback(url), place=tmp_path / "run").train()
    assert {*threading.enumerate()} <= before
