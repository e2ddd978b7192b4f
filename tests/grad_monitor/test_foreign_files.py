"""Files that are not the monitor's own are never touched: the run is refused, and names them."""

import pytest

from trainer_callback import UsageError
from trainer_gradient_monitor import GradientMonitorCallback

FOREIGN = {
    "gradients.jsonl": b'{"step": 1, "epoch": 0, "loss": 0.5}\n',
    "gradient_flow.html": b"<!doctype html><title>Gradient flow</title>of mine",
    "gradient_flow.png": b"\x89PNG\r\n\x1a\nholiday",
}


def monitor():
    return GradientMonitorCallback(monitor_interval=2)


def refused(make, place, name, **options):
    trainer = make(monitor(), place, **options.pop("config", {}))
    with pytest.raises(UsageError, match=name) as caught:
        trainer.train(**options)
    assert "Move it away" in str(caught.value)
    return trainer


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("moment", ["fresh", "resume", "overwrite"])
def test_a_foreign_file_is_refused_before_the_first_step_and_stays(make, tmp_path, name, moment):
    file = tmp_path / "gradient_flow" / name
    if moment != "fresh":
        make(monitor(), tmp_path, max_steps=4).train()
        file.unlink()
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(FOREIGN[name])
    before = {path.name: path.read_bytes() for path in file.parent.iterdir()}
    config = {"overwrite": moment == "overwrite"}
    trainer = refused(make, tmp_path, name, config=config, resume=moment == "resume")
    assert trainer.step == (4 if moment == "resume" else 0)
    assert {path.name: path.read_bytes() for path in file.parent.iterdir()} == before


@pytest.mark.parametrize("name", FOREIGN)
def test_a_directory_in_the_way_is_refused(make, tmp_path, name):
    (tmp_path / "gradient_flow" / name).mkdir(parents=True)
    refused(make, tmp_path, name)


def test_a_file_in_the_way_of_the_folder_is_refused(make, tmp_path):
    (tmp_path / "gradient_flow").write_text("mine")
    refused(make, tmp_path, "gradient_flow")
    assert (tmp_path / "gradient_flow").read_text() == "mine"


def test_no_report_needs_no_page(make, tmp_path):
    page = tmp_path / "gradient_flow" / "gradient_flow.html"
    page.parent.mkdir()
    page.write_bytes(b"mine")
    make(GradientMonitorCallback(monitor_interval=2, report=False), tmp_path).train()
    assert page.read_bytes() == b"mine"


def test_its_own_files_are_replaced(make, tmp_path):
    make(monitor(), tmp_path, max_steps=4).train()
    make(monitor(), tmp_path, max_steps=8).train(resume=True)
    make(monitor(), tmp_path, max_steps=4, overwrite=True).train()


@pytest.mark.parametrize("content", [b"", b'{"step": 2, "ep'])
def test_a_record_whose_first_line_was_not_finished_is_its_own(make, tmp_path, content):
    file = tmp_path / "gradient_flow" / "gradients.jsonl"
    file.parent.mkdir()
    file.write_bytes(content)
    make(monitor(), tmp_path).train()


def test_other_files_in_the_folder_stay(make, tmp_path):
    notes = tmp_path / "gradient_flow" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    make(monitor(), tmp_path).train()
    assert notes.read_text() == "mine"


def test_what_a_killed_write_has_left_is_removed_at_the_start(make, tmp_path):
    folder = tmp_path / "gradient_flow"
    folder.mkdir()
    for name in (".gradient_flow.html.tmp", ".gradient_flow.png.tmp"):
        (folder / name).write_text("half")
    make(monitor(), tmp_path).train()
    assert sorted(path.name for path in folder.iterdir()) == sorted(FOREIGN)
