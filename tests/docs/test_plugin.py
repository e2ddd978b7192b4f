"""The manual's complete plugin: built, installed, used, resumed, removed. And its one-off file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer_lm.cli import main

TINY = (
    *("--dataset", "tiny.txt", "--n_layer", "1", "--n_head", "1", "--n_embd", "8"),
    *("--block_size", "8", "--batch_size", "2", "--epochs", "1", "--log_interval", "1"),
    *("--lr_schedule", "constant", "--warmup_steps", "0"),  # which else depend on --max_steps
    *("--cache_dir", "tokens", "--device", "cpu", "--quiet"),
)
TEXT = "Tell me, O Muse, of that many-sided hero who travelled far and wide.\n" * 5


def read_state(run: Path, step: int) -> dict[str, Any]:
    path = run / "snapshots" / f"step-{step:08d}" / "state.pt"
    return torch.load(path, weights_only=True)["callback_state"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    (place / "tiny.txt").write_text(TEXT)
    return place


@pytest.fixture(scope="module")
def run(place: Path, plugin_site: Path, command_line: Any) -> Path:
    """A run of five updates that was resumed for three more."""
    options = ("--loss_spike", "--loss_spike_factor", "2", "--output_dir", "out")
    for more in (("--max_steps", "5"), ("--max_steps", "8", "--resume")):
        done = command_line("train-lm", *TINY, *options, *more, cwd=place, site=plugin_site)
        assert done.returncode == 0, done.stdout + done.stderr
    return place / "out"


def test_the_plugin_brings_its_flags(place, plugin_site, command_line):
    shown = command_line("train-lm", "--help", cwd=place, site=plugin_site).stdout
    assert "loss_spike (trainer-plugin-loss-spike 0.1.0):" in shown
    assert "--loss_spike_stop_after N" in shown
    assert "a spike is a loss above so many times its running mean" in shown


def test_the_plugin_is_listed(place, plugin_site, command_line):
    listed = command_line("trainer", "plugins", "--json", cwd=place, site=plugin_site)
    rows = {row["name"]: row for row in json.loads(listed.stdout)}
    assert rows["loss_spike"]["version"] == "0.1.0"
    assert "on_log" in rows["loss_spike"]["hooks"]
    assert "--loss_spike_factor" in rows["loss_spike"]["options"]


def test_its_state_is_in_the_snapshot(run):
    assert read_state(run, 5)["LossSpikeCallback"]["mean"] > 0


def test_it_resumes_as_if_nothing_had_happened(run, place, world, plugin_site, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(plugin_site)
    options = ["--loss_spike", "--loss_spike_factor", "2", "--output_dir", "whole"]
    assert main([*TINY, *options, "--max_steps", "8"]) == 0
    whole = read_state(place / "whole", 8)["LossSpikeCallback"]
    assert read_state(run, 8)["LossSpikeCallback"] == whole


def test_it_refuses_nonsense(place, plugin_site, command_line):
    words = ("--loss_spike", "--loss_spike_factor", "0.5")
    refused = command_line("train-lm", *TINY, *words, cwd=place, site=plugin_site)
    assert refused.returncode == 2
    assert "factor must be above 1, got 0.5. Use 3." in refused.stderr


def test_removed_it_is_gone(place, plugin_site, command_line, tmp_path):
    site = shutil.copytree(plugin_site, tmp_path / "site")
    for path in site.iterdir():
        shutil.rmtree(path)
    assert "loss_spike" not in command_line("train-lm", "--help", cwd=place, site=site).stdout
    refused = command_line("train-lm", "--loss_spike", cwd=place, site=site)
    assert refused.returncode == 2
    assert "there is no option --loss_spike." in refused.stderr


def test_the_one_off_file_runs(place, files, world, capsys):
    (world.place / "tiny.txt").write_text(TEXT)
    (world.place / "trainer_my_callback.py").write_text(files["trainer_my_callback.py"])
    words = ["--callback", "trainer_my_callback:MyCallback", "--my_callback_my_param", "hello"]
    assert main([*TINY, *words, "--max_steps", "3", "--output_dir", "out"]) == 0
    assert "Epoch 0 completed with loss " in capsys.readouterr().out
    assert read_state(world.place / "out", 3)["MyCallback"] == {"my_state": "hello"}


def test_the_tests_with_fixtures_pass(files, plugin_site, command_line, tmp_path):
    names = ["test_counting.py", "test_command.py"]
    for name in names:
        (tmp_path / name).write_text(files[name])
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *names)
    done = command_line("python", *words, cwd=tmp_path, site=plugin_site)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
