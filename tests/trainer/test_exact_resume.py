"""kill -9 at any step: at most `snapshot_interval` updates are repeated; the final state is equal
bit by bit, and so are the logs. Random moments come from a fixed seed.
"""

import random
import signal
import time

import pytest
import torch

import trainer.data.loaders
import trainer.snapshots.checkpoint
from trainer.writers.metrics_file import read_logged

pytestmark = pytest.mark.any_loop

CASES = {
    "shuffled map": {},
    "accumulation with a short window": {"gradient_accumulation_steps": 4, "snapshot_interval": 1},
    "clipping": {"max_grad_norm": 0.05},
    "validation inside the epoch": {"eval_interval": 2, "snapshot_interval": 1},
    "epochs only": {"snapshot_interval": None, "snapshot_epochs": True},
    "fp16 with its scaler": {"precision": "fp16"},
    "bf16": {"precision": "bf16"},
    "written by the training thread": {"snapshot_sync": True, "keep_snapshots": 1},
    "sampler of somebody's own": {"kind": "own sampler"},
    "iterable": {"kind": "stream"},
    "iterable, accumulated": {"kind": "stream", "gradient_accumulation_steps": 3},
    "loader of somebody's own": {"kind": "counting"},
    "loader with set_epoch": {"kind": "set_epoch"},
    "torchdata": {"kind": "stateful"},
    "torchdata, iterable": {"kind": "stateful stream"},
    "torchdata, iterable with a position": {"kind": "stateful position"},
}
WITH_WORKERS = {
    "2 workers": {"workers": 2},
    "2 workers that outlive an epoch": {"kind": "persistent", "workers": 2},
    "2 workers, iterable": {"kind": "stream", "workers": 2},
    "2 workers, torchdata": {"kind": "stateful", "workers": 2},
}


def run_to_the_end(tiny, directory, options, kills, chance):
    """Returns how many processes were killed before one got through."""
    killed = 0
    while True:
        at = chance.randint(1, 45) if killed < kills else None

        def work(at=at):
            callbacks = [tiny.killer(at)]
            tiny.trainer(directory, callbacks=callbacks, **options).train(resume="auto")

        code = tiny.child(work).wait()
        if code == 0:
            return killed
        assert code == -signal.SIGKILL
        killed += 1


def compare(tiny, directory, reference):
    found = tiny.difference(tiny.newest_state(reference), tiny.newest_state(directory))
    assert found is None
    logs = [read_logged(each / "metrics.jsonl") for each in (reference, directory)]
    assert logs[0] == logs[1]
    final = [(each / "final" / "model.safetensors").read_bytes() for each in (reference, directory)]
    assert final[0] == final[1]


MANY = [("shuffled map", 2), ("shuffled map", 5), ("iterable", 2), ("iterable", 5)]


@pytest.mark.parametrize(("case", "kills"), [*((case, 1) for case in CASES), *MANY])
def test_kill_9_at_any_step_ends_as_if_it_had_not_been(tiny, tmp_path, case, kills):
    chance = random.Random(f"{case} {kills}")
    run_to_the_end(tiny, tmp_path / "whole", CASES[case], 0, chance)
    assert run_to_the_end(tiny, tmp_path / "killed", CASES[case], kills, chance) >= 1
    compare(tiny, tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("case", CASES)
def test_kill_9_at_any_step_again_in_the_same_epoch(tiny, tmp_path, case):
    run_to_the_end(tiny, tmp_path / "whole", CASES[case], 0, random.Random(0))
    for at in (18, 21, 23):

        def work(at=at):
            callbacks = [tiny.killer(at)]
            trainer = tiny.trainer(tmp_path / "killed", callbacks=callbacks, **CASES[case])
            trainer.train(resume="auto")

        assert tiny.child(work).wait() in (-signal.SIGKILL, 0)
    run_to_the_end(tiny, tmp_path / "killed", CASES[case], 0, random.Random(0))
    compare(tiny, tmp_path / "killed", tmp_path / "whole")


def test_callbacks_that_draw_random_numbers_change_nothing_after_a_resume(tiny, tmp_path):
    class Draws(tiny.killer):
        def on_train_start(self, trainer):
            torch.rand(3)

        def on_epoch_start(self, trainer):
            torch.rand(3)

    def work(place, at=None):
        options = {"snapshot_interval": 1, "snapshot_sync": True}
        tiny.trainer(place, callbacks=[Draws(at)], **options).train(resume="auto")

    assert tiny.child(lambda: work(tmp_path / "whole")).wait() == 0
    assert tiny.child(lambda: work(tmp_path / "killed", 20)).wait() == -signal.SIGKILL
    assert tiny.newest_state(tmp_path / "killed")["progress"]["batch_in_epoch"] > 0
    assert tiny.child(lambda: work(tmp_path / "killed")).wait() == 0
    compare(tiny, tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("case", WITH_WORKERS)
def test_kill_9_at_any_step_with_workers_ends_as_if_it_had_not_been(tiny, tmp_path, case):
    options = {"snapshot_interval": 1, "snapshot_sync": True, **WITH_WORKERS[case]}
    run_to_the_end(tiny, tmp_path / "whole", options, 0, random.Random(0))
    for at in (25, 18):  # inside an epoch, and again in the same one

        def work(at=at):
            trainer = tiny.trainer(tmp_path / "killed", callbacks=[tiny.killer(at)], **options)
            trainer.train(resume="auto")

        assert tiny.child(work).wait() == -signal.SIGKILL
        assert tiny.newest_state(tmp_path / "killed")["progress"]["batch_in_epoch"] > 1
    run_to_the_end(tiny, tmp_path / "killed", options, 0, random.Random(0))
    compare(tiny, tmp_path / "killed", tmp_path / "whole")


def test_kill_9_at_any_step_by_the_clock(tiny, tmp_path):
    chance = random.Random(1)
    run_to_the_end(tiny, tmp_path / "whole", {"epochs": 8}, 0, chance)
    killed = 0
    for _ in range(200):
        child = tiny.child(lambda: tiny.trainer(tmp_path / "killed", epochs=8).train(resume="auto"))
        time.sleep(chance.uniform(0, 0.25))
        child.send(signal.SIGKILL)
        if child.wait() == 0:
            break
        killed += 1
        if killed == 12:
            tiny.child(
                lambda: tiny.trainer(tmp_path / "killed", epochs=8).train(resume="auto")
            ).wait()
            break
    assert killed
    compare(tiny, tmp_path / "killed", tmp_path / "whole")


def test_kill_9_at_any_step_repeats_at_most_the_updates_since_the_last_snapshot(tiny, tmp_path):
    def work():
        tiny.trainer(tmp_path, callbacks=[tiny.killer(60)], snapshot_sync=True).train()

    assert tiny.child(work).wait() == -signal.SIGKILL
    step = tiny.newest_state(tmp_path)["progress"]["step"]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert 0 <= len([line for line in lines if "learning_rate" in line]) - step <= 2


def forget_rng(monkeypatch):
    monkeypatch.setattr(trainer.snapshots.checkpoint, "restore_rng", lambda state, device: None)


def forget_position(monkeypatch):
    start = trainer.data.loaders.EpochLoader._start
    monkeypatch.setattr(
        trainer.data.loaders.EpochLoader,
        "_start",
        lambda self, epoch, skip, state: start(self, epoch, 0, None),
    )


@pytest.mark.parametrize("forget", [forget_rng, forget_position])
def test_negative_control_a_resume_without_one_piece_is_not_equal(
    tiny, tmp_path, monkeypatch, forget
):
    chance = random.Random(0)
    run_to_the_end(tiny, tmp_path / "whole", {}, 0, chance)
    forget(monkeypatch)
    assert run_to_the_end(tiny, tmp_path / "killed", {}, 2, chance) == 2
    with pytest.raises(AssertionError):
        compare(tiny, tmp_path / "killed", tmp_path / "whole")
