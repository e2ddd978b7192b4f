import subprocess
import sys

import pytest

from trainer_callback import UsageError
from trainer_callback.command_line.options import read_options
from trainer_lm.options import ModelOptions, OptimizerOptions, TextOptions


@pytest.mark.parametrize("options", [TextOptions, ModelOptions, OptimizerOptions])
def test_every_field_becomes_a_flag_with_help(options):
    flags = {option.flag: option for option in read_options(options)}
    assert list(flags) == list(options.__dataclass_fields__)
    assert all(option.help for option in flags.values())


def test_choices_reach_the_command_line():
    flags = {option.flag: option for option in read_options(TextOptions)}
    assert flags["tokenizer"].reader.choices == ("byte", "char", "bpe")


def test_importing_the_options_imports_neither_torch_nor_numpy():
    code = "import sys, trainer_lm.options; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (TextOptions, {"dataset": ""}),
        (TextOptions, {"vocab_size": 255}),
        (TextOptions, {"batch_size": 0}),
        (TextOptions, {"num_workers": -1}),
        (ModelOptions, {"block_size": 0}),
        (ModelOptions, {"n_layer": 0}),
        (ModelOptions, {"n_head": 0}),
        (ModelOptions, {"n_embd": -4}),
        (ModelOptions, {"dropout": 1.0}),
        (ModelOptions, {"dropout": float("nan")}),
        (OptimizerOptions, {"learning_rate": 0.0}),
        (OptimizerOptions, {"learning_rate": float("nan")}),
        (OptimizerOptions, {"weight_decay": -0.1}),
        (OptimizerOptions, {"warmup_steps": -1}),
        (OptimizerOptions, {"beta1": 1.0}),
        (OptimizerOptions, {"beta2": -0.5}),
    ],
)
def test_a_wrong_value_is_refused_by_flag_and_value(options, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UsageError, match=rf"--{name}\b") as caught:
        options(**wrong)
    assert str(value) in str(caught.value)


def test_a_width_that_heads_cannot_share_names_the_next_one_that_they_can():
    with pytest.raises(UsageError, match=r"130 and 4\. Use --n_embd 132"):
        ModelOptions(n_embd=130, n_head=4)
