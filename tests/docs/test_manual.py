"""CALLBACKS.md says what the code says: hooks, arguments, moments, members."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from typing import Any

from trainer import Trainer, TrainerConfig
from trainer_callback import HOOKS, TrainerCallback, TrainerProtocol
from trainer_callback.calls.costs import SAMPLE_EVERY
from trainer_callback.hookspecs import SPECS
from trainer_callback.tracked import TrackedRun
from trainer_early_stopping import EarlyStoppingCallback

HOOK = re.compile(r"\b(?:on|should)_[a-z_]+")
CALL = re.compile(r"\b((?:on|should)_[a-z_]+)\(([a-z_, ]*)\)")


def drawing(manual: list[Any], name: str) -> str:
    blocks = [block for section in manual for block in section.blocks]
    return next(block.text for block in blocks if name in block.words)


def test_every_hook_is_a_heading_with_its_exact_arguments_in_the_order_of_a_run(manual):
    headings = [each.title for each in manual if HOOK.match(each.title.strip("`"))]
    headings += [
        each.title for each in manual if each.title.startswith(("`add_", "`make_", "`offer_"))
    ]
    expected = {f"`{name}({', '.join(SPECS[name].arguments)})`" for name in HOOKS}
    assert set(headings) == expected
    assert len(headings) == len(expected)


def test_every_hook_says_when_and_what_it_is_handed(manual):
    for section in manual:
        if section.title.startswith("`"):
            assert section.text.lstrip().startswith("**When:** "), section.title
            assert "**Arguments:** " in section.text, section.title
            arguments = SPECS[section.title.strip("`").partition("(")[0]].arguments
            for argument in arguments:
                if argument != "trainer":
                    assert f"`{argument}`" in section.text, (section.title, argument)


def test_no_hook_is_named_that_does_not_exist(manual):
    options = {field.name for field in dataclasses.fields(TrainerConfig)}
    options |= set(inspect.signature(EarlyStoppingCallback).parameters)
    for section in manual:
        text, refused, own = section.text, False, set()
        for block in section.blocks:
            own |= find_declared(block)
            if "raises" in block.words:
                refused = True
            elif not (refused and block.language == "text"):
                text, refused = text + block.text, False
        text = re.sub(r"\]\(#[^)]*\)", "]", text)  # where a link goes is the pages' to check
        named = set(HOOK.findall(text)) - {name for name in options if HOOK.fullmatch(name)}
        assert named <= set(HOOKS) | own, section.title


def find_declared(block: Any) -> set[str]:
    """Returns the hooks that a block declares for a plugin, or marks as perhaps not there."""
    if block.language != "python":
        return set()
    classes = [each for each in ast.parse(block.text).body if isinstance(each, ast.ClassDef)]
    functions = [(cls, each) for cls in classes for each in cls.body if hasattr(each, "name")]
    return {
        each.name
        for cls, each in functions
        if cls.name.endswith("Hooks")
        or any("optionalhook" in ast.unparse(mark) for mark in each.decorator_list)
    }


def test_the_drawings_have_the_arguments_of_the_hooks(manual):
    for name in ("update", "boundary", "epoch", "run"):
        for hook, arguments in CALL.findall(drawing(manual, name)):
            expected = [each for each in SPECS[hook].arguments if each != "trainer"]
            assert arguments == ", ".join(expected), (name, hook)


def record(world: Any, **settings: Any) -> list[str]:
    """Returns the hooks of a run of four batches, two to an update, as they were called."""
    calls: list[str] = []

    def make(hook: str) -> Any:
        def note(self: TrainerCallback) -> None:
            if hook != "on_validation_batch_end" or calls[-1] != hook:  # one stands for all
                calls.append(hook)

        return note

    run_hooks = [hook for hook in HOOKS if not SPECS[hook].set_up]
    recorder = type("Recorder", (TrainerCallback,), {hook: make(hook) for hook in run_hooks})
    made = world.make_namespace()
    config = TrainerConfig(
        epochs=1,
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
        output_dir=world.place / "recorded",
        **settings,
    )
    Trainer(
        made["model"],
        made["optimizer"],
        made["train_loader"],
        made["val_loader"],
        config=config,
        callbacks=[recorder()],
    ).train()
    return calls


def test_the_whole_list_of_calls_is_the_one_in_the_manual(manual, world):
    assert drawing(manual, "everything").split() == record(world, log_interval=2)


def test_the_drawing_of_an_update_has_the_order_of_a_run(manual, world):
    calls = record(world)
    start = [n for n, hook in enumerate(calls) if hook == "on_batch_start"][1]
    drawn = HOOK.findall(drawing(manual, "update"))
    assert calls[start : start + len(drawn)] == drawn


def test_the_drawing_of_an_epoch_has_the_order_of_a_run(manual, world):
    calls = record(world)
    start, *end = HOOK.findall(drawing(manual, "epoch"))
    assert calls[calls.index(start) + 1] == "on_batch_start"
    first = calls.index("on_validation_start")
    assert calls[first : first + len(end)] == end


def test_the_drawing_of_a_boundary_has_the_order_of_a_run(manual, world):
    calls = record(world, log_interval=1, eval_interval=1, snapshot_interval=1)
    *drawn, saved = HOOK.findall(drawing(manual, "boundary"))
    first = calls.index("on_log")
    assert calls[first : first + len(drawn)] == drawn
    assert calls[first + len(drawn)] == "on_batch_start"
    assert saved in calls[first + len(drawn) :]


def test_every_member_of_the_protocol_is_in_the_manual_with_its_signature(manual):
    title = "What a callback may use of `trainer`"
    section = next(each for each in manual if each.title == title)
    rows = re.findall(r"^\| `trainer\.(\w+)(\(.*?\))?` \|", section.text, re.MULTILINE)
    parts = {**vars(TrainerProtocol), **vars(TrackedRun)}
    members = {name: value for name, value in parts.items() if name[0] != "_"}
    assert [name for name, _ in rows] == list(members)
    for name, arguments in rows:
        if callable(members[name]):
            parameters = list(inspect.signature(members[name]).parameters.values())[1:]
            bare = [each.replace(annotation=inspect.Parameter.empty) for each in parameters]
            assert arguments == str(inspect.Signature(bare)), name


def test_the_result_is_described_in_full(manual):
    from trainer import TrainResult

    section = next(each for each in manual if each.title.startswith("`on_train_end"))
    named = set(re.findall(r"`result\.(\w+)`", section.text))
    assert named == {field.name for field in dataclasses.fields(TrainResult)}


def test_the_share_of_updates_that_is_timed_is_the_one_in_the_manual(manual):
    section = next(each for each in manual if each.title == "What a callback costs")
    assert f"in one update of {SAMPLE_EVERY} " in section.text
