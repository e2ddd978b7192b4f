"""Which messages are sent, what a server that is dead costs, and where no address is found."""

import logging
import time

import pytest

from trainer_callback import TrainerCallback, UsageError
from trainer_notify import NotifyCallback


def test_the_end_of_a_run_is_told(make, server, tmp_path):
    result = make(NotifyCallback(server.url)).train()
    (message,) = server.messages
    assert message["title"] == "run: finished"
    assert f"best val_loss {result.val_loss:.6g}, at update 8" in message["message"]
    assert "epochs after 8 updates, 4 epochs" in message["message"]
    assert str(tmp_path / "run") in message["message"]


def test_a_failure_is_told_with_its_error(make, server):
    def fails(model, batch):
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        make(NotifyCallback(server.url), loss_fn=fails).train()
    (message,) = server.messages
    assert message["title"] == "run: failed"
    assert "ValueError: no such thing" in message["message"]


def test_epochs_and_best_values_are_told_where_that_is_asked_for(make, server):
    make(NotifyCallback(server.url, every_epochs=2)).train()
    assert server.titles == ["run: epoch 1 is over", "run: epoch 3 is over", "run: finished"]
    server.messages.clear()
    make(NotifyCallback(server.url, at_best=True, monitor="train_loss"), overwrite=True).train()
    assert sum("best train_loss so far" in title for title in server.titles) == 4


def test_a_resumed_run_remembers_its_best_value(make, server):
    class Worse(TrainerCallback):
        logs_metrics = ("score",)

        def on_epoch_end(self, trainer, epoch):
            trainer.log({"score": [1.0, 5.0, 2.0, 3.0][epoch]})

    def callbacks():
        return Worse(), NotifyCallback(server.url, monitor="score", mode="max")

    make(*callbacks(), max_steps=6).train()
    make(*callbacks()).train(resume=True)
    assert "best score 5, at update 4" in server.messages[-1]["message"]


def test_addresses_come_from_the_environment_or_a_file(make, server, tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_URLS", f"{server.url}, {server.url}")
    make(NotifyCallback()).train()
    assert len(server.messages) == 2
    monkeypatch.delenv("NOTIFY_URLS")
    (tmp_path / "urls").write_text(f"# mine\n\n{server.url}\n")
    make(NotifyCallback(file=tmp_path / "urls"), overwrite=True).train()
    assert len(server.messages) == 3


@pytest.mark.parametrize("place", ["nowhere", "file"])
def test_a_run_without_an_address_is_refused(make, tmp_path, monkeypatch, place):
    monkeypatch.delenv("NOTIFY_URLS", raising=False)
    (tmp_path / "urls").write_text("# none\n")
    callback = NotifyCallback(file=tmp_path / "urls" if place == "file" else None)
    with pytest.raises(UsageError, match="there is no address to send to"):
        make(callback).train()


def test_a_wrong_address_is_refused_and_not_shown(make, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(UsageError) as caught:
        make(NotifyCallback(["json://127.0.0.1:9", "jsno://user:hunter2@host"])).train()
    assert "address 2 of 2 is none that apprise knows. It begins with jsno://" in str(caught.value)
    assert "hunter2" not in str(caught.value) + caplog.text + "".join(capfd.readouterr())


def test_an_address_is_written_and_logged_nowhere(make, server, tmp_path, caplog, capfd):
    caplog.set_level(logging.INFO)
    make(NotifyCallback(server.url)).train()
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(written) > 3
    assert not [path for path in written if b"hunter2" in path.read_bytes()]
    assert "hunter2" not in caplog.text + "".join(capfd.readouterr())


def test_a_server_that_is_dead_costs_the_run_nothing(make, caplog):
    begun = time.monotonic()
    result = make(NotifyCallback("json://127.0.0.1:9", every_epochs=1)).train()
    assert result.status == "finished"
    assert result.switched_off == ()
    assert "'run: finished' could not be sent" in caplog.text
    assert time.monotonic() - begun < 20
