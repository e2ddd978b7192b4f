"""kill -9 at any hook, and in the writing of a snapshot, of a loop that is written by hand: it ends
as if it had not been.
"""

import os
import signal

import pytest

from trainer_callback import HOOKS

NAMES = ["nanogpt", "epochs", "gan", "rl"]


def run_to_the_end(loops, place, name, kills, **settings):
    """Starts again and again, with a kill at each of `kills`; returns how many came about."""
    done = 0
    for at in [*kills, None]:
        code = loops.train(place, name, loops.striker(at), **settings)
        if code == 0:
            return done
        assert code == -signal.SIGKILL
        done += 1
    return done


@pytest.mark.slow  # some thirty processes
@pytest.mark.parametrize("name", NAMES)
def test_kill_9_at_any_hook_ends_as_if_it_had_not_been(loops, tmp_path, name):
    run_to_the_end(loops, tmp_path / "whole", name, [])
    for kills in [(19, 33), (41, 2), (64, 28)]:
        place = tmp_path / f"killed-{kills[0]}"
        assert run_to_the_end(loops, place, name, kills) == 2
        loops.compare(tmp_path / "whole", place)


@pytest.mark.slow  # a process for each hook
@pytest.mark.parametrize("name", ["gan", "rl"])
def test_kill_9_at_each_kind_of_hook(loops, tmp_path, name):
    settings = {"plugins": False, "snapshot_interval": 1}
    run_to_the_end(loops, tmp_path / "whole", name, [], **settings)
    killed = set()
    for hook in HOOKS:
        place = tmp_path / hook
        striker = loops.striker(2, hook)
        if loops.train(place, name, striker, **settings) == -signal.SIGKILL:
            killed.add(hook)
            assert loops.train(place, name, loops.striker(), **settings) == 0
            loops.compare(tmp_path / "whole", place)
    assert {"on_batch_start", "on_forward_end", "on_step_end", "on_log"} <= killed
    assert {"on_validation_start", "should_stop_training", "on_snapshot_saved"} <= killed


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_kill_9_in_the_writing_of_a_snapshot(loops, tiny, tmp_path, name, call):
    settings = {"plugins": False, "snapshot_interval": 1}

    def work():
        real, count = getattr(os, call), 0

        def strike(*arguments, **options):
            nonlocal count
            count += 1
            if count == 9:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        setattr(os, call, strike)
        loops.start(tmp_path / "killed", name, loops.striker(), **settings)

    assert tiny.child(work).wait() == -signal.SIGKILL
    run_to_the_end(loops, tmp_path / "whole", name, [], **settings)
    run_to_the_end(loops, tmp_path / "killed", name, [], **settings)
    loops.compare(tmp_path / "whole", tmp_path / "killed")
