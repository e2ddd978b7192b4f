"""Faults of a snapshot's files: each write is killed, cut, refused; each byte is changed."""

import ctypes
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

import pytest
import torch

from trainer import state_file
from trainer.config import TrainerConfig
from trainer.keeper import SnapshotKeeper
from trainer.manifest import FORMAT, MANIFEST, read_manifest, seal, verify
from trainer.metrics_file import read_logged
from trainer.snapshot import list_snapshots, remove_leftovers, save_bytes, write_snapshot
from trainer.state_file import load_state, save_state
from trainer_callback import SaveError, SnapshotError

STATE = {"x": torch.arange(3), "name": "ä", "numbers": [1, 2.5, None, True]}
FACTS = {"step": 1, "plugins": {}, "options": {}, "metrics": {"val_loss": 0.5}}

PTRACE_TRACEME, PTRACE_SYSCALL, PTRACE_KILL, PTRACE_SETOPTIONS, TRACESYSGOOD = 0, 24, 8, 0x4200, 1


def write(path, value=1):
    write_snapshot(path, {"state.pt": save_state({**STATE, "value": value})}, FACTS)


def run_to_system_call(child, number):
    """Lets a traced `child` come to its n-th system call since it stopped, and kills it there.

    Returns how many calls it made: fewer than `number` where it ended before.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    os.waitpid(child, 0)
    calls = 0
    while True:
        libc.ptrace(PTRACE_SYSCALL, child, None, None)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            return calls // 2
        calls += 1  # one stop at the entry, one at the exit
        if calls // 2 >= number:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return number


def trace(work):
    """Forks a child that stops itself under ptrace and then works. Returns its pid."""
    child = os.fork()
    if child == 0:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.ptrace(PTRACE_TRACEME, 0, None, None) != 0:
                os._exit(77)
            os.kill(os.getpid(), signal.SIGSTOP)
            work()
        finally:
            os._exit(0)
    return child


def may_trace():
    child = trace(lambda: None)
    _, status = os.waitpid(child, 0)
    if os.WIFSTOPPED(status):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return os.WIFSTOPPED(status)


@pytest.mark.skipif(sys.platform != "linux", reason="traces system calls as Linux does")
@pytest.mark.parametrize("replaces", [False, True])
def test_kill_9_at_any_system_call_of_a_snapshot_write(tmp_path, replaces):
    if not may_trace():
        pytest.skip("this machine lets nobody trace a child")
    call, made = 0, 1
    while made >= call:
        call += 1
        place = tmp_path / str(call)
        write(place / "step-00000001", value=1)
        target = place / ("step-00000001" if replaces else "step-00000002")
        made = run_to_system_call(trace(lambda at=target: write(at, value=2)), call)
        remove_leftovers(place)
        found = list_snapshots(place)
        values = [load_state(path)[0]["value"] for path in found]
        assert values in ([1], [2], [2, 1]), f"call {call}: {values}"
        assert {path.name for path in place.iterdir()} == {path.name for path in found}
        shutil.rmtree(place)
    assert call > 20
    assert values == ([2] if replaces else [2, 1])


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
@pytest.mark.parametrize("kind", ["zeroed", "foreign", "empty", "missing", "a directory", "a pipe"])
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
    elif kind == "a pipe" and name == "state.pt":
        os.mkfifo(file)
    assert str(file) in refusal(tmp_path / "s")


def test_a_state_that_the_manifest_does_not_name_is_not_loaded(tmp_path):
    write_snapshot(tmp_path / "s", {"other": save_bytes(b"x")}, FACTS)
    torch.save({"x": 1}, tmp_path / "s" / "state.pt")
    assert "no state.pt" in refusal(tmp_path / "s")


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../state.pt": {"size": 1, "sha256": ""}}},
        {"files": {"state.pt": {"size": "1", "sha256": ""}}},
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
    assert MANIFEST in refusal(tmp_path / "s")


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
    assert zipfile.ZipFile(state).testzip() is None


def small_disk(path):
    """Mounts two megabytes on `path`; skips where nobody may."""
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], capture_output=True
    )
    if done.returncode:
        pytest.skip("nobody may mount a small disk here; RLIMIT_FSIZE stands in for it")


def test_disk_full(tiny, tmp_path, caplog):
    disk = tmp_path / "disk"
    small_disk(disk)
    try:
        keeper = SnapshotKeeper(TrainerConfig(output_dir=disk))
        small, large = {"x": torch.ones(100_000)}, {"x": torch.ones(500_000)}
        told = []
        keeper.save(1, small, FACTS, told.append, {})
        keeper.collect(wait=True)
        keeper.save(2, large, FACTS, told.append, {})
        keeper.collect(wait=True)
        message = caplog.messages[-1]
        assert "step-00000002" in message
        assert "No space left on device" in message
        assert "2,00" in message  # the bytes it needs
        keeper.save(3, large, FACTS, told.append, {})
        keeper.collect(wait=True)
        keeper.save(4, large, FACTS, told.append, {})
        with pytest.raises(SnapshotError, match="No space left"):
            keeper.collect(wait=True)
        assert [path.name for path in told] == ["step-00000001"]
        assert [path.name for path in (disk / "snapshots").iterdir()] == ["step-00000001"]
        load_state(disk / "snapshots" / "step-00000001")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_quota_three_failed_saves_in_a_row_end_the_run_with_1(tiny, tmp_path):
    def work():
        trainer = tiny.trainer(tmp_path, snapshot_interval=1)
        limit_files(6_000)  # too little for state.pt, enough for the log
        try:
            trainer.train()
        except SaveError as error:
            (tmp_path / "error").write_text(str(error))
            (tmp_path / "step").write_text(str(trainer.step))
            return 1
        return 0

    assert tiny.child(work).wait() == 1
    assert "File too large" in (tmp_path / "error").read_text()
    assert 3 <= int((tmp_path / "step").read_text()) <= 4
    assert list((tmp_path / "snapshots").iterdir()) == []


def test_disk_full_once_training_goes_on_and_no_line_of_the_log_is_lost(tiny, tmp_path):
    class Squeeze(tiny.killer):
        def on_step_end(self, trainer, skipped):
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (20 if 3 <= trainer.step <= 5 else 10**9, 10**9)
            )

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**9, 10**9))
        tiny.trainer(tmp_path / "full", callbacks=[Squeeze()]).train()
        tiny.trainer(tmp_path / "whole", callbacks=[tiny.killer()]).train()

    assert tiny.child(work).wait() == 0
    logs = [read_logged(tmp_path / name / "metrics.jsonl") for name in ("full", "whole")]
    assert logs[0] == logs[1]


def test_a_state_that_cannot_be_written_leaves_the_earlier_snapshot(tmp_path):
    write(tmp_path / "s")
    with pytest.raises(SnapshotError, match="could not be written"):
        write_snapshot(tmp_path / "s", {"state.pt": save_state({"x": lambda: 0})}, FACTS)
    assert load_state(tmp_path / "s")[0]["value"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_the_newest_sound_snapshot_is_taken_and_the_log_says_why(tiny, tmp_path, caplog):
    def work():
        tiny.trainer(tmp_path).train()

    tiny.child(work).wait()
    newest, before, *_ = list_snapshots(tmp_path / "snapshots")
    (newest / "state.pt").write_bytes(b"")
    path, _, _ = SnapshotKeeper(TrainerConfig(output_dir=tmp_path)).load_newest()
    assert path == before
    assert f"{newest / 'state.pt'} has 0 bytes" in caplog.text
    for each in list_snapshots(tmp_path / "snapshots"):
        (each / MANIFEST).unlink()
    with pytest.raises(SnapshotError, match="none of the 3 snapshots is sound"):
        tiny.trainer(tmp_path).train(resume="auto")


def test_retention_counts_no_damaged_later_snapshot(tiny, tmp_path):
    def work(epochs):
        tiny.trainer(tmp_path, keep_snapshots=1, epochs=epochs).train(resume="auto")

    tiny.child(lambda: work(1)).wait()
    shutil.copytree(tmp_path / "snapshots/step-00000006", tmp_path / "snapshots/step-00000099")
    (tmp_path / "snapshots/step-00000099/state.pt").write_bytes(b"damaged")
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
    keeper = SnapshotKeeper(TrainerConfig(output_dir=tmp_path))
    keeper.save(1, {"x": lambda: 0}, FACTS, print, {})
    assert caplog.messages == []
    keeper.collect(wait=True)
    assert "step-00000001 could not be written" in caplog.text
