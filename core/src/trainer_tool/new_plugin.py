"""`trainer new-plugin NAME`: writes a distribution with a callback, which passes its own tests.
Imports no torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import keyword
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

from trainer.writers.output import write_out
from trainer_callback import UsageError
from trainer_callback.discovery import find_entries, find_version
from trainer_callback.plugins import describe_installed
from trainer_lm.cli import read_flags

__all__ = ["main"]

_PREFIX: Final = "trainer-plugin-"

_LONGEST: Final = 50
"""Letters of a name: with it a file is called `trainer_plugin_NAME-0.1.0-py3-none-any.whl`."""

_YAML_WORDS: Final = frozenset({"on", "off", "yes", "no", "y", "n", "true", "false", "null"})
"""What `NAME: true` in a file of options would not mean."""

_SHARED: Final[Mapping[str, str]] = {
    "pyproject.toml": "pyproject.toml",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "license",
    ".gitignore": "gitignore",
    ".github/workflows/test.yml": "workflow.yml",
}
_CLASS: Final[Mapping[str, str]] = {
    "README.md": "class_readme.md",
    "src/$package/__init__.py": "class_init.py",
    "src/$package/callback.py": "class_callback.py",
    "tests/test_$name.py": "class_test.py",
}
_FUNCTION: Final[Mapping[str, str]] = {
    "README.md": "function_readme.md",
    "src/$package/__init__.py": "function_init.py",
    "tests/test_$name.py": "function_test.py",
}
"""Path in the new distribution -> template, both with names to fill in."""

_NEXT: Final = """Wrote {folder}. Next:
  cd {folder}
  pip install -e . pytest build
  pytest
  train-lm {flag}--max_steps 200
  trainer plugins check {name}
  python -m build
"""


@dataclass(frozen=True)
class _Names:
    """What the plugin `x` and its parts are called.

    Attributes:
        name: of the entry point and the flag.
        distribution, package, cls: of the distribution, the import and the class.
        target: what the entry point names.
        core: the least version of trainer-core.
    """

    name: str
    distribution: str
    package: str
    cls: str
    target: str
    core: str


def main(arguments: Sequence[str]) -> int:
    """Runs `trainer new-plugin`; returns the exit code.

    Raises:
        UsageError: the name cannot be used, or there is something of that name already.
    """
    options = _make_parser().parse_args(arguments)
    names = _name(options.name, is_module=options.function)
    folder = _find_place(options.directory) / names.distribution
    _refuse_taken(names, folder)
    _write(names, folder, {**_SHARED, **(_FUNCTION if options.function else _CLASS)})
    flag = "" if options.function else f"--{names.name} "
    place = shlex.quote(str(folder))
    write_out(_NEXT.format(folder=place, flag=flag, name=names.name))
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainer new-plugin",
        description="Writes the distribution trainer-plugin-NAME: a callback with an option and a "
        "state, its tests, README, changelog and a GitHub workflow. It passes its tests as it is.",
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="such as loss-spike, for --loss_spike")
    parser.add_argument(
        "--function",
        action="store_true",
        help="a module with @hookimpl functions, live in every run, instead of a class and a flag",
    )
    parser.add_argument(
        "--directory",
        default=".",
        metavar="DIR",
        help="where to write the folder trainer-plugin-NAME (default: here)",
    )
    return parser


def _name(text: str, *, is_module: bool) -> _Names:
    """Returns the names of plugin `text`, after PEP 503.

    Raises:
        UsageError: it makes no name for a distribution, a package and a flag.
    """
    normal = re.sub(r"[-_.]+", "-", text).lower().removeprefix(_PREFIX)
    name = normal.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", normal):
        raise UsageError(
            f"{text!r} cannot be the name of a plugin. Use letters, digits and hyphens, and begin "
            "with a letter, such as loss-spike."
        )
    if len(normal) > _LONGEST:
        raise UsageError(
            f"the name of a plugin has at most {_LONGEST} letters, and this has {len(normal)}. It "
            "is part of the names of files and flags; use a shorter one."
        )
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise UsageError(f"{name!r} is a word of Python. Use another name, such as {name}-watch.")
    if name in _YAML_WORDS:
        raise UsageError(
            f"{name!r} is a word of YAML, so no file of options can hold it. Use another name, "
            f"such as {name}-watch."
        )
    package = f"trainer_{name}"
    cls = "".join(word.capitalize() for word in normal.split("-")) + "Callback"
    if cls == "TrainerCallback" or (cls.startswith("Test") and not is_module):
        why = "the base class" if cls == "TrainerCallback" else "what pytest takes for tests"
        raise UsageError(
            f"the class would be called {cls}, like {why}. Use another name, such as my-{normal}."
        )
    release = find_version("trainer-core").split(".")[:2] or ["0"]
    target = package if is_module else f"{package}:{cls}"
    return _Names(name, _PREFIX + normal, package, cls, target, ".".join(release))


def _find_place(directory: str) -> Path:
    if not directory:
        raise UsageError(
            "--directory is empty. Name a directory; is a variable of the shell not set?"
        )
    try:
        return Path(directory).expanduser()
    except RuntimeError as error:
        raise UsageError(f"--directory {directory}: {error}") from error


def _refuse_taken(names: _Names, folder: Path) -> None:
    """Refuses a name that something else has.

    Raises:
        UsageError: says what has it.
    """
    for entry in find_entries():
        if entry.flag == names.name:
            raise UsageError(
                f"a plugin {names.name!r} is installed already: {entry.label}. Use another name, "
                f"or remove it: pip uninstall {entry.distribution}"
            )
    if find_version(names.distribution):
        raise UsageError(f"{names.distribution} is installed already. Use another name.")
    if importlib.util.find_spec(names.package) is not None:
        raise UsageError(f"there is a module {names.package!r} already. Use another name.")
    if os.path.lexists(folder):
        raise UsageError(f"{str(folder)!r} exists already. Remove it, or give --directory.")

    taken = read_flags(describe_installed(find_entries()))
    for flag in (names.name, f"no_{names.name}", f"{names.name}_min_delta"):
        if f"--{flag}" in taken:
            raise UsageError(
                f"--{flag} is an option of train-lm already. Use another name, such as "
                f"{names.name}-watch."
            )


def _write(names: _Names, folder: Path, plan: Mapping[str, str]) -> None:
    """Writes the files of `plan` into `folder`.

    Raises:
        UsageError: a file cannot be written.
    """
    values = dataclasses.asdict(names)
    templates = files(__package__) / "templates" / "plugin"
    contents = {
        Template(path).substitute(values): Template(
            (templates / f"{template}.tmpl").read_text(encoding="utf-8")
        ).substitute(values)
        for path, template in plan.items()
    }
    contents[f"src/{names.package}/py.typed"] = ""
    try:
        folder.mkdir(parents=True)
        try:
            for path, content in contents.items():
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(content, encoding="utf-8")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        raise UsageError(f"{str(folder)!r} cannot be written: {error.strerror}.") from error
