"""Rows of plugins -> one page of HTML. Every word of a row is somebody else's: it is text, and no
link leads elsewhere than to the package index and, by https or http, to a plugin's own page.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.resources import files
from string import Template
from typing import Any, Final
from urllib.parse import quote, urlsplit

from trainer_callback import SPEC_VERSION
from trainer_callback.discovery import find_version

from .table import clean

__all__ = ["MARK", "render_index"]

MARK: Final = "trainer plugins index, a page of plugins"
"""In the first bytes of the page: no other file has it."""

_INDEX: Final = "https://pypi.org/project/"
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")

_LONGEST: Final = 2000
"""Characters of one word of somebody else that are shown."""

_STATES: Final[Mapping[str, str]] = {
    "flag": "installed",
    "live": "installed, in every run",
    "blocked": "blocked",
    "broken": "broken",
    "command": "a command of trainer",
    "wheel": "not installed",
}

_FILTER: Final = """
const box = document.getElementById("filter"), rows = [...document.querySelectorAll("article")];
const count = document.getElementById("count");
box.hidden = false;
box.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every(word => text.includes(word));
    shown += !row.hidden;
  }
  count.textContent = shown;
});
"""


def render_index(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the page: one file, no network, light or dark as its reader has it. Only its own
    script may run in it.
    """
    digest = base64.b64encode(hashlib.sha256(_FILTER.encode()).digest()).decode()
    found = "".join(map(_write, rows))
    template = (files(__package__) / "index_page.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        mark=MARK,
        digest=digest,
        day=date.today().isoformat(),
        core=_text(find_version("trainer-core")),
        spec=".".join(map(str, SPEC_VERSION)),
        count=len(rows),
        rows=found or "<p>There is none. Try: pip install trainer-plugin-early-stopping</p>",
        script=_FILTER,
    )


def _text(value: object) -> str:
    text = str(value)
    return html.escape(clean(text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."))


def _write(row: Mapping[str, Any]) -> str:
    level = row["level"]
    badge = ""
    if level is not None:
        name = level["level"] if level["level"] in ("bronze", "silver", "gold") else "none"
        said = "below bronze" if name == "none" else name
        why = _text(f"checked on {level['day']} with trainer-core {level['core']}")
        badge = f'<span class="level {name}" title="{why}">{said}</span>'
    state = _STATES[row["status"]]
    facts = [
        _link_distribution(row["distribution"], row["version"], listed=not row["private"]),
        f"for trainer-core {_text(row['core'])}" if row["core"] else "",
        _link_home(row["home"]),
        f'<span class="state {row["status"]}">{state}</span>',
        f"<bdi>{_text(row['source'])}</bdi>" if row["source"] != "installed" else "",
    ]
    problem = f'<p class="problem"><bdi>{_text(row["problem"])}</bdi></p>' if row["problem"] else ""
    summary = f"<p><bdi>{_text(row['summary'])}</bdi></p>" if row["summary"] else ""
    return (
        f"<article><h2><bdi>{_text(row['name'])}</bdi>{badge}</h2>{summary}{problem}"
        f'<p class="facts">{" · ".join(filter(None, facts))}</p>{_fold(row)}</article>\n'
    )


def _link_distribution(name: str, version: str, *, listed: bool) -> str:
    """Returns a link to the package index; the name alone of what is not `listed` there, where
    somebody else's may have it.
    """
    label = f"<bdi>{_text(name)}</bdi> <bdi>{_text(version)}</bdi>" if name else ""
    if not (listed and _NAME.fullmatch(name)):
        return label
    return f'<a href="{_INDEX}{quote(name, safe="")}/" rel="noreferrer nofollow">{label}</a>'


def _link_home(address: str | None) -> str:
    """Returns a link where that is one to a page, else the text."""
    if not address:
        return ""
    try:
        parts = urlsplit(address)
        is_page = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_page = False
    text = _text(address)
    if not is_page or len(address) > _LONGEST or not address.isprintable():
        return f"<bdi>{text}</bdi>"
    return f'<a href="{text}" rel="noreferrer nofollow"><bdi>{text}</bdi></a>'


def _fold(row: Mapping[str, Any]) -> str:
    """Returns hooks and options, folded: most readers compare names first."""
    hooks, options = row["hooks"], row["options"]
    if row["status"] == "wheel":
        return '<p class="facts">Hooks and options are known once it is installed.</p>'
    if not (hooks or options or row["brings"]):
        return ""
    lines = [
        f"<p>{title}: {', '.join(f'<code>{_text(name)}</code>' for name in names)}</p>"
        for title, names in (("Hooks", hooks), ("Brings", row["brings"]))
        if names
    ]
    table = "".join(map(_write_option, options or ()))
    if table:
        head = "<tr><th>option</th><th>type</th><th>default</th><th>what it does</th></tr>"
        lines.append(f'<div class="wide"><table>{head}{table}</table></div>')
    counts = f"{_count(hooks, 'hook')}, {_count(options, 'option')}"
    return f"<details><summary>{counts}</summary>{''.join(lines)}</details>"


def _count(things: Sequence[object] | None, what: str) -> str:
    count = len(things or ())
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _write_option(option: Mapping[str, Any]) -> str:
    default = "required" if option["required"] else option["default"]
    cells = (option["flag"], option["type"], default, option["help"])
    return f"<tr>{''.join(f'<td><bdi>{_text(cell)}</bdi></td>' for cell in cells)}</tr>"
