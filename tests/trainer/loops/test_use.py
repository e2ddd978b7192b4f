"""The calls of `Run` where people leave, hold, repeat or misplace them."""

import threading

import pytest
import torch
from torch import nn

from trainer import ConfigError, Run, RunOrderError, TrainerConfig
from trainer.data.loaders import EmptyLoaderError
from trainer.writers.metrics_file import read_logged
from trainer_callback import TrainerCallback, UsageError

DATA = [torch.full((2, 3), float(i)) for i in range(4)]


def make_run(place=None, callbacks=(), *, validate=None, scheduler=None, **settings):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    return Run(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01),
        validate=validate,
        config=TrainerConfig(**{"epochs": 2, "output_dir": place, "log_interval": 1, **settings}),
        callbacks=callbacks,
        discover=False,
    )


def walk(run, visit, resume=False):
    """Trains by a loop that calls `visit(run, batch)` in each batch."""
    with run.start(resume):
        for _ in run.epochs():
            for batch in run.batches(DATA):
                visit(run, batch)


def learn(run, batch=DATA[1]):
    run.backward(run.module(batch).square().mean())
    return run.step()


class Hooks(TrainerCallback):
    def __init__(self):
        self.calls = []

    def on_epoch_start(self, epoch):
        self.calls.append(f"epoch {epoch}")

    def on_step_end(self, trainer):
        self.calls.append(f"step {trainer.step}")

    def on_validation_end(self, trainer, metrics):
        self.calls.append(f"validation {dict(metrics)}")

    def on_epoch_end(self, trainer, epoch, train_loss):
        self.calls.append(f"end {epoch}")


def in_batch(call):
    """Calls in the first batch of a run; returns the message of what it raises."""
    run = make_run()
    with pytest.raises(UsageError) as caught:
        walk(run, lambda run, batch: call(run))
    assert run.result.status == "failed"
    return str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: run.step(), "step() has no meaning here: call run.backward(loss) before it"),
        (lambda run: [learn(run), run.step()], "it is called once for an optimizer in a batch"),
        (lambda run: run.step("a"), "call run.backward(loss) before it"),
        (lambda run: [run.backward(run.module(DATA[0]).sum()), run.step("a")], "no such optimizer"),
        (lambda run: run.backward(run.module(DATA[0]).sum(), "a"), "there is no such optimizer"),
        (lambda run: run.backward(run.module(DATA[0])), "shape (2, 1)"),
        (lambda run: run.backward(torch.zeros(())), "depends on no parameter"),
        (lambda run: run.backward(1.0), "0-dim"),
        (lambda run: next(run.batches(DATA)), "an epoch has one pass over one loader"),
        (lambda run: next(run.epochs()), "epochs cannot be nested"),
        (lambda run: next(run.updates()), "epochs cannot be nested"),
        (lambda run: run.start().__enter__(), "has started already"),
        (lambda run: run.keep("a", nn.Linear(1, 1)), "call it before start()"),
        (lambda run: run.stop(""), "reason must be a str"),
    ],
)
def test_a_call_out_of_place_is_a_sentence(call, message):
    assert message in in_batch(call)


def test_a_call_outside_the_run_is_a_sentence():
    run = make_run()
    for call, message in [
        (lambda: run.epochs(), "call it inside `with run.start():`"),
        (lambda: run.updates(), "call it inside `with run.start():`"),
        (lambda: run.batches(DATA), "call it inside `for epoch in run.epochs():`"),
        (lambda: run.backward(run.module(DATA[0]).sum()), "call it inside a batch"),
        (lambda: run.step(), "call run.backward(loss) before it"),
    ]:
        with pytest.raises(RunOrderError, match=r"has no meaning here") as caught:
            call()
        assert message in str(caught.value)


def test_batches_outside_an_epoch_and_backward_outside_a_batch():
    run = make_run()
    with run.start():
        with pytest.raises(RunOrderError, match="inside `for epoch in run"):
            run.batches(DATA)
        for _ in run.epochs():
            with pytest.raises(RunOrderError, match="inside a batch of the loop"):
                run.backward(run.module(DATA[0]).sum())
            for _ in run.batches(DATA):
                learn(run)
            with pytest.raises(RunOrderError, match="inside a batch of the loop"):
                run.backward(run.module(DATA[0]).sum())
            with pytest.raises(RunOrderError, match="one pass over one loader"):
                run.batches(DATA)
    assert (run.result.status, run.result.steps) == ("finished", 8)


def test_a_backward_pass_without_its_step_is_told_where_the_next_batch_is_asked_for():
    run = make_run()
    with pytest.raises(
        RunOrderError, match=r"batch 0 of epoch 0 had run.backward\(\) and no run.step"
    ):
        walk(run, lambda run, batch: run.backward(run.module(batch).sum()))


def test_what_is_kept_has_a_state_and_a_name_of_its_own():
    run = make_run()
    run.keep("a", nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="'a'"):
        run.keep("a", nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="state_dict"):
        run.keep("b", object())


def test_wrong_parts_are_refused_before_the_first_step():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UsageError, match="validate must be a function"):
        Run(model, optimizer, validate=[1])
    with pytest.raises(ConfigError, match="schedul"):
        Run(
            {"g": model},
            {"g": optimizer},
            scheduler={"x": torch.optim.lr_scheduler.StepLR(optimizer, 1)},
        )
    with pytest.raises(ConfigError, match="name"):
        Run({"a.b": model}, {"g": optimizer})
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="parameter"):
        Run(model, {"a": optimizer, "b": other})


@pytest.mark.parametrize("loader", [[], 3])
def test_a_loader_that_is_none_is_refused_at_the_call(loader):
    run = make_run()
    with run.start():
        for _ in run.epochs():
            with pytest.raises((ConfigError, EmptyLoaderError)):
                run.batches(loader)


def test_break_out_of_batches_ends_the_epoch_and_the_next_follows(tmp_path):
    hooks = Hooks()
    run = make_run(tmp_path, [hooks], snapshot_epochs=True)
    with run.start():
        for _ in run.epochs():
            for number, batch in enumerate(run.batches(DATA)):
                learn(run, batch)
                if number == 1:
                    break
    assert run.result.status == "finished"
    assert hooks.calls == [
        "epoch 0", "step 1", "step 2", "end 0", "epoch 1", "step 3", "step 4", "end 1",
    ]  # fmt: skip
    assert [path.name for path in sorted((tmp_path / "snapshots").iterdir())] == [
        "step-00000002", "step-00000004",
    ]  # fmt: skip


def test_a_batch_that_break_leaves_before_its_backward_does_not_count(caplog):
    run = make_run(gradient_accumulation_steps=2)
    with run.start():
        for _ in run.epochs():
            for number, batch in enumerate(run.batches(DATA)):
                if number == 3:
                    break
                learn(run, batch)
    assert run.result.steps == 2
    assert "the last 1 batches before update 2 do not count" in caplog.text


@pytest.mark.parametrize("way", ["break", "return", "break inside"])
def test_a_loop_that_is_left_is_stopped_and_can_go_on(tmp_path, way):
    def train(run, *, leaves, resume=False):
        with run.start(resume):
            for epoch in run.epochs():
                for number, batch in enumerate(run.batches(DATA)):
                    learn(run, batch)
                    if leaves and way != "break" and (epoch, number) == (0, 1):
                        if way == "return":
                            return
                        break
                if leaves and way != "return":
                    break

    run = make_run(tmp_path)
    train(run, leaves=True)
    assert (run.result.status, run.result.stop_reason) == ("stopped", "break")
    assert (tmp_path / "final").exists()
    assert [*(tmp_path / "snapshots").iterdir()]
    steps = run.result.steps
    assert steps == (4 if way == "break" else 2)
    again = make_run(tmp_path)
    train(again, leaves=False, resume=True)
    assert again.result.status == "finished"
    assert again.result.steps == {"break": 8, "return": 8, "break inside": 8}[way]


def test_continue_passes_a_batch_over():
    hooks = Hooks()
    run = make_run(callbacks=[hooks])
    with run.start():
        for _ in run.epochs():
            for number, batch in enumerate(run.batches(DATA)):
                if number % 2:
                    continue
                learn(run, batch)
    assert (run.result.steps, run.result.status) == (4, "finished")


def test_iterators_may_be_held_or_dropped():
    run = make_run()
    with run.start():
        epochs = run.epochs()
        assert next(epochs) == 0
        batches = run.batches(DATA)
        assert torch.equal(next(batches), DATA[0])
        learn(run)
        assert next(epochs) == 1
        second = run.batches(DATA)
        assert torch.equal(next(second), DATA[0])
        learn(run)
        del second
        assert [*epochs] == []
    assert (run.result.status, run.result.steps, run.result.epochs) == ("finished", 2, 2)
    for held in (batches, epochs):
        assert [*held] == []


def test_an_iterator_of_an_ended_run_takes_no_batch_of_the_next():
    run = make_run()
    held = []
    for _ in range(2):
        with run.start():
            for _ in run.epochs():
                batches = run.batches(DATA)
                for batch in batches:
                    learn(run, batch)
                assert [*held[-1:]] == [] or [*held[-1]] == []
                held.append(batches)
    assert run.result.steps == 8


def test_an_iterator_of_an_earlier_epoch_takes_no_batch_of_the_next():
    run = make_run()
    seen, held = [], None
    with run.start():
        for epoch in run.epochs():
            earlier, held = held, run.batches(DATA)
            for batch in held:
                if earlier is not None:
                    assert next(earlier, None) is None
                seen.append((epoch, int(batch[0, 0])))
                learn(run, batch)
                if epoch == 0 and len(seen) == 2:
                    break
    assert seen == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3)]


def test_stop_ends_the_loop_at_the_next_boundary(tmp_path):
    hooks = Hooks()
    run = make_run(tmp_path, [hooks])
    seen = []
    with run.start():
        for _ in run.epochs():
            for batch in run.batches(DATA):
                learn(run, batch)
                assert not run.stopping
                if run.position.step == 2:
                    run.stop("enough", "It is enough.")
                    assert run.stopping
            seen.append(run.position.step)
    result = run.result
    assert (result.status, result.stop_reason, result.stop_detail, result.steps) == (
        "stopped", "enough", "It is enough.", 2,
    )  # fmt: skip
    assert seen == [2]
    assert hooks.calls[-1] == "end 0"
    assert (tmp_path / "final").exists()


def test_stop_inside_a_window_takes_effect_at_its_end():
    run = make_run(gradient_accumulation_steps=4)
    turns = 0
    with run.start():
        for _ in run.updates():
            turns += 1
            if turns == 2:
                run.stop("enough")
            learn(run)
    assert (turns, run.result.steps) == (4, 1)


def test_discard_after_an_error_in_an_update():
    def train(fails):
        run = make_run(gradient_accumulation_steps=2)
        with run.start():
            for epoch in run.epochs():
                for number, batch in enumerate(run.batches(DATA)):
                    try:
                        run.backward(run.module(batch).square().mean())
                        if fails and (epoch, number) == (0, 1):
                            raise MemoryError
                        run.step()
                    except MemoryError:
                        run.discard()
        return run

    failed, whole = train(fails=True), train(fails=False)
    assert (failed.result.steps, whole.result.steps) == (3, 4)
    assert failed.result.status == "finished"


def test_discard_of_an_only_optimizers_step_leaves_nothing_behind():
    run = make_run()
    before = [each.clone() for each in run.model.parameters()]
    with run.start():
        for _ in run.epochs():
            for batch in run.batches(DATA):
                run.backward(run.module(batch).sum())
                run.discard()
    assert run.result.steps == 0
    for was, now in zip(before, run.model.parameters(), strict=True):
        assert torch.equal(was, now)
        assert now.grad is None or not now.grad.any()


def test_limit_and_range():
    run = make_run()
    seen = []
    with run.start():
        for epoch in run.epochs():
            for number in run.batches(range(100), limit=2 + epoch):
                seen.append((epoch, number))
                learn(run)
                assert run.view.last_update_of_epoch == (number == 1 + epoch)
    assert seen == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]


def test_a_validation_has_several_metrics_and_leaves_no_trace():
    hooks = Hooks()

    def validate():
        assert not run.model.training
        assert not torch.is_grad_enabled()
        torch.rand(7)
        return {"a": torch.tensor(2.0), "b": 3}

    run = make_run(callbacks=[hooks], validate=validate, eval_interval=3)
    with run.start():
        for _ in run.epochs():
            for batch in run.batches(DATA):
                assert run.model.training
                learn(run, batch)
    found = "validation {'a': 2.0, 'b': 3.0}"
    assert hooks.calls == [
        "epoch 0", "step 1", "step 2", "step 3", found, "step 4", found, "end 0",
        "epoch 1", "step 5", "step 6", found, "step 7", "step 8", found, "end 1",
    ]  # fmt: skip
    assert run.result.val_loss is None
    assert run.result.history[-1] == {
        "epoch": 1,
        "step": 8,
        "train_loss": run.result.train_loss,
        "a": 2.0,
        "b": 3.0,
    }


@pytest.mark.parametrize("found", [3.0, [1], {"a": "x"}, {1: 2.0}])
def test_a_validation_that_returns_no_metrics_is_told(found):
    run = make_run(validate=lambda: found)
    with pytest.raises(TypeError, match=r"^validate: "):
        walk(run, learn)
    assert run.result.status == "failed"


def train_with_draws(run, resume=False, *, until=None):
    drawn = []
    with run.start(resume):
        for epoch in run.epochs():
            shift = torch.rand(())
            for batch in run.batches(DATA):
                run.backward(run.module(batch + shift + torch.rand(())).square().mean())
                run.step()
                if run.position.step == until:
                    run.stop("enough")
            drawn.append((epoch, float(shift), float(torch.rand(()))))
    return drawn


@pytest.mark.parametrize("until", range(1, 8))
def test_what_the_loop_draws_round_its_batches_comes_again_after_a_resume(tiny, tmp_path, until):
    whole = make_run(tmp_path / "whole")
    drawn = train_with_draws(whole)
    cut = make_run(tmp_path / "cut")
    first = train_with_draws(cut, until=until)
    again = make_run(tmp_path / "cut")
    drawn_again = train_with_draws(again, resume=True)
    assert again.result.status == "finished"
    first = [each for each in first if each[0] not in {epoch for epoch, *_ in drawn_again}]
    assert first + drawn_again == drawn
    states = [tiny.newest_state(tmp_path / name) for name in ("whole", "cut")]
    assert tiny.difference(states[0]["model"], states[1]["model"]) is None
    logs = [read_logged(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut")]
    assert [line for line in logs[0] if b'"loss"' in line] == [
        line for line in logs[1] if b'"loss"' in line
    ]


def test_a_resume_without_a_loop_changes_nothing(tmp_path):
    train_with_draws(make_run(tmp_path, snapshot_interval=3))
    kept = {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in tmp_path.rglob("*")
        if path.is_file()
        and (
            path.name == "metrics.jsonl" or path.parent.name == "final" or "snapshots" in path.parts
        )
    }
    run = make_run(tmp_path, snapshot_interval=3)
    with run.start(resume=True):
        assert run.position.step == 8
    for path, (content, changed) in kept.items():
        assert path.exists(), path
        if path.name == "metrics.jsonl":
            assert (
                content.splitlines()[:-1]
                == path.read_bytes().splitlines()[: len(content.splitlines()) - 1]
            )
        else:
            assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, changed), path


def test_a_resume_without_a_loop_behind_a_kill_cuts_no_line(tiny, tmp_path):
    def work():
        train_with_draws(make_run(tmp_path, [tiny.killer(26)], snapshot_interval=2))

    tiny.child(work).wait()
    lines = read_logged(tmp_path / "metrics.jsonl")
    run = make_run(tmp_path, snapshot_interval=2)
    with run.start(resume=True):
        pass
    assert read_logged(tmp_path / "metrics.jsonl") == lines


def test_the_same_run_starts_again_after_its_end():
    run = make_run()
    state = {name: value.clone() for name, value in run.model.state_dict().items()}
    ends = []
    for _ in range(2):
        run.model.load_state_dict(state)
        drawn = train_with_draws(run)
        ends.append((drawn, run.result.steps, [p.tolist() for p in run.model.parameters()]))
    assert ends[0] == ends[1]


def test_the_same_run_goes_on_after_a_failure(tmp_path):
    def learn_or_fail(run, batch):
        learn(run, batch)
        if run.position.step == 3:
            raise ArithmeticError("on purpose")

    run = make_run(tmp_path, snapshot_interval=1)
    with pytest.raises(ArithmeticError):
        walk(run, learn_or_fail)
    assert run.result.status == "failed"
    train_with_draws(run, resume=True)
    assert (run.result.status, run.result.steps) == ("finished", 8)


def test_a_second_loop_in_a_run_has_nothing_to_do():
    run = make_run()
    with run.start():
        for _ in run.epochs():
            for batch in run.batches(DATA):
                learn(run, batch)
        assert [*run.epochs()] == []
    assert (run.result.status, run.result.steps) == ("finished", 8)


def test_the_first_epoch_of_a_resume_cuts_the_lines_behind_the_snapshot(tiny, tmp_path):
    def work():
        options = {"snapshot_interval": 2, "snapshot_sync": True}
        train_with_draws(make_run(tmp_path, [tiny.killer(29)], **options))

    tiny.child(work).wait()
    events = tiny.newest_state(tmp_path)["progress"]["events"]
    assert len(read_logged(tmp_path / "metrics.jsonl")) > events
    run = make_run(tmp_path)
    with run.start(resume=True):
        for _ in run.epochs():
            break
    assert len(read_logged(tmp_path / "metrics.jsonl")) == events


def test_a_run_without_a_loop_writes_no_snapshot_and_no_model(tmp_path):
    run = make_run(tmp_path)
    with run.start():
        pass
    assert not [*tmp_path.rglob("state.pt")]
    assert not (tmp_path / "final").exists()
    assert (run.result.status, run.result.steps) == ("stopped", 0)


def test_the_batches_of_an_update_that_return_leaves_open_come_again(tmp_path):
    seen = []

    def train(run, leaves, resume=False):
        with run.start(resume):
            for _ in run.epochs():
                for batch in run.batches(DATA):
                    seen.append(int(batch[0, 0]))
                    learn(run, batch)
                    if leaves and len(seen) == 3:
                        return

    train(make_run(tmp_path, epochs=1, gradient_accumulation_steps=2), True)
    again = make_run(tmp_path, epochs=1, gradient_accumulation_steps=2)
    train(again, False, resume=True)
    assert seen == [0, 1, 2, 2, 3]
    assert again.result.steps == 2


def test_a_loss_that_was_discarded_is_not_looked_at():
    run = make_run(epochs=1)

    def spoil_second(run, batch):
        if run.position.batch == 1:
            run.backward(run.module(batch).sum() * float("nan"))
            run.discard()
        else:
            learn(run, batch)

    walk(run, spoil_second)
    assert (run.result.status, run.result.steps) == ("finished", 3)
    assert run.result.train_loss < float("inf")


def make_two():
    torch.manual_seed(0)
    models = {name: nn.Linear(2, 1) for name in "gd"}
    optimizers = {name: torch.optim.SGD(m.parameters(), lr=0.1) for name, m in models.items()}
    config = TrainerConfig(epochs=1, gradient_accumulation_steps=2)
    return Run(models, optimizers, config=config, discover=False)


@pytest.mark.parametrize("at", [0, None])
def test_gradients_that_no_step_uses_are_refused(at):
    """A step that is called in the middle of an update only, or never, would train nothing."""
    run = make_two()

    def train():
        with run.start():
            for _ in run.epochs():
                for index, batch in enumerate(run.batches([torch.ones(3, 2)] * 4)):
                    for name in "dg":
                        if name == "d" or at in (index, None):
                            run.backward(run.module[name](batch).square().mean(), name)
                    run.step("d")
                    if index == at:
                        run.step("g")

    with pytest.raises(RunOrderError, match="ends with gradients of 'g' and without"):
        train()


def test_a_stop_before_the_start_is_refused():
    with pytest.raises(RunOrderError, match=r"stop\(\)"):
        make_two().stop("early")


class Fails(torch.autograd.Function):
    """Is the identity, and its backward pass fails."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise MemoryError("in a backward pass")


def train_over_a_failure(fails, **config):
    """Trains a line; in its second batch `fails(run, loss)` is called, and raises."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = TrainerConfig(epochs=1, device="cpu", **config)
    run = Run(model, optimizer, config=settings, discover=False)
    batches = [torch.full((3, 2), float(index)) for index in range(4)]
    with run.start():
        for _ in run.epochs():
            for index, batch in enumerate(run.batches(batches)):
                if fails is not None and index == 1:
                    with pytest.raises(MemoryError):
                        fails(run, model, batch)
                elif fails is not None or index != 1:
                    run.backward(model(batch).square().mean())
                    run.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def fail_in_part(run, model, batch):
    """The last layer has its gradients then, and the first one has none."""
    run.backward(model[1](Fails.apply(model[0](batch))).square().mean())


def test_a_backward_pass_that_failed_leaves_no_gradient():
    whole, cut = train_over_a_failure(None), train_over_a_failure(fail_in_part)
    assert all(torch.equal(one, other) for one, other in zip(whole, cut, strict=True))


def test_an_update_goes_on_behind_a_step_that_failed_and_was_discarded():
    def fail_in_step(run, model, batch):
        run.backward(model(batch).square().mean())
        handle = run.view.optimizer.register_step_pre_hook(fail)
        try:
            run.step()
        finally:
            handle.remove()
            run.discard()

    def fail(*_):
        raise MemoryError("in a step")

    whole, cut = train_over_a_failure(None), train_over_a_failure(fail_in_step)
    assert all(torch.equal(one, other) for one, other in zip(whole, cut, strict=True))


def test_discard_before_the_first_backward_pass_of_fp16_does_nothing():
    run = Run(
        model := nn.Linear(2, 1),
        torch.optim.SGD(model.parameters(), lr=0.1),
        config=TrainerConfig(epochs=1, precision="fp16", device="cpu"),
        discover=False,
    )
    with run.start():
        for _ in run.epochs():
            for batch in run.batches([torch.ones(3, 2)] * 2):
                run.discard()
                run.backward(run.module(batch).float().square().mean())
                run.step()
    assert run.result.steps == 2


@pytest.mark.parametrize(("until", "told"), [(1, True), (2, False)])
def test_another_limit_inside_an_epoch_is_told_at_the_resume(tmp_path, caplog, until, told):
    def train(limit, **config):
        run = make_run(tmp_path, **config)
        with run.start(resume="auto"):
            for _ in run.epochs():
                for batch in run.batches(DATA, limit):
                    learn(run, batch)

    train(2, max_steps=until)
    train(3)
    text = (
        "batches: limit was 2 in the snapshot's run and is 3, so that epoch 0, of which 1 batches"
    )
    assert [text in line for line in caplog.messages if "limit" in line] == [True] * told


@pytest.mark.parametrize("limit", [0, -1, 2.5, "3", True])
def test_a_limit_that_is_no_number_of_batches_is_refused(limit):
    run = make_two()
    with run.start():
        for _ in run.epochs():
            with pytest.raises(ConfigError, match="limit must be an integer of at least 1"):
                run.batches([torch.ones(3, 2)], limit=limit)


def test_a_run_inside_another_is_refused_and_the_outer_one_goes_on():
    outer, inner, found = make_run(epochs=1), make_run(epochs=1), []

    def learn_and_start(run, batch):
        learn(run, batch)
        with pytest.raises(RunOrderError, match="another run of this process") as caught:
            walk(inner, learn)
        found.append(caught)

    walk(outer, learn_and_start)
    assert (outer.result.status, len(found)) == ("finished", 4)
    walk(inner, learn)
    assert inner.result.status == "finished"


@pytest.mark.filterwarnings("ignore")
def test_two_runs_in_two_threads_are_refused_and_in_a_forked_process_not(tiny):
    outer, inner, found = make_run(epochs=1), make_run(epochs=1), []

    def start_elsewhere():
        try:
            walk(inner, learn)
        except RunOrderError as error:
            found.append(str(error))

    def learn_and_start(run, batch):
        learn(run, batch)
        thread = threading.Thread(target=start_elsewhere)
        thread.start()
        thread.join()
        assert tiny.child(lambda: walk(inner, learn)).wait() == 0

    walk(outer, learn_and_start)
    assert len(found) == 4


def test_a_run_that_could_not_start_leaves_the_process_to_the_next(tmp_path):
    with pytest.raises(ConfigError, match="nothing to resume"):
        walk(make_run(tmp_path / "none"), learn, resume=True)
    walk(make_run(), learn)


def own_step(run, batch):
    run.backward(run.module(batch).square().mean())
    run.view.optimizer.step()
    run.step()


def own_zero_grad(run, batch):
    run.backward(run.module(batch).square().mean())
    run.view.optimizer.zero_grad()
    run.step()


def zero_grad_before(run, batch):
    run.view.optimizer.zero_grad()
    learn(run, batch)


@pytest.mark.parametrize(
    ("visit", "steps", "text"),
    [
        (own_step, 1, "was stepped beside the run"),
        (own_step, 2, "was stepped beside the run"),
        (own_zero_grad, 1, "no parameter of the optimizer a gradient that is still there"),
        (zero_grad_before, 2, "no parameter of the optimizer a gradient that is still there"),
    ],
)
def test_what_a_loop_did_before_it_was_given_to_a_run_is_refused_in_the_first_update(
    visit, steps, text
):
    run = make_run(gradient_accumulation_steps=steps)
    before = [each.clone() for each in run.model.parameters()]
    with pytest.raises(ConfigError, match=text):
        walk(run, visit)
    assert all(map(torch.equal, before, run.model.parameters()))
    run.view.optimizer.step()  # behind the run it is anybody's


def test_an_update_that_reaches_no_parameter_is_told_once(caplog):
    def visit(run, batch):
        (learn if run.position.step < 2 else own_zero_grad)(run, batch)

    run = make_run()
    walk(run, visit)
    assert run.result.steps == 8
    text = "behind a backward pass no parameter of the optimizer has a gradient"
    assert len([line for line in caplog.messages if text in line]) == 1


def test_zero_grad_where_a_loop_has_it_mostly_changes_nothing():
    def visit(run, batch):
        learn(run, batch)
        run.view.optimizer.step()  # for all the good it does
        run.view.optimizer.zero_grad()

    one, other = make_run(), make_run()
    walk(one, visit)
    walk(other, learn)
    assert torch.equal(one.model.weight, other.model.weight)
