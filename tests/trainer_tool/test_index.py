"""`trainer plugins index`: a page of the plugins here and in a folder of wheels."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from trainer_callback.discovery import Entry
from trainer_tool.plugin_levels import keep_level, read_level

CALLBACK = '''
from trainer_callback import TrainerCallback
class Callback(TrainerCallback):
    """Says how warm it is.

    Args:
        limit: degrees <b>from which on</b> it is hot
    """
    def __init__(self, limit: float = 30.0): pass
    def on_log(self, metrics): pass
'''
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.words += data

    @property
    def links(self) -> list[str]:
        return [str(attributes["href"]) for tag, attributes in self.tags if tag == "a"]


def install(site: Any, name: str = "warmth", *metadata: str, source: str = CALLBACK) -> None:
    site.install(
        f"dist-{name}",
        plugins={name: f"m_{name}:Callback"},
        modules={f"m_{name}": source},
        metadata=metadata,
    )


def write_wheel(folder: Path, name: str, *metadata: str, entries: str | None = None) -> None:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-2.0-py3-none-any.whl", "w") as archive:
        lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 2.0", *metadata]
        archive.writestr(f"{name}-2.0.dist-info/METADATA", "\n".join(lines) + "\n")
        text = f"[trainer.callbacks]\n{name} = m_{name}\n" if entries is None else entries
        archive.writestr(f"{name}-2.0.dist-info/entry_points.txt", text)


def make(site: Any, *words: str) -> Page:
    done = site.command("plugins", "index", "--output", "page.html", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "page.html\n"
    return Page((site.folder / "page.html").read_text())


def read(site: Any, *words: str) -> dict[str, Any]:
    done = site.command("plugins", "index", "--json", *words)
    assert done.returncode == 0, done.stderr
    return {row["name"]: row for row in json.loads(done.stdout)}


def test_a_plugin_has_all_that_is_known_of_it(site: Any) -> None:
    install(
        site,
        "warmth",
        "Summary: How warm it is",
        "Requires-Dist: trainer-core>=0.1",
        "Project-URL: Homepage, https://example.org/warmth",
    )
    row = read(site)["warmth"]
    assert (row["summary"], row["core"], row["home"]) == (
        "How warm it is",
        ">=0.1",
        "https://example.org/warmth",
    )
    page = make(site)
    for word in ("warmth", "How warm it is", "dist-warmth 1.0", "for trainer-core >=0.1"):
        assert word in page.words
    for word in ("on_log", "--warmth_limit", "30.0", "degrees <b>from which on</b> it is hot"):
        assert word in page.words
    assert page.links == ["https://pypi.org/project/dist-warmth/", "https://example.org/warmth"]


def test_a_private_one_leads_to_no_index_where_somebody_elses_may_have_its_name(site: Any) -> None:
    install(site, "warmth", "Classifier: Private :: Do Not Upload")
    page = make(site)
    assert "dist-warmth" in page.words
    assert not [link for link in page.links if "dist-warmth" in link]


def test_a_broken_one_is_there_with_its_reason(site: Any) -> None:
    install(site, "broken", source="import gone")
    assert "No module named 'gone'" in make(site).words


def test_a_command_of_a_plugin_is_there(site: Any) -> None:
    site.install("dist-do", commands={"do-it": "m_do:main"}, modules={"m_do": "raise SystemExit"})
    assert read(site)["do-it"]["status"] == "command"
    assert "a command of trainer" in make(site).words


def test_a_wheel_is_there_with_what_its_metadata_say(site: Any) -> None:
    wheels = site.folder / "wheels"
    write_wheel(wheels, "cold", "Summary: How cold it is", "Home-page: https://example.org")
    write_wheel(wheels, "other", entries="[console_scripts]\nx = y:z\n")
    rows = read(site, "--from", "wheels")
    assert [*rows] == ["cold"]
    row = rows["cold"]
    assert (row["version"], row["status"], row["hooks"]) == ("2.0", "wheel", None)
    assert row["source"] == "cold-2.0-py3-none-any.whl"
    assert "How cold it is" in make(site, "--from", "wheels").words


def test_a_wheel_of_what_is_installed_is_there_once(site: Any) -> None:
    install(site)
    wheel = {"name": "dist_warmth", "version": "1.0"}
    (site.folder / "wheels").mkdir()
    with zipfile.ZipFile(site.folder / "wheels" / "w.whl", "w") as archive:
        for name in ("METADATA", "entry_points.txt"):
            path = f"{wheel['name']}-{wheel['version']}.dist-info/{name}"
            archive.write(site.folder / path, path)
    done = site.command("plugins", "index", "--json", "--from", "wheels")
    assert [row["status"] for row in json.loads(done.stdout)] == ["flag"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"no archive", "File is not a zip file"),
        ("empty", "it has no metadata"),
        ("huge", "METADATA has more than 1,048,576 bytes"),
    ],
)
def test_a_wheel_that_cannot_be_read_is_there_with_its_reason(
    site: Any, content: bytes | str, why: str
) -> None:
    file = site.folder / "wheels" / "bad-1.whl"
    file.parent.mkdir()
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            if content == "huge":
                archive.writestr("bad-1.dist-info/METADATA", b"\0" * (1 << 21))
    row = read(site, "--from", "wheels")["bad-1"]
    assert row["status"] == "broken"
    assert why in row["problem"]


def test_hostile_metadata_is_text_and_leads_nowhere(site: Any) -> None:
    wheels = site.folder / "wheels"
    for name, home in (("a", "javascript:alert(3)"), ("b", f'https://x.org/"{HOSTILE}')):
        summary = f"{HOSTILE} \u202egnp \"' </title></style>"
        write_wheel(
            *(wheels, name, f"Summary: {summary}", f"Home-page: {home}"),
            entries=f"[trainer.callbacks]\n{name}{HOSTILE} = x\n",
        )
    with zipfile.ZipFile(wheels / "c.whl", "w") as archive:
        text = "Metadata-Version: 2.1\nName: ../../evil?x=<y>\nVersion: 1<b>\n"
        archive.writestr("c-1.dist-info/METADATA", text)
        archive.writestr("c-1.dist-info/entry_points.txt", "[trainer.callbacks]\nc = x\n")
    page = make(site, "--from", "wheels")
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1
    assert "img" not in tags
    assert tags.count("article") == 3
    assert all(link.startswith("https://") for link in page.links)
    assert [link for link in page.links if "pypi.org" in link] == [
        "https://pypi.org/project/a/",
        "https://pypi.org/project/b/",
    ]
    assert not any(name.startswith("on") for _, found in page.tags for name in found)
    assert "javascript:alert(3)" in page.words
    assert "\u202e" not in page.words


def test_the_level_that_was_found_is_kept_for_this_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path))
    entry = Entry("ema", "m:C", "dist", "1.0")
    assert read_level(entry) is None
    keep_level(entry, "gold")
    found = read_level(entry)
    assert found is not None
    assert (found["level"], {*found}) == ("gold", {"level", "core", "day"})
    assert read_level(Entry("ema", "m:C", "dist", "1.1")) is None
    (file,) = tmp_path.iterdir()
    file.write_text("[]")
    assert read_level(entry) is None


def test_a_level_is_on_the_page(site: Any, tmp_path: Path, monkeypatch) -> None:
    install(site)
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path))
    keep_level(Entry("warmth", "m_warmth:Callback", "dist-warmth", "1.0"), "silver")
    page = make(site)
    badges = [found for tag, found in page.tags if found.get("class") == "level silver"]
    assert len(badges) == 1
    assert str(badges[0]["title"]).startswith("checked on 20")


def test_a_file_of_somebody_else_is_left_alone(site: Any) -> None:
    (site.folder / "page.html").write_text("mine")
    done = site.command("plugins", "index", "--output", "page.html")
    assert done.returncode == 2
    assert "'page.html' is there already" in done.stderr
    assert (site.folder / "page.html").read_text() == "mine"
    (site.folder / "page.html").unlink()
    make(site), make(site)


def test_a_folder_that_is_not_there_is_refused(site: Any) -> None:
    done = site.command("plugins", "index", "--from", "nowhere")
    assert done.returncode == 2
    assert "--from nowhere: No such file or directory." in done.stderr


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium")
def test_the_filter_runs_in_a_browser_and_nothing_else_does(site: Any) -> None:
    for name in ("warm", "cold"):
        install(site, name, f"Summary: it is {name} {HOSTILE}")
    make(site)
    file = site.folder / "page.html"
    text = file.read_text()
    assert "<script>\n" in text
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    box = re.search(r"<input id=\"filter\"[^>]*>", done.stdout)
    assert box is not None, done.stderr
    assert "hidden" not in box[0]  # which its script takes away: the policy lets it run
