"""Markdown documents as sections of code blocks, and what their code is tried with.

A block's info string says how it is tested: `python` is run, `python file=NAME` is written to a
file, `python raises=NAME` has to raise, and a `text` block right behind that one is the beginning
of the message. The blocks of a section share one namespace; a `###` section starts with those of
its `##` section, and one whose first block is `python continued` with those of the section before.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer import Trainer, TrainerConfig
from trainer_callback import TrainerCallback
from trainer_lm.model import GPT
from trainer_lm.options import ModelOptions

ROOT = Path(__file__).parents[2]
PAGES = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ("CALLBACKS.md", "README.md", "CONTRIBUTING.md", "core/README.md", *PAGES)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the words behind it, its text."""

    language: str
    words: dict[str, str]
    text: str
    line: int


@dataclass
class Section:
    """What stands under one heading, without the sections below it."""

    document: str
    title: str
    level: int
    text: str = ""
    blocks: list[Block] = field(default_factory=list)
    inherited: list[Block] = field(default_factory=list)


def read_sections(document: str) -> list[Section]:
    sections = [Section(document, document, 1)]
    fence: tuple[str, int] | None = None
    body: list[str] = []
    for number, line in enumerate((ROOT / document).read_text().splitlines(), 1):
        if line.startswith("```"):
            if fence is None:
                fence, body = (line.removeprefix("```"), number), []
                continue
            language, *words = fence[0].split() or [""]
            pairs = dict(word.partition("=")[::2] for word in words)
            sections[-1].blocks.append(Block(language, pairs, "\n".join(body) + "\n", fence[1]))
            fence = None
        elif fence is not None:
            body.append(line)
        elif match := re.match(r"(#+) (.*)", line):
            sections.append(Section(document, match[2], len(match[1])))
            if sections[-1].level == 3:
                parent = next(each for each in reversed(sections) if each.level == 2)
                sections[-1].inherited = parent.blocks
        else:
            sections[-1].text += line + "\n"
    assert fence is None, f"{document}: the block of line {fence} does not end"
    for before, section in pairwise(sections):
        if section.blocks and "continued" in section.blocks[0].words:
            section.inherited = [*before.inherited, *before.blocks]
    return sections


def read_commands(document: str) -> list[list[str]]:
    """Returns the words of each command in the document's `bash` blocks."""
    text = "\n".join(
        block.text
        for section in read_sections(document)
        for block in section.blocks
        if block.language == "bash"
    )
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "section" in metafunc.fixturenames:
        sections = [
            section
            for document in DOCUMENTS
            for section in read_sections(document)
            if any(block.language == "python" for block in section.blocks)
        ]
        names = [f"{section.document}:{section.title}" for section in sections]
        metafunc.parametrize("section", sections, ids=names)
    if "command" in metafunc.fixturenames:
        commands = [words for document in DOCUMENTS for words in read_commands(document)]
        unique = {" ".join(words): words for words in commands}
        metafunc.parametrize("command", list(unique.values()), ids=list(unique))


@pytest.fixture
def manual() -> list[Section]:
    return read_sections("CALLBACKS.md")


@pytest.fixture(scope="session")
def files() -> dict[str, str]:
    """The files that CALLBACKS.md shows."""
    return {
        block.words["file"]: block.text
        for section in read_sections("CALLBACKS.md")
        for block in section.blocks
        if "file" in block.words
    }


def make_namespace(place: Path) -> dict[str, Any]:
    """Returns what the manual's code takes for granted: a tiny GPT, its optimizer, its loaders."""
    torch.manual_seed(0)
    ids = torch.randint(256, (8, 9))
    items = [{"input_ids": row[:-1], "labels": row[1:]} for row in ids]
    model = GPT(256, ModelOptions(block_size=8, n_layer=1, n_head=1, n_embd=8))
    loaders = [torch.utils.data.DataLoader(items, batch_size=2) for _ in range(2)]
    return {
        "items": items,
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3),
        "train_loader": loaders[0],
        "val_loader": loaders[1],
        "config": TrainerConfig(
            epochs=2,
            output_dir=place / "out",
            overwrite=True,
            snapshot_interval=2,
            log_interval=1,
            max_grad_norm=1.0,
        ),
        "Trainer": Trainer,
        "TrainerConfig": TrainerConfig,
        "TrainerCallback": TrainerCallback,
    }


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """An empty directory to work in, from which modules can be imported while the test lasts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    modules, threads = set(sys.modules), torch.get_num_threads()
    torch.set_num_threads(1)
    logger, handlers = logging.getLogger("trainer"), logging.root.handlers[:]
    level, root_level = logger.level, logging.root.level
    yield SimpleNamespace(place=tmp_path, make_namespace=lambda: make_namespace(tmp_path))
    logger.setLevel(level)
    logging.root.setLevel(root_level)
    logging.root.handlers[:] = handlers
    torch.set_num_threads(threads)
    for name in set(sys.modules) - modules:
        if name.startswith("trainer_"):
            del sys.modules[name]


def run_command(
    *words: str, cwd: Path, site: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command of this environment, with the packages in `site` installed too."""
    program, *arguments = words
    command = [str(Path(sys.executable).with_name(program)), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    if site is not None:
        paths = [str(site), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="session")
def command_line() -> Any:
    return run_command


@pytest.fixture(scope="session")
def plugin_site(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory into which the wheel of the manual's complete plugin is installed."""
    source, site = tmp_path_factory.mktemp("loss-spike"), tmp_path_factory.mktemp("site")
    wanted = ("pyproject.toml", "README.md", "src/", "tests/")
    for name, text in files.items():
        if name.startswith(wanted):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_text(text)
    built = run_command("python", "-m", "build", "--wheel", "--no-isolation", cwd=source)
    assert built.returncode == 0, built.stdout + built.stderr
    wheel = next((source / "dist").glob("*.whl"))
    to_site = ["--no-index", "--no-deps", "--quiet", "--target", str(site)]
    installed = run_command("python", "-m", "pip", "install", *to_site, str(wheel), cwd=source)
    assert installed.returncode == 0, installed.stderr
    tested = run_command("python", "-m", "pytest", "-q", "tests", cwd=source, site=site)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    return site
