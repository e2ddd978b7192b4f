"""What the pages take from elsewhere: sections of CALLBACKS.md and README.md, and the options as
the code has them. A page names it in a comment, `<!-- from CALLBACKS.md: Order -->`, which is
replaced when the site is built; `page` in place of `from` makes the section the whole page.
Knows nothing of Sphinx.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import docstring_parser

from trainer.config import TrainerConfig
from trainer_callback import plugins
from trainer_lm.cli import make_parser
from trainer_tool import cli as trainer_tool

__all__ = ["PAGES", "expand", "included", "sections"]

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = ROOT / "docs"
_MARK: Final = re.compile(r"^<!-- (from|page|options) ([\w./-]+)(?:: (.+?))? -->$", re.MULTILINE)
_LINK: Final = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#]*)(?:#([^)\s]+))?\)")
_FENCE: Final = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def sections(document: str) -> dict[str, str]:
    """Returns the text of each `##` section of a document, with its heading; what stands before
    the first is under the empty name.
    """
    found, name, is_code = {"": ""}, "", False
    for line in (ROOT / document).read_text().splitlines(keepends=True):
        is_code ^= line.startswith("```")
        if line.startswith("## ") and not is_code:
            name = line.removeprefix("## ").strip()
            found[name] = ""
        found[name] += line
    return found


def included() -> dict[tuple[str, str], str]:
    """Returns (document, section) -> the page that shows it.

    Raises:
        ValueError: two pages show one section.
    """
    found: dict[tuple[str, str], str] = {}
    for page in sorted(PAGES.glob("*.md")):
        for kind, document, title in _MARK.findall(page.read_text()):
            if kind == "options":
                continue
            other = found.setdefault((document, title), page.name)
            if other != page.name:
                raise ValueError(f"{document}: {title} is on {page.name} and on {other}")
    return found


def expand(page: str, text: str) -> str:
    """Returns the text of a page with everything in it that its comments name.

    Args:
        page: name of its file, such as `callbacks.md`.

    Raises:
        KeyError: there is no such section, or there are no such options.
    """

    def replace(mark: re.Match[str]) -> str:
        kind, name, title = mark.groups()
        if kind == "options":
            return "\n".join(_OPTIONS[name]())
        body = sections(name)[title or ""]
        return _relink(_promote(body) if kind == "page" else body, name, page)

    return _MARK.sub(replace, text)


def _promote(text: str) -> str:
    """Makes a `##` section a page: each heading is one level higher."""
    return _outside_code(text, lambda part: re.sub("^##", "#", part, flags=re.MULTILINE))


def _relink(text: str, document: str, page: str) -> str:
    """Lets links lead to the page that shows their section. One to a file of the repository that
    is on no page becomes its name.
    """
    places = _anchors()

    def replace(link: re.Match[str]) -> str:
        label, path, anchor = link.groups()
        if path.startswith(("http:", "https:")):
            return link[0]
        target = path or document
        if (target, anchor or "") not in places:
            return label
        other = places[target, anchor or ""]
        if other == page:
            return f"[{label}](#{anchor})"
        is_title = anchor is None or _promoted(target, anchor)
        return f"[{label}]({other})" if is_title else f"[{label}]({other}#{anchor})"

    return _outside_code(text, lambda part: _LINK.sub(replace, part))


def _anchors() -> dict[tuple[str, str], str]:
    """Returns (document, anchor) -> page, for each heading that a page shows."""
    found = {("CALLBACKS.md", ""): "callbacks.md", ("README.md", ""): "index.md"}
    for (document, title), page in included().items():
        text = _FENCE.sub("", sections(document)[title])
        for heading in re.findall(r"^##+ (.*)", text, re.MULTILINE):
            found[document, _slug(heading)] = page
    return found


def _promoted(document: str, anchor: str) -> bool:
    """Whether this is the heading of a whole page."""
    marks = [mark for page in PAGES.glob("*.md") for mark in _MARK.findall(page.read_text())]
    return any(
        kind == "page" and name == document and _slug(title) == anchor
        for kind, name, title in marks
    )


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    parts, end = [], 0
    for fence in _FENCE.finditer(text):
        parts += [change(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(text[end:])])


def _config_options() -> Iterator[str]:
    document = docstring_parser.parse(TrainerConfig.__doc__ or "", docstring_parser.Style.GOOGLE)
    meanings = {each.arg_name: each.description or "" for each in document.params}
    for field in dataclasses.fields(TrainerConfig):
        kind = str(field.type).replace('"', "'")
        yield f"`{field.name}`: `{kind} = {field.default!r}`"
        yield f": {' '.join(meanings[field.name].split())}\n"


def _train_lm_options() -> Iterator[str]:
    parser = make_parser(plugins.discover(), ())
    for group in parser._action_groups:
        if not group._group_actions:
            continue
        yield f"### {group.title}\n"
        if group.description:
            yield f"{group.description}\n"
        for action in group._group_actions:
            yield from _describe(action, parser)


def _describe(action: argparse.Action, parser: argparse.ArgumentParser) -> Iterator[str]:
    formatter = parser._get_formatter()
    flags = ", ".join(f"`{flag}`" for flag in action.option_strings)
    values = "" if action.nargs == 0 else f" `{_values(action, formatter)}`"
    meaning = " ".join(formatter._expand_help(action).split()) if action.help else ""
    yield f"{flags}{values}\n: {meaning.replace('<', '&lt;')}\n"


def _values(action: argparse.Action, formatter: Any) -> str:
    return str(formatter._format_args(action, formatter._get_default_metavar_for_optional(action)))


def _trainer_options() -> Iterator[str]:
    yield from ("```text", _help_of([]), "```\n")
    for command in trainer_tool.COMMANDS:
        yield from (f"### trainer {command}\n", "```text", _help_of([command]), "```\n")


def _help_of(words: list[str]) -> str:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        trainer_tool.main([*words, "--help"])
    return shown.getvalue().strip()


_OPTIONS: Final[dict[str, Callable[[], Iterator[str]]]] = {
    "TrainerConfig": _config_options,
    "train-lm": _train_lm_options,
    "trainer": _trainer_options,
}
