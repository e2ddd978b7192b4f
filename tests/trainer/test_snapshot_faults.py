"""Faults of a snapshot's files: each write is killed, cut, refused; each byte is changed."""

import inspect
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from trainer.config import TrainerConfig
from trainer.snapshots import state_file
from trainer.snapshots.durable import save_bytes
from trainer.snapshots.manifest import FORMAT, MANIFEST, read_manifest, seal, verify
from trainer.snapshots.snapshot import (
    list_snapshots,
    remove_leftovers,
    step_of,
    write_snapshot,
)
from trainer.snapshots.state_file import load_state, save_state
from trainer.snapshots.store import SnapshotStore
from trainer_callback import SnapshotError

pytestmark = pytest.mark.any_loop

STATE = {"x": torch.arange(3), "name": "ä", "numbers": [1, 2.5, None, True]}
FACTS = {"step": 1, "plugins": {}, "options": {}, "metrics": {"val_loss": 0.5}}


def write(path, value=1):
    write_snapshot(path, {"state.pt": save_state({**STATE, "value": value})}, FACTS)


def test_kill_9_at_any_byte_of_a_snapshot_write(tiny, tmp_path):
    write(tmp_path / "step-00000001", value=1)
    size = (tmp_path / "step-00000001" / "state.pt").stat().st_size

    def work(limit):
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        write(tmp_path / "step-00000002", value=2)

    for limit in range(0, size, 61):
        assert tiny.child(lambda limit=limit: work(limit)).wait() == -signal.SIGXFSZ
        assert [path.name for path in list_snapshots(tmp_path)] == ["step-00000001"]
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def refusal(path):
    with pytest.raises(SnapshotError) as caught:
        load_state(path)
    return str(caught.value)


@pytest.mark.parametrize("name", ["state.pt", MANIFEST])
def test_truncated_at_every_length(tmp_path, name):
    write(tmp_path / "s")
    file = tmp_path / "s" / name
    content = file.read_bytes()
    for length in range(len(content)):
        file.write_bytes(content[:length])
        assert name in refusal(tmp_path / "s")


@pytest.mark.parametrize("name", ["state.pt", MANIFEST])
def test_bit_flipped_at_every_bit(tmp_path, name):
    write(tmp_path / "s")
    file = tmp_path / "s" / name
    content = bytearray(file.read_bytes())
    with file.open("r+b", buffering=0) as opened:
        for bit in range(8 * len(content)):
            place, mask = bit // 8, 1 << bit % 8
            os.pwrite(opened.fileno(), bytes([content[place] ^ mask]), place)
            with pytest.raises(SnapshotError) as caught:
                verify(tmp_path / "s")
            assert str(tmp_path / "s") in str(caught.value)
            os.pwrite(opened.fileno(), content[place : place + 1], place)
    verify(tmp_path / "s")


@pytest.mark.parametrize("name", ["state.pt", MANIFEST])
@pytest.mark.parametrize(
    "kind",
    ["zeroed", "foreign", "empty", "missing", "a directory", "a pipe", "without end", "huge"],
)
def test_zeroed_foreign_or_empty_file(tmp_path, name, kind):
    write(tmp_path / "s")
    file = tmp_path / "s" / name
    size = file.stat().st_size
    file.unlink()
    if kind == "zeroed":
        file.write_bytes(bytes(size))
    elif kind == "foreign":
        file.write_bytes(b"PK\x03\x04" + os.urandom(size - 4))
    elif kind == "empty":
        file.touch()
    elif kind == "a directory":
        file.mkdir()
    elif kind == "a pipe":
        os.mkfifo(file)
    elif kind == "without end":
        file.symlink_to("/dev/zero")
    elif kind == "huge":
        with file.open("wb") as opened:
            opened.truncate(1 << 40)
    assert str(file) in refusal(tmp_path / "s")


def test_a_state_that_the_manifest_does_not_name_is_not_loaded(tmp_path):
    write_snapshot(tmp_path / "s", {"other": save_bytes(b"x")}, FACTS)
    torch.save({"x": 1}, tmp_path / "s" / "state.pt")
    assert "no state.pt" in refusal(tmp_path / "s")


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../state.pt": {"size": 1, "xxh3_128": ""}}},
        {"files": {"/etc/hostname": {"size": 1, "xxh3_128": ""}}},
        {"files": {"..": {"size": 1, "xxh3_128": ""}}},
        {"files": {"": {"size": 1, "xxh3_128": ""}}},
        {"files": {"state\0.pt": {"size": 1, "xxh3_128": ""}}},
        {"files": {"\ud800": {"size": 1, "xxh3_128": ""}}},
        {"files": {"x" * 999: {"size": 1, "xxh3_128": ""}}},
        {"files": {MANIFEST: {"size": 1, "xxh3_128": ""}}},
        {"files": {"state.pt": {"size": True, "xxh3_128": ""}}},
        {"files": {"state.pt": {"size": 1}}},
        {"files": {"state.pt": {"size": 1, "sha256": ""}}},
        {"plugins": {"X": 3}},
        {"files": {"state.pt": {"size": "1", "xxh3_128": ""}}},
        {"files": {"state.pt": 3}},
        {"files": None},
        {"format": 0},
        {"format": True},
        {"format": "1"},
        {"options": []},
    ],
)
def test_a_forged_manifest(tmp_path, change):
    write(tmp_path / "s")
    manifest = json.loads((tmp_path / "s" / MANIFEST).read_bytes())
    (tmp_path / "s" / MANIFEST).write_bytes(seal({**manifest, **change}))
    assert str(tmp_path / "s") in refusal(tmp_path / "s")


class Hostile:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def hostile_files(command):
    """The same attack as a zip file of torch, in its oldest format, and as a bare pickle."""
    yield "zip", save_state({"x": Hostile(command)})
    yield (
        "legacy",
        lambda file: torch.save(
            {"x": Hostile(command)}, file, _use_new_zipfile_serialization=False
        ),
    )
    yield "pickle", save_bytes(pickle.dumps(Hostile(command)))


@pytest.mark.parametrize("index", range(3))
def test_malicious_pickle_anywhere_in_a_snapshot(tmp_path, monkeypatch, index):
    witness = tmp_path / "ran"
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    name, writer = list(hostile_files(f"touch {witness}"))[index]
    write_snapshot(tmp_path / "s", {"state.pt": writer}, FACTS)
    message = refusal(tmp_path / "s")
    assert "state.pt" in message, name
    assert "weights_only" not in message  # no advice to load it in an unsafe way
    assert not witness.exists()


def test_no_switch_to_load_unsafely_exists():
    source = inspect.getsource(state_file)
    assert source.count("torch.load(") == 1
    assert "weights_only=True" in source


def test_a_snapshot_is_read_by_torch_alone(tiny, tmp_path):
    def work():
        tiny.trainer(tmp_path / "run", epochs=1).train()

    assert tiny.child(work).wait() == 0
    (state,) = (tmp_path / "run" / "snapshots").glob("step-*06/state.pt")
    code = (
        "import sys, torch; sys.modules['trainer'] = sys.modules['trainer_callback'] = None;"
        "state = torch.load(sys.argv[1], weights_only=True); print(sorted(state))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, state], capture_output=True, text=True, check=True
    )
    assert "optimizer" in done.stdout
    assert "data.pkl" in [Path(name).name for name in zipfile.ZipFile(state).namelist()]
    assert zipfile.ZipFile(tmp_path / "run" / "final" / "state.pt").testzip() is None


def test_what_users_save_themselves_keeps_the_checksums_of_a_zip_file(tmp_path):
    write(tmp_path / "s")
    torch.save(STATE, tmp_path / "mine.pt")
    assert zipfile.ZipFile(tmp_path / "mine.pt").testzip() is None


def test_a_state_that_cannot_be_written_leaves_the_earlier_snapshot(tmp_path):
    write(tmp_path / "s")
    with pytest.raises(SnapshotError, match="could not be written"):
        write_snapshot(tmp_path / "s", {"state.pt": save_state({"x": lambda: 0})}, FACTS)
    assert load_state(tmp_path / "s")[0]["value"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_manifest_that_nobody_could_read_again_is_a_failed_write(tmp_path):
    """JSON makes texts of the keys, which have another order then."""
    write(tmp_path / "s")
    with pytest.raises(SnapshotError, match=r"s/manifest\.json is damaged"):
        write_snapshot(
            tmp_path / "s", {"state.pt": save_state(STATE)}, {**FACTS, "options": {9: 1, 10: 2}}
        )
    assert load_state(tmp_path / "s")[0]["value"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_the_newest_sound_snapshot_is_taken_and_the_log_says_why(tiny, tmp_path, caplog):
    def work():
        tiny.trainer(tmp_path).train()

    tiny.child(work).wait()
    newest, before, *_ = list_snapshots(tmp_path / "snapshots")
    (newest / "state.pt").write_bytes(b"")
    path, _, _ = SnapshotStore(TrainerConfig(output_dir=tmp_path)).load_newest()
    assert path == before
    assert f"{newest / 'state.pt'} has 0 bytes" in caplog.text
    for each in list_snapshots(tmp_path / "snapshots"):
        (each / MANIFEST).unlink()
    with pytest.raises(SnapshotError, match="none of the 3 snapshots is sound"):
        tiny.trainer(tmp_path).train(resume="auto")


def test_files_swapped_between_two_snapshots(tmp_path):
    write(tmp_path / "one", value=1)
    write(tmp_path / "two", value=2)
    for name in ("one", "two"):
        shutil.copy(tmp_path / name / "state.pt", tmp_path / f"{name}.pt")
    shutil.copy(tmp_path / "two.pt", tmp_path / "one" / "state.pt")
    assert "xxh3_128 is not the one in the manifest" in refusal(tmp_path / "one")


@pytest.mark.parametrize("name", ["step-00000099", "step-00000001"])
def test_a_snapshot_under_the_name_of_another_update_is_not_taken_for_that(
    tiny, tmp_path, caplog, name
):
    """Nor are two whole ones that have changed their places."""
    tiny.child(lambda: tiny.trainer(tmp_path, epochs=1).train()).wait()
    place = tmp_path / "snapshots"
    newest, before, *_ = list_snapshots(place)
    (before if name == "step-00000099" else newest).rename(place / name)
    path, _, manifest = SnapshotStore(TrainerConfig(output_dir=tmp_path)).load_newest()
    assert path == (newest if name == "step-00000099" else before)
    assert step_of(path) == manifest["step"]
    if name == "step-00000099":
        told = f"is the snapshot of update {step_of(before)}, under another one's name. Call it"
        assert f"{place / name} {told} {before.name}." in caplog.text


def test_an_empty_directory_is_never_the_newest_snapshot(tiny, tmp_path, caplog):
    tiny.child(lambda: tiny.trainer(tmp_path, epochs=1).train()).wait()
    (tmp_path / "snapshots" / "step-00000099").mkdir()
    (tmp_path / "snapshots" / "step-00000098").symlink_to(tmp_path / "nowhere")
    path, _, _ = SnapshotStore(TrainerConfig(output_dir=tmp_path)).load_newest()
    assert path.name == "step-00000006"
    assert "step-00000099/manifest.json: No such file" in caplog.text


def test_what_is_not_named_as_a_snapshot_is_neither_taken_nor_removed(tiny, tmp_path):
    for name in ("notes", "step-", "step-new", "old-step-00000099"):
        (tmp_path / "snapshots" / name).mkdir(parents=True)
    options = {"overwrite": False, "keep_snapshots": 1}
    tiny.child(lambda: tiny.trainer(tmp_path, **options).train(resume="auto")).wait()
    left = sorted(path.name for path in (tmp_path / "snapshots").iterdir())
    assert left == ["notes", "old-step-00000099", "step-", "step-00000018", "step-new"]


@pytest.mark.parametrize("part", ["plugins", "options"])
def test_a_manifest_without_a_part_resumes(tiny, tmp_path, part):
    tiny.child(lambda: tiny.trainer(tmp_path, epochs=1).train()).wait()
    path = list_snapshots(tmp_path / "snapshots")[0]
    facts = read_manifest(path)
    del facts[part]
    (path / MANIFEST).write_bytes(seal(facts))
    assert tiny.trainer(tmp_path, epochs=2).train(resume=True).steps == 12


@pytest.mark.parametrize("part", ["callback_state", "progress", "rng", "losses", "model"])
def test_a_state_without_a_part_is_refused(tiny, tmp_path, part):
    tiny.child(lambda: tiny.trainer(tmp_path, epochs=1).train()).wait()
    path = list_snapshots(tmp_path / "snapshots")[0]
    state, manifest = load_state(path)
    del state[part]
    write_snapshot(path, {"state.pt": save_state(state)}, manifest)
    with pytest.raises(SnapshotError, match=f"is no snapshot of such a run: it has no '{part}'"):
        tiny.trainer(tmp_path, epochs=2).train(resume=path)


def test_a_link_among_the_snapshots_is_removed_and_not_what_it_leads_to(tiny, tmp_path):
    tiny.child(lambda: tiny.trainer(tmp_path / "run", epochs=1).train()).wait()
    oldest = tmp_path / "run" / "snapshots" / "step-00000002"
    oldest.rename(tmp_path / "mine")
    oldest.symlink_to(tmp_path / "mine")

    def work():
        tiny.trainer(tmp_path / "run", epochs=3).train(resume=True)

    assert tiny.child(work).wait() == 0
    left = sorted(path.name for path in (tmp_path / "run" / "snapshots").iterdir())
    assert left == ["step-00000014", "step-00000016", "step-00000018"]
    verify(tmp_path / "mine")


def test_retention_that_a_kill_cut_short_is_made_up_for_at_the_next_start(tiny, tmp_path):
    def work(keep):
        tiny.trainer(tmp_path, epochs=1, keep_snapshots=keep).train(resume="auto")

    for keep, left in ((3, 3), (1, 1)):
        assert tiny.child(lambda keep=keep: work(keep)).wait() == 0
        assert len(list_snapshots(tmp_path / "snapshots")) == left


def test_retention_counts_no_damaged_later_snapshot(tiny, tmp_path):
    def work(epochs):
        tiny.trainer(tmp_path, keep_snapshots=1, epochs=epochs).train(resume="auto")

    tiny.child(lambda: work(1)).wait()
    shutil.copytree(tmp_path / "snapshots/step-00000006", tmp_path / "snapshots/step-00000099")
    (tmp_path / "snapshots/step-00000099/state.pt").write_bytes(b"damaged")

    def killed():
        callbacks = [tiny.killer(1)]
        tiny.trainer(tmp_path, keep_snapshots=1, callbacks=callbacks).train(resume=True)

    assert tiny.child(killed).wait() == -signal.SIGKILL
    verify(tmp_path / "snapshots/step-00000006")
    assert tiny.child(lambda: work(2)).wait() == 0
    assert [path.name for path in list_snapshots(tmp_path / "snapshots")] == ["step-00000012"]
    verify(tmp_path / "snapshots/step-00000012")


def test_a_format_of_the_future_is_refused_naming_both(tmp_path):
    write(tmp_path / "s")
    manifest = read_manifest(tmp_path / "s")
    (tmp_path / "s" / MANIFEST).write_bytes(seal({"format": FORMAT + 8, "news": manifest}))
    message = refusal(tmp_path / "s")
    assert f"format {FORMAT + 8}" in message
    assert f"up to format {FORMAT}" in message


def test_what_was_written_before_the_fault_in_the_background_is_reported(tmp_path, caplog):
    store = SnapshotStore(TrainerConfig(output_dir=tmp_path))
    store.save(1, {"x": lambda: 0}, FACTS, print, {})
    assert caplog.messages == []
    store.collect(wait=True)
    assert "step-00000001 could not be written" in caplog.text
