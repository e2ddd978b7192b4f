"""The commands in the documents exist, parse, and mean something; links lead somewhere."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from trainer_lm.cli import main

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(scope="session")
def flags(
    command_line: Any, plugin_site: Path, files: dict[str, str], tmp_path_factory
) -> set[str]:
    """Every flag of `train-lm --help`, with the manual's plugin and one-off callback."""
    place = tmp_path_factory.mktemp("help")
    (place / "trainer_my_callback.py").write_text(files["trainer_my_callback.py"])
    one_off = ("--callback", "trainer_my_callback:MyCallback")
    shown = command_line("train-lm", *one_off, "--help", cwd=place, site=plugin_site)
    assert shown.returncode == 0, shown.stderr
    found = set(re.findall(r"--\w+", shown.stdout))
    return found | {flag.replace("--", "--no_", 1) for flag in found}


def test_the_command_exists(command, flags, world, files, plugin_site, monkeypatch, capsys):
    words = list(command)
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        monkeypatch.setenv(name, value)
    if words[:2] == ["python", "train_lm.py"]:
        assert "trainer_lm.cli" in (ROOT / "train_lm.py").read_text()
        words = ["train-lm", *words[2:]]
    if words[0] == "torchrun" and words[-1] in files:  # test_sharded_script runs it
        return
    if words[0] == "torchrun":  # what it starts is tested in tests/trainer/test_ranks.py
        start = words.index("trainer_lm")
        assert words[start - 1] == "-m"
        words = ["train-lm", *words[start + 1 :]]
    program, *arguments = words
    if program == "train-lm":
        check_train_lm(arguments, flags, world, files, plugin_site, monkeypatch, capsys)
    elif program == "make":
        assert re.search(rf"^{arguments[0]}:.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "trainer":
        trainer_cli = importlib.import_module("trainer_tool.cli")
        assert trainer_cli.main(arguments) == 0
    elif program == "pip":
        check_pip(arguments)
    else:
        check_python(program, arguments)


def check_train_lm(
    arguments: list[str],
    flags: set[str],
    world: Any,
    files: dict[str, str],
    plugin_site: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    used = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    assert {flag.replace("-", "_").replace("__", "--", 1) for flag in used} <= flags
    if set(used) & {"--help", "--resume"} or "trainer_recipe:SomeCallback" in arguments:
        return
    for name, text in files.items():
        if "/" not in name:
            (world.place / name).write_text(text)
    (world.place / "run.yaml").write_text(read_yaml())
    monkeypatch.syspath_prepend(plugin_site)
    code = main([*arguments, "--print_config"])
    assert code == 0, capsys.readouterr().err


def check_pip(arguments: list[str]) -> None:
    assert arguments[0] == "install"
    for word in arguments[1:]:
        if not word.startswith("-") and not (ROOT / word).exists():
            names = [path.read_text() for path in ROOT.glob("*/pyproject.toml")]
            for folder in ("hosts", "plugins"):
                names += [each.read_text() for each in ROOT.glob(f"{folder}/*/pyproject.toml")]
            names.append((ROOT / "CALLBACKS.md").read_text())
            assert any(f'name = "{word.partition("[")[0]}"' in text for text in names), word


def check_python(program: str, arguments: list[str]) -> None:
    assert program == ".venv/bin/python", program
    assert arguments[0] == "-m"
    if arguments[1] == "pip":
        check_pip(arguments[2:])
    else:
        assert arguments[1] == "pytest"
        assert all((ROOT / word).exists() for word in arguments[2:])


def read_yaml() -> str:
    text = (ROOT / "CALLBACKS.md").read_text()
    return re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1]


def test_a_file_of_options_gives_way_to_the_command_line(world, monkeypatch, capsys):
    (world.place / "run.yaml").write_text(read_yaml())
    assert main(["--config", "run.yaml", "--early_stop_patience", "7", "--print_config"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "early_stop_patience: 7  # command line" in printed
    assert "epochs: 20  # run.yaml" in printed


@pytest.mark.parametrize("name", ["CALLBACKS.md", "README.md", "CONTRIBUTING.md", "core/README.md"])
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text()
    for target in LINK.findall(text):
        path, _, anchor = target.partition("#")
        if path.startswith(("http:", "https:")):
            continue
        place = (ROOT / name).parent / path if path else ROOT / name
        assert place.exists(), target
        if anchor:
            assert anchor in anchors(place), target


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
