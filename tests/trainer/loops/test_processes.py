"""Two processes train by a loop of one's own what one process trains on their batches, joined."""

import itertools
import json
import time

import pytest
import torch
from torch.nn import functional

from trainer_callback import TrainerCallback


def write(loop, place, rank):
    weights = [each.double().flatten().tolist() for each in loop.run.model.parameters()]
    result = loop.run.result
    facts = {"status": result.status, "reason": result.stop_reason, "steps": result.steps}
    facts["weights"] = [*itertools.chain(*weights)]
    (place / f"rank-{rank}").write_text(json.dumps(facts))


def read(place, rank):
    return json.loads((place / f"rank-{rank}").read_text())


def make_gan(loops, *, joined):
    class Gan(loops.kinds["gan"]):
        def noise(self, real):  # the same in whichever process a row is
            return torch.sin(20 * real @ torch.arange(8.0).view(2, 4).to(real))

    def make(rank):
        loop = Gan(None, exact=True)
        rows = [torch.randn(6, 2, generator=torch.Generator().manual_seed(i)) for i in range(6)]
        if joined:
            rows = [torch.cat(rows[i : i + 2]) for i in range(0, 6, 2)]
        loop.data = [each.double() for each in rows]
        return loop

    return make


def make_nano(loops, *, joined):
    class Nano(loops.kinds["nanogpt"]):
        turn = -1

        def get_batch(self, split):
            self.turn += 1
            chance = torch.Generator().manual_seed(self.turn)
            starts = torch.randint(300, (8,), generator=chance).tolist()
            if not joined:
                starts = starts[self.run.view.rank :: 2]
            ids = torch.stack([self.data[i : i + 9] for i in starts])
            return ids[:, :-1], ids[:, 1:]

    def make(rank):
        return Nano(None, validate=False, exact=True)

    return make


@pytest.mark.parametrize("make", [make_gan, make_nano])
def test_two_processes_do_what_one_does_with_their_batches(loops, tiny, tmp_path, make):
    def work(rank):
        loop = make(loops, joined=False)(rank)
        loop.train()
        write(loop, tmp_path, rank)

    assert tiny.run_ranks(work) == [0, 0]
    alone = make(loops, joined=True)(0)
    start = [each.flatten().tolist() for each in alone.run.model.parameters()]
    alone.train()
    write(alone, tmp_path, "alone")
    found = [read(tmp_path, rank) for rank in (0, 1, "alone")]
    assert found[0] == found[1]
    assert found[0]["steps"] == found[2]["steps"] > 5
    assert found[0]["weights"] == pytest.approx(found[2]["weights"], rel=1e-9, abs=1e-12)
    assert found[2]["weights"] != pytest.approx([*itertools.chain(*start)], abs=1e-3)


def test_a_model_that_is_called_past_the_run_is_told(loops, tiny, tmp_path):
    def work(rank):
        class Past(loops.kinds["nanogpt"]):
            def loss_of(self, ids, labels):
                return functional.cross_entropy(self.model(ids).flatten(0, 1), labels.flatten())

        try:
            Past(None, validate=False).train()
        except RuntimeError as error:
            (tmp_path / f"error-{rank}").write_text(str(error))
            raise

    assert tiny.run_ranks(work) == [1, 1]
    assert "Call run.module in place of the model" in (tmp_path / "error-0").read_text()


def test_weights_are_saved_behind_the_step_of_all_optimizers(loops, tiny, tmp_path):
    """Between two of them the processes wait for each other's gradients."""

    class Saves(TrainerCallback):
        def on_batch_end(self, trainer):
            trainer.save_weights("mine")

        def on_step_end(self, trainer):
            with pytest.raises(RuntimeError, match="called inside an update"):
                trainer.save_weights("mine")

    def work(rank):
        loop = loops.kinds["gan"](tmp_path, [Saves()], epochs=1)
        assert loop.train().status == "finished"

    assert tiny.run_ranks(work) == [0, 0]


class Leaves:
    """A loop over batches that one process leaves."""

    @staticmethod
    def train(loops, place, rank, way):
        loop = loops.kinds["gan"](None, epochs=4)
        run = loop.run
        with run.start():
            for epoch in run.epochs():
                for real in run.batches(loop.data):
                    run.backward(loop.judge(real, True), "d")
                    run.step("d")
                    if rank == 1 and run.position.step == 3:
                        if way == "stop":
                            run.stop("enough")
                        elif way == "return":
                            return loop
                        elif way == "break":
                            break
                if rank == 1 and way == "break epochs" and epoch == 1:
                    break
        write(loop, place, rank)
        return loop


@pytest.mark.parametrize("way", ["break", "break epochs", "return"])
def test_a_process_that_leaves_its_loop_alone_is_told_of(loops, tiny, tmp_path, way):
    def work(rank):
        try:
            Leaves.train(loops, tmp_path, rank, way)
        except RuntimeError as error:
            (tmp_path / f"error-{rank}").write_text(str(error))
            raise

    started = time.monotonic()
    assert tiny.run_ranks(work, 40) == [1, 1]
    assert time.monotonic() - started < 30
    assert "would wait for each other" in (tmp_path / "error-0").read_text()
    if way != "break":  # which ends the epoch only
        assert "Ask for the end by run.stop(reason)" in (tmp_path / "error-1").read_text()


def test_stop_in_one_process_stops_both(loops, tiny, tmp_path):
    def work(rank):
        Leaves.train(loops, tmp_path, rank, "stop")

    assert tiny.run_ranks(work) == [0, 0]
    for rank in (0, 1):
        found = read(tmp_path, rank)
        assert (found["status"], found["reason"], found["steps"]) == ("stopped", "enough", 3)
    assert read(tmp_path, 0)["weights"] == read(tmp_path, 1)["weights"]


@pytest.mark.parametrize("name", ["gan", "rl"])
def test_two_processes_go_on_bit_by_bit_after_a_stop(loops, tiny, tmp_path, name):
    """What is kept, and what is drawn, is each process's own."""

    def work(rank, place, max_steps=None):
        settings = {} if max_steps is None else {"max_steps": max_steps}
        if name == "rl":
            settings["eval_interval"] = None
        loop = loops.kinds[name](tmp_path / place, [], **settings)
        loop.train("auto")
        extra = [] if name == "gan" else [loop.walk.place.tolist(), len(loop.replay.rows)]
        (tmp_path / f"{place}-{rank}").write_text(repr(extra))

    assert tiny.run_ranks(lambda rank: work(rank, "whole")) == [0, 0]
    assert tiny.run_ranks(lambda rank: work(rank, "cut", 5)) == [0, 0]
    assert tiny.run_ranks(lambda rank: work(rank, "cut")) == [0, 0]
    states = [tiny.newest_state(tmp_path / place) for place in ("whole", "cut")]
    for part in ("model", "optimizer", "rng", "other_ranks"):
        assert tiny.difference(states[0][part], states[1][part]) is None, part
    for rank in (0, 1):
        assert (tmp_path / f"whole-{rank}").read_text() == (tmp_path / f"cut-{rank}").read_text()
