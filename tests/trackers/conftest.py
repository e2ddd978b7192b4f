"""Lives of a run: each is a process of its own, which may be killed at any moment."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from trainer.testing import make_tiny_trainer
from trainer_callback import TrackerProcess, TrainerCallback, hookimpl

Values = Counter[tuple[str, int, str]]


def die(*_: object) -> None:
    """As the kernel ends a process that has no memory left."""
    os.kill(os.getpid(), signal.SIGKILL)


def terminate(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fail(*_: object) -> None:
    raise RuntimeError("the batch is bad")


class _Dying(TrackerProcess):
    """Is killed, with its run, in the midst of what it was given."""

    def send(self, records):
        early = [each for each in records if each.event < 15 or each.event < records[-1].event // 2]
        if early:
            super().send(early)
        if len(early) < len(records):
            die()


def dying_tracker(tracker: TrackerProcess) -> TrackerProcess:
    tracker.__class__ = _Dying
    return tracker


class At(TrainerCallback):
    """Does something when a hook is called at an update, before other callbacks are."""

    def __init__(self, hook: str, step: int, act: Callable[..., None]) -> None:
        def call(self: Any, trainer: Any) -> None:
            if trainer.step >= step:
                act(trainer)

        self.__class__ = type("At", (At,), {hook: hookimpl(tryfirst=True)(call)})


class Chatter(TrainerCallback):
    """Logs what is hard: NaN and infinity, one name twice at an update, texts."""

    def on_step_end(self, trainer: Any) -> None:
        trainer.log({"odd/nan": float("nan") if trainer.step % 2 else 1.0, "odd/inf": float("inf")})
        trainer.log({"twice": 7.0})
        trainer.log({"twice": 7.0})
        trainer.log_text("sample", f"text {trainer.step}")


class Lives:
    """One output directory and the lives of its run."""

    def __init__(self, output: Path, make: Callable[[], object]) -> None:
        self.output = output
        self.make = make
        self.heard = output.parent / "heard.txt"

    def live(
        self,
        *others: object,
        steps: int = 12,
        resume: Any = "auto",
        tracker: Callable[[], object] | None = None,
        **config: Any,
    ) -> int:
        """Runs a life up to update `steps`; returns its exit status, negative for a signal."""
        settings = {"max_steps": steps, "epochs": 4, "snapshot_interval": 4, **config}
        sys.stdout.flush()
        sys.stderr.flush()
        process = os.fork()
        if not process:
            code = 1
            try:
                sys.stdout = sys.stderr = self.heard.open("a", buffering=1)
                os.dup2(sys.stderr.fileno(), 2)
                logging.basicConfig(level="INFO", stream=sys.stderr, force=True)
                callbacks = [*others, Chatter(), (tracker or self.make)()]
                trainer = make_tiny_trainer(callbacks, output_dir=self.output, **settings)
                code = trainer.train(resume=resume).exit_code
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    def wait_at_the_end(self, **life: Any) -> float:
        """Runs a life; returns how many seconds its end took, from `on_train_end` on."""
        note = self.output.parent / "ended.txt"
        at_end = At("on_train_end", 0, lambda _: note.write_text(str(time.monotonic())))
        assert self.live(at_end, **life) == 0
        return time.monotonic() - float(note.read_text())

    @property
    def said(self) -> str:
        return self.heard.read_text()

    def snapshot(self, step: int) -> Path:
        """The snapshot of an update."""
        return next(self.output.glob(f"snapshots/step-{step:08d}"))

    def logged(self) -> Values:
        """Each (name, update, value) in metrics.jsonl, and how often."""
        lines = map(json.loads, (self.output / "metrics.jsonl").read_text().splitlines())
        found: Values = Counter()
        for line in lines:
            if "callback_costs" in line:
                continue
            step = line.pop("step")
            for name in ("epoch", "_event", "_time", "text"):
                line.pop(name, None)
            found.update((name, step, repr(float(value))) for name, value in line.items())
        assert sum(found.values()) > 20
        return found

    def texts(self) -> Sequence[str]:
        lines = map(json.loads, (self.output / "metrics.jsonl").read_text().splitlines())
        return [line["text"]["sample"] for line in lines if "text" in line]


MOMENTS: dict[str, Callable[[Lives, Callable[..., object]], None]] = {}


def moment(scenario: Callable[..., None]) -> Callable[..., None]:
    MOMENTS[scenario.__name__] = scenario
    return scenario


@moment
def before_the_first_snapshot(run: Lives, dying: Callable[..., object]) -> None:
    assert run.live(At("on_batch_end", 3, die)) == -9
    assert run.live() == 0


@moment
def durable_but_untold(run: Lives, dying: Callable[..., object]) -> None:
    assert run.live(At("on_snapshot_saved", 4, die)) == -9
    assert run.live() == 0


@moment
def amid_a_send(run: Lives, dying: Callable[..., object]) -> None:
    assert run.live(tracker=dying) == -9
    assert run.live() == 0


@moment
def amid_a_refill(run: Lives, dying: Callable[..., object]) -> None:
    assert run.live(At("on_snapshot_saved", 4, die)) == -9
    assert run.live(tracker=dying) == -9
    assert run.live() == 0


@moment
def after_a_clean_end(run: Lives, dying: Callable[..., object]) -> None:
    assert run.live(steps=8) == 0
    assert run.live(At("on_batch_end", 9, die)) == -9
    assert run.live() == 0


@moment
def after_an_end_inside_an_epoch(run: Lives, dying: Callable[..., object]) -> None:
    """The resume takes back the validation of that end, which a tracker was told of."""
    assert run.live(steps=6) == 0
    assert run.live(At("on_batch_end", 7, die)) == -9
    assert run.live() == 0


@moment
def from_an_older_snapshot(run: Lives, dying: Callable[..., object]) -> None:
    assert run.live(keep_snapshots=4) == 0
    assert run.live(resume=run.snapshot(4), keep_snapshots=4) == 0


@moment
def amid_a_refill_from_an_older_snapshot(run: Lives, dying: Callable[..., object]) -> None:
    assert run.live(keep_snapshots=4) == 0
    assert run.live(resume=run.snapshot(4), keep_snapshots=4, tracker=dying) == -9
    assert run.live(resume=run.snapshot(4), keep_snapshots=4) == 0


@moment
def in_a_failed_run(run: Lives, dying: Callable[..., object]) -> None:
    assert run.live(At("on_step_end", 7, fail)) == 1
    assert run.live() == 0


@moment
def twice(run: Lives, dying: Callable[..., object]) -> None:
    assert run.live(At("on_batch_end", 6, die)) == -9
    assert run.live(At("on_batch_end", 10, die)) == -9
    assert run.live() == 0


@pytest.fixture(params=MOMENTS)
def lived(request: pytest.FixtureRequest, tmp_path: Path) -> Lives:
    """A run that was killed, or went back, at one of eight moments, and then came to its end."""
    module = request.module
    run = Lives(tmp_path / "run", module.make)
    module.prepare(run.output)
    MOMENTS[request.param](run, module.dying)
    return run


@pytest.fixture
def lives(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lives:
    """A run that has not begun, in an empty home directory, with no temporary files."""
    run = Lives(tmp_path / "run", request.module.make)
    move_home(tmp_path, monkeypatch)
    request.module.prepare(run.output)
    return run


def move_home(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives this process, and those that it starts, folders for whatever goes anywhere else."""
    monkeypatch.setenv("HOME", str(place / "home"))
    monkeypatch.setenv("TMPDIR", str(place / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", str(place / "temporary"))
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    (place / "temporary").mkdir()
    (place / "home").mkdir()
    monkeypatch.chdir(place / "home")


def left_behind(run: Lives) -> list[str]:
    """Files outside the output directory, and processes that were started there."""
    home = run.output.parent / "home"
    files = [str(path) for path in home.rglob("*")]
    temporary = home.with_name("temporary").iterdir()
    files += [str(path) for path in temporary if not path.name.startswith("torchinductor")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = process.joinpath("cmdline").read_bytes().decode()
            cwd = str((process / "cwd").readlink())
        except OSError:
            continue
        is_ours = process.name != str(os.getpid()) and cwd.startswith(str(home.parent))
        files += [words.replace("\0", " ")] if is_ours else []
    return files


@pytest.fixture
def deaf() -> Iterator[str]:
    """The address of a server that takes a connection, and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
