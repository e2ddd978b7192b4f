"""The command's parser: what argparse does, with values from a file under those of the command
line, and errors that are raised. No torch.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from trainer.writers.output import printing
from trainer_callback import UsageError
from trainer_callback.hints import to_bool

from .config_file import FileOption

__all__ = ["Parser"]

_NUMBER: Final = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|-(inf|nan)", re.IGNORECASE)
"""Words that begin with a hyphen and are values; argparse itself knows no exponent."""

_NEVER_EMPTY: Final = frozenset({"config", "recipe", "resume", "callback", "no_plugin", "device"})

_ONCE: Final[Mapping[str, str]] = {
    "config": "Put both files into one.",
    "recipe": "Take one, and say what differs from it by --config or on the command line.",
}
"""Options that would forget what they were given before -> what to do instead."""

_ONLY_TYPED: Final = frozenset(
    {"config", "recipe", "help", "version", "print_config", "sample", "prompt", "sample_tokens"}
)
"""What is of this one call of the command, and has no place in a file."""


class Parser(argparse.ArgumentParser):
    """An argument parser that remembers which words each option was given.

    Attributes:
        typed: option -> the words of each time that it stood on the command line.
        filed: option -> the same, of the strongest file that has it.
        files: option -> name of that file.
        command: whose help messages point to.
    """

    command = "train-lm"

    def __init__(self, **settings: Any) -> None:
        """Makes one; `settings` are argparse's own."""
        super().__init__(**settings, allow_abbrev=False)
        self._negative_number_matcher = re.compile(f"(?:{_NUMBER.pattern})$", re.IGNORECASE)
        self.typed: dict[argparse.Action, list[list[str]]] = {}
        self.filed: dict[argparse.Action, list[list[str]]] = {}
        self.files: dict[argparse.Action, str] = {}

    def error(self, message: str) -> NoReturn:
        """Raises what is wrong as a UsageError.

        Raises:
            UsageError: always.
        """
        flag = re.match(r"argument (\S+): expected one argument$", message)
        if flag:
            message += f" (one that begins with a hyphen is written {flag[1]}=VALUE)"
        raise UsageError(f"{' '.join(message.split()).rstrip('.')}. See {self.command} --help.")

    def find(self, name: str) -> argparse.Action | None:
        """Returns the option `--NAME`, if there is one."""
        return self._option_string_actions.get(f"--{name}")

    def read_file(self, namespace: argparse.Namespace, options: Sequence[FileOption]) -> None:
        """Puts the options of a file into `namespace`, except those that were typed, those of a
        file that was read before, and those that are no options here. Comes after the command line
        was parsed.

        Raises:
            UsageError: a value cannot be used.
        """
        stronger = {action.dest for action in (*self.typed, *self.filed)}
        seen: set[str] = set()
        for option in options:
            action = self.find(option.name)
            if action is None:
                continue
            if action.dest in _ONLY_TYPED:
                raise UsageError(f"{option}: this belongs on the command line, not into a file.")
            times = self._read_times(action, option)
            if times and action.dest in seen:
                raise UsageError(f"{option}: another line says so, too. Keep one of them.")
            if not times:
                continue
            seen.add(action.dest)
            if action.dest in stronger:
                continue
            self.filed[action], self.files[action] = times, option.file
            for words in times:
                value = self._convert(action, words, option)
                action(self, namespace, value, f"--{option.name}")

    def origin(self, name: str) -> str:
        """Returns where the value of `--NAME` came from: `command line`, the file, or `default`."""
        given = [*((a, "command line") for a in self.typed), *self.files.items()]
        found = (where for a, where in given if name == a.dest or f"--{name}" in a.option_strings)
        return next(found, "default")

    def as_given(self, dests: Collection[str]) -> dict[str, Any]:
        """Returns option -> words for options of any kind, such as those that a plugin has added:
        what a file has to say for the same values. One whose default cannot be written is left out.

        Args:
            dests: where the options put their values.
        """
        found: dict[str, Any] = {}
        for action in self._actions:
            flags = [flag for flag in action.option_strings if flag.startswith("--")]
            if action.dest not in dests or not flags:
                continue
            times = self.typed.get(action) or self.filed.get(action)
            value = _default(action) if times is None else _join_times(action, times)
            if value != argparse.SUPPRESS:
                found[flags[0].removeprefix("--")] = value
        return found

    def _print_message(self, message: str, file: Any = None) -> None:
        with printing():  # argparse takes no notice of an error
            (file or sys.stdout).write(message)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        self.typed.setdefault(action, []).append(list(arg_strings))
        values = super()._get_values(action, arg_strings)
        self._check_empty(action, arg_strings, values)
        if action.dest in _ONCE and len(self.typed[action]) > 1:
            raise UsageError(f"--{action.dest} is given twice. {_ONCE[action.dest]}")
        return values

    def _read_times(self, action: argparse.Action, option: FileOption) -> list[list[str]]:
        """Returns the words of each time that `action` is to be called; none leaves the default.

        Raises:
            UsageError: the option takes no such value.
        """
        if option.words == [None] and not option.several:
            return self._read_null(action, option)
        words = ["none" if word is None else word for word in option.words]
        if isinstance(action, argparse._AppendAction) and action.nargs is None:
            return [[word] for word in words]
        takes_several = action.nargs in ("*", "+") or isinstance(action.nargs, int)
        if option.several and (action.nargs == 0 or not takes_several):
            raise UsageError(f"{option}: it takes one value, and this is a list.")
        if action.nargs == 0 or (action.nargs == "?" and action.type is None and option.is_bool):
            return [[]] * self._count_times(option, words[0])
        return [words]

    def _read_null(self, action: argparse.Action, option: FileOption) -> list[list[str]]:
        for word in ("none", "None"):  # the second is a choice
            with contextlib.suppress(argparse.ArgumentError):
                if action.nargs != 0 and self._get_value(action, word) is None:
                    return [[word]]
        if not action.default:
            return []
        raise UsageError(f"{option}: it cannot be none. Leave the line out for its default.")

    def _count_times(self, option: FileOption, word: str) -> int:
        """How often a switch without a value is to be thrown."""
        try:
            times = int(word) if word.isdecimal() else int(to_bool(word))
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"{option}: {error}.") from error
        positive = option.name.removeprefix("no_")
        if times == 0 and positive != option.name and self.find(positive) is not None:
            raise UsageError(f"{option}: write {positive}: true, or {positive}: false.")
        return times

    def _convert(self, action: argparse.Action, words: list[str], option: FileOption) -> Any:
        if isinstance(action.nargs, int) and action.nargs != len(words):
            raise UsageError(f"{option}: it takes {action.nargs} values.")
        try:
            values = [self._get_value(action, word) for word in words]
            for value in values:
                self._check_value(action, value)
        except argparse.ArgumentError as error:
            raise UsageError(f"{option}: {error.message}.") from error
        self._check_empty(action, words, values)
        if action.nargs in (None, "?") and words:
            return values[0]
        return action.const if action.nargs == "?" else values

    def _check_empty(self, action: argparse.Action, words: Sequence[str], values: Any) -> None:
        """Refuses an empty path, which would be the current directory: a variable that is not
        set."""
        found = values if isinstance(values, list) else [values]
        if "" in words and (action.dest in _NEVER_EMPTY or any(isinstance(v, Path) for v in found)):
            flag = action.option_strings[-1]
            raise UsageError(
                f"{flag} is empty. Give a value, or leave {flag} out; is a variable of the shell "
                "not set?"
            )


def _join_times(action: argparse.Action, times: list[list[str]]) -> Any:
    if action.nargs == 0:
        return True if len(times) == 1 else len(times)
    if isinstance(action, argparse._AppendAction):
        return [word for words in times for word in words]
    words = times[-1]
    if action.nargs == "?" and not words:
        return True
    return words[0] if action.nargs in (None, "?") else words


def _default(action: argparse.Action) -> Any:
    if action.nargs == 0:
        return argparse.SUPPRESS if action.const is False else False
    default = action.default
    if isinstance(action, argparse._AppendAction) and default:
        return argparse.SUPPRESS
    items = default if isinstance(default, list) else [default]
    is_plain = all(item is None or isinstance(item, (bool, int, float, str)) for item in items)
    return default if is_plain else argparse.SUPPRESS
