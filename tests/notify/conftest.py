"""A server that keeps what it is sent, and small runs of the real Trainer."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainer import Trainer, TrainerConfig


class Server:
    """What was sent to a server of this machine, as JSON."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        messages = self.messages

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                messages.append(json.loads(self.rfile.read(length)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"json://user:hunter2@127.0.0.1:{self.http.server_port}"

    @property
    def titles(self) -> list[str]:
        return [message["title"] for message in self.messages]

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Trainer]:
    """Makes a Trainer of 4 epochs of 2 batches in `tmp_path / "run"`."""

    def make_trainer(*callbacks: object, loss_fn: Any = None, **config: Any) -> Trainer:
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        batches = list(torch.randn(2, 3, 4))
        settings = {"epochs": 4, "device": "cpu", "output_dir": tmp_path / "run", **config}
        return Trainer(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            batches,
            batches,
            loss_fn=loss_fn or (lambda model, batch: (model(batch) - 1).square().mean()),
            config=TrainerConfig(**settings),
            callbacks=callbacks,
            discover=False,
        )

    return make_trainer
