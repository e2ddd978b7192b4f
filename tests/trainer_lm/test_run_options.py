"""A resume with other options: what is said, what is refused, what comes out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from trainer.writers.metrics_file import read_logged
from trainer_lm.cli import main

Command = Callable[..., tuple[int, str]]
TINY = [
    "--n_layer=1", "--n_head=2", "--n_embd=8", "--block_size=8", "--batch_size=4", "--dropout=0.1",
]  # fmt: skip


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    """Runs `train-lm` on a small text into `run`; returns exit code and what was printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)

    def run(*words: object) -> tuple[int, str]:
        job = ["--dataset", "text.txt", "--output_dir", "run", *TINY]
        code = main([*job, *map(str, words)])
        output = capfd.readouterr()
        return code, output.out + output.err

    return run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dropout", 0.3], "dropout was 0.1 in the snapshot's run and is 0.3"),
        (["--seed", 3], "seed was 0 in the snapshot's run and is 3"),
        (["--weight_decay", 0.5], "goes on with weight_decay 0.1 of the snapshot; 0.5 has no"),
        (["--learning_rate", 0.5], "of the snapshot; 0.5 has no effect"),
    ],
)
def test_an_option_that_differs_is_shown_at_a_resume(
    command: Command, words: list[object], said: str
) -> None:
    command("--max_steps", 2)
    code, printed = command("--max_steps", 3, "--resume", *words)
    assert code == 0
    assert said in printed.replace("\n", " ")
    code, printed = command("--max_steps", 4, "--resume", *words)
    assert "has no effect" in printed or " was " in printed


def test_the_same_options_are_resumed_without_a_word(command: Command) -> None:
    command("--max_steps", 2)
    _, printed = command("--max_steps", 2, "--resume")
    assert " was " not in printed
    assert "no effect" not in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--n_head", 4], "--n_head was 2 in the run to resume and is 4"),
        (["--dataset", "other.txt"], "--dataset other.txt is another text"),
    ],
)
def test_what_would_go_on_with_something_else_is_refused(
    command: Command, tmp_path: Path, words: list[object], said: str
) -> None:
    (tmp_path / "other.txt").write_text("a lazy dog is jumped over by a quick brown fox\n" * 40)
    command("--max_steps", 2)
    code, printed = command("--max_steps", 3, "--resume", *words)
    assert code == 2
    assert said in printed


def test_another_tokenizer_of_the_same_size_is_refused(command: Command) -> None:
    bpe = ["--tokenizer", "bpe", "--vocab_size", 256]
    assert command("--max_steps", 2, *bpe)[0] == 0
    code, printed = command("--max_steps", 3, "--resume", "--tokenizer", "byte")
    assert code == 2
    assert "--tokenizer byte gives other tokens than the bpe tokenizer of the run" in printed
    assert command("--max_steps", 3, "--resume", *bpe)[0] == 0


def test_a_finished_run_that_is_resumed_ends_with_the_same_result(
    command: Command, tmp_path: Path
) -> None:
    def read() -> tuple[list[object], dict[str, object]]:
        lines: list[object] = [*read_logged(tmp_path / "run/metrics.jsonl")]
        weights = load_file(tmp_path / "run/final/model.safetensors")
        return lines, {name: value.tolist() for name, value in weights.items()}

    _, first = command("--max_steps", 5, "--quiet")
    before = read()
    code, again = command("--max_steps", 5, "--quiet", "--resume", "auto")
    assert code == 0
    assert "validation loss" in first
    assert again == first
    assert read() == before


def test_the_precision_that_was_chosen_is_in_the_configuration(
    command: Command, tmp_path: Path
) -> None:
    command("--max_steps", 1)
    configuration = (tmp_path / "run" / "config.yaml").read_text()
    assert "precision: auto" not in configuration
    chosen = json.loads((tmp_path / "run/final/manifest.json").read_text())["options"]["precision"]
    assert f"precision: {chosen}" in configuration


def test_after_ctrl_c_it_says_how_to_go_on(command: Command, tmp_path: Path) -> None:
    (tmp_path / "trainer_stops.py").write_text(
        "import os, signal\n"
        "from trainer_callback import TrainerCallback\n"
        "class Stops(TrainerCallback):\n"
        "    def on_step_end(self, trainer):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
    )
    words = ["-m", "trainer_lm", "--dataset", "text.txt", "--output_dir", "a run", *TINY]
    done = subprocess.run(
        [sys.executable, *words, "--callback", "trainer_stops:Stops"],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert done.returncode == 130
    place = f"'{tmp_path / 'a run'}'"
    assert f"interrupted. To go on: the same command with --output_dir {place} --resume." in (
        done.stderr
    )


def test_a_loss_that_is_not_finite_is_said_without_a_traceback(command: Command) -> None:
    code, printed = command("--learning_rate", 1e30, "--max_steps", 20, "--warmup_steps", 0)
    assert code == 1
    assert "not finite" in printed
    assert "epoch 0, update" in printed
    assert "Lower the learning rate" in printed
    assert "Traceback" not in printed


def test_a_sample_has_no_control_characters(command: Command) -> None:
    command("--max_steps", 1)
    _, printed = command("--sample", "run", "--sample_tokens", 600)
    assert len(printed) > 500
    assert all(unicodedata.category(c) != "Cc" or c in "\n\t\r" for c in printed)
