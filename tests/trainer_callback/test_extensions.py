"""Hooks that plugins bring: declared by one, implemented by others, called in a run."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from trainer import Trainer
from trainer_callback import CallbackError, PluginError, TrainerCallback, UsageError, hookimpl
from trainer_callback import hookspec as mark

MakeTrainer = Callable[..., Trainer]

A = """
from trainer_callback import TrainerCallback
class Specs:
    def on_average_updated(self, trainer, decay):
        "After each update of the average."
class Average(TrainerCallback):
    hookspecs = Specs
    def on_step_end(self, trainer):
        self.answers = trainer.hook.on_average_updated(trainer=trainer, decay=0.5)
"""
B = """
from trainer_callback import TrainerCallback
class Watcher(TrainerCallback):
    def on_average_updated(self, decay):
        print("decay", decay)
"""


class AverageHooks:
    def on_average_updated(self, trainer: Any, decay: float) -> None:
        """After each update of the average."""

    def on_average_reset(self, trainer: Any) -> None:
        """After the average was begun anew."""


class Average(TrainerCallback):
    hookspecs = AverageHooks

    def __init__(self) -> None:
        self.answers: list[Any] = []

    def on_step_end(self, trainer: Any) -> None:
        self.answers += trainer.hook.on_average_updated(trainer=trainer, decay=0.5)


def class_with(name: str = "Watcher", **functions: Any) -> type[TrainerCallback]:
    return type(name, (TrainerCallback,), functions)


def specs_with(*functions: Any) -> type[TrainerCallback]:
    hooks = type("Hooks", (), {each.__name__: each for each in functions})
    return class_with("Bringer", hookspecs=hooks)


def test_a_hook_that_a_plugin_brings_is_called_without_a_mark_with_the_arguments_asked_for(
    make_trainer: MakeTrainer,
) -> None:
    average, given = Average(), []
    watcher = class_with(on_average_updated=lambda self, decay: given.append(decay))
    make_trainer(average, watcher()).train()
    assert given == [0.5] * 4


def test_the_answers_come_back_in_call_order_without_none(make_trainer: MakeTrainer) -> None:
    average = Average()
    others = [
        class_with(name, on_average_updated=lambda self, answer=answer: answer)
        for name, answer in (("One", 1), ("Two", None), ("Three", 3))
    ]
    last = class_with("Last", on_average_updated=hookimpl(trylast=True)(lambda self: 4))
    make_trainer(average, last(), *(each() for each in others), epochs=1).train()
    assert average.answers == [1, 3, 4] * 2


def test_a_wrapper_of_such_a_hook_stands_round_the_others(make_trainer: MakeTrainer) -> None:
    def wrap(self: Any) -> Any:
        answers = yield
        return [*answers, "wrapped"]

    average = Average()
    wrapper = class_with(on_average_updated=hookimpl(wrapper=True)(wrap))
    make_trainer(average, wrapper(), epochs=1).train()
    assert average.answers == ["wrapped"] * 2


def test_a_hook_that_nobody_implements_has_no_answers(make_trainer: MakeTrainer) -> None:
    average = Average()
    make_trainer(average).train()
    assert average.answers == []


def test_a_misspelt_hook_of_another_plugin_is_refused_with_the_right_name(
    make_trainer: MakeTrainer,
) -> None:
    watcher = class_with(on_average_update=lambda self: None)
    with pytest.raises(PluginError, match="Did you mean 'on_average_updated'"):
        make_trainer(Average(), watcher())


def test_a_wrong_argument_of_such_a_hook_is_refused(make_trainer: MakeTrainer) -> None:
    watcher = class_with(on_average_updated=lambda self, rate: None)
    with pytest.raises(PluginError, match="'rate', which on_average_updated does not have"):
        make_trainer(Average(), watcher())


def test_an_attribute_that_is_called_like_such_a_hook_and_is_no_function_is_an_option(
    make_trainer: MakeTrainer,
) -> None:
    make_trainer(Average(), class_with(on_average_updated="warn")()).train()


def test_the_time_of_such_a_hook_is_among_the_costs(make_trainer: MakeTrainer) -> None:
    watcher = class_with(on_average_updated=lambda self: None)
    result = make_trainer(Average(), watcher()).train()
    assert result.callback_costs["Watcher"]["on_average_updated"]["calls"] == 4


def test_who_fails_in_such_a_hook_is_blamed_and_not_who_called_it(
    make_trainer: MakeTrainer,
) -> None:
    def fail(self: Any) -> None:
        raise ValueError("no room")

    with pytest.raises(CallbackError, match=r"^Watcher .* failed in on_average_updated: ValueErr"):
        make_trainer(Average(), class_with(on_average_updated=fail)()).train()


def test_who_refuses_in_such_a_hook_is_named_and_not_who_called_it(
    make_trainer: MakeTrainer,
) -> None:
    class Starter(TrainerCallback):
        hookspecs = AverageHooks

        def on_train_start(self, trainer: Any) -> None:
            trainer.hook.on_average_reset(trainer=trainer)

    def refuse(self: Any) -> None:
        raise UsageError("needs more room")

    watcher = class_with(on_average_reset=refuse)
    with pytest.raises(PluginError, match=r"^Watcher \(not installed\): needs more room$"):
        make_trainer(Starter(), watcher()).train()


def test_who_fails_in_such_a_hook_and_is_not_critical_is_switched_off(
    make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Any) -> None:
        raise ValueError("no room")

    watcher = class_with(on_average_updated=fail, critical=False)
    result = make_trainer(Average(), watcher()).train()
    assert result.switched_off == ("Watcher",)
    assert caplog.text.count("Watcher (not installed) failed in on_average_updated") == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"decay": 1}, "takes trainer, decay, each by its name; got decay"),
        ({"trainer": None, "decays": 1}, "got trainer, decays"),
    ],
)
def test_a_call_with_other_arguments_is_refused_also_where_nobody_implements_the_hook(
    make_trainer: MakeTrainer, given: dict[str, Any], message: str
) -> None:
    trainer = make_trainer(Average())
    with pytest.raises(TypeError, match=message):
        trainer.run.setup.view.hook.on_average_updated(**given)


def test_a_name_that_no_plugin_brings_is_answered_with_those_that_there_are(
    make_trainer: MakeTrainer,
) -> None:
    hook = make_trainer(Average()).run.setup.view.hook
    with pytest.raises(AttributeError, match="Did you mean 'on_average_updated'"):
        _ = hook.on_average_update
    with pytest.raises(AttributeError, match="on_log is called by the trainer itself"):
        _ = hook.on_log


def test_a_call_in_another_thread_is_refused(make_trainer: MakeTrainer) -> None:
    caught: list[BaseException] = []

    class Threaded(TrainerCallback):
        hookspecs = AverageHooks

        def on_train_start(self, trainer: Any) -> None:
            thread = threading.Thread(target=self.call, args=(trainer,))
            thread.start()
            thread.join()

        def call(self, trainer: Any) -> None:
            try:
                trainer.hook.on_average_reset(trainer=trainer)
            except RuntimeError as error:
                caught.append(error)

    make_trainer(Threaded()).train()
    assert "another thread than that of the loop" in str(caught[0])


def test_two_plugins_with_one_hook_are_refused_and_two_callbacks_of_one_are_not(
    make_trainer: MakeTrainer,
) -> None:
    class Other(TrainerCallback):
        class hookspecs:
            def on_average_reset(self, trainer: Any) -> None: ...

    second = Average()
    second.state_key = "second"
    make_trainer(Average(), second)
    with pytest.raises(PluginError, match="two plugins bring the hook 'on_average_reset'"):
        make_trainer(Average(), Other())


def on_best(self: Any, trainer: Any, value: float) -> None: ...
def on_best_rest(self: Any, *rest: Any) -> None: ...
def on_best_default(self: Any, value: int = 1) -> None: ...
def on_best_many(self: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any) -> None: ...
def on_bare(trainer: Any) -> None: ...
def on_log(self: Any, trainer: Any) -> None: ...
def best(self: Any, trainer: Any) -> None: ...
@mark(firstresult=True)
def on_first(self: Any, trainer: Any) -> None: ...
@mark(historic=True)
def on_past(self: Any, trainer: Any) -> None: ...


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (on_best_rest, "has the argument 'rest', which is no plain one"),
        (on_best_default, "has the argument 'value', which is no plain one"),
        (on_best_many, "7 arguments, and a hook has at most 6"),
        (on_bare, "no `self`"),
        (on_log, "a hook of the trainer itself"),
        (best, "Begin with on_ or should_"),
        (on_first, "firstresult=True, which is not there"),
        (on_past, "historic=True, which is not there"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_hook_that_nobody_could_call_is_refused(
    make_trainer: MakeTrainer, function: Any, message: str
) -> None:
    with pytest.raises(PluginError, match=message):
        make_trainer(specs_with(function)())


@pytest.mark.parametrize("hookspecs", [AverageHooks(), "AverageHooks"])
def test_hookspecs_that_are_no_class_are_refused(
    make_trainer: MakeTrainer, hookspecs: object
) -> None:
    with pytest.raises(PluginError, match="hookspecs of Watcher must be a class"):
        make_trainer(class_with(hookspecs=hookspecs)())


def test_an_optional_hook_that_is_not_there_is_accepted_and_a_bare_one_refused(
    make_trainer: MakeTrainer,
) -> None:
    optional = hookimpl(optionalhook=True)(lambda self, decay: None)
    make_trainer(class_with(on_average_updated=optional)()).train()
    make_trainer(class_with(on_of_a_later_core=optional)())
    with pytest.raises(PluginError, match="there is no hook 'on_average_updated'"):
        make_trainer(class_with(on_average_updated=lambda self: None)())


def test_an_optional_hook_that_is_there_is_called(make_trainer: MakeTrainer) -> None:
    given: list[float] = []
    optional = hookimpl(optionalhook=True)(lambda self, decay: given.append(decay))
    make_trainer(Average(), class_with(on_average_updated=optional)()).train()
    assert given == [0.5] * 4


def test_an_argument_with_a_default_that_the_hook_lacks_has_its_default(
    make_trainer: MakeTrainer,
) -> None:
    given: list[Any] = []

    class Later(TrainerCallback):
        def on_log(self, metrics: Any, wall_clock: float = 1.5, step: int = -1) -> None:  # type: ignore[override]
            given.append((wall_clock, step))

    make_trainer(Later(), epochs=1).train()
    assert given[:2] == [(1.5, 1), (1.5, 2)]


def test_an_argument_without_a_default_that_the_hook_lacks_is_refused(
    make_trainer: MakeTrainer,
) -> None:
    with pytest.raises(PluginError, match="asks for 'wall_clock', which on_log does not have"):
        make_trainer(class_with(on_log=lambda self, wall_clock: None)())


def test_a_deprecated_hook_or_argument_is_said_once_with_the_name_of_who_uses_it(
    make_trainer: MakeTrainer,
) -> None:
    class Hooks:
        @mark(warn_on_impl=DeprecationWarning("use on_new; on_old goes with 2.0"))
        def on_old(self, trainer: Any) -> None: ...

        @mark(warn_on_impl_args={"rate": DeprecationWarning("ask for `decay`")})
        def on_new(self, trainer: Any, rate: float, decay: float) -> None: ...

    bringer = class_with("Bringer", hookspecs=Hooks)
    user = class_with(on_old=lambda self: None, on_new=lambda self, rate, decay: None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            make_trainer(bringer(), user())
    said = [str(each.message) for each in caught if each.category is DeprecationWarning]
    assert sorted(said) == [
        "Watcher (not installed): the argument 'rate' of on_new is deprecated: ask for `decay`",
        "Watcher (not installed): the hook on_old is deprecated: use on_new; on_old goes with 2.0",
    ]


def test_a_plugin_of_another_distribution_implements_a_hook_by_its_name(site: Any) -> None:
    site.install("dist-b", plugins={"avg": "m_a:Average"}, modules={"m_a": A})
    site.install("dist-a", plugins={"a": "m_b:Watcher"}, modules={"m_b": B})
    done = site.command("plugins", "list")
    assert done.returncode == 0, done.stderr
    assert "hooks: on_average_updated" in done.stdout
    assert "brings: on_average_updated(trainer, decay)" in done.stdout


def test_a_hook_whose_plugin_is_not_in_the_run_is_refused_with_that_plugin(site: Any) -> None:
    site.install("dist-a", plugins={"avg": "m_a:Average"}, modules={"m_a": A})
    site.install("dist-b", plugins={"b": "m_b:Watcher"}, modules={"m_b": B})
    source = """
from trainer_callback.calls.manager import CallbackManager
from trainer_callback.plugins import create
b = create("b")
try:
    CallbackManager([b])
    said = ""
except Exception as error:
    said = str(error)
"""
    said = site.evaluate(source, "said")
    assert "'on_average_updated' is a hook of avg (dist-a 1.0), which is not in this run" in said
    assert "Add it (trainer.plugins.create('avg'))" in said
    assert "@hookimpl(optionalhook=True)" in said


def test_a_live_plugin_needs_the_mark_for_a_hook_that_not_every_run_has(site: Any) -> None:
    live = "from trainer_callback import hookimpl\n@hookimpl\ndef on_average_updated(): pass\n"
    site.install("dist-a", plugins={"avg": "m_a:Average"}, modules={"m_a": A})
    site.install("dist-b", plugins={"b": "m_b"}, modules={"m_b": live})
    source = "from trainer_callback.plugins import discover\nb = discover()[1]"
    assert "not in every run with it" in site.evaluate(source, "b.problem")
    (site.folder / "m_b.py").write_text(live.replace("@hookimpl", "@hookimpl(optionalhook=True)"))
    assert site.evaluate(source, "b.problem") is None


def test_two_live_plugins_with_one_hook_do_not_end_the_run(
    site: Any, caplog: pytest.LogCaptureFixture
) -> None:
    specs = "class hookspecs:\n    def on_best(self, trainer): ...\n"
    for name in "ab":
        site.install(f"dist-{name}", plugins={name: f"m_{name}"}, modules={f"m_{name}": specs})
    caplog.set_level(logging.WARNING)
    source = "from trainer_callback.plugins import find_live\nfound = [p.name for p in find_live()]"
    assert site.evaluate(source, "found") == ["a"]
