"""Sub-commands of `trainer` that plugins add."""

from __future__ import annotations

import json
from typing import Any

import pytest

SWA = """
def main(words):
    print("averaged", *words)
    return 7 if "--fail" in words else 0
def refuse(words):
    from trainer_callback import UsageError
    raise UsageError("swa needs a folder. Write trainer swa FOLDER.")
def fail(words):
    raise ValueError("no such weights")
def answer(words):
    return "well"
"""


@pytest.fixture
def swa(site: Any) -> Any:
    """A plugin with commands, one of which cannot be imported."""
    names = ("refuse", "fail", "answer")
    site.install(
        "dist-swa",
        commands={"swa": "m_swa:main", "gone": "m_gone:main", **{n: f"m_swa:{n}" for n in names}},
        modules={"m_swa": SWA},
        metadata=["Summary: Averages weights"],
    )
    return site


def test_a_command_gets_the_words_behind_its_name_and_gives_the_exit_code(swa: Any) -> None:
    done = swa.command("swa", "run", "--last", "3")
    assert (done.returncode, done.stdout) == (0, "averaged run --last 3\n")
    assert swa.command("swa", "--fail").returncode == 7


def test_the_help_lists_the_commands_of_plugins_and_imports_none(swa: Any) -> None:
    (swa.folder / "m_swa.py").write_text("raise SystemExit('imported')")
    done = swa.command("--help")
    assert done.returncode == 0, done.stderr
    assert "commands of plugins:" in done.stdout
    assert "  swa         Averages weights (dist-swa 1.0)" in done.stdout


def test_a_broken_command_costs_nobody_anything_until_it_is_run(swa: Any) -> None:
    assert swa.command("plugins").returncode == 0
    done = swa.command("gone")
    assert done.returncode == 2
    assert done.stderr == (
        "trainer: the command gone (dist-swa 1.0) could not be imported: ModuleNotFoundError: No "
        "module named 'm_gone'.\n"
    )


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("refuse", 2, "trainer: swa needs a folder. Write trainer swa FOLDER.\n"),
        ("fail", 1, "trainer: fail (dist-swa 1.0) failed: ValueError: no such weights\n"),
        ("answer", 2, "returned 'well', where an exit code is expected"),
        ("swaa", 2, "there is no command 'swaa'. Did you mean 'swa'?"),
    ],
)
def test_what_goes_wrong_is_said_by_name(swa: Any, name: str, code: int, said: str) -> None:
    done = swa.command(name)
    assert done.returncode == code
    assert said in done.stderr


def test_a_name_that_is_ours_leads_to_ours_and_the_other_has_its_full_name(site: Any) -> None:
    site.install("dist-a", commands={"plugins": "m_swa:main"}, modules={"m_swa": SWA})
    done = site.command("plugins", "list", "--json")
    row = json.loads(done.stdout)[-1]
    assert row["status"] == "command"
    assert row["problem"] == (
        "plugins is a command of trainer itself; this one is `trainer dist-a:plugins`"
    )
    assert site.command("dist-a:plugins", "x").stdout == "averaged x\n"
    assert "`trainer dist-a:plugins`" in site.command("plugins", "doctor").stdout


def test_a_name_that_is_taken_twice_is_refused_with_both_full_names(site: Any) -> None:
    for name in "ab":
        modules = {f"m_{name}": SWA}
        site.install(f"dist-{name}", commands={"swa": f"m_{name}:main"}, modules=modules)
    done = site.command("swa")
    assert done.returncode == 2
    assert "swa is the name of several commands: swa (dist-a 1.0) and swa (dist-b" in done.stderr
    assert "Write `trainer dist-a:swa` or `trainer dist-b:swa`" in done.stderr
    assert site.command("dist-b:swa").returncode == 0


def test_the_list_of_plugins_has_commands_with_how_they_are_called(swa: Any) -> None:
    assert "trainer swa" in swa.command("plugins").stdout
