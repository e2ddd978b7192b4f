"""Weights & Biases: its own client and `wandb sync`, to a small server that takes what it gets."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("wandb.sdk")

from trainer.testing import CallbackContract
from trainer_wandb import WandbCallback

from .conftest import At, Lives, Values, die, dying_tracker, fail, left_behind, terminate

pytestmark = pytest.mark.slow


class Dying(WandbCallback):
    def make_tracker(self, trainer, folder):
        return dying_tracker(super().make_tracker(trainer, folder))


make, dying = WandbCallback, Dying


def prepare(output: Path) -> None:
    pass


class Server(ThreadingHTTPServer):
    """Keeps runs as W&B's own does: rows by their place in the file, the rest by name."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.rows: dict[str, dict[int, dict]] = {}
        self.runs: dict[str, dict] = {}
        self.exits: dict[str, int] = {}
        self.files: dict[str, bytes] = {}

    def sync(self, output: Path) -> str:
        places = sorted((output / "wandb").glob("offline-run-*"))
        said = ""
        for place in places:
            if any(place.glob("*.synced")):
                continue
            environment = {
                "PATH": os.environ["PATH"],
                "HOME": str(output.parent),
                "WANDB_API_KEY": "a" * 40,
                "WANDB_BASE_URL": self.url,
            }
            done = subprocess.run(
                [sys.executable, "-m", "wandb", "sync", str(place)],
                env=environment,
                cwd=output.parent,  # it makes a folder there
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            said += done.stdout + done.stderr
        return said

    def values(self) -> Values:
        """Each value of the only run."""
        (rows,) = self.rows.values()
        found: Values = Counter()
        for row in rows.values():
            step = row["step"]
            numbers = {name: value for name, value in row.items() if not name.startswith("_")}
            found.update(
                (name, step, repr(float(value)))
                for name, value in numbers.items()
                if name not in ("step", "epoch") and not isinstance(value, str)
            )
        return found


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        answer: dict = {}
        if self.path.endswith("/graphql"):
            asked = json.loads(body)
            answer = {"data": self.answer(asked["query"], asked.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            self.take(self.path.split("/")[-2], json.loads(body))
        elif self.command == "PUT":
            self.server.files[self.path] = body
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_PUT = do_GET = do_POST  # noqa: N815

    def take(self, run: str, sent: dict) -> None:
        rows = self.server.rows.setdefault(run, {})
        history = (sent.get("files") or {}).get("wandb-history.jsonl")
        if history:
            for place, line in enumerate(history["content"], history["offset"]):
                rows[place] = json.loads(line)
        if sent.get("complete"):
            self.server.exits[run] = sent.get("exitcode", 0)

    def answer(self, query: str, given: dict) -> dict:
        project = {"id": "p", "name": "trainer", "entity": {"id": "e", "name": "us"}}
        if "upsertBucket" in query:
            run = self.server.runs.setdefault(given["name"], {"config": "{}"})
            run.update({key: value for key, value in given.items() if value is not None})
            return {"upsertBucket": {"bucket": self.bucket(given["name"]), "inserted": True}}
        if "RunResumeStatus" in query:
            known = given["name"] in self.server.runs
            return {"model": {**project, "bucket": self.bucket(given["name"]) if known else None}}
        if "createRunFiles" in query:
            files = [
                {"name": name, "uploadUrl": f"{self.server.url}/{name}"} for name in given["files"]
            ]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if "viewer" in query:
            return {
                "viewer": {
                    "id": "v",
                    "entity": "us",
                    "username": "us",
                    "flags": "{}",
                    "teams": {"edges": []},
                }
            }
        return {}

    def bucket(self, name: str) -> dict:
        rows = self.server.rows.get(name, {})
        last = [json.dumps(rows[max(rows)])] if rows else []
        return {
            "id": name,
            "name": name,
            "displayName": self.server.runs[name].get("displayName", name),
            "description": "",
            "config": self.server.runs[name]["config"],
            "sweepName": None,
            "project": {"id": "p", "name": "trainer", "entity": {"id": "e", "name": "us"}},
            "historyLineCount": len(rows),
            "logLineCount": 0,
            "eventsLineCount": 0,
            "historyTail": json.dumps(last),
            "eventsTail": "[]",
            "summaryMetrics": last[0] if last else "{}",
            "tags": [],
            "notes": None,
            "wandbConfig": "{}",
        }


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


def read(output: Path) -> tuple[Server, Values]:
    """A server that `wandb sync` has sent everything, and each value that it has."""
    with serving() as made:
        made.sync(output)
        return made, made.values()


def test_each_value_is_there_as_often_as_in_the_log(lived: Lives, server: Server):
    server.sync(lived.output)
    assert server.values() == lived.logged()
    assert [*server.exits.values()] == [0]


def test_a_run_has_its_settings_its_texts_and_the_finished_model(lives: Lives, server: Server):
    assert lives.live() == 0
    assert left_behind(lives) == []
    server.sync(lives.output)
    ((name, run),) = server.runs.items()
    assert len(name) == 12
    assert run["displayName"] == "run"
    assert json.loads(run["config"])["max_steps"]["value"] == 12
    rows = [row for _, row in sorted(server.rows[name].items())]
    assert [row["sample"] for row in rows if "sample" in row] == lives.texts()
    model = (lives.output / "final" / "model.safetensors").read_bytes()
    assert server.files["/final/model.safetensors"] == model


@pytest.mark.parametrize(("act", "code"), [(fail, 1), (terminate, 143)])
def test_its_end_is_told(lives: Lives, server: Server, act, code):
    assert lives.live(At("on_batch_end", 5, act)) != 0
    server.sync(lives.output)
    assert [*server.exits.values()] == [code]
    assert server.values() == lives.logged()


def test_what_was_synced_is_gone_on_with_and_never_taken_back(lives: Lives, server: Server):
    assert lives.live(steps=8, keep_snapshots=4) == 0
    server.sync(lives.output)
    assert lives.live(keep_snapshots=4) == 0
    server.sync(lives.output)
    assert server.values() == lives.logged()
    assert lives.live(resume=lives.snapshot(4)) == 0
    assert "W&B takes nothing back" in lives.said
    assert not server.sync(lives.output)


def test_a_server_that_does_not_answer_costs_seconds_and_no_run(
    lives: Lives, deaf: str, monkeypatch
):
    monkeypatch.setenv("WANDB_BASE_URL", deaf)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    seconds = lives.wait_at_the_end(steps=2, tracker=lambda: WandbCallback(mode="online"))
    assert seconds < 15 + 5  # and what else an end takes
    assert "wandb" in lives.said
    assert left_behind(lives) == []


def test_online_a_killed_run_sends_what_the_server_does_not_have(
    lives: Lives, server: Server, monkeypatch
):
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    online = lambda: WandbCallback(mode="online")  # noqa: E731
    assert lives.live(At("on_batch_end", 7, die), tracker=online) == -9
    assert lives.live(tracker=online) == 0
    assert server.values() == lives.logged()
    assert [*server.exits.values()] == [0]


class TestContract(CallbackContract):
    entry_point = "wandb"
    flags = ("--wandb_project", "other", "--wandb_mode", "online")
    passive = True

    def make(self):
        return WandbCallback(artifacts=False)
