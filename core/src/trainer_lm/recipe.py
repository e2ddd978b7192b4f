"""The settings of a known model, under its name: a file as of `--config`, which comes with the
command. It ranks above the files of defaults, and below `--config`, which somebody wrote for a run.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from trainer_callback import UsageError
from trainer_callback.errors import closest

from .config_file import FileOption, read_config_file

__all__ = ["origin_of", "read_recipe", "recipe_names"]

_FOLDER: Final = Path(__file__).with_name("recipes")


def recipe_names() -> list[str]:
    """Returns the names that there are."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def origin_of(name: str) -> str:
    """Returns where values come from, for a person, that a recipe has set."""
    return f"recipe {name}"


def read_recipe(name: str) -> list[FileOption]:
    """Returns the options of the recipe `name`.

    Raises:
        UsageError: there is none.
    """
    names = recipe_names()
    if name not in names:
        raise UsageError(
            f"--recipe {name}: there is no such recipe.{closest(name, names)} "
            f"Recipes: {', '.join(names)}."
        )
    options = read_config_file(str(_FOLDER / f"{name}.yaml"), "--recipe")
    return [replace(option, file=origin_of(name)) for option in options]
