"""Snapshot writes, watched system call by system call: in which order, killed at each, refused at
each.
"""

import ctypes
import errno
import logging
import os
import platform
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainer.config import TrainerConfig
from trainer.snapshots.snapshot import list_snapshots, remove_leftovers, write_snapshot
from trainer.snapshots.state_file import load_state, save_state
from trainer.snapshots.store import SnapshotStore
from trainer_callback import SnapshotError

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="traces system calls as Linux does on x86-64",
)

TRACEME, PEEKUSER, POKEUSER, SYSCALL = 0, 3, 6, 24
RAX, RSI, RDI, NUMBER = (8 * place for place in (10, 13, 14, 15))
"""Offsets of what a call returns, its second and first argument, and which one it is."""

NAMES = {
    1: "write",
    3: "close",
    72: "fcntl",
    74: "fsync",
    82: "rename",
    83: "mkdir",
    84: "rmdir",
    87: "unlink",
    217: "getdents64",
    257: "openat",
    262: "newfstatat",
    263: "unlinkat",
}
FACTS = {"step": 1, "plugins": {}, "options": {}, "metrics": {}}

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


class Call:
    """A system call that a child is about to make."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.name = NAMES.get(self._read(NUMBER), "")

    def _read(self, register: int) -> int:
        return libc.ptrace(PEEKUSER, self._pid, register, None)

    @property
    def path(self) -> str:
        """The name of the file that it is about."""
        if self.name in ("fsync", "write", "close", "fcntl"):
            return Path(f"/proc/{self._pid}/fd/{self._read(RDI)}").readlink().name
        with Path(f"/proc/{self._pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(self._read(RSI if self.name == "unlinkat" else RDI))
            return Path(os.fsdecode(memory.read(500).split(b"\0")[0])).name


def trace(work: Callable[[], object], decide: Callable[[Call], str | int | None]) -> int:
    """Runs `work` in a child; returns its exit code: 3 after a SnapshotError.

    Before each system call `decide` says what becomes of it: None, "kill", "fail", or the error
    that it has instead.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if libc.ptrace(TRACEME, 0, None, None) != 0:
                os._exit(77)
            os.kill(os.getpid(), signal.SIGSTOP)
            work()
            code = 0
        except SnapshotError:
            code = 3
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    entered, failing = False, None
    while not (os.WIFEXITED(status) or os.WIFSIGNALED(status)):
        if os.WSTOPSIG(status) == signal.SIGTRAP:
            entered = not entered
            if entered:
                what = decide(Call(pid))
                if what == "kill":
                    os.kill(pid, signal.SIGKILL)
                failing = errno.EIO if what == "fail" else what
                if failing:
                    libc.ptrace(POKEUSER, pid, NUMBER, -1)
            elif failing:
                libc.ptrace(POKEUSER, pid, RAX, -failing)
        libc.ptrace(SYSCALL, pid, None, None)
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


@pytest.fixture(autouse=True, scope="module")
def _may_trace():
    if trace(lambda: None, lambda call: None) == 77:
        pytest.skip("this machine lets nobody trace a child")


def write(path, value=1, beside=()):
    state = {"x": torch.arange(3), "value": value}
    write_snapshot(path, {"state.pt": save_state(state)}, FACTS, beside)


@pytest.mark.parametrize("replaces", [False, True])
def test_kill_9_at_any_system_call_of_a_snapshot_write(tmp_path, replaces):
    at, made = 0, 1
    while made >= at:
        at, made = at + 1, 0
        place = tmp_path / str(at)
        write(place / "step-00000001", value=1)
        target = place / ("step-00000001" if replaces else "step-00000002")

        def decide(call, at=at):
            nonlocal made
            made += 1
            return "kill" if made == at else None

        trace(lambda target=target: write(target, value=2), decide)
        remove_leftovers(place)
        found = list_snapshots(place)
        values = [load_state(path)[0]["value"] for path in found]
        assert values in ([1], [2], [2, 1]), f"call {at}: {values}"
        assert {path.name for path in place.iterdir()} == {path.name for path in found}
        shutil.rmtree(place)
    assert at > 20
    assert values == ([2] if replaces else [2, 1])


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_syncs_no_directory_gets_its_snapshots_and_one_warning(tmp_path, error):
    names = {"snapshots", "step-00000001", ".tmp-step-00000001", ".tmp-step-00000002", "run"}
    names.add(tmp_path.name)

    def work():
        logging.basicConfig(filename=tmp_path / "log", level=logging.WARNING, force=True)
        for step in (1, 2):
            write(tmp_path / "run" / "snapshots" / f"step-0000000{step}")

    def decide(call):
        return error if call.name == "fsync" and call.path in names else None

    assert trace(work, decide) == 0
    found = list_snapshots(tmp_path / "run" / "snapshots")
    assert [load_state(path)[0]["value"] for path in found] == [1, 1]
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert "syncs no directories" in line


def test_a_file_that_cannot_be_synced_is_a_failed_write(tmp_path):
    def decide(call):
        return errno.EINVAL if call.name == "fsync" and call.path == "state.pt" else None

    assert trace(lambda: write(tmp_path / "step-00000001"), decide) == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("replaces", [False, True])
def test_an_error_of_any_system_call_of_a_snapshot_write(tmp_path, replaces):
    at, made, failed = 0, 1, []
    while made >= at:
        at, made = at + 1, 0
        place = tmp_path / str(at)
        write(place / "step-00000001", value=1)
        target = place / ("step-00000001" if replaces else "step-00000002")

        def decide(call, at=at):
            nonlocal made
            made += call.name != ""
            if made == at and call.name:
                failed.append(call.name)
                return "fail"
            return None

        code = trace(lambda target=target: write(target, value=2), decide)
        where = f"{failed[-1]}, call {at}"
        assert code in (0, 3), where
        values = [load_state(path)[0]["value"] for path in list_snapshots(place)]
        assert values in ([[2], [2, 1]] if code == 0 else [[1], [2], [2, 1]]), where
        if failed[-1] in ("write", "fsync", "rename", "mkdir"):
            left = [path.name for path in place.iterdir() if path.name.startswith(".tmp-")]
            assert left == [], where
        shutil.rmtree(place)
    assert {"write", "fsync", "rename", "mkdir", "openat"} <= {*failed}


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize("refused", ["fcntl", "write"])
def test_a_file_system_that_writes_no_piece_past_its_cache_gets_its_snapshots(
    tmp_path, refused, error
):
    """Some refuse to be asked for it, others the write."""
    numbers, seen = torch.arange(9_000_000, dtype=torch.int32), []

    def decide(call):
        if call.name in ("fcntl", "write") and call.path == "state.pt":
            seen.append(call.name)
            place = {"fcntl": 2, "write": 3}[refused]  # behind the question for its flags
            return error if len(seen) == place else None
        return None

    def work():
        write_snapshot(tmp_path / "s", {"state.pt": save_state({"x": numbers})}, FACTS)

    assert trace(work, decide) == 0
    assert seen[:3] == ["fcntl", "fcntl", "write"]
    assert torch.equal(load_state(tmp_path / "s")[0]["x"], numbers)


def test_a_file_that_cannot_go_back_to_the_cache_is_a_failed_write_and_no_endless_one(tmp_path):
    numbers, seen = torch.arange(9_000_000, dtype=torch.int32), []

    def decide(call):
        if call.name in ("fcntl", "write") and call.path == "state.pt":
            seen.append(call.name)
            if len(seen) > 99:
                return "kill"
            asks = call.name == "fcntl" and seen.count("fcntl") % 2
            return errno.EINVAL if len(seen) > 2 and not asks else None
        return None

    def work():
        write_snapshot(tmp_path / "s", {"state.pt": save_state({"x": numbers})}, FACTS)

    assert trace(work, decide) == 3
    assert list(tmp_path.iterdir()) == []


def order_of(work):
    """Returns the calls of `work` that make something durable, visible, or gone."""
    seen = []

    def decide(call):
        if call.name in ("fsync", "rename", "rmdir", "unlink", "unlinkat"):
            seen.append(f"{call.name} {call.path}")

    assert trace(work, decide) == 0
    return seen


def test_a_snapshot_write_syncs_the_files_then_the_manifest_then_gets_its_name(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.touch()
    place = tmp_path / "snapshots"
    write(place / "step-00000001")
    assert order_of(lambda: write(place / "step-00000002", beside=[log])) == [
        "fsync state.pt",
        "fsync manifest.json",
        "fsync .tmp-step-00000002",
        "fsync metrics.jsonl",
        "rename .tmp-step-00000002",
        "fsync snapshots",
    ]


def test_a_replaced_snapshot_goes_after_the_new_one_is_durable(tmp_path):
    write(tmp_path / "step-00000001")
    seen = order_of(lambda: write(tmp_path / "step-00000001"))
    assert seen[3:6] == [
        "rename step-00000001",
        "rename .tmp-step-00000001",
        f"fsync {tmp_path.name}",
    ]
    assert {call.split()[0] for call in seen[6:]} <= {"unlink", "unlinkat", "rmdir"}


def test_every_directory_that_a_write_makes_is_synced_in_its_parent(tmp_path):
    seen = order_of(lambda: write(tmp_path / "run" / "snapshots" / "step-00000001"))
    assert seen[:2] == [f"fsync {tmp_path.name}", "fsync run"]


def test_retention_comes_after_durability(tmp_path):
    config = TrainerConfig(output_dir=tmp_path, keep_snapshots=1, snapshot_sync=True)
    store = SnapshotStore(config)
    state = {"x": torch.arange(3)}
    store.save(1, state, FACTS, lambda path: None, {})
    seen = order_of(lambda: store.save(2, state, FACTS, lambda path: None, {}))
    durable = seen.index("fsync snapshots")
    removed = seen.index("rename step-00000001")
    assert durable < removed
    assert not [call for call in seen[:durable] if call.startswith(("unlink", "rmdir"))]
