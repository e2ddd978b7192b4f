"""`trainer new-plugin`: what it writes builds, installs, passes its own tests and trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer_tool.cli import main

TRAIN_LM = "import sys; from trainer_lm.cli import main; sys.exit(main())"
TINY = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=8", "--batch_size=2", "--quiet"]


def new_plugin(place: Path, *words: str) -> int:
    return main(["new-plugin", *words, "--directory", str(place)])


def written(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_it_writes_a_complete_distribution(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert new_plugin(tmp_path, "loss-spike") == 0
    folder = tmp_path / "trainer-plugin-loss-spike"
    assert written(folder) == {
        ".github/workflows/test.yml",
        ".gitignore",
        "CHANGELOG.md",
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "src/trainer_loss_spike/__init__.py",
        "src/trainer_loss_spike/callback.py",
        "src/trainer_loss_spike/py.typed",
        "tests/test_loss_spike.py",
    }
    entry_point = 'loss_spike = "trainer_loss_spike:LossSpikeCallback"'
    assert entry_point in (folder / "pyproject.toml").read_text()
    assert f"cd {folder}\n" in capsys.readouterr().out


def test_function_gives_a_module(tmp_path: Path) -> None:
    assert new_plugin(tmp_path, "loss-spike", "--function") == 0
    folder = tmp_path / "trainer-plugin-loss-spike"
    assert 'loss_spike = "trainer_loss_spike"\n' in (folder / "pyproject.toml").read_text()
    assert "@hookimpl" in (folder / "src/trainer_loss_spike/__init__.py").read_text()


@pytest.mark.parametrize("name", ["Loss_Spike", "loss.-spike", "trainer-plugin-loss-spike"])
def test_a_name_is_normalised(tmp_path: Path, name: str) -> None:
    assert new_plugin(tmp_path, name) == 0
    assert (tmp_path / "trainer-plugin-loss-spike" / "src" / "trainer_loss_spike").is_dir()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("2fast", "'2fast' cannot be the name of a plugin"),
        ("a b", "'a b' cannot be the name of a plugin"),
        ("-", "cannot be the name of a plugin"),
        ("../x", "cannot be the name of a plugin"),
        ("é", "cannot be the name of a plugin"),
        ("x" * 300, "a plugin has at most 50 letters, and this has 300"),
        ("class", "'class' is a word of Python"),
        ("on", "'on' is a word of YAML"),
        ("Null", "'null' is a word of YAML"),
        ("test", "the class would be called TestCallback, like what pytest takes for tests"),
        ("testing-it", "the class would be called TestingItCallback"),
        ("trainer", "the class would be called TrainerCallback, like the base class"),
        ("early-stop", "--early_stop_min_delta is an option of train-lm already"),
        ("plugin", "--no_plugin is an option of train-lm already"),
        ("no-ema", "--no_ema is an option of train-lm already"),
        ("quiet", "--quiet is an option of train-lm already"),
        ("callback", "there is a module 'trainer_callback' already"),
        ("epochs", "--epochs is an option of train-lm already"),
        ("batch-size", "--batch_size is an option of train-lm already"),
        ("resume", "--resume is an option of train-lm already"),
        ("early-stopping", "a plugin 'early_stopping' is installed already"),
        ("trainer-plugin-grad-monitor", "trainer-plugin-grad-monitor is installed already"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, reason: str
) -> None:
    assert main(["new-plugin", "--directory", str(tmp_path), "--", name]) == 2
    assert reason in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_a_module_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trainer_taken.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert new_plugin(tmp_path, "taken") == 2
    assert "there is a module 'trainer_taken' already" in capsys.readouterr().err


def test_a_folder_that_exists_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trainer-plugin-loss-spike").mkdir()
    assert new_plugin(tmp_path, "loss-spike") == 2
    assert "exists already" in capsys.readouterr().err
    assert written(tmp_path) == set()


def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert new_plugin(file, "loss-spike") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert new_plugin(Path("~/x"), "loss-spike") == 0
    assert (tmp_path / "x" / "trainer-plugin-loss-spike" / "README.md").is_file()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("place", "words"), [("", "--directory is empty"), ("~nobody-of-that-name/x", "--directory ~")]
)
def test_a_directory_that_is_none_is_refused(
    capsys: pytest.CaptureFixture[str], place: str, words: str
) -> None:
    assert main(["new-plugin", "loss-spike", "--directory", place]) == 2
    assert words in capsys.readouterr().err


def test_what_was_half_written_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / ("d" * 200) / ("d" * 200)
    limit = os.pathconf(tmp_path, "PC_PATH_MAX") - len(str(place)) - 120
    place = place.joinpath(*["d" * 200] * (limit // 201))
    place = place / ("d" * (limit % 201))  # the folder fits, its longest file does not
    place.mkdir(parents=True)
    assert new_plugin(place, "a" * 50) == 2
    assert "cannot be written: File name too long" in capsys.readouterr().err
    assert list(place.iterdir()) == []


def test_a_dead_link_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trainer-plugin-loss-spike").symlink_to("gone")
    assert new_plugin(tmp_path, "loss-spike") == 2
    assert "exists already" in capsys.readouterr().err


def test_it_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from trainer_tool.cli import main\n"
        f"main(['new-plugin', 'loss-spike', '--directory', {str(tmp_path)!r}])\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_next_steps_end_with_the_level_and_the_wheel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert new_plugin(tmp_path, "loss-spike") == 0
    steps = capsys.readouterr().out.splitlines()
    assert steps[-2:] == ["  trainer plugins check loss_spike", "  python -m build"]


def test_what_a_callback_says_of_itself_passes_the_linter_it_comes_with(tmp_path: Path) -> None:
    assert new_plugin(tmp_path, "loss-spike") == 0
    folder = tmp_path / "trainer-plugin-loss-spike"
    file = folder / "src/trainer_loss_spike/callback.py"
    said = '    contract = {"passive": True}\n    renamed_options = {"delta": "min_delta"}\n\n'
    file.write_text(file.read_text().replace("    def __init__", f"{said}    def __init__"))
    words = [sys.executable, "-m", "ruff", "check", "."]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)  # it starts a dozen processes, some of which import torch
@pytest.mark.parametrize("form", ["class", "function"])
def test_it_builds_installs_passes_its_tests_and_trains(tmp_path: Path, form: str) -> None:
    name = f"best-of-{form}"
    flag = name.replace("-", "_")
    assert new_plugin(tmp_path, name, *(["--function"] if form == "function" else [])) == 0
    project, site = tmp_path / f"trainer-plugin-{name}", tmp_path / "site"
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTEST_ADDOPTS": ""}

    def run(*words: str, cwd: Path = project) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
            env=environment,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("-m", "ruff", "check", ".")
    run("-m", "ruff", "format", "--check", ".")
    run("-m", "build", "--wheel", "--no-isolation")
    wheel = str(next((project / "dist").glob("*.whl")))
    run("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site), wheel)

    said = run("-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist")
    assert " passed" in said
    assert "failed" not in said
    skipped = [line for line in said.splitlines() if line.startswith("SKIPPED")]
    assert all("no other trainer is installed" in line for line in skipped), skipped

    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 30)
    job = ["--dataset", str(text), "--cache_dir", str(tmp_path / "cache"), "--epochs", "2", *TINY]
    job += ["--output_dir", str(tmp_path / "run"), f"--{flag}_min_delta", "0.5"]
    run("-c", TRAIN_LM, *job, *([f"--{flag}"] if form == "class" else []), cwd=tmp_path)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    logged = [entry for entry in map(json.loads, lines) if f"{flag}_epochs_since_best" in entry]
    assert [entry["epoch"] for entry in logged] == [0, 1]
