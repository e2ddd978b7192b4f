"""Folders of installed plugins, for tests of discovery and of commands; logging left as found."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """The command sets handlers and levels of the whole process; the next test must not see it."""
    root = logging.getLogger()
    loggers = [root, *(logging.getLogger(name) for name in list(root.manager.loggerDict))]
    levels = [(logger, logger.level) for logger in loggers]
    handlers = root.handlers[:]
    yield
    root.handlers[:] = handlers
    for logger, level in levels:
        logger.setLevel(level)


class Site:
    """A folder of installed distributions, and a Python that sees them and the core only."""

    def __init__(self, folder: Path, bare: Path) -> None:
        self.folder = folder
        self._bare = bare
        folder.mkdir()

    def install(
        self,
        distribution: str,
        version: str = "1.0",
        *,
        plugins: Mapping[str, str] | None = None,
        modules: Mapping[str, str] | None = None,
        metadata: Sequence[str] = (),
    ) -> None:
        """Writes what pip would write: dist-info and modules."""
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {distribution}", f"Version: {version}", *metadata]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        entries = [f"{name} = {value}" for name, value in (plugins or {}).items()]
        (info / "entry_points.txt").write_text("\n".join(["[trainer.callbacks]", *entries]) + "\n")
        for name, source in (modules or {}).items():
            (self.folder / f"{name}.py").write_text(source)

    def python(
        self, *arguments: str, cwd: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(map(str, (self.folder, ROOT / "core" / "src", self._bare)))
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": path, **variables}
        return subprocess.run(
            [sys.executable, "-S", "-W", "error", *arguments],
            capture_output=True,
            text=True,
            env=environment,
            cwd=cwd or self.folder,
            check=False,
        )

    def evaluate(self, source: str, expression: str, **variables: str) -> Any:
        """Returns what `expression` is after `source`, in a process of its own."""
        code = f"import json, sys\n{source}\nprint(json.dumps({expression}))"
        done = self.python("-c", code, **variables)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def command(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs `trainer ARGUMENTS`."""
        code = "from trainer.cli import main; raise SystemExit(main())"
        return self.python("-c", code, *arguments, **variables)


@pytest.fixture(scope="session")
def bare_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that is installed here, without the plugins of this project."""
    bare = tmp_path_factory.mktemp("bare")
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        is_ours = path.name.startswith(("trainer", "_trainer", "__editable__"))
        if path.suffix != ".pth" and (not is_ours or path.name.startswith("trainer_core-")):
            (bare / path.name).symlink_to(path)
    return bare


@pytest.fixture
def site(tmp_path: Path, bare_packages: Path) -> Site:
    return Site(tmp_path / "site", bare_packages)
