"""The command `train-lm`, as a person types it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from trainer.writers.metrics_file import read_logged
from trainer_lm.cli import main

ROOT = Path(__file__).parent.parent.parent
TINY = [
    "--n_layer=1", "--n_head=2", "--n_embd=8", "--block_size=8", "--batch_size=4", "--quiet",
]  # fmt: skip

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Runs `train-lm` in an empty directory that holds `text.txt`; returns exit code, output
    and errors.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)

    def run(*words: object, tiny: bool = True) -> tuple[int, str, str]:
        own = ["--dataset", "text.txt", *TINY] if tiny else []
        code = main([*own, *map(str, words)])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def metrics(place: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in read_logged(place / "metrics.jsonl")]


def test_a_run_trains_and_writes_what_it_says(command: Command, tmp_path: Path) -> None:
    code, out, _ = command("--epochs", 2, "--output_dir", "run")
    assert code == 0
    assert "finished" in out
    assert "bits per byte" in out
    assert "Sample" in out
    assert "trainer report " in out
    names = {path.name for path in (tmp_path / "run" / "final").iterdir()}
    assert names == {
        "config.yaml", "manifest.json", "model.safetensors", "state.pt", "tokenizer.json",
    }  # fmt: skip
    losses = [line["val_loss"] for line in metrics(tmp_path / "run") if "val_loss" in line]
    assert losses[1] < losses[0]


def test_accuracy_and_perplexity_are_shown_and_written(command: Command, tmp_path: Path) -> None:
    _, out, _ = command("--epochs", 1, "--output_dir", "run")
    found = next(line for line in metrics(tmp_path / "run") if "val_loss" in line)
    assert found["val_perplexity"] == math.exp(found["val_loss"])
    assert f"perplexity {found['val_perplexity']:.4g}" in out
    assert f"accuracy {100 * found['val_accuracy']:.2f} % of the next tokens" in out


def test_without_output_dir_each_run_gets_a_fresh_one(command: Command, tmp_path: Path) -> None:
    for number in (1, 2):
        assert command("--max_steps", 1)[0] == 0
        assert (tmp_path / "runs" / f"text.txt-{number}" / "final").is_dir()


def test_hyphens_work_for_underscores(command: Command, tmp_path: Path) -> None:
    assert command("--max-steps", 3, "--output-dir", "a-b_c", "--log-interval=1")[0] == 0
    assert [line["step"] for line in metrics(tmp_path / "a-b_c") if "loss" in line] == [1, 2, 3]


def test_the_same_seed_gives_the_same_weights(command: Command, tmp_path: Path) -> None:
    for place in ("a", "b"):
        command("--max_steps", 3, "--dropout", 0.1, "--seed", 5, "--output_dir", place)
    a, b = (load_file(tmp_path / place / "final" / "model.safetensors") for place in ("a", "b"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_resumed_run_ends_like_one_that_was_not_interrupted(
    command: Command, tmp_path: Path
) -> None:
    job = ["--epochs", 2, "--dropout", 0.1, "--lr_schedule", "constant", "--warmup_steps", 2]
    command(*job, "--output_dir", "whole")
    command(*job, "--output_dir", "halves", "--max_steps", 5)
    code, _, _ = command(*job, "--output_dir", "halves", "--resume")
    assert code == 0
    weights = [load_file(tmp_path / p / "final" / "model.safetensors") for p in ("whole", "halves")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "halves")


def test_resume_without_a_place_goes_on_with_the_last_run(command: Command, tmp_path: Path) -> None:
    command("--max_steps", 2)
    assert command("--max_steps", 4, "--resume")[0] == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["text.txt-1"]
    assert (tmp_path / "runs" / "text.txt-1" / "snapshots" / "step-00000004").is_dir()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--epoch", "3"], "there is no option --epoch. Did you mean '--epochs'?"),
        (["stray"], "what is 'stray'?"),
        (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["--epochs", "0"], "epochs must be an integer of at least 1, got 0"),
        (["--epochs", "-1"], "epochs must be an integer of at least 1, got -1"),
        (["--batch_size", "0"], "--batch_size must be at least 1, got 0"),
        (["--batch_size", "100000"], "--batch_size 100000"),
        (["--batch_size", 10**20], "--batch_size must be at most"),
        (["--num_workers", 10**9], "--num_workers must be at most 1024, got 1000000000"),
        (["--vocab_size", 10**9, "--tokenizer=bpe"], "--vocab_size must be at most 1048576"),
        (["--seed", 2**64], "seed must be at most 9223372036854775807, got 18446744073709551616"),
        (["--seed", 10**20], "seed must be at most"),
        (["--epochs", 10**20], "epochs must be at most"),
        (["--max_steps", 10**20], "max_steps must be at most"),
        (["--gradient_accumulation_steps", 10**20], "must be at most"),
        (["--n_layer", 10**9], "--n_layer must be at most 10000"),
        (["--n_embd", 10**9], "the model would have 12,000,"),
        (["--n_embd", 10**20], "--n_embd must be at most"),
        (["--n_head", "3"], "--n_embd must be a multiple of --n_head, got 8 and 3"),
        (["--n_head", "-2"], "--n_head must be at least 1"),
        (["--block_size", 10**20], "--block_size"),
        (["--learning_rate", "nan"], "--learning_rate must be above 0, got nan"),
        (["--learning_rate", "1e400"], "--learning_rate must be above 0, got inf"),
        (["--dropout", "-1e-3"], "--dropout must be at least 0"),
        (["--max_grad_norm", "inf"], "max_grad_norm must be a finite number"),
        (["--max_time", "-1e-9"], "max_time must be a finite number"),
        (["--sample_interval", 10**20], "--sample_interval must be at most"),
        (["--warmup_steps", 10**20], "--warmup_steps must be at most"),
        (["--dataset", "."], "has no file named train"),
        (["--block_size", "100000"], "--block_size"),
        (["--snapshot_interval", "0"], "snapshot_interval must be an integer of at least 1"),
        (["--n_embd", "9"], "--n_embd must be a multiple of --n_head, got 9 and 2"),
        (["--learning_rate", "-1"], "--learning_rate must be above 0, got -1.0"),
        (["--lr_schedule", "zigzag"], "'zigzag' is none of cosine, linear, constant"),
        (["--device", "tpu"], "there is no device 'tpu'. This machine has cpu"),
        (["--dataset", "nowhere.txt"], "nowhere.txt"),
        (["--dataset", "empty.txt"], "empty"),
        (["--output_dir", "text.txt"], "text.txt' cannot be written"),
        (["--output_dir", "/proc/run"], "the output directory '/proc/run' cannot be written"),
        (["--resume", "--output_dir", "new"], "/new'. Start without --resume"),
        (["--resume"], "there is nothing to resume"),
        (["--resume", "no/such/place"], "no/such/place"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--config", "damaged.yaml"], "damaged.yaml"),
        (["--no_plugin", "nobody"], "--no_plugin nobody: no such plugin is installed"),
    ],
)
def test_bad_input_is_refused_on_a_line_or_two(
    command: Command, tmp_path: Path, words: list[str], said: str
) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "damaged.yaml").write_text("epochs: [1\n")
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    code, out, err = command(*words)
    assert code == 2, err
    assert said in err
    assert out == ""
    assert len(err.splitlines()) <= 2
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before


def test_a_directory_that_holds_a_run_is_not_overwritten_unasked(
    command: Command, tmp_path: Path
) -> None:
    command("--max_steps", 2, "--output_dir", "run")
    code, _, err = command("--max_steps", 1, "--output_dir", "run")
    assert code == 2
    assert "holds a run already" in err
    assert command("--max_steps", 1, "--output_dir", "run", "--overwrite")[0] == 0
    assert [p.name for p in (tmp_path / "run" / "snapshots").iterdir()] == ["step-00000001"]


def test_options_come_from_a_file_and_the_command_line_wins(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text("max_steps: 2\nseed: 7\ndropout: 0.25\noverwrite: true\n")
    code, out, _ = command("--config", "run.yaml", "--seed", 9, "--print_config")
    assert code == 0
    lines = {line.split(":")[0]: line for line in out.splitlines()}
    assert lines["max_steps"] == "max_steps: 2  # run.yaml"
    assert lines["seed"] == "seed: 9  # command line"
    assert lines["dropout"] == "dropout: 0.25  # run.yaml"
    assert lines["overwrite"] == "overwrite: true  # run.yaml"
    assert lines["epochs"].endswith("# default")


def test_the_printed_configuration_can_be_read_back(command: Command, tmp_path: Path) -> None:
    _, printed, _ = command("--max_steps", 2, "--output_dir", "run", "--print_config")
    (tmp_path / "printed.yaml").write_text(printed)
    _, again, _ = command("--config", "printed.yaml", "--print_config", tiny=False)
    assert yaml.safe_load(again) == yaml.safe_load(printed)


def test_an_unknown_option_in_a_file_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("epoch: 2\n")
    code, _, err = command("--config", "run.yaml")
    assert code == 2
    assert "there is no option --epoch. Did you mean '--epochs'?" in err


def test_help_imports_neither_torch_nor_numpy() -> None:
    program = (
        "import sys\nfrom trainer_lm.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'rich', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_the_file_at_the_root_is_the_same_program(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 100)
    words = ["--dataset", "text.txt", "--max_steps", "1", *TINY]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_lm.py"), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout


def test_a_run_goes_on_with_the_configuration_that_it_wrote(
    command: Command, tmp_path: Path
) -> None:
    command("--max_steps", 2, "--output_dir", "run", "--seed", 9)
    words = ["--config", "run/config.yaml", "--output_dir", "run", "--resume", "--max_steps", 3]
    assert command(*words, "--quiet", tiny=False)[0] == 0
    assert (tmp_path / "run" / "snapshots" / "step-00000003").is_dir()
    assert "seed: 9" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_callback_of_this_directory_is_used_with_its_flags(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "trainer_heard.py").write_text(
        "from trainer_callback import TrainerCallback\n"
        "class MyCallback(TrainerCallback):\n"
        "    def __init__(self, my_param):\n"
        "        self.my_param = my_param\n"
        "    def on_epoch_end(self, trainer, epoch, train_loss, val_loss):\n"
        "        print('heard', self.my_param, epoch)\n"
    )
    one_off = ["--callback", "trainer_heard:MyCallback", "--epochs", 1]
    code, out, _ = command(*one_off, "--heard_my_param", "five")
    assert code == 0
    assert "heard five 0" in out
    code, _, err = command(*one_off)
    assert code == 2
    assert "--heard_my_param" in err


def test_a_finished_model_gives_samples_an_unfinished_or_damaged_one_is_refused(
    command: Command, tmp_path: Path
) -> None:
    command("--max_steps", 2, "--output_dir", "run")
    words = ["--sample", "run", "--prompt", "the quick", "--sample_tokens", 5]
    code, first, _ = command(*words, tiny=False)
    assert code == 0
    assert first.startswith("the quick")
    assert command(*words, tiny=False)[1] == first
    (tmp_path / "empty").mkdir()
    code, _, err = command("--sample", "empty", tiny=False)
    assert code == 2
    assert "holds no finished model" in err
    file = tmp_path / "run" / "final" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    code, _, err = command("--sample", "run", tiny=False)
    assert code == 2
    assert "model.safetensors is damaged" in err


def test_the_costs_of_the_plugins_are_printed_when_asked_for(command: Command) -> None:
    job = ["--max_steps", 3, "--early_stopping", "--overwrite", "--output_dir", "run"]
    assert "Plugin costs" not in command(*job)[1]
    rows = [line.split() for line in command(*job, "--plugin_costs")[1].splitlines()]
    assert ["plugin", "hook", "calls", "seconds", "µs", "per", "call"] in rows
    assert ["early_stopping", "on_epoch_end", "1"] in [row[:3] for row in rows]


def test_a_callback_that_was_switched_off_is_named_at_the_end(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "trainer_fails.py").write_text(
        "from trainer_callback import TrainerCallback\n"
        "class Fails(TrainerCallback):\n"
        "    critical = False\n"
        "    def on_step_end(self):\n"
        "        raise OSError('no disk')\n"
    )
    code, out, _ = command("--callback", "trainer_fails:Fails", "--max_steps", 2)
    assert code == 0
    assert "switched off" in out
    assert "fails failed and was not critical" in out


@pytest.mark.parametrize("typed", ["hällo".encode(), b"h\xe4llo"])
def test_a_prompt_is_what_was_typed_in_a_locale_without_its_characters(typed: bytes) -> None:
    code = "import sys\nfrom trainer_lm.cli import _read_prompt as read\n"
    code += "print(ascii(read(sys.argv[1])))"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, typed], env={**os.environ, **plain}, capture_output=True
    )
    if typed.startswith(b"h\xc3"):
        assert done.stdout == b"'h\\xe4llo'\n", done.stderr
    else:
        assert b"is not UTF-8 from byte 1 on" in done.stderr
