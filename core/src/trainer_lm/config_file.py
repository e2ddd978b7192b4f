"""The YAML file of `--config`: one option a line, and every value as the words that a person would
type. Nothing is guessed, so that no value means something else there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trainer.writers.named_file import read_named
from trainer_callback import UsageError

if TYPE_CHECKING:
    import yaml

__all__ = [
    "FileOption",
    "find_owner",
    "owner_comment",
    "read_config_file",
    "read_mapping",
    "write_value",
]

_TAG: Final = "tag:yaml.org,2002:"
_KINDS: Final = frozenset({"seq", "str", "int", "float", "bool", "null", "timestamp"})


@dataclass(frozen=True)
class FileOption:
    """One line of the file.

    Attributes:
        file: name of the file.
        line: 1-based; 0 where there is no file.
        name: of the option, with underscores.
        words: its values as written; None is a null.
        several: it is a list.
        is_bool: it is one of YAML's words for true and false.
        distribution: of the plugin that it belonged to in the run whose file this is; or empty.
    """

    file: str
    line: int
    name: str
    words: list[str | None]
    several: bool
    is_bool: bool
    distribution: str = ""

    def __str__(self) -> str:
        """Returns where it stands and what it says, for a message."""
        words = ["null" if word is None else word for word in self.words]
        value = f"[{', '.join(words)}]" if self.several else words[0]
        line = f", line {self.line}" if self.line else ""
        return f"{self.file}{line}, {self.name}: {value}"


def read_config_file(path: str, called: str = "--config") -> list[FileOption]:
    """Returns the options of the file `path`, which messages name as what is `called` so.

    Raises:
        UsageError: it cannot be read, or it is no plain mapping of options to values.
    """
    text = _read_text(path, called)
    if not text.strip():
        raise UsageError(f"{called} {path} is empty. {_FORM}")
    return _read_options(path, text)


def read_mapping(origin: str, values: Mapping[str, object]) -> list[FileOption]:
    """Returns options that were given as plain data, each as if it stood in a file.

    Raises:
        UsageError: a name or a value cannot stand in a file.
    """
    if not values:  # as of nearly all plugins: what reads YAML is large
        return []
    try:
        text = "".join(f"{write_value(k)}: {write_value(v)}\n" for k, v in values.items())
    except Exception as error:  # whatever yaml makes of somebody's object
        reason = " ".join(str(error).split())
        raise UsageError(f"{origin}: this is no plain value: {reason}. {_FORM}") from error
    return [replace(each, line=0) for each in _read_options(origin, text)]


def _read_options(path: str, text: str) -> list[FileOption]:
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UsageError(f"{path}{line}: this is no YAML: {reason}. {_FORM}") from error
    if root is None:
        return []  # comments only
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"{path} is no list of options with their values. {_FORM}")
    options: dict[str, FileOption] = {}
    lines = text.split("\n")
    for key, value in root.value:
        option = _read_option(path, key, value)
        line = "".join(lines[option.line - 1 : option.line])
        if (owner := _OWNER.search(line)) is not None:
            option = replace(option, distribution=owner[1])
        if option.name in options:
            raise UsageError(
                f"{path} has {option.name!r} twice, in line {options[option.name].line} and in "
                f"line {option.line}. Keep one of them."
            )
        options[option.name] = option
    return list(options.values())


def find_owner(flag: str, output_dir: Path | None) -> str:
    """Returns the distribution of the plugin whose option `--NAME` was in the run that is in
    `output_dir`, as its own file says; empty where nobody knows.
    """
    if output_dir is None or not (output_dir / "config.yaml").is_file():
        return ""
    name = flag.partition("=")[0].removeprefix("--")
    try:
        options = read_config_file(str(output_dir / "config.yaml"))
    except UsageError:  # it is not for this command to read, and only a hint was looked for
        return ""
    known = {option.name: option.distribution for option in options}
    return known.get(name) or known.get(name.removeprefix("no_"), "")


def owner_comment(distribution: str, version: str) -> str:
    """Returns the comment of an option of a plugin, from which a later run can tell what to
    install.
    """
    return f"  # of {distribution} {version}" if distribution else ""


_OWNER: Final = re.compile(r"\s# of (\S+) \S+$")
_FORM: Final = "Write one option a line, such as epochs: 3."


def _read_text(path: str, called: str) -> str:
    try:
        text = read_named(Path(path)).decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{called} {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"{called} {path} is not UTF-8. Convert it, or write it anew.") from error
    return text


def _read_option(path: str, key: yaml.Node, value: yaml.Node) -> FileOption:
    import yaml

    line = key.start_mark.line + 1
    where = f"{path}, line {line}"
    if not isinstance(key.value, str) or key.tag == f"{_TAG}merge":
        what = key.value if isinstance(key.value, str) else "this"
        raise UsageError(f"{where}: {what!r} is no name of an option. {_FORM}")
    name = key.value.replace("-", "_")
    several = isinstance(value, yaml.SequenceNode)
    nodes = value.value if several else [value]
    for node in nodes:
        if not isinstance(node, yaml.ScalarNode):
            what = "a mapping" if isinstance(node, yaml.MappingNode) else "a list"
            inside = "a list with " if several else ""
            raise UsageError(f"{where}: the value of {name!r} is {inside}{what}. {_FORM}")
    for tag in (value.tag, *(node.tag for node in nodes)):
        if tag.removeprefix(_TAG) not in _KINDS:
            raise UsageError(f"{where}: {name!r} has the tag {tag!r}. Leave the tag out.")
    words = [_read_word(node, f"{where}, {name}") for node in nodes]
    return FileOption(path, line, name, words, several, value.tag == f"{_TAG}bool")


def _read_word(node: Any, where: str) -> str | None:
    """Returns the word as the command line would give it: in a locale that lacks a character of it,
    as the bytes of UTF-8.

    Raises:
        UsageError: no command line can have it.
    """
    if node.tag == f"{_TAG}null":
        return None
    text = str(node.value)
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        try:
            text = os.fsdecode(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise UsageError(f"{where}: {text!a} is no text: half a character.") from error
    if "\0" in text:
        raise UsageError(f"{where}: {text!a} has a character of code 0, as no text has.")
    is_name = node.tag == f"{_TAG}float" and text.lower().lstrip("+-") in (".inf", ".nan")
    return text.replace(".", "") if is_name else text


def write_value(value: object) -> str:
    """Returns plain data (None, bool, int, float, str, a list of these) as YAML on one line, from
    which `read_config_file` reads the words that mean it.
    """
    import yaml

    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("...\n").strip()
