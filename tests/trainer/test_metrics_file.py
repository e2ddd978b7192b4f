"""`metrics.jsonl`: the log events, and behind them what the callbacks cost."""

import json
import shutil
import signal

import pytest

from trainer.writers.metrics_file import read_logged
from trainer_callback import TrainerCallback, hookimpl


def read(place):
    return [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]


class LogsLast(TrainerCallback):
    @hookimpl(trylast=True)
    def on_train_end(self, trainer):
        trainer.log({"late": 1.0})


def test_the_last_line_has_the_costs_of_each_plugin_and_hook(tiny, tmp_path):
    result = tiny.trainer(tmp_path, callbacks=[tiny.killer(), LogsLast()]).train()
    *others, last = read(tmp_path)
    ended = {"status": "finished", "stop_reason": "epochs", "stop_detail": "", "stopped_by": None}
    costs = {"callback_costs": result.callback_costs}
    assert last == {"step": 18, "epoch": 3, "ended": ended, **costs}
    assert last["callback_costs"]["Killer"]["on_epoch_end"]["calls"] == 3
    assert others[-1]["late"] == 1.0


def test_a_run_that_fails_has_its_costs_too(tiny, tmp_path):
    class Fails(TrainerCallback):
        def on_epoch_end(self, trainer, epoch):
            raise RuntimeError("no")

    assert tiny.child(lambda: tiny.trainer(tmp_path, callbacks=[Fails()]).train()).wait() == 1
    assert read(tmp_path)[-1]["callback_costs"]["metrics_file"]["on_log"]["calls"] == 7


def test_a_resume_cuts_off_the_costs_of_the_run_before_it(tiny, tmp_path):
    tiny.trainer(tmp_path, max_steps=5).train()
    assert "callback_costs" in read(tmp_path)[-1]
    child = tiny.child(lambda: tiny.trainer(tmp_path, callbacks=[tiny.killer(2)]).train(True))
    assert child.wait() == -signal.SIGKILL
    assert not any("callback_costs" in line for line in read(tmp_path))


def test_an_ended_run_that_is_resumed_has_one_line_of_costs(tiny, tmp_path):
    for steps in (5, 18):
        tiny.trainer(tmp_path, max_steps=steps).train(resume="auto")
    assert ["callback_costs" in line for line in read(tmp_path)] == [*21 * [False], True]


def test_a_text_has_a_line_which_a_resumed_run_has_once(tiny, tmp_path):
    class Writes(TrainerCallback):
        def on_epoch_end(self, trainer, epoch):
            trainer.log_text("note", f"<epoch {epoch}>")

    for steps in (8, 18):
        tiny.trainer(tmp_path, callbacks=[Writes()], max_steps=steps).train(resume="auto")
    lines = [line for line in read(tmp_path) if "text" in line]
    assert [line["text"] for line in lines] == [{"note": f"<epoch {n}>"} for n in range(3)]
    assert [line["step"] for line in lines] == [6, 12, 18]


def test_a_metric_of_that_name_is_no_line_of_costs(tmp_path):
    line = b'{"step": 1, "epoch": 0, "callback_costs": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(line)
    assert read_logged(tmp_path / "metrics.jsonl") == [line]


@pytest.mark.parametrize("what", ["removed", "directory removed", "replaced"])
def test_a_file_that_is_removed_while_the_run_goes_on_is_written_anew(tiny, tmp_path, caplog, what):
    whole, place = tmp_path / "whole", tmp_path / "run"

    class Removes(TrainerCallback):
        def on_step_end(self, trainer):
            if trainer.step == 3 and what == "directory removed":
                shutil.rmtree(place)
            elif trainer.step == 3:
                (place / "metrics.jsonl").unlink()
                if what == "replaced":
                    (place / "metrics.jsonl").write_text("mine\n")

    tiny.trainer(whole).train()
    tiny.trainer(place, callbacks=[Removes()]).train()
    assert read_logged(place / "metrics.jsonl") == read_logged(whole / "metrics.jsonl")
    assert "callback_costs" in read(place)[-1]
    told = [each.message for each in caplog.records if "metrics.jsonl" in each.message]
    assert len(told) == 1
    assert "while the run goes on" in told[0]
    assert tiny.trainer(place, epochs=4).train(resume=True).status == "finished"
    if what == "replaced":
        assert (place / "metrics.jsonl.found").read_text() == "mine\n"


def test_a_file_that_cannot_be_written_anew_is_told_once(tiny, tmp_path, caplog):
    class Blocks(TrainerCallback):
        def on_step_end(self, trainer):
            if trainer.step == 3:
                (tmp_path / "metrics.jsonl").unlink()
                (tmp_path / "metrics.jsonl.found").mkdir()
                (tmp_path / "metrics.jsonl").mkdir()
                (tmp_path / "metrics.jsonl" / "file").touch()
                (tmp_path / "metrics.jsonl.found" / "file").touch()

    assert tiny.trainer(tmp_path, callbacks=[Blocks()]).train().status == "finished"
    told = [each.message for each in caplog.records if "metrics.jsonl" in each.message]
    assert len([text for text in told if "cannot be written anew" in text]) == 1
