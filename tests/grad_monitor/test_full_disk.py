"""A page or picture that cannot be written: the old one stays, nothing half is left."""

import contextlib
import resource

import pytest

from trainer_gradient_monitor.files import write_whole
from trainer_gradient_monitor.report import Report
from trainer_gradient_monitor.state import MonitorState


@contextlib.contextmanager
def quota(size):
    """No file can grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    write_whole(tmp_path / "page.html", b"old")
    with quota(1000), pytest.raises(OSError, match="too large"):
        write_whole(tmp_path / "page.html", b"new" * 1000)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_bytes() == b"old"


def test_a_report_that_does_not_fit_is_told_once_and_written_when_there_is_room(tmp_path, caplog):
    report, state = Report(tmp_path, 1e-7, None), MonitorState.fresh({}, ("layer",), 8)
    with quota(1000):
        for _ in range(2):
            report.write(state, None)
    assert caplog.text.count("gradient_flow.html cannot be written: OSError") == 1
    assert caplog.text.count("gradient_flow.png cannot be written: OSError") == 1
    assert not [*tmp_path.iterdir()]
    report.write(state, None)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["gradient_flow.html", "gradient_flow.png"]
