"""Samples of text go to whoever writes texts, and change nothing of the run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainer_lm.cli import main
from trainer_lm.sample import printable

WRITER = """
import json
from trainer_callback import TrainerCallback

class Texts(TrainerCallback):
    def on_log_text(self, name, text, step):
        with open("texts.jsonl", "a") as file:
            print(json.dumps([name, step, text]), file=file)
"""


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "trainer_texts", raising=False)
    (tmp_path / "trainer_texts.py").write_text(WRITER)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)


def train(*words: str) -> int:
    own = "--dataset text.txt --cache_dir cache --n_layer 1 --n_head 2 --n_embd 8 --block_size 8"
    callback = ["--callback", "trainer_texts:Texts"]
    return main([*own.split(), "--batch_size=4", "--max_steps=5", *callback, *words])


def read() -> list[tuple[str, int, str]]:
    return [tuple(json.loads(line)) for line in Path("texts.jsonl").read_text().splitlines()]


def test_by_default_the_sample_of_the_end_is_sent_and_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train("--quiet") == 0
    [(name, step, text)] = read()
    assert (name, step) == ("sample", 5)
    first = max(printable(text).splitlines(), key=len)[:20]
    assert first in capsys.readouterr().out


def test_a_sample_comes_every_so_many_updates(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--sample_interval", "2") == 0
    assert [(name, step) for name, step, _ in read()] == [("sample", n) for n in (2, 4, 5)]
    assert "sample at update 2: " in capsys.readouterr().err


def test_samples_change_no_bit_of_the_run() -> None:
    for place, interval in (("with", ["--sample_interval=1"]), ("without", [])):
        assert train("--dropout=0.2", "--quiet", f"--output_dir={place}", *interval) == 0
    one, other = (load_file(f"{place}/final/model.safetensors") for place in ("with", "without"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_run_that_is_cut_off_has_no_last_sample() -> None:
    fails = "\n    def on_epoch_end(self):\n        raise RuntimeError\n"
    Path("trainer_texts.py").write_text(WRITER + fails)
    assert train("--quiet") == 1
    assert not Path("texts.jsonl").exists()


def test_an_interval_below_1_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--sample_interval", "0") == 2
    assert "--sample_interval must be at least 1, got 0." in capsys.readouterr().err


def test_what_is_sent_to_writers_is_the_text_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer_lm.tokenizer import ByteTokenizer

    text = "a\u3000b\x1b[0m\r\nc\u200d\u00a0\x07"
    monkeypatch.setattr(ByteTokenizer, "decode", lambda self, ids: text)
    assert train("--quiet") == 0
    assert [sent for _, _, sent in read()] == [text]
