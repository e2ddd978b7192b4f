"""What is kept about plugins, so that a command that only shows them imports none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

TRAIN_LM = "import sys; from trainer_lm.cli import main; sys.exit(main())"

CLASS = """from pathlib import Path
from typing import Literal
from trainer_callback import TrainerCallback
with Path(__file__).with_name("imported").open("a") as note: note.write("x")
class Callback(TrainerCallback):
    '''A callback.

    Args:
        size: how large it is, 50 % of all
        kind: of what kind
    '''
    def __init__(
        self, size: int = 3, kind: Literal["a", "b"] = "b", rates: tuple[float, ...] = (1.0, 2.0),
        name: str | None = None, warm: bool = False,
    ) -> None: pass
    def on_log(self, metrics): pass
    def on_epoch_end(self, epoch): pass
"""

OWN_OPTIONS = """from trainer_callback import hookimpl
@hookimpl
def on_log(metrics): pass
@hookimpl
def add_options(parser):
    parser.add_argument("--speed", "-q", type=int, choices=[1, 2], default=1, help="%(default)s")
    parser.add_argument("--both", nargs=2, metavar=("A", "B"), help="100 % of it")
    parser.add_argument("--loud", action="store_true")
"""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def show(site: Any, cache: Path) -> Any:
    """Runs `train-lm` with a cache of its own; returns all that it prints."""
    (site.folder / "imported").touch()  # later it would be something new beside the plugins

    def run(*words: str, **variables: str) -> str:
        variables = {"TRAINER_CACHE_DIR": str(cache), "COLUMNS": "100", **variables}
        done = site.python("-c", TRAIN_LM, *words, **variables)
        assert done.returncode == 0, done.stderr
        return str(done.stderr + done.stdout)

    return run


def install(site: Any, source: str = CLASS, name: str = "x") -> None:
    site.install(
        f"dist-{name}", plugins={name: f"m_{name}:Callback"}, modules={f"m_{name}": source}
    )


def count_imports(site: Any) -> int:
    """How often a plugin of `CLASS` has been imported since this was asked last."""
    note = site.folder / "imported"
    count = len(note.read_text())
    note.write_text("")
    return count


def test_the_second_help_imports_no_plugin_and_is_the_same(site: Any, show: Any) -> None:
    install(site)
    first = show("--help")
    assert count_imports(site) == 1
    assert "--x_rates" in first
    assert "50 % of all" in first
    assert "SUPPRESS" not in first
    assert show("--help") == first
    assert count_imports(site) == 0


def test_a_run_imports_what_it_uses(site: Any, show: Any) -> None:
    install(site)
    show("--help")
    count_imports(site)
    assert "x: true" not in show("--print_config")
    assert count_imports(site) == 0
    assert "x_size: 7" in show("--print_config", "--x", "--x_size", "7")
    assert count_imports(site) == 1


def test_what_is_kept_shows_what_an_import_shows(site: Any, show: Any, cache: Path) -> None:
    install(site)
    site.install("dist-o", plugins={"o": "m_o"}, modules={"m_o": OWN_OPTIONS})
    site.install("dist-b", plugins={"b": "m_b"}, modules={"m_b": "import gone"})
    site.install("dist-c", plugins={"c": "m_c:Callback"}, modules={"m_c": CLASS})
    help_, rows = show("--help"), site.command("plugins", "--json", TRAINER_CACHE_DIR=str(cache))
    assert show("--help") == help_
    kept = json.loads(site.command("plugins", "--json", TRAINER_CACHE_DIR=str(cache)).stdout)
    for row, other in zip(json.loads(rows.stdout), kept, strict=True):
        del row["import_seconds"], other["import_seconds"]
        assert row == other
    source = "from trainer_callback.plugins import *\nfrom trainer_callback.command_line import *"
    source += "\nfrom trainer_callback.command_line.describing import describe"
    source += "\nfrom trainer_callback.discovery import find_entries"
    source += "\ndef told(p): return {**vars(describe(p)), 'seconds': 0, 'changed': 0}"
    fresh, told = site.evaluate(
        source,
        "[[told(p) for p in discover()], [told(p) for p in describe_installed(find_entries())]]",
        TRAINER_CACHE_DIR=str(cache),
    )
    assert fresh == told


@pytest.mark.parametrize("change", ["file", "package", "variable", "version", "warnings"])
def test_a_change_is_seen(site: Any, show: Any, change: str) -> None:
    source = CLASS.replace("size: int = 3", "size: int = int(__import__('os').getenv('SIZE', 3))")
    if change == "package":
        (site.folder / "m_x").mkdir()
        (site.folder / "m_x" / "__init__.py").write_text(
            source.replace("= int(", "= __import__('m_x.d').d.SIZE + 0 * int(")
        )
        (site.folder / "m_x" / "d.py").write_text("SIZE = 3\n")
        site.install("dist-x", plugins={"x": "m_x:Callback"})
    else:
        install(site, source)
    assert "(default: 3)" in show("--help")
    if change == "file":
        (site.folder / "m_x.py").write_text(source.replace("3)", "4)"))
    elif change == "package":
        (site.folder / "m_x" / "d.py").write_text("SIZE = 4\n")
    elif change == "version":
        old = site.folder / "dist_x-1.0.dist-info"
        old.rename(old.with_name("dist_x-1.1.dist-info"))
        assert "x (dist-x 1.0):" in show("--help")
    elif change == "warnings":
        source = f"import warnings\nwarnings.warn('old')\n{CLASS}"
        (site.folder / "m_x.py").write_text(source)
        assert "UserWarning: old" in show("--help")
        return
    found = show("--help", **({"SIZE": "4"} if change in ("variable", "version") else {}))
    assert "(default: 4)" in found


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00\xff", b"0" * 32 + b"\n[]", None])
def test_a_damaged_file_is_as_none(site: Any, show: Any, cache: Path, content: bytes) -> None:
    install(site)
    first = show("--help")
    (file,) = cache.glob("plugins-*.json")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data if content is None else content)
    assert show("--help") == first
    assert file.read_bytes()[:1].isalnum()


@pytest.mark.parametrize("place", ["/dev/null/cache", "/proc/cache", "~nobody_at_all/cache"])
def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    site: Any, show: Any, place: str
) -> None:
    install(site)
    assert "--x_size" in show("--help", TRAINER_CACHE_DIR=place)
    assert "--x_size" in show("--help", TRAINER_CACHE_DIR=place)


def test_several_commands_at_once_leave_one_sound_file(site: Any, show: Any, cache: Path) -> None:
    for name in "xyz":
        install(site, name=name)
    command = [sys.executable, "-c", TRAIN_LM, "--help"]
    path = os.pathsep.join([str(site.folder), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "TRAINER_CACHE_DIR": str(cache)}
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(3)
    ]
    assert [each.wait() for each in running] == [0, 0, 0]
    assert [path.suffix for path in cache.iterdir()] == [".json"]
    assert "--z_size" in show("--help")


def test_an_import_that_kills_its_process_costs_the_command_nothing(site: Any, show: Any) -> None:
    install(site)
    site.install("dist-k", plugins={"k": "m_k:C"}, modules={"m_k": "import os\nos.abort()"})
    for _ in range(2):
        said = show("--help")
        assert "the import of k (dist-k 1.0) ended the whole process (signal 6)" in said
        assert "--x_size" in said


def test_a_plugin_whose_import_kills_its_process_is_refused_by_name(site: Any, show: Any) -> None:
    site.install("dist-k", plugins={"k": "m_k:C"}, modules={"m_k": "import os\nos.abort()"})
    done = site.python("-c", TRAIN_LM, "--k", "--max_steps", "1")
    assert done.returncode == 2, done.stderr
    assert "the import of k (dist-k 1.0) ended the whole process (signal 6)" in done.stderr


def test_an_import_that_hangs_is_given_up_once(site: Any, show: Any) -> None:
    install(site)
    source = "import threading\nthreading.Event().wait()"
    site.install("dist-h", plugins={"h": "m_h:C"}, modules={"m_h": source})
    assert "the import of h (dist-h 1.0) did not end in 1" in show("--help")
    start = time.monotonic()
    said = show("--help")
    assert time.monotonic() - start < 9
    assert "the import of h (dist-h 1.0) did not end in 1" in said
    assert "--x_size" in said


def test_an_import_that_brings_torch_or_takes_long_is_said_each_time(site: Any, show: Any) -> None:
    install(site, "import torch\n" + CLASS, "t")
    install(site, "import time\ntime.sleep(3.1)\n" + CLASS, "s")
    for _ in range(2):
        said = show("--help")
        assert "s and brings torch. Its author" in said
        assert "warning: the import of s (dist-s 1.0) took " in said


def test_what_runs_code_for_its_options_is_asked_each_time(site: Any, show: Any) -> None:
    source = "import pathlib\nCHOICES = [1, 2]\n" + OWN_OPTIONS.replace(
        'help="%(default)s"', 'help=pathlib.Path(__file__).with_name("words").read_text()'
    )
    words = site.folder / "words"
    words.write_text("first")
    site.install("dist-o", plugins={"o": "m_o"}, modules={"m_o": source})
    assert "first" in show("--help")
    words.write_text("other")
    assert "other" in show("--help")


def test_what_a_broken_plugin_lacks_is_seen_when_it_is_there(site: Any, show: Any) -> None:
    install(site, "import gone\n" + CLASS)
    assert "No module named 'gone'" in show("--help")
    (site.folder / "gone.py").touch()
    assert "--x_size" in show("--help")


def test_a_callback_in_code_needs_no_import_of_the_others(
    site: Any, show: Any, cache: Path
) -> None:
    install(site)
    code = "from trainer_callback.plugins import find_live\nfind_live()"
    show("--help")
    imported = "'m_x' in sys.modules"
    assert site.evaluate(code, imported, TRAINER_CACHE_DIR=str(cache)) is False
    assert site.evaluate(code, imported, TRAINER_CACHE_DIR=str(cache / "other")) is True
