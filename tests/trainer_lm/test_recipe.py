"""The settings of a known model by its name, `--recipe`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

TINY = (
    "--n_layer 1 --n_head 1 --n_embd 8 --block_size 8 --batch_size 4 --max_steps 3 --no_compile "
    "--gradient_accumulation_steps 2 --vocab_size 300"
)


def show(train_lm: Any, words: str) -> dict[str, str]:
    outcome = train_lm(f"--print_config {words}")
    assert outcome.exit_code == 0, outcome.stderr
    return dict(line.split(": ", 1) for line in outcome.stdout.splitlines())


def test_gpt2_sets_what_its_authors_and_those_who_reproduced_it_did(train_lm: Any) -> None:
    values = show(train_lm, "--recipe gpt2")
    origin = "  # recipe gpt2"
    own = {name: value.removesuffix(origin) for name, value in values.items() if origin in value}
    sizes = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "pad_vocab")
    assert [int(own[name]) for name in sizes] == [12, 12, 768, 1024, 50257, 128]
    assert [float(own[name]) for name in ("learning_rate", "beta2")] == [6e-4, 0.95]
    assert (own["tokenizer"], own["precision"], own["compile"]) == ("bpe", "auto", "true")
    accumulated = int(own["batch_size"]) * int(own["gradient_accumulation_steps"])
    assert accumulated * 1024 == 491_520
    assert own["warmup_steps"] == "null"


def test_the_command_line_and_a_file_of_the_run_are_stronger_and_defaults_are_weaker(
    train_lm: Any, tmp_path: Path
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("n_head: 6\nbatch_size: 2\n")
    values = show(train_lm, f"--recipe gpt2 --config {file} --batch_size 3")
    assert values["batch_size"] == "3  # command line"
    assert values["n_head"] == f"6  # {file}"
    assert values["n_layer"] == "12  # recipe gpt2"  # and 1 in the user's own defaults
    assert "defaults.yaml" in values["epochs"]


def test_an_unknown_recipe_is_refused_with_the_closest(train_lm: Any) -> None:
    outcome = train_lm("--recipe gtp2")
    assert outcome.exit_code == 2
    text = "--recipe gtp2: there is no such recipe. Did you mean 'gpt2'? Recipes: gpt2."
    assert text in outcome.stderr


def test_a_recipe_that_sets_nothing_is_a_warning(train_lm: Any, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    lines = show(train_lm, "--recipe gpt2")
    file.write_text("".join(f"{name}: {value}\n" for name, value in lines.items()))
    outcome = train_lm(f"--recipe gpt2 --config {file} --print_config")
    assert "--recipe gpt2 has no effect: all that it sets is set by what is" in outcome.stderr


def test_a_recipe_belongs_on_the_command_line(train_lm: Any, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("recipe: gpt2\n")
    outcome = train_lm(f"--config {tmp_path / 'run.yaml'}")
    assert outcome.exit_code == 2
    assert "recipe: gpt2: this belongs on the command line" in outcome.stderr


def test_help_says_which_recipes_there_are(train_lm: Any) -> None:
    assert "otherwise: gpt2" in " ".join(train_lm("--help").stdout.split())


def test_a_tiny_one_trains_with_a_padded_vocabulary_and_samples_from_it(train_lm: Any) -> None:
    pytest.importorskip("tokenizers")
    outcome = train_lm(f"--recipe gpt2 {TINY}")
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.result.steps == 3
    final = outcome.output_dir / "final"
    assert len(load_file(final / "model.safetensors")["token_embedding.weight"]) == 384  # of 300
    assert "recipe" not in (final / "config.yaml").read_text()  # its values are there
    sampled = train_lm(f"--sample {outcome.output_dir} --sample_tokens 20")
    assert sampled.exit_code == 0, sampled.stderr


def test_a_model_of_an_older_version_is_sampled_from_without_its_newer_options(
    train_lm: Any, tmp_path: Path
) -> None:
    final = train_lm("--max_steps 1").output_dir / "final"
    old = tmp_path / "old"
    old.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (old / name).write_bytes((final / name).read_bytes())
    lines = (final / "config.yaml").read_text().splitlines(keepends=True)
    (old / "config.yaml").write_text("".join(x for x in lines if not x.startswith("pad_vocab")))
    sampled = train_lm(f"--sample {old} --sample_tokens 20")
    assert sampled.exit_code == 0, sampled.stderr


def test_two_recipes_are_refused_and_the_first_is_not_forgotten(train_lm: Any) -> None:
    outcome = train_lm("--recipe nope --recipe gpt2 --print_config")
    assert outcome.exit_code == 2
    assert "--recipe is given twice. Take one" in outcome.stderr
