"""Messages speak of arguments in code, and of flags where a command runs."""

import ast
import re
from pathlib import Path

import pytest

from trainer import ConfigError, TrainerConfig
from trainer_callback import option_text
from trainer_callback.wording import flags_spoken
from trainer_early_stopping import EarlyStoppingCallback
from trainer_lm.cli import main

ROOT = Path(__file__).parents[2]

READ_THE_COMMAND_LINE = {
    "describing.py",
    "discovery.py",
    "groups.py",
    "installed.py",
    "old_options.py",
    "options.py",
    "plugins.py",
    "wording.py",
}
"""Rooms that are there for a command only, and the one that has the rule."""


@pytest.mark.parametrize(
    ("arguments", "code", "flag"),
    [
        (("patience",), "patience", "--early_patience"),
        (("patience", 1), "patience=1", "--early_patience 1"),
        (("strict", False), "strict=False", "--no_early_strict"),
        (("strict", True), "strict=True", "--early_strict"),
        (("monitor", "loss"), "monitor='loss'", "--early_monitor loss"),
        (("limit", None), "limit=None", "--early_limit none"),
    ],
)
def test_an_option_is_named_as_whoever_reads_it_can_give_it(arguments, code, flag):
    assert option_text(*arguments, prefix="early_") == code
    with flags_spoken():
        assert option_text(*arguments, prefix="early_") == flag
    assert option_text(*arguments, prefix="early_") == code


def strings(path):
    """The text of each string that is no docstring, with its line; a `contract` is no message, but
    says how `trainer plugins check` builds a plugin.
    """
    tree = ast.parse(path.read_text())
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    declared = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "contract"
        for part in ast.walk(node)
    }
    docs |= declared
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value


def test_no_message_of_the_core_or_a_plugin_names_a_flag_by_itself():
    places = [ROOT / "core/src/trainer", ROOT / "core/src/trainer_callback"]
    places += [each / "src" for each in (ROOT / "plugins").iterdir()]
    named = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for place in places
        for path in place.rglob("*.py")
        if path.name not in READ_THE_COMMAND_LINE or "plugins" in path.relative_to(ROOT).parts
        if "testing" not in path.parts and path.name != "cli.py"
        for line, text in strings(path)
        if text != "--" and re.search(r"(^|[\s('\"])--(\w|$)", text)
    ]
    assert named == []


def test_code_is_told_of_arguments():
    with pytest.raises(ValueError, match=r"Use patience=1 to stop at the first miss"):
        EarlyStoppingCallback(patience=0)
    with pytest.raises(ConfigError, match=r"^epochs must be"):
        TrainerConfig(epochs=0)


def test_a_command_is_told_of_flags(capsys):
    assert main(["--early_stopping", "--early_stop_patience", "0"]) == 2
    assert "Use --early_stop_patience 1 to stop at the first miss" in capsys.readouterr().err
    assert main(["--epochs", "0"]) == 2
    assert "--epochs must be" in capsys.readouterr().err
    assert option_text("epochs") == "epochs"
