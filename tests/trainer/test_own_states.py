"""`state_per_process`: of several processes each gets its own state of a callback back."""

from __future__ import annotations

import pytest
import torch

from trainer_callback import PluginError, TrainerCallback


class Noise(TrainerCallback):
    """Draws from a generator of each process; the log has what the main one drew."""

    state_per_process = True

    def __init__(self):
        self.drawn, self.loaded = [], "nothing"

    def on_snapshot_load(self, state):
        self.loaded = state and state["rank"]
        self.restored = state and state["generator"]

    def on_train_start(self, trainer, resumed):
        self.rank = trainer.rank
        self.generator = torch.Generator().manual_seed(trainer.rank)
        if resumed and self.restored is not None:
            self.generator.set_state(self.restored)

    def on_step_end(self, trainer):
        self.drawn.append(float(torch.rand((), generator=self.generator)))

    def on_snapshot_save(self):
        return {"rank": self.rank, "generator": self.generator.get_state()}


class Shared(Noise):
    state_per_process = False
    state_key = "Noise"


def go(tiny, place, kind, *, resume=False, rank=0, **settings):
    callbacks = [] if kind is None else [kind()]
    tiny.trainer(place, callbacks=callbacks, val=False, **settings).train(resume=resume)
    if kind is None:
        return ""
    return f"{callbacks[0].loaded} {callbacks[0].drawn}"


def run(tiny, place, kind, **settings):
    def work(rank):
        (place.parent / f"{place.name} {rank}").write_text(go(tiny, place, kind, **settings))

    assert tiny.run_ranks(work) == [0, 0]
    found = [(place.parent / f"{place.name} {rank}").read_text() for rank in range(2)]
    return [(each.partition(" ")[0], eval(each.partition(" ")[2] or "[]")) for each in found]


def test_each_process_goes_on_with_its_own_state(tiny, tmp_path):
    whole = run(tiny, tmp_path / "whole", Noise, max_steps=6)
    cut = run(tiny, tmp_path / "cut", Noise, max_steps=4)
    rest = run(tiny, tmp_path / "cut", Noise, max_steps=6, resume=True)
    assert [loaded for loaded, _ in rest] == ["0", "1"]
    for (_, drawn), (_, first), (_, then) in zip(whole, cut, rest, strict=True):
        assert first + then == drawn
    assert whole[0] != whole[1]


def test_a_state_of_all_processes_is_that_of_the_main_one(tiny, tmp_path):
    run(tiny, tmp_path / "run", Shared, max_steps=2)
    assert [each[0] for each in run(tiny, tmp_path / "run", Shared, resume=True)] == ["0", "0"]


def test_an_older_snapshot_has_one_state_for_all(tiny, tmp_path):
    run(tiny, tmp_path / "run", Shared, max_steps=2)
    assert [each[0] for each in run(tiny, tmp_path / "run", Noise, resume=True)] == ["0", "0"]


def test_states_are_carried_along_for_each_process_while_the_callback_is_absent(tiny, tmp_path):
    place = tmp_path / "run"
    run(tiny, place, Noise, max_steps=2)
    run(tiny, place, None, max_steps=4, resume=True)
    assert [each[0] for each in run(tiny, place, Noise, resume=True)] == ["0", "1"]


def test_alone_it_is_as_any_state(tiny, tmp_path):
    go(tiny, tmp_path / "run", Noise, max_steps=2)
    assert go(tiny, tmp_path / "run", Noise, resume=True).startswith("0 ")


def test_what_is_no_answer_is_refused(tiny, tmp_path):
    class Odd(TrainerCallback):
        state_per_process = "yes"

    with pytest.raises(PluginError, match="state_per_process of Odd must be True or False"):
        tiny.trainer(tmp_path, callbacks=[Odd()])
