"""Folders of installed plugins, for tests of discovery and of commands; logging left as found."""

from __future__ import annotations

import gc
import importlib
import json
import logging
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the commands keep about plugins is kept here, and not among the user's own files; and a
    pytest that a test starts tidies up no folders of another one.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINER_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PYTEST_DEBUG_TEMPROOT", str(tmp_path_factory.mktemp("nested")))
        yield


def pytest_collection_finish() -> None:
    """What was imported to find the tests stays: no collection of garbage looks at it again, of
    which some tests, and the end of each run of several processes, ask for a full one.
    """
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs a card where there is none."""
    if item.get_closest_marker("card"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA card")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """The command sets handlers and levels of the whole process; the next test must not see it."""
    root = logging.getLogger()
    for logger in _loggers():
        if logger.name.startswith("trainer"):  # a fixture of a module may have run the command
            logger.setLevel(logging.NOTSET)
    before = {each: (each.level, each.disabled, each.propagate) for each in _loggers()}
    handlers = root.handlers[:]
    yield
    root.handlers[:] = handlers
    for logger in _loggers():  # also those that came with what the test has imported
        level, logger.disabled, logger.propagate = before.get(logger, (0, False, True))
        logger.setLevel(level)


def _loggers() -> list[logging.Logger]:
    root = logging.getLogger()
    return [root, *(logging.getLogger(name) for name in list(root.manager.loggerDict))]


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
        commands: Mapping[str, str] | None = None,
        modules: Mapping[str, str] | None = None,
        metadata: Sequence[str] = (),
    ) -> None:
        """Writes what pip would write: dist-info and modules."""
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {distribution}", f"Version: {version}", *metadata]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        entries = [f"{name} = {value}" for name, value in (plugins or {}).items()]
        entries = ["[trainer.callbacks]", *entries, "[trainer.commands]"]
        entries += [f"{name} = {value}" for name, value in (commands or {}).items()]
        (info / "entry_points.txt").write_text("\n".join(entries) + "\n")
        for name, source in (modules or {}).items():
            (self.folder / f"{name}.py").write_text(source)

    def python(
        self, *arguments: str, cwd: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(map(str, (self.folder, ROOT / "core" / "src", self._bare)))
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": path,
            "TRAINER_CACHE_DIR": os.environ["TRAINER_CACHE_DIR"],
            **variables,
        }
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
        code = "from trainer_tool.cli import main; raise SystemExit(main())"
        return self.python("-c", code, *arguments, **variables)


@pytest.fixture(scope="session")
def forked() -> Callable[..., int | None]:
    """Runs a function in a process that is forked off this one, so that torch is imported once;
    returns its exit code, which is negative for a signal.
    """
    importlib.import_module("torch._dynamo")  # or each process does, for its optimizer

    def run(work: Callable[..., object], *arguments: object, **named: object) -> int | None:
        forking = multiprocessing.get_context("fork")
        process = forking.Process(target=work, args=arguments, kwargs=named)
        process.start()
        process.join(200)
        if process.exitcode is None:
            process.kill()
            process.join()
            pytest.fail("a forked process has not ended in 200 seconds")
        return process.exitcode

    return run


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


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Builds plugins of `tests/wheels`, each a distribution of its own, and installs their wheels
    into a new folder, which is returned. `more` is code behind that of each module.
    """

    def run(*words: str, cwd: Path) -> None:
        command = [sys.executable, "-m", *words]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def install(*names: str, more: str = "") -> Path:
        site = tmp_path_factory.mktemp("site")
        for name in names:
            source = tmp_path_factory.mktemp(name)
            shutil.copytree(ROOT / "tests" / "wheels" / name, source, dirs_exist_ok=True)
            module = source / f"x_{name}.py"
            module.write_text((module.read_text() if module.exists() else _read_manual()) + more)
            run("build", "--wheel", "--no-isolation", cwd=source)
            wheel = str(next((source / "dist").glob("*.whl")))
            quietly = ("-q", "--no-deps", "--no-index", "--target", str(site), wheel)
            run("pip", "install", *quietly, cwd=source)
        return site

    return install


def _read_manual() -> str:
    """Returns the plugin in the manual that changes what is trained."""
    manual = (ROOT / "CALLBACKS.md").read_text()
    (code,) = re.findall(r"```python\n(class UnfreezeAt.*?)```", manual, re.DOTALL)
    return f"from trainer_callback import TrainerCallback\n\n\n{code}"


class Gan:
    """The hooks of the step as a host of two optimizers calls them: once for each in a turn.

    `trainer.step` is n - 1 in every `on_backward_end` of a turn and n in every `on_step_end`;
    `trainer.optimizer` is the one at hand there, the first one elsewhere.
    """

    def __init__(self, callback: Any, output_dir: Path | None = None, **config: Any) -> None:
        import torch
        from torch import nn

        torch.manual_seed(0)
        self.model = nn.ModuleDict({"d": nn.Linear(3, 1), "g": nn.Linear(2, 3)})
        self.optimizers = {
            name: torch.optim.SGD(part.parameters(), lr=0.01) for name, part in self.model.items()
        }
        self.callback = callback
        self.output_dir = output_dir
        self.config = SimpleNamespace(**config)
        self.max_grad_norm, self.precision, self.max_steps = None, "fp32", None
        self.optimizer = self.optimizers["d"]
        self.step = self.epoch = 0
        self.is_main_process, self.has_validation = True, False
        self.snapshot_due = self.last_update_of_epoch = False
        self.loss_scale, self.metrics = None, {}
        self.logged: list[tuple[int, dict[str, float]]] = []

    def log(self, metrics: dict[str, float]) -> None:
        self.logged.append((self.step, metrics))

    def gradient_stats(self, groups: Any, *, norm_type: float = 2.0) -> Any:
        """Refuses names that are not those of the optimizer at hand."""
        from trainer.step.gradients import Gradients

        gradients = Gradients(self.model, self.optimizer, only_optimized=True)
        assert {name for names in groups.values() for name in names} <= {*gradients.names}
        return gradients.stats(groups, norm_type)

    def start(self, state: Any = None) -> None:
        if state is not None:
            self.callback.on_snapshot_load(self, {}, state)
        self.callback.on_train_start(self, resumed=state is not None)

    def turn(self, *names: str, bad: str = "") -> None:
        """One update of the optimizers `names`, of which `bad` is skipped, for NaN gradients."""
        import torch

        self.step += 1
        for name in names or self.optimizers:
            self.optimizer = self.optimizers[name]
            self.step -= 1
            self.model.zero_grad()  # of what another one's backward pass has left
            x = self.model["g"](torch.full((1, 2), 1 / (1 + self.step)))
            loss = (self.model["d"](x) - 1).square().sum()
            (loss * float("nan" if name == bad else 1)).backward()
            self.callback.on_backward_end(self)
            if self.max_grad_norm is not None:
                norm = torch.tensor(1.0)
                self.callback.on_gradients_clipped(self, norm, torch.tensor(name == "g"))
            if name != bad:
                self.optimizer.step()
            self.step += 1
            self.callback.on_step_end(self, skipped=name == bad)
        self.optimizer = self.optimizers["d"]

    def save(self) -> Any:
        return self.callback.on_snapshot_save(self, self.epoch, self.step)


@pytest.fixture
def gan() -> type[Gan]:
    return Gan
