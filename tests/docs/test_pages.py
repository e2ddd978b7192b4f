"""The pages of docs/ have everything that they should take from elsewhere."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer import TrainerConfig

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))


@pytest.fixture(scope="module")
def made() -> Any:
    """The module that fills the pages in."""
    spec = importlib.util.spec_from_file_location("docs_manual", ROOT / "docs" / "manual.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_manual"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["docs_manual"]


@pytest.fixture(scope="module")
def options(made: Any) -> str:
    return made.expand("options.md", (ROOT / "docs" / "options.md").read_text())


def test_every_section_of_the_manual_is_on_one_page(made):
    shown = {title for document, title in made.included() if document == "CALLBACKS.md"}
    assert shown == set(made.sections("CALLBACKS.md"))


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_left_to_be_filled_in(made, page):
    text = made.expand(page, (ROOT / "docs" / page).read_text())
    assert "<!--" not in text
    assert text.startswith("# ")


def test_every_page_is_in_the_table_of_contents():
    (toc,) = re.findall(r"```{toctree}\n(.*?)```", (ROOT / "docs/index.md").read_text(), re.DOTALL)
    assert {f"{name}.md" for name in toc.split() if name != ":hidden:"} == {*PAGES} - {"index.md"}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(TrainerConfig)])
def test_every_setting_is_on_the_page_of_options(options, name):
    default = inspect.signature(TrainerConfig).parameters[name].default
    (row,) = re.findall(rf"^`{name}`: `(.*)`\n: (.+)$", options, re.MULTILINE)
    assert row[0].endswith(f" = {default!r}")
    assert len(row[1]) > 10


def test_every_flag_is_on_the_page_of_options(options, command_line, tmp_path):
    shown = command_line("train-lm", "--help", cwd=tmp_path).stdout
    flags = set(re.findall(r"^  (?:-\w, )?(--\w+)", shown, re.MULTILINE))
    assert len(flags) > 70
    assert flags <= set(re.findall(r"`(--\w+)`", options))


def test_every_command_of_the_trainer_is_on_the_page_of_options(options, command_line, tmp_path):
    shown = command_line("trainer", "--help", cwd=tmp_path).stdout
    own = shown.partition("commands:")[2].partition("commands of plugins:")[0]
    commands = re.findall(r"^  ([a-z-]+)  ", own, re.MULTILINE)
    assert len(commands) > 3
    for command in commands:
        assert f"### trainer {command}\n" in options
        assert f"usage: trainer {command}" in options


def test_the_settings_complete_in_an_editor():
    shown = list(inspect.signature(TrainerConfig).parameters)
    assert shown == [field.name for field in dataclasses.fields(TrainerConfig)]
