"""`trainer snapshot list|show|verify|prune PATH`."""

import json
import shutil
import subprocess
import sys
import threading
import time

import pytest

from trainer.snapshots.manifest import MANIFEST, read_manifest, seal
from trainer.snapshots.rundir import RunDirectory
from trainer.snapshots.snapshot import (
    list_snapshots,
    remove_snapshot,
    snapshot_name,
    write_snapshot,
)
from trainer.snapshots.state_file import load_state, save_state
from trainer_tool.cli import main


@pytest.fixture
def run(tiny_trainer, tmp_path):
    place = tmp_path / "run"
    tiny_trainer(batches=6, epochs=1, snapshot_interval=2, output_dir=place).train()
    return place


def test_list_has_a_line_for_each_snapshot(run, capsys):
    assert main(["snapshot", "list", str(run)]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    first = [line.split()[0] for line in lines if line[:1].strip()]
    names = ["step-00000006", "step-00000004", "step-00000002", "final"]
    assert first == ["snapshot", *names]
    assert out.count("val_loss") == 2  # a validation came before the last one, and before final/


def test_show_tells_step_plugins_options_and_sizes(run, capsys):
    assert main(["snapshot", "show", str(run), "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert shown["path"].endswith("step-00000006")
    assert shown["manifest"]["step"] == 6
    assert shown["manifest"]["plugins"]["MetricsFile"]["distribution"] == "trainer-core"
    assert shown["manifest"]["options"]["snapshot_interval"] == 2
    assert shown["size"] > shown["manifest"]["files"]["state.pt"]["size"]
    assert main(["snapshot", "show", str(run / "snapshots" / "step-00000002")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["step", "2"] in lines


def test_verify_finds_what_is_damaged(run, capsys):
    assert main(["snapshot", "verify", str(run)]) == 0
    file = run / "snapshots" / "step-00000004" / "state.pt"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    capsys.readouterr()
    assert main(["snapshot", "verify", str(run), "--json"]) == 1
    problems = {each["path"]: each["problem"] for each in json.loads(capsys.readouterr().out)}
    damaged = [path for path, problem in problems.items() if problem]
    assert damaged == [str(file.parent)]
    assert "xxh3_128" in problems[str(file.parent)]


def test_verify_beside_a_run_that_removes_its_oldest_finds_nothing_damaged(run):
    """A run that writes fast: of two snapshots, the older one goes when the next has its name."""
    place = run / "snapshots"
    (newest, *others), coming = list_snapshots(place), run / "coming"
    state, _ = load_state(newest)
    for step in range(7, 60):
        state["progress"]["step"] = step
        files = {"state.pt": save_state(state)}
        write_snapshot(coming / snapshot_name(step), files, {"step": step, "epoch": 0})
    for each in [*others, newest]:
        shutil.rmtree(each)

    def work():
        for step in range(7, 60):
            (coming / snapshot_name(step)).rename(place / snapshot_name(step))
            if step > 8:
                remove_snapshot(place / snapshot_name(step - 2))
            time.sleep(0.01)

    thread, codes = threading.Thread(target=work), set()
    thread.start()
    while thread.is_alive():
        if list_snapshots(place):
            codes.add(main(["snapshot", "verify", str(place)]))
    thread.join()
    assert codes == {0}


def test_prune_keeps_the_newest_sound_ones(run, capsys):
    (run / "snapshots" / "step-00000006" / "state.pt").write_bytes(b"")
    (run / "snapshots" / ".tmp-step-00000008").mkdir()
    assert main(["snapshot", "prune", str(run)]) == 0
    left = sorted(path.name for path in (run / "snapshots").iterdir())
    assert left == ["step-00000004"]
    assert (run / "final" / MANIFEST).exists()
    assert "removed" in capsys.readouterr().out


def test_prune_never_removes_everything(run, capsys):
    for path in list_snapshots(run / "snapshots"):
        (path / "state.pt").unlink()
    assert main(["snapshot", "prune", str(run)]) == 2
    assert len(list_snapshots(run / "snapshots")) == 3
    assert "none of the 3 snapshots" in capsys.readouterr().err


def test_prune_leaves_a_run_that_goes_on_alone(run, capsys):
    with RunDirectory(run):
        assert main(["snapshot", "prune", str(run)]) == 2
    assert "in use by process" in capsys.readouterr().err


def test_no_snapshot_is_refused_in_one_line(tmp_path, capsys):
    assert main(["snapshot", "list", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "nowhere").exists()


def test_words_of_a_snapshot_do_not_steer_the_terminal(run, capsys):
    path = run / "snapshots" / "step-00000006"
    facts = read_manifest(path)
    (path / MANIFEST).write_bytes(seal({**facts, "versions": {"torch": "\x1b[2Jgone"}}))
    assert main(["snapshot", "show", str(path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b[2Jgone" in out


@pytest.mark.parametrize("action", ["list", "show"])
def test_the_command_imports_no_torch_to_show_something(run, action):
    code = (
        "import sys; from trainer_tool.cli import main; "
        f"main(['snapshot', '{action}', sys.argv[1]]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(run)], check=False).returncode == 0


@pytest.mark.parametrize("words", ["plugins", "snapshot list run", "snapshot list run --json"])
def test_a_full_disk_and_a_closed_output_are_no_tracebacks(run, words):
    line = f"{sys.executable} -c 'from trainer_tool.cli import main; exit(main())' {words}"

    def shell(end):
        done = subprocess.run(
            ["bash", "-c", line + end], cwd=run.parent, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stderr

    said = "trainer: standard output cannot be written: No space left on device.\n"
    assert shell(" >/dev/full") == (1, said)
    assert shell(" >&-") == (0, "")


def test_a_home_that_nobody_has_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["snapshot", "list", "~nobody-of-that-name/run"])
    assert "'~nobody-of-that-name/run': " in capsys.readouterr().err
