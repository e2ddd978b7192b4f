"""What no run wrote is never touched; what a run wrote is known again, whenever it was killed."""

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

from trainer import ConfigError, TrainerConfig
from trainer.snapshots.run_record import RECORD, RunRecord
from trainer.snapshots.rundir import RunDirectory
from trainer.snapshots.snapshot import list_snapshots
from trainer.writers.metrics_file import read_logged
from trainer_callback import TrainerCallback


def listing(place):
    """Every file below `place`, with its content, but for the lock and the record."""
    return {
        str(path.relative_to(place)): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.name not in (".lock", RECORD)
    }


def train(tiny, place, resume=False, **options):
    return tiny.trainer(place, **{"epochs": 1, **options}).train(resume=resume)


FOREIGN = {
    "final/thesis.txt": b"my thesis",
    "final/state.pt": b"somebody's",
    "metrics.jsonl": b'{"loss": 3}\n',
    "config.yaml": b"epochs: 3 # of another program\n",
}


def test_what_a_run_wrote_is_known_by_its_manifests_alone(tiny, tmp_path):
    train(tiny, tmp_path)
    (tmp_path / RECORD).unlink()
    record = RunRecord.read(tmp_path)
    assert record.owns(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("somebody's\n")
    assert not record.owns(tmp_path / "config.yaml")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("resume", [False, "auto"])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_no_run_wrote_is_named_and_stays(tiny, tmp_path, name, resume, overwrite):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(FOREIGN[name])
    before = listing(tmp_path)
    with pytest.raises(ConfigError, match=f"holds '{name}', which no run wrote"):
        train(tiny, tmp_path, resume, overwrite=overwrite)
    assert listing(tmp_path) == before


def test_a_snapshot_of_another_program_stays(tiny, tmp_path):
    (tmp_path / "snapshots" / "step-00000004").mkdir(parents=True)
    (tmp_path / "snapshots" / "step-00000004" / "state.pt").write_bytes(b"theirs")
    before = listing(tmp_path)
    for resume, overwrite in ((False, False), (False, True), ("auto", False)):
        with pytest.raises(Exception, match=r"holds|sound"):
            train(tiny, tmp_path, resume, overwrite=overwrite)
    assert listing(tmp_path) == before


def test_a_finished_run_whose_snapshots_are_gone_is_not_started_again(tiny, tmp_path):
    assert tiny.child(lambda: train(tiny, tmp_path).exit_code).wait() == 0
    shutil.rmtree(tmp_path / "snapshots")
    before = listing(tmp_path)
    with pytest.raises(ConfigError, match=r"holds a run already, and no snapshot.*overwrite=True"):
        train(tiny, tmp_path, "auto")
    assert listing(tmp_path) == before
    assert tiny.child(lambda: train(tiny, tmp_path, overwrite=True).exit_code).wait() == 0


def test_an_unfinished_run_whose_snapshots_are_gone_is_not_started_again(tiny, tmp_path):
    def work():
        train(tiny, tmp_path, callbacks=[tiny.killer(25)])

    assert tiny.child(work).wait() == -signal.SIGKILL
    assert len(list_snapshots(tmp_path / "snapshots")) > 0
    shutil.rmtree(tmp_path / "snapshots")
    before = listing(tmp_path)
    with pytest.raises(ConfigError, match="holds a run already, and no snapshot"):
        train(tiny, tmp_path, "auto")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("again", ["auto", "overwrite"])
def test_a_run_that_was_killed_before_its_first_snapshot_starts_again(tiny, tmp_path, again):
    def work(*callbacks, **options):
        train(tiny, tmp_path, callbacks=callbacks, snapshot_interval=4, **options)

    assert tiny.child(lambda: work(tiny.killer(9))).wait() == -signal.SIGKILL
    assert (tmp_path / "metrics.jsonl").stat().st_size > 0
    with pytest.raises(ConfigError, match="holds a run already"):
        train(tiny, tmp_path)
    options = {"overwrite": True} if again == "overwrite" else {"resume": "auto"}
    assert tiny.child(lambda: work(**options)).wait() == 0
    assert len(read_logged(tmp_path / "metrics.jsonl")) == 7


def test_a_run_that_was_killed_at_any_moment_before_its_first_step_starts_again(tiny, tmp_path):
    """At each file that is written until then."""
    for at in range(1, 40):
        place = tmp_path / str(at)

        def work(place=place, at=at):
            count = iter(range(1, 1000))
            write = Path.write_bytes

            def strike(path, content):
                if next(count) == at:
                    write(path, content[: len(content) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return write(path, content)

            Path.write_bytes = strike
            train(tiny, place, max_steps=1)

        code = tiny.child(work).wait()
        if code == 0:
            break
        assert tiny.child(lambda place=place: train(tiny, place, "auto").exit_code).wait() == 0
    assert at > 2
    assert code == 0


def test_notes_in_final_survive_every_way_to_go_on(tiny, tmp_path):
    assert tiny.child(lambda: train(tiny, tmp_path).exit_code).wait() == 0
    notes = tmp_path / "final" / "thesis.txt"
    notes.write_text("mine")
    (tmp_path / "snapshots" / "step-00000002" / "notes.txt").write_text("mine, too")
    options = {"epochs": 2, "keep_snapshots": 1}
    assert tiny.child(lambda: train(tiny, tmp_path, True, **options).exit_code).wait() == 0
    assert notes.read_text() == "mine"
    assert json.loads((tmp_path / "final" / "manifest.json").read_bytes())["step"] == 12
    left = [each.name for each in (tmp_path / "snapshots" / "step-00000002").iterdir()]
    assert left == ["notes.txt"]
    before = listing(tmp_path)
    with pytest.raises(ConfigError, match=r"holds '.*\.txt', which no run wrote"):
        train(tiny, tmp_path, overwrite=True)
    assert listing(tmp_path) == before
    notes.unlink()
    (tmp_path / "snapshots" / "step-00000002" / "notes.txt").unlink()
    assert tiny.child(lambda: train(tiny, tmp_path, overwrite=True).exit_code).wait() == 0


def test_notes_in_kept_weights_survive(tiny, tmp_path):
    class Keeps(TrainerCallback):
        def on_epoch_end(self, trainer):
            trainer.save_weights("best")
            (tmp_path / "weights" / "best" / "notes.txt").write_text("mine")
            trainer.save_weights("best")
            (tmp_path / "weights" / "other").mkdir()
            (tmp_path / "weights" / "other" / "model.bin").write_text("theirs")
            trainer.delete_weights("best")
            trainer.delete_weights("other")

    train(tiny, tmp_path, callbacks=[Keeps()])
    left = {str(path.relative_to(tmp_path / "weights")) for path in tmp_path.rglob("weights/*/*")}
    assert left == {"best/notes.txt", "other/model.bin"}


def test_a_configuration_that_was_edited_is_left_alone_and_said(tiny, tmp_path, caplog):
    assert tiny.child(lambda: train(tiny, tmp_path).exit_code).wait() == 0
    (tmp_path / "config.yaml").write_text("epochs: 3\n# my notes\n")
    assert train(tiny, tmp_path, True, epochs=2).steps == 12
    assert "config.yaml is not as a run has left it: this one leaves it alone." in caplog.text
    assert (tmp_path / "config.yaml").read_text() == "epochs: 3\n# my notes\n"
    assert (tmp_path / "final" / "config.yaml").read_text() == "epochs: 3\n"
    with pytest.raises(ConfigError, match=r"holds 'config\.yaml', which no run wrote"):
        train(tiny, tmp_path, overwrite=True)


def test_a_configuration_with_the_same_content_is_in_nobodys_way(tiny, tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"epochs: 3\n")
    assert train(tiny, tmp_path).steps == 6


def test_a_run_of_an_older_trainer_which_left_no_record_goes_on_and_is_overwritten(tiny, tmp_path):
    assert tiny.child(lambda: train(tiny, tmp_path).exit_code).wait() == 0
    (tmp_path / RECORD).unlink()
    assert tiny.child(lambda: train(tiny, tmp_path, "auto", epochs=2).exit_code).wait() == 0
    (tmp_path / RECORD).write_text("{damaged")
    assert tiny.child(lambda: train(tiny, tmp_path, overwrite=True).exit_code).wait() == 0
    assert len(read_logged(tmp_path / "metrics.jsonl")) == 7


def test_temporary_files_of_other_programs_stay(tiny, tmp_path):
    (tmp_path / ".tmp-theirs").mkdir()
    (tmp_path / ".old-theirs").touch()
    assert tiny.child(lambda: train(tiny, tmp_path).exit_code).wait() == 0
    assert train(tiny, tmp_path, True, epochs=2).steps == 12
    assert (tmp_path / ".tmp-theirs").is_dir()
    assert (tmp_path / ".old-theirs").exists()


class Hears(TrainerCallback):
    def on_train_start(self, trainer):
        self.steps = trainer.step


def test_what_overwrite_was_killed_in_is_ended_at_the_next_start(tiny, tmp_path, monkeypatch):
    """Else `auto` would go on with an older snapshot of the run that was to be removed."""
    whole = tmp_path / "whole"
    assert tiny.child(lambda: train(tiny, whole).exit_code).wait() == 0
    for at in range(1, 40):
        place = tmp_path / str(at)
        shutil.copytree(whole, place)

        def work(place=place, at=at):
            count = iter(range(1, 1000))
            for owner, name in ((os, "unlink"), (os, "rename"), (os, "rmdir"), (Path, "unlink")):
                real = getattr(owner, name)

                def strike(*arguments, real=real, **options):
                    if next(count) == at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return real(*arguments, **options)

                setattr(owner, name, strike)
            with RunDirectory(place) as directory:
                directory.claim({}, resumes=False, may_restart=False, overwrite=True)

        code = tiny.child(work).wait()
        if code == 0:
            break
        record = RunRecord.read(place)
        began = record is not None and record.clearing
        if began:
            with pytest.raises(ConfigError, match="there is nothing to resume"):
                train(tiny, place, True)
        steps = 6 if not began else 0
        hears = Hears()
        train(tiny, place, "auto", callbacks=[hears])
        assert hears.steps == steps, at
    assert code == 0
    assert at > 10


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "../x",
        "state.pt",
        "manifest.json",
        "metrics.jsonl",
        "final",
        ".lock",
        3,
    ],
)
def test_an_artifact_takes_the_place_of_nothing_else(tiny, tmp_path, name):
    from trainer import Trainer

    trainer = tiny.trainer(tmp_path)
    with pytest.raises(ConfigError, match=r"artifacts: .* cannot be the name of a file"):
        Trainer(
            trainer.model,
            trainer.optimizer,
            tiny.loader(),
            config=trainer.config,
            discover=False,
            artifacts={name: b"x"},
        )
    with pytest.raises(ConfigError, match=r"artifacts\['a.txt'\] must be bytes, got a str"):
        Trainer(
            trainer.model,
            trainer.optimizer,
            tiny.loader(),
            config=trainer.config,
            discover=False,
            artifacts={"a.txt": "x"},
        )


def test_an_empty_path_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="output_dir is empty"):
        TrainerConfig(output_dir="")
    with pytest.raises(ConfigError, match="resume is empty"):
        tiny.trainer(None, snapshot_interval=None).train(resume="")
    with pytest.raises(ConfigError, match="output_dir must be a path, got 3"):
        TrainerConfig(output_dir=3)
    with pytest.raises(ConfigError, match="output_dir must be a path, got '~nobody-here/x'"):
        TrainerConfig(output_dir="~nobody-here/x")
    assert list(tmp_path.iterdir()) == []


def test_the_command_refuses_an_empty_path(capsys):
    from trainer_tool.cli import main

    with pytest.raises(SystemExit) as caught:
        main(["snapshot", "list", ""])
    assert caught.value.code == 2
    assert "must not be empty" in capsys.readouterr().err


def test_a_path_is_made_absolute_and_its_tilde_expanded_at_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert TrainerConfig(output_dir="runs/a").output_dir == tmp_path / "runs" / "a"
    assert TrainerConfig(output_dir=Path("~/x")).output_dir == tmp_path / "home" / "x"


class Moves(TrainerCallback):
    """Goes to another directory at each hook that may."""

    def __init__(self, places):
        self.places = places

    def move(self):
        os.chdir(self.places[0])
        self.places.reverse()

    def on_snapshot_load(self, checkpoint):
        self.move()

    def on_train_start(self, trainer):
        self.move()

    def on_step_end(self, trainer):
        self.move()

    def on_epoch_end(self, trainer):
        self.digest = trainer.save_weights("mine")
        self.move()
        trainer.load_weights("mine", self.digest)

    def on_train_end(self, trainer):
        self.move()


@pytest.mark.parametrize(
    "resume", [True, "run/snapshots/step-00000006", "~/snapshots/step-00000006"]
)
def test_a_callback_that_changes_the_directory_changes_nothing(tiny, tmp_path, monkeypatch, resume):
    places = [tmp_path / "one", tmp_path / "two"]
    for place in places:
        place.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "run"))

    def work(epochs, resume):
        os.chdir(tmp_path)
        train(tiny, "run", resume, epochs=epochs, callbacks=[Moves(places)])

    assert tiny.child(lambda: work(1, False)).wait() == 0
    assert tiny.child(lambda: work(2, resume)).wait() == 0
    assert sorted(each.name for each in tmp_path.iterdir()) == ["one", "run", "two"]
    assert [*places[0].iterdir(), *places[1].iterdir()] == []
    assert tiny.newest_state(tmp_path / "run")["progress"]["step"] == 12
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()


def test_the_owner_of_a_directory_is_known_as_soon_as_it_has_the_lock(tmp_path):
    """Its name is written a moment after, and the name of the one before it may be there."""
    lock = tmp_path / ".lock"
    with RunDirectory(tmp_path):
        held = lock.read_bytes()
        for stale in (b"", b'{"pid": 99999999, "host"', held.replace(b'"pid": ', b'"pid": 9999')):
            lock.write_bytes(stale)
            writer = threading.Timer(0.2, lock.write_bytes, [held])
            writer.start()
            with pytest.raises(ConfigError, match=f"in use by process {os.getpid()} on "):
                RunDirectory(tmp_path).__enter__()
            writer.join()
    assert lock.read_bytes() == b""  # nobody is named who has left


def test_a_finished_model_behind_a_link_that_no_run_wrote_is_told_before_the_first_step(
    tiny, tmp_path
):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").touch()
    place = tmp_path / "run"
    place.mkdir()
    (place / "final").symlink_to(theirs)
    with pytest.raises(ConfigError, match=r"holds 'final/thesis\.txt', which no run wrote"):
        train(tiny, place)
    assert [each.name for each in theirs.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("linked", [True, False])
def test_an_empty_folder_for_the_snapshots_is_no_run(tiny, tmp_path, linked):
    place = tmp_path / "run"
    place.mkdir()
    theirs = tmp_path / "disk" if linked else place / "snapshots"
    theirs.mkdir()
    if linked:
        (place / "snapshots").symlink_to(theirs)
    assert train(tiny, place).status == "finished"
    assert [*theirs.glob("step-*")]


def test_a_record_of_somebody_else_stays(tiny, tmp_path, caplog):
    (tmp_path / RECORD).write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match=r"holds '\.run\.json', which no run wrote"):
        train(tiny, tmp_path)
    assert (tmp_path / RECORD).read_text() == '{"mine": 1}'
    (tmp_path / RECORD).write_bytes(b"")  # as a power failure leaves it
    train(tiny, tmp_path)
    (tmp_path / RECORD).write_text('{"mine": 1}')
    train(tiny, tmp_path, True, epochs=2)
    assert (tmp_path / f"{RECORD}.found").read_text() == '{"mine": 1}'
    assert f"{RECORD} is not as a run has left it: it is kept as {RECORD}.found." in caplog.text
