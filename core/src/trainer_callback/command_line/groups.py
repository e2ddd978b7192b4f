"""The options of one plugin, added to a parser of their own, and joined to the command's only where
they are the plugin's alone.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

from ..errors import text_of
from .guard import stdout_to_stderr

__all__ = ["Group", "ShownGroup", "read_group"]

_LONG: Final = re.compile(r"--[^\W_]\w*")
_SHORT: Final = re.compile(r"-[A-Za-z]")
_HELP_LENGTH: Final = 1000
"""Characters of one option's help that are shown."""


class Group:
    """What one plugin adds to a command line, judged by itself.

    Attributes:
        actions: the options as argparse has them.
        flags: `--flag`, or `-f` -> where its value goes in the namespace.
    """

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parser = parser
        self.actions: list[argparse.Action] = parser._actions
        self.flags: dict[str, str] = {
            flag: action.dest for action in self.actions for flag in action.option_strings
        }

    def shown(self, prog: str) -> list[dict[str, Any]]:
        """Returns the options as plain data, as the help of a command called `prog` shows them;
        `ShownGroup` takes it.
        """
        formatter = argparse.HelpFormatter(prog)
        return [_show_action(formatter, action) for action in self.actions]

    def join(self, parser: argparse.ArgumentParser) -> None:
        """Adds the group to `parser`.

        Raises:
            argparse.ArgumentError: a flag is taken already.
        """
        parser._add_container_actions(self._parser)

    def find_clash(self, others: Container[str], setters: Mapping[str, str]) -> str | None:
        """Returns the flag of `others` that this group has too, or whose value it would set; or
        None.

        Args:
            others: flags.
            setters: where values go -> the flag of `others` that sets them.
        """
        for flag, dest in self.flags.items():
            if flag in others:
                return flag
            if dest in setters and dest != argparse.SUPPRESS:
                return setters[dest]
        return None


class ShownGroup(Group):
    """A group that looks as one that was `shown`, and takes no values."""

    def __init__(self, title: str, shown: Sequence[Mapping[str, Any]]) -> None:
        self._title = title
        self._shown = shown
        self.flags: dict[str, str] = {
            flag: each["dest"] for each in shown for flag in each["flags"]
        }

    def join(self, parser: argparse.ArgumentParser) -> None:
        """Adds the group to `parser`, for its help."""
        group = parser.add_argument_group(self._title)
        for each in self._shown:
            metavar, text = each["metavar"], each["help"]
            action = argparse.Action(
                each["flags"],
                each["dest"],
                nargs=each["nargs"],
                default=argparse.SUPPRESS,
                help=argparse.SUPPRESS if text == argparse.SUPPRESS else text,  # by identity
                metavar=tuple(metavar) if isinstance(metavar, list) else metavar,
            )
            group._add_action(action)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def read_group(
    title: str, fill: Callable[[argparse._ArgumentGroup], None], *, may_replace: bool = False
) -> Group:
    """Returns the options that `fill` adds to an empty group called `title`. Hyphens in their names
    become underscores, as they do in what is typed.

    Args:
        may_replace: an option that is added again replaces the first.

    Raises:
        ValueError: they could not be used, or would change more than themselves.
    """
    handler = "resolve" if may_replace else "error"
    parser = _Parser(add_help=False, allow_abbrev=False, conflict_handler=handler)
    group = parser.add_argument_group(title)
    try:
        fill(group)
    except argparse.ArgumentError as error:
        raise ValueError(f"adds {error.argument_name} twice") from error
    for each in parser._action_groups:
        each.conflict_handler = "error"  # what is joined replaces nothing
    for action in parser._actions:
        action.option_strings = [
            flag[:2] + flag[2:].replace("-", "_") for flag in action.option_strings
        ]
    _check(parser)
    _try(parser)
    for action in parser._actions:
        _wrap_type(action)
    return Group(parser)


def _show_action(formatter: argparse.HelpFormatter, action: argparse.Action) -> dict[str, Any]:
    text, metavar = action.help, action.metavar
    if text is not None and text != argparse.SUPPRESS:
        text = formatter._expand_help(action).replace("%", "%%")
    if metavar is None and action.choices is not None:
        metavar = "{" + ",".join(map(str, action.choices)) + "}"
    return {
        "flags": list(action.option_strings),
        "dest": action.dest,
        "nargs": action.nargs,
        "help": text,
        "metavar": list(metavar) if isinstance(metavar, tuple) else metavar,
    }


def _check(parser: argparse.ArgumentParser) -> None:
    for what in _find_required(parser):
        raise ValueError(f"adds {what}, which every run would have to give")
    for action in parser._actions:
        if not any(_LONG.fullmatch(flag) for flag in action.option_strings):
            name = "/".join(action.option_strings) or action.dest
            raise ValueError(f"adds {name!r}, where an option has a name such as --warm_up")
        for flag in action.option_strings:
            if not (_LONG.fullmatch(flag) or _SHORT.fullmatch(flag)):
                raise ValueError(f"adds {flag!r}, which is no name for an option")
    strange = parser._defaults.keys() - {action.dest for action in parser._actions}
    if strange:
        raise ValueError(f"sets the default of {min(strange)!r}, which is no option of its own")


def _find_required(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if action.required:
            yield repr("/".join(action.option_strings) or action.dest)
    for group in parser._mutually_exclusive_groups:
        if group.required:
            yield " or ".join(repr("/".join(each.option_strings)) for each in group._group_actions)


def _try(parser: argparse.ArgumentParser) -> None:
    """Does what every run does with the options that nobody gives, and what `--help` does.

    Raises:
        ValueError: it fails.
    """
    for action in parser._actions:
        action.help = _mend_help(parser, action)
    try:
        with stdout_to_stderr():
            parser.parse_args([])
            parser.format_help()
    except ValueError as error:
        raise ValueError(f"adds an option whose default or help is wrong: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ValueError(
            f"adds an option that argparse cannot use: {type(error).__name__}: {text_of(error)}"
        ) from error


def _mend_help(parser: argparse.ArgumentParser, action: argparse.Action) -> str | None:
    """Returns the help, in which a percent sign that stands for itself is written twice."""
    if action.help is None or action.help == argparse.SUPPRESS:
        return action.help
    text = str(action.help)
    if len(text) > _HELP_LENGTH:
        text = text[:_HELP_LENGTH].rstrip("%") + " ..."
    try:
        _ = text % {**vars(action), "prog": parser.prog}
    except (ValueError, TypeError, KeyError):
        text = text.replace("%", "%%")
    return text


def _wrap_type(action: argparse.Action) -> None:
    """What a plugin's own type prints goes to stderr, what it raises is a message."""
    convert = action.type
    if not callable(convert):
        return

    def wrapped(text: str) -> Any:
        with stdout_to_stderr():
            try:
                return convert(text)
            except (argparse.ArgumentTypeError, TypeError, ValueError, KeyboardInterrupt):
                raise
            except BaseException as error:
                message = f"{text!r}: {type(error).__name__}: {text_of(error)}"
                raise argparse.ArgumentTypeError(message) from error

    wrapped.__name__ = getattr(convert, "__name__", "value")  # argparse names it in its messages
    action.type = wrapped
