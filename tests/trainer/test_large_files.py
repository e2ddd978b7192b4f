"""Files of more than one piece, which go past the system's cache where the disk can do that: on a
disk, and in memory.
"""

import errno
import os
import resource
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
import torch

from trainer.snapshots import durable
from trainer.snapshots.durable import save_bytes, write_file
from trainer.snapshots.manifest import verify
from trainer.snapshots.snapshot import list_snapshots, remove_leftovers, write_snapshot
from trainer.snapshots.state_file import load_state, save_state
from trainer_callback import SnapshotError
from trainer_callback.digests import digest_file

PIECE = durable._PIECE_BYTES
FACTS = {"step": 1, "plugins": {}, "options": {}, "metrics": {}}
NUMBERS = torch.arange(9_000_000, dtype=torch.int32)
"""Two pieces of a file, and some more."""


@pytest.fixture(params=["disk", "memory"])
def place(request):
    parent = Path("/dev/shm" if request.param == "memory" else "/var/tmp")
    if not parent.is_dir():
        pytest.skip(f"this machine has no {parent}")
    with tempfile.TemporaryDirectory(dir=parent) as directory:
        yield Path(directory)


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 4097])
@pytest.mark.parametrize("pieces", ["one", "many"])
def test_a_file_has_what_was_written_and_its_digest(place, size, pieces):
    content = os.urandom(size)
    step = size + 1 if pieces == "one" else 999_999

    def write(file):
        for start in range(0, size, step):
            assert file.write(content[start : start + step]) == len(content[start : start + step])

    told = write_file(place / "file", write)
    assert (place / "file").read_bytes() == content
    assert told == {"size": size, "xxh3_128": digest_file(place / "file", "xxh3_128")}


def write(path, value=1):
    files = {"state.pt": save_state({"x": NUMBERS + value}), "beside": save_bytes(bytes(PIECE))}
    write_snapshot(path, files, FACTS)


def test_a_damaged_byte_at_the_start_the_middle_and_the_end_of_each_file_is_found(place):
    write(place / "s")
    for file in sorted((place / "s").iterdir()):
        size = file.stat().st_size
        for at in (0, size // 2, size - 1, PIECE - 1, PIECE, size // PIECE * PIECE):
            if at >= size:
                continue
            with file.open("r+b", buffering=0) as opened:
                (byte,) = os.pread(opened.fileno(), 1, at)
                os.pwrite(opened.fileno(), bytes([byte ^ 16]), at)
                with pytest.raises(SnapshotError, match=file.name):
                    load_state(place / "s")
                os.pwrite(opened.fileno(), bytes([byte]), at)
    state, _ = load_state(place / "s")
    assert torch.equal(state["x"], NUMBERS + 1)


def test_files_of_one_size_that_are_mixed_up_are_found(place):
    files = {"one": save_bytes(bytes(PIECE)), "two": save_bytes(b"\1" * PIECE)}
    write_snapshot(place / "s", files, FACTS)
    verify(place / "s")
    (place / "s" / "one").rename(place / "s" / "kept")
    (place / "s" / "two").rename(place / "s" / "one")
    (place / "s" / "kept").rename(place / "s" / "two")
    with pytest.raises(SnapshotError, match="one is damaged: its xxh3_128 is not the one"):
        verify(place / "s")


def test_kill_9_inside_any_piece_of_a_file(tiny, place):
    write(place / "step-00000001")
    size = (place / "step-00000001" / "state.pt").stat().st_size

    def work(limit):
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        write(place / "step-00000002", value=2)

    for limit in (0, 4096, PIECE - 1, PIECE, PIECE + 1, PIECE + 4096, 2 * PIECE, size - 1):
        assert tiny.child(lambda limit=limit: work(limit)).wait() == -signal.SIGXFSZ
        assert [path.name for path in list_snapshots(place)] == ["step-00000001"]
    remove_leftovers(place)
    assert [path.name for path in place.iterdir()] == ["step-00000001"]
    verify(place / "step-00000001")


def test_a_file_that_grows_too_large_is_one_error_and_leaves_nothing(tiny, place):
    def work(limit):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(SnapshotError, match="File too large") as caught:
            write(place / "step-00000001")
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.EFBIG

    for limit in (PIECE - 1, PIECE, PIECE + 4097):
        assert tiny.child(lambda limit=limit: work(limit)).wait() == 0
        assert list(place.iterdir()) == []


def test_a_snapshot_that_was_copied_elsewhere_is_whole(place, tmp_path):
    write(place / "s")
    shutil.copytree(place / "s", tmp_path / "s")
    state, _ = load_state(tmp_path / "s")
    assert torch.equal(state["x"], NUMBERS + 1)
