"""What a host tells of the sets of its validation, and what it does not call."""

import torch

from trainer.testing import Recorder
from trainer_callback import TrainerCallback

from .test_hosted_run import make_parts, make_run


def open_run(place, callback):
    run = make_run(*make_parts(), [callback], place)
    run.open()
    run.begin()
    return run


def test_sets_and_batches_are_told_in_their_order(tmp_path):
    recorder = Recorder()
    run = open_run(tmp_path, recorder)
    run.start_validation()
    for name, batches in (("one", 1), ("two", 2)):
        run.sets.start(name)
        for number in range(batches):
            run.sets.end_batch(number, torch.tensor(0.5), None)
    run.sets.end({"val_loss": 0.5})
    run.end_validation({"val_loss": 0.5}, ends_epoch=False)
    told = [
        (call.hook, call.arguments.get("name"), call.arguments.get("batch_idx"))
        for call in recorder.calls
        if call.hook.startswith("on_validation")
    ]
    start, batch, end = (f"on_validation_{each}" for each in ("set_start", "batch_end", "set_end"))
    assert told == [
        ("on_validation_start", None, None),
        *[(start, "one", None), (batch, "one", 0), (end, "one", None)],
        *[(start, "two", None), (batch, "two", 0), (batch, "two", 1), (end, "two", None)],
        ("on_validation_end", None, None),
    ]
    assert recorder.of("on_validation_set_end")[-1]["metrics"] == {"loss": 0.5}
    run.end(None)


def test_who_waits_for_what_no_host_calls_is_named(tmp_path, caplog):
    class Uploads(TrainerCallback):
        def on_final_saved(self):
            pass

    open_run(tmp_path, Uploads()).end(None)
    assert "Uploads will not be called in on_final_saved: A loop writes no final/." in caplog.text
