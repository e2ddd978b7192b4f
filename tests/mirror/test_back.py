"""A resume on a disk that is empty, or behind."""

import shutil

import pytest
import torch

from trainer_callback import PluginError, TrainerCallback, UsageError
from trainer_early_stopping import EarlyStoppingCallback
from trainer_mirror import MirrorCallback


def copy_of(store, step):
    return next(each for each in store.glob(f"step-{step:08d}-*") if each.is_dir())


@pytest.fixture
def whole(make, tmp_path):
    trainer = make(EarlyStoppingCallback(patience=9), place=tmp_path / "whole")
    trainer.train()
    return trainer


@pytest.fixture
def cut(make, url, tmp_path):
    """Runs to update 6, and loses its disk."""

    def work(steps=6, lose=True, **options):
        callbacks = [MirrorCallback(url, **options), EarlyStoppingCallback(patience=9)]
        place = tmp_path / "lost"
        make(*callbacks, place=place, max_steps=steps, pause=0.02).train("auto")
        if lose:
            shutil.rmtree(place)
        return place

    return work


def same(one, other):
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("resume", [True, "auto"])
def test_an_empty_disk_goes_on_from_the_newest_there(make, url, whole, cut, tmp_path, resume):
    cut()
    place = tmp_path / "new"
    trainer = make(MirrorCallback(url), EarlyStoppingCallback(patience=9), place=place)
    result = trainer.train(resume)
    assert same(trainer, whole)
    assert result.history == whole.run.result.history
    assert not [*(place / "snapshots").glob(".*")]


def test_the_run_keeps_its_id_and_its_log(make, url, cut, tmp_path):
    place = cut(lose=False)
    log = (place / "metrics.jsonl").read_bytes().splitlines()
    shutil.rmtree(place)
    trainer = make(MirrorCallback(url), EarlyStoppingCallback(patience=9), place=place)
    trainer.train(True)
    assert (place / "metrics.jsonl").read_bytes().splitlines()[:6] == log[:6]
    again = make(MirrorCallback(url), EarlyStoppingCallback(patience=9), place=place)
    again.train(True)  # which a mirror of another run would refuse


def test_reads_that_are_short_or_fail_are_tried_again(
    make, url, whole, cut, faults, quick, tmp_path
):
    cut()
    faults.ends, faults.refuses = 1, 2
    trainer = make(MirrorCallback(url), EarlyStoppingCallback(patience=9), place=tmp_path / "new")
    trainer.train(True)
    assert same(trainer, whole)


def test_where_the_disk_is_newer_it_wins(make, url, store, cut, whole, tmp_path, caplog):
    place = cut(steps=4, lose=False)
    make(EarlyStoppingCallback(patience=9), place=place, max_steps=6).train(True)
    caplog.set_level("INFO")
    trainer = make(MirrorCallback(url), EarlyStoppingCallback(patience=9), place=place)
    trainer.train(True)
    assert "brought" not in caplog.text
    assert f"resumed from {place}/snapshots/step-00000006" in caplog.text
    assert same(trainer, whole)


@pytest.mark.parametrize("harm", ["gone", "state.pt", "manifest.json"])
def test_where_the_disk_is_behind_or_damaged_the_mirror_wins(make, url, cut, whole, caplog, harm):
    place = cut(lose=False)
    newest = place / "snapshots" / "step-00000006"
    if harm == "gone":
        shutil.rmtree(newest)
    else:
        content = bytearray((newest / harm).read_bytes())
        at = content.index(b'"epoch": ') + 9 if harm == "manifest.json" else 100
        content[at] ^= 1
        (newest / harm).write_bytes(content)
    caplog.set_level("INFO")
    trainer = make(MirrorCallback(url), EarlyStoppingCallback(patience=9), place=place)
    trainer.train(True)
    assert f"brought the snapshot of update 6 from {url}" in caplog.text
    assert same(trainer, whole)


@pytest.mark.parametrize("harm", ["flipped", "missing", "cut"])
def test_a_damaged_copy_gives_way_to_the_one_before_it(
    make, url, store, cut, whole, quick, tmp_path, caplog, harm
):
    cut()
    state = copy_of(store, 6) / "snapshots" / "step-00000006" / "state.pt"
    if harm == "missing":
        state.unlink()
    else:
        content = bytearray(state.read_bytes())
        content[100] ^= 1
        state.write_bytes(content if harm == "flipped" else content[:1000])
    trainer = make(MirrorCallback(url), EarlyStoppingCallback(patience=9), place=tmp_path / "new")
    trainer.train(True)
    assert "step-00000006/state.pt is " in caplog.text
    assert same(trainer, whole)


def test_a_mirror_of_which_nothing_is_whole_is_refused(make, url, store, cut, quick, tmp_path):
    cut()
    for state in store.rglob("state.pt"):
        state.write_bytes(b"")
    with pytest.raises(PluginError, match="no snapshot there is whole; the newest: step-00000006"):
        make(MirrorCallback(url), place=tmp_path / "new").train("auto")
    assert not [*(tmp_path / "new" / "snapshots").iterdir()]


def test_a_list_that_leads_elsewhere_is_refused(make, url, store, cut, quick, tmp_path):
    cut()
    for told in store.glob("step-*.json"):
        told.write_text(told.read_text().replace('"metrics.jsonl"', '"../../evil"'))
    with pytest.raises(PluginError, match="which leads elsewhere"):
        make(MirrorCallback(url), place=tmp_path / "new").train("auto")
    assert not (tmp_path / "evil").exists()


def test_a_store_that_cannot_be_read_refuses_an_empty_disk_and_not_a_full_one(
    make, url, cut, whole, faults, quick, tmp_path, caplog
):
    place = cut(lose=False)
    faults.refuses = 10**9
    for resume in (True, "auto"):
        with pytest.raises(PluginError, match="There may be snapshots there, and there are none"):
            make(MirrorCallback(url), place=tmp_path / "new").train(resume)
    early = EarlyStoppingCallback(patience=9)
    trainer = make(MirrorCallback(url, retries=0), early, place=place)
    trainer.train(True)
    assert "Going on from what is here, update 6." in caplog.text
    assert same(trainer, whole)


def test_an_empty_mirror_starts_afresh_with_auto_and_refuses_a_resume(make, url, tmp_path):
    with pytest.raises(UsageError, match="there is nothing to resume"):
        make(MirrorCallback(url), place=tmp_path / "one").train(True)
    assert make(MirrorCallback(url), place=tmp_path / "two").train("auto").steps == 8


def test_the_snapshots_of_another_run_here_are_not_mixed_with_those_there(make, url, cut, tmp_path):
    cut()
    make(place=tmp_path / "other", max_steps=2).train()
    with pytest.raises(PluginError, match=r"has snapshots of the run \w{12}, and this is run"):
        make(MirrorCallback(url), place=tmp_path / "other").train(True)


def test_a_copy_that_was_fetched_by_hand_can_be_resumed_without_the_plugin(
    make, store, cut, whole, tmp_path
):
    cut()
    shutil.copytree(copy_of(store, 6), tmp_path / "hand")
    trainer = make(EarlyStoppingCallback(patience=9), place=tmp_path / "hand")
    trainer.train(True)
    assert same(trainer, whole)


def test_a_kill_while_it_is_brought_back_leaves_no_half_snapshot(
    make, url, store, cut, whole, tmp_path
):
    cut()
    place = tmp_path / "new"
    half = place / "snapshots" / ".tmp-mirror"
    shutil.copytree(copy_of(store, 6), half)
    (half / "snapshots" / "step-00000006" / "state.pt").write_bytes(b"half")

    class Look(TrainerCallback):
        def on_train_start(self):
            self.left = [*(place / "snapshots").glob(".*")]

    look = Look()
    early = EarlyStoppingCallback(patience=9)
    trainer = make(MirrorCallback(url), early, look, place=place)
    trainer.train("auto")
    assert look.left == []
    assert same(trainer, whole)
