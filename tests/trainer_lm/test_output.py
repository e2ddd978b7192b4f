"""What the command writes to a pipe, a full disk, a dumb terminal; five of it at once."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer_lm.cli import main
from trainer_lm.sample import printable

TINY = [
    "--dataset=text.txt", "--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=8",
    "--batch_size=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a finished run in `run`."""
    place = tmp_path_factory.mktemp("run")
    (place / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    start = Path.cwd()
    os.chdir(place)
    assert main([*TINY, "--max_steps=1", "--output_dir=run", "--quiet", "--cache_dir=c"]) == 0
    yield place
    os.chdir(start)


def shell(place: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash, in which $LM is the command."""
    return subprocess.run(
        ["bash", "-c", command],
        cwd=place,
        env={**os.environ, "LM": f"{sys.executable} -m trainer_lm", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("words", ["--sample run", "--print_config", "--help"])
def test_a_reader_that_has_enough_ends_the_command_quietly(run: Path, words: str) -> None:
    done = shell(run, f"$LM {words} | true; echo ${{PIPESTATUS[0]}}")
    assert done.stderr == ""
    assert done.stdout == "141\n"


@pytest.mark.parametrize("words", ["--sample run", "--print_config", "--help"])
def test_a_full_disk_under_standard_output_is_said(run: Path, words: str) -> None:
    done = shell(run, f"$LM {words} > /dev/full")
    assert done.returncode == 1
    assert done.stderr == (
        "train-lm: standard output cannot be written: No space left on device.\n"
    )


def test_a_run_whose_output_nobody_reads_is_finished_all_the_same(run: Path) -> None:
    words = f"$LM {' '.join(TINY)} --max_steps 3 --output_dir unread --cache_dir c"
    done = shell(run, f"{words} 2>&1 | true; echo ${{PIPESTATUS[0]}}")
    assert done.stdout == "141\n"
    assert (run / "unread" / "final" / "model.safetensors").exists()


def test_a_prompt_that_is_no_utf8_is_refused(run: Path) -> None:
    done = shell(run, "$LM --sample run --prompt $'caf\\xe9'")
    assert done.returncode == 2
    assert "--prompt b'caf\\xe9' is not UTF-8 from byte 3 on" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sample_tokens", "-1"], "--sample_tokens must be at least 0, got -1"),
        (["--seed", str(2**64)], "seed must be at most"),
    ],
)
def test_numbers_of_a_sample_have_bounds(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["--sample", "run", *words]) == 2
    assert said in capsys.readouterr().err


RESERVE = """
import sys
from trainer_lm import cli
settings = cli._read(["--dataset", "text.txt"])
print("ready", flush=True)
sys.stdin.readline()
print(settings.reserve().training.output_dir)
"""


def test_five_runs_at_once_take_five_numbers(tmp_path: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": tmp_path}
    running = [subprocess.Popen([sys.executable, "-c", RESERVE], **pipes) for _ in range(5)]
    for each in running:
        assert each.stdout.readline() == "ready\n"
    for each in running:
        each.stdin.write("\n")
        each.stdin.flush()
    places = {each.communicate()[0].strip() for each in running}
    assert places == {str(tmp_path / f"runs/text.txt-{number}") for number in range(1, 6)}


def test_a_refused_run_gives_its_number_back(run: Path) -> None:
    (run / "trainer_refuses.py").write_text(
        "from trainer_callback import TrainerCallback\n"
        "class Refuses(TrainerCallback):\n"
        "    def on_fit_strat(self): pass\n"
    )
    words = f"{' '.join(TINY)} --dataset pydoc --cache_dir c --callback trainer_refuses:Refuses"
    assert shell(run, f"$LM {words}").returncode == 2
    assert not (run / "runs" / "pydoc-1").exists()


def test_a_dumb_terminal_gets_lines(run: Path) -> None:
    ours, theirs = pty.openpty()
    words = [*TINY, "--epochs", "1", "--eval_interval", "20", "--output_dir", "dumb"]
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer_lm", *words, "--cache_dir", "c"],
        cwd=run,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(theirs)
    shown = b""
    while block := _read(ours):
        shown += block
    assert process.wait() == 0
    text = shown.decode()
    assert "\x1b" not in text
    assert re.search(r"^update 20/\d+  epoch 0  loss [^/]* left", text, re.MULTILINE)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 2**16)
    except OSError:  # its other side is closed
        return b""


RIGHT = "a\u3000b\u200cc\u200dd\u00a0e\u00ade\u2028f 東京 🙂\u0301\r\n\tx"


def test_only_what_a_terminal_would_obey_is_replaced() -> None:
    assert printable(RIGHT) == RIGHT
    assert printable("\x1b[2J\x00\x07\x9b1m\x7f") == "\ufffd[2J\ufffd\ufffd\ufffd1m\ufffd"
    assert printable("one\rtwo\r\nthree") == "one\ntwo\r\nthree"


def test_a_dry_run_says_that_it_kept_nothing(run: Path) -> None:
    before = sorted(path.name for path in run.iterdir())
    words = [*TINY, "--dry_run", "--tensorboard", "--early_stopping", "--cache_dir", "c"]
    done = shell(run, f"$LM {' '.join(words)}")
    assert (done.returncode, "nothing: it was a dry run" in done.stdout) == (0, True)
    assert "2 updates" in done.stdout
    assert sorted(path.name for path in run.iterdir()) == before


def test_a_dry_run_goes_on_from_nothing(run: Path) -> None:
    done = shell(run, f"$LM {' '.join(TINY)} --cache_dir c --output_dir run --resume --dry_run")
    assert done.returncode == 2
    assert done.stderr.endswith(
        "train-lm: a dry run starts anew, and cannot go on from a snapshot. Leave --resume or "
        "--dry_run out.\n"
    )
