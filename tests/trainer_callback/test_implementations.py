"""What is a hook implementation, and what only looks like one."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from trainer_callback import CallbackError, PluginError, TrainerCallback, hookimpl
from trainer_callback.calls.implementation import find_implementations
from trainer_callback.calls.manager import CallbackManager, Plugin
from trainer_callback.hookspecs import SPECS


def call(manager: CallbackManager, hook: str, **arguments: Any) -> Any:
    given = {**dict.fromkeys(SPECS[hook].arguments), **arguments}
    return getattr(manager.hook, hook)(**given)


def hooks_of(plugin: object) -> list[str]:
    return [each.hook for each in find_implementations(plugin)]


def test_an_unmarked_override_is_called() -> None:
    class Callback(TrainerCallback):
        def on_epoch_start(self, trainer, epoch):
            self.epoch = epoch

    callback = Callback()
    call(CallbackManager([callback]), "on_epoch_start", epoch=3)
    assert callback.epoch == 3


def test_the_no_ops_of_the_base_class_are_not_registered() -> None:
    class Callback(TrainerCallback):
        def on_log(self):
            pass

    assert CallbackManager([Callback()]).used == {"on_log"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def on_epoch_end(self): self.got = ()", ()),
        ("def on_epoch_end(self, epoch): self.got = (epoch,)", (1,)),
        ("def on_epoch_end(self, val_loss, epoch): self.got = (val_loss, epoch)", (0.5, 1)),
        ("def on_epoch_end(self, *, val_loss, epoch): self.got = (val_loss, epoch)", (0.5, 1)),
        ("def on_epoch_end(self, val_loss, /, epoch=7): self.got = (val_loss, epoch)", (0.5, 1)),
    ],
)
def test_any_subset_of_the_arguments_in_any_order_is_passed_by_name(
    source: str, expected: tuple[Any, ...]
) -> None:
    names: dict[str, Any] = {}
    exec(source, names)
    callback = type("Callback", (TrainerCallback,), {"on_epoch_end": names["on_epoch_end"]})()
    call(CallbackManager([callback]), "on_epoch_end", epoch=1, val_loss=0.5)
    assert callback.got == expected


def test_a_class_method_and_a_static_method_can_be_hooks() -> None:
    seen = []

    class Callback(TrainerCallback):
        @classmethod
        def on_epoch_start(cls, epoch):
            seen.append((cls.__name__, epoch))

        @staticmethod
        def on_epoch_end(epoch):
            seen.append(epoch)

    manager = CallbackManager([Callback()])
    call(manager, "on_epoch_start", epoch=1)
    call(manager, "on_epoch_end", epoch=2)
    assert seen == [("Callback", 1), 2]


def test_marked_functions_of_a_module_are_called_and_unmarked_ones_are_not() -> None:
    module = types.ModuleType("a_module")
    seen = []

    @hookimpl
    def on_epoch_start(epoch):
        seen.append(epoch)

    def on_epoch_end(epoch):
        seen.append("unmarked")

    module.on_epoch_start, module.on_epoch_end = on_epoch_start, on_epoch_end
    manager = CallbackManager([module])
    call(manager, "on_epoch_start", epoch=1)
    call(manager, "on_epoch_end", epoch=1)
    assert seen == [1]


def test_marked_methods_of_a_plain_object_are_called() -> None:
    class Plain:
        @hookimpl
        def on_epoch_start(self, epoch):
            self.epoch = epoch

    plain = Plain()
    call(CallbackManager([plain]), "on_epoch_start", epoch=4)
    assert plain.epoch == 4


def test_the_mark_may_stand_above_a_class_method() -> None:
    class Callback(TrainerCallback):
        @hookimpl(tryfirst=True)
        @classmethod
        def on_epoch_start(cls):
            pass

    assert find_implementations(Callback())[0].options["tryfirst"]


def test_a_mark_can_name_another_hook() -> None:
    class Callback(TrainerCallback):
        @hookimpl(specname="on_epoch_start")
        def begin(self, epoch):
            self.epoch = epoch

    callback = Callback()
    call(CallbackManager([callback]), "on_epoch_start", epoch=5)
    assert callback.epoch == 5


def test_a_function_assigned_to_an_instance_is_a_hook() -> None:
    seen = []
    callback = TrainerCallback()
    callback.on_epoch_start = lambda epoch: seen.append(epoch)
    call(CallbackManager([callback]), "on_epoch_start", epoch=6)
    assert seen == [6]


def test_options_that_are_called_like_hooks_are_no_hooks() -> None:
    class Callback(TrainerCallback):
        should_shout = True

        def __init__(self):
            self.on_nonfinite = "warn"
            self.on_found = print
            self.on_better = lambda: None

    assert hooks_of(Callback()) == []
    assert hooks_of(Callback) == []


def test_fields_of_a_dataclass_callback_are_no_hooks() -> None:
    @dataclass
    class Callback(TrainerCallback):
        on_nonfinite: str = "warn"
        on_best: Callable[[], None] = lambda: None
        names: list[str] = field(default_factory=list)

        def on_log(self):
            self.names.append("on_log")

    assert hooks_of(Callback) == hooks_of(Callback()) == ["on_log"]


def test_two_equal_dataclass_callbacks_are_two_callbacks() -> None:
    @dataclass
    class Callback(TrainerCallback):
        patience: int = 5

        def on_log(self):
            self.seen = True

    first, second = Callback(), Callback()
    first.state_key, second.state_key = "first", "second"
    call(CallbackManager([first, second]), "on_log")
    assert first.seen
    assert second.seen


def test_an_unhashable_callback_that_cannot_be_compared_is_fine() -> None:
    class Callback(TrainerCallback):
        __hash__ = None

        def __eq__(self, other):
            raise RuntimeError("compared")

        def on_log(self):
            self.seen = True

    class Other(Callback):
        pass

    first, second = Callback(), Other()
    call(CallbackManager([first, second]), "on_log")
    assert first.seen
    assert second.seen


def test_a_property_is_not_run_while_hooks_are_looked_for() -> None:
    class Callback(TrainerCallback):
        @property
        def on_fire(self):
            raise RuntimeError("was run")

    assert hooks_of(Callback()) == []


def test_a_module_whose_dir_names_what_is_not_there_is_fine() -> None:
    module = types.ModuleType("lazy")
    module.__dir__ = lambda: ["on_log", "absent"]
    module.on_log = hookimpl(lambda: None)
    assert hooks_of(module) == ["on_log"]


def test_a_subclass_takes_a_hook_back_with_none() -> None:
    class Callback(TrainerCallback):
        def on_log(self):
            raise RuntimeError

    class Quiet(Callback):
        on_log = None

    assert hooks_of(Quiet()) == []


class Misspelt(TrainerCallback):
    def on_epoch_ends(self, epoch):
        pass


class Question(TrainerCallback):
    def should_stop(self):
        pass


class MarkedMisspelt(TrainerCallback):
    @hookimpl
    def epoch_end(self):
        pass


class WrongArgument(TrainerCallback):
    def on_epoch_end(self, epoch, validation_loss):
        pass


class WrongDefault(TrainerCallback):
    def on_epoch_end(self, epoch, validation_loss=None):
        pass


class Anything(TrainerCallback):
    def on_epoch_end(self, **everything):
        pass


class Rest(TrainerCallback):
    def on_epoch_end(self, *rest):
        pass


class Coroutine(TrainerCallback):
    async def on_epoch_end(self, epoch):
        pass


class AsyncGenerator(TrainerCallback):
    async def on_epoch_end(self, epoch):
        yield


class Generator(TrainerCallback):
    def on_epoch_end(self, epoch):
        yield


class NoSelf(TrainerCallback):
    def on_epoch_end(epoch):  # noqa: N805
        pass


class NothingAtAll(TrainerCallback):
    def on_epoch_end():
        pass


class Shadow(TrainerCallback):
    on_log = True


class WrapperWithoutYield(TrainerCallback):
    @hookimpl(wrapper=True)
    def on_epoch_end(self):
        pass


class BothStyles(TrainerCallback):
    @hookimpl(wrapper=True, hookwrapper=True)
    def on_epoch_end(self):
        yield


class OldStyle(TrainerCallback):
    @hookimpl(hookwrapper=True)
    def on_epoch_end(self):
        yield


class SetUpOnInstance(TrainerCallback):
    def add_options(self, parser):
        pass


class WrappedSetUp(TrainerCallback):
    @classmethod
    @hookimpl(wrapper=True)
    def make_callbacks(cls, options):
        yield


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (Misspelt, ["Misspelt.on_epoch_ends", "Did you mean 'on_epoch_end'?"]),
        (Question, ["Question.should_stop", "Did you mean 'should_stop_training'?"]),
        (MarkedMisspelt, ["MarkedMisspelt.epoch_end", "Did you mean 'on_epoch_end'?"]),
        (WrongArgument, ["'validation_loss'", "Did you mean 'val_loss'?", "train_loss"]),
        (WrongDefault, ["'validation_loss'", "Did you mean 'val_loss'?"]),
        (Anything, ["**everything", "val_loss"]),
        (Rest, ["*rest", "val_loss"]),
        (Coroutine, ["Coroutine.on_epoch_end", "coroutine", "Write `def`"]),
        (AsyncGenerator, ["coroutine", "Write `def`"]),
        (Generator, ["generator", "Remove `yield`"]),
        (NoSelf, ["NoSelf.on_epoch_end", "`self`"]),
        (NothingAtAll, ["`self`"]),
        (Shadow, ["Shadow.on_log is a bool", "another name"]),
        (WrapperWithoutYield, ["WrapperWithoutYield.on_epoch_end", "no `yield`"]),
        (BothStyles, ["hookwrapper=True", "@hookimpl(wrapper=True)"]),
        (OldStyle, ["OldStyle.on_epoch_end is marked hookwrapper=True", "@hookimpl(wrapper=True)"]),
        (WrappedSetUp, ["make_callbacks", "cannot be a wrapper"]),
    ],
)
def test_what_only_looks_like_a_hook_is_refused_with_what_would_have_worked(
    cls: type, words: list[str]
) -> None:
    for plugin in (cls(), cls):
        with pytest.raises(PluginError) as caught:
            find_implementations(plugin)
        assert all(word in str(caught.value) for word in words), str(caught.value)
    with pytest.raises(PluginError, match=rf"{cls.__name__} \(not installed\)"):
        CallbackManager([cls()])


def test_a_set_up_hook_of_a_class_has_to_be_a_class_method() -> None:
    with pytest.raises(PluginError, match="@classmethod"):
        find_implementations(SetUpOnInstance)


def test_a_class_is_refused_where_an_instance_belongs() -> None:
    with pytest.raises(PluginError, match=r"callbacks\[1\] is the class Misspelt.*Misspelt\(\)"):
        CallbackManager([TrainerCallback(), Misspelt])


def test_a_class_that_a_plugin_made_is_refused_by_name() -> None:
    with pytest.raises(PluginError, match=r"x \(dist-x 1.0\) is the class Misspelt"):
        CallbackManager([], [Plugin(Misspelt, "x", "dist-x", "1.0")])


def test_an_object_without_hooks_is_refused() -> None:
    with pytest.raises(PluginError, match=r"object has no hooks.*hookimpl"):
        CallbackManager([object()])


def test_a_module_that_holds_a_class_only_is_told_to_name_it() -> None:
    module = types.ModuleType("trainer_x")
    module.XCallback = type("XCallback", (TrainerCallback,), {})
    with pytest.raises(PluginError, match="trainer_x:XCallback"):
        find_implementations(module)


def test_two_callbacks_with_one_state_key_are_refused_naming_both_distributions() -> None:
    def make() -> TrainerCallback:
        return type("Same", (TrainerCallback,), {})()

    plugins = [Plugin(make(), "a", "dist-a", "1.0"), Plugin(make(), "b", "dist-b", "2.0")]
    with pytest.raises(PluginError, match=r"'Same'.*a \(dist-a 1.0\).*b \(dist-b 2.0\).*state_key"):
        CallbackManager([], plugins)


def test_two_callbacks_of_one_class_live_together_under_keys_of_their_own() -> None:
    class Callback(TrainerCallback):
        def __init__(self, state_key):
            self.state_key = state_key

    manager = CallbackManager([Callback("left"), Callback("right")])
    assert [plugin.state_key for plugin in manager.plugins] == ["left", "right"]
    assert [plugin.name for plugin in manager.plugins] == ["Callback[left]", "Callback[right]"]


def test_a_record_keeps_its_name_when_it_is_used_in_another_run() -> None:
    records = [Plugin(TrainerCallback(), "x"), Plugin(Shout("loud"), "x")]
    both, one = CallbackManager(records), CallbackManager(records[:1])
    assert [plugin.name for plugin in both.plugins] == ["x[TrainerCallback]", "x[loud]"]
    assert [plugin.name for plugin in one.plugins] == ["x"]


class Shout(TrainerCallback):
    def __init__(self, state_key):
        self.state_key = state_key


def test_one_object_given_twice_is_refused_as_such() -> None:
    callback = TrainerCallback()
    with pytest.raises(PluginError, match="the same object"):
        CallbackManager([callback, callback])


@pytest.mark.parametrize("key", [5, ""])
def test_a_state_key_that_is_no_name_is_refused(key: object) -> None:
    with pytest.raises(PluginError, match="state_key must be a name"):
        CallbackManager([Shout(key)])


def class_with(name: str, value: object) -> type[TrainerCallback]:
    return type("Near", (TrainerCallback,), {name: value})


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("onEpochEnd", "on_epoch_end"),
        ("onEpochEnds", "on_epoch_end"),
        ("OnEpochEnd", "on_epoch_end"),
        ("on_epochend", "on_epoch_end"),
        ("onepochend", "on_epoch_end"),
        ("ON_EPOCH_END", "on_epoch_end"),
        ("shouldStopTraining", "should_stop_training"),
        ("shouldStop", "should_stop_training"),
        ("sould_stop_training", "should_stop_training"),
        ("om_epoch_end", "on_epoch_end"),
        ("n_batch_start", "on_batch_start"),
        ("epoch_end", "on_epoch_end"),
        ("epochEnd", "on_epoch_end"),
        ("train_start", "on_train_start"),
        ("snapshot_save", "on_snapshot_save"),
        ("addOptions", "add_options"),
        ("makeCallbacks", "make_callbacks"),
    ],
)
def test_a_method_that_is_spelt_nearly_like_a_hook_is_refused(name: str, hook: str) -> None:
    cls = class_with(name, lambda self: None)
    for plugin in (cls, cls()):
        with pytest.raises(PluginError, match=rf"Near.{name}: there is no hook.*mean '{hook}'"):
            find_implementations(plugin)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "log",
            "log_text",
            "exception",
            "stop_training",
            "save",
            "load",
            "reset",
            "step",
            "start",
        ),
        *(
            "end",
            "update",
            "epoch",
            "train",
            "validate",
            "snapshot",
            "forward",
            "backward",
            "write",
        ),
        *("write_epoch_end", "do_step_end", "_epoch_end", "_on_epoch_end", "once", "open", "one"),
        *("only_epochs", "should", "show", "ontology", "noise", "normalise", "on", "no_epochs"),
        *("state", "options", "add_option", "make_callback", "end_epoch", "start_train", "sample"),
    ],
)
def test_a_helper_of_ones_own_is_no_hook(name: str) -> None:
    assert hooks_of(class_with(name, lambda self, anything: None)()) == []


def test_a_helper_beside_the_hook_of_nearly_its_name_is_no_hook() -> None:
    class Callback(TrainerCallback):
        def on_epoch_end(self):
            self.epoch_end()

        def epoch_end(self):
            pass

    assert hooks_of(Callback()) == ["on_epoch_end"]


@pytest.mark.parametrize("value", [lambda: None, functools.partial(print, "x")])
def test_a_misspelt_hook_that_is_set_on_the_instance_is_refused(value: object) -> None:
    callback = TrainerCallback()
    callback.on_epoch_ends = value
    with pytest.raises(PluginError, match=r"on_epoch_ends.*Did you mean 'on_epoch_end'"):
        CallbackManager([callback])


def data_named_nearly_like_hooks() -> TrainerCallback:
    callback = TrainerCallback()
    callback.on_epoch_ends = 3
    callback.epoch_end = print
    callback.on_step = print
    callback.on_stop = lambda: None
    callback.train_end = property(print)
    return callback


def test_data_and_other_options_of_an_instance_are_no_hooks() -> None:
    assert hooks_of(data_named_nearly_like_hooks()) == []


@pytest.mark.parametrize(
    "value",
    [
        property(lambda self: None),
        functools.partial(print, "x"),
        functools.partialmethod(lambda self, x: None, 1),
        functools.cache(lambda self: None),
        staticmethod(lambda: None),
        classmethod(lambda cls: None),
        type("CallMe", (), {"__call__": lambda self: None})(),
    ],
)
def test_a_misspelt_hook_of_any_kind_is_refused(value: object) -> None:
    with pytest.raises(PluginError, match="Did you mean 'on_epoch_end'"):
        find_implementations(class_with("on_epoch_ends", value)())


@pytest.mark.parametrize(
    "value",
    [
        property(lambda self: None),
        functools.partial(print, "x"),
        functools.partialmethod(lambda self: None),
        functools.cache(lambda self: None),
    ],
)
def test_a_hook_that_is_no_function_is_refused(value: object) -> None:
    with pytest.raises(PluginError, match=r"Near.on_epoch_end is a \w+, where a hook is a functi"):
        find_implementations(class_with("on_epoch_end", value)())


def test_a_lambda_can_be_a_hook() -> None:
    seen = []
    cls = class_with("on_epoch_end", lambda self, epoch: seen.append(epoch))
    call(CallbackManager([cls()]), "on_epoch_end", epoch=3)
    assert seen == [3]


class MixinHook:
    def on_epoch_end(self, epoch):
        self.epoch = epoch


class MixinAttribute:
    critical = False


class MixinClose:
    def close(self):
        pass


@pytest.mark.parametrize(
    ("mixin", "name"),
    [(MixinHook, "on_epoch_end"), (MixinAttribute, "critical"), (MixinClose, "close")],
)
def test_a_base_class_that_the_empty_methods_would_hide_is_refused(mixin: type, name: str) -> None:
    behind = type("Behind", (TrainerCallback, mixin), {})
    said = (
        f"{mixin.__name__}.{name} is hidden by TrainerCallback, which stands before it: write "
        f"class Behind({mixin.__name__}, TrainerCallback)."
    )
    for plugin in (behind, behind()):
        with pytest.raises(PluginError) as caught:
            find_implementations(plugin)
        assert str(caught.value) == said


def test_a_base_class_before_or_overridden_is_fine() -> None:
    before = type("Before", (MixinHook, MixinAttribute, MixinClose, TrainerCallback), {})()
    call(CallbackManager([before]), "on_epoch_end", epoch=4)
    assert before.epoch == 4

    class Behind(TrainerCallback, MixinHook):
        def on_epoch_end(self, epoch):
            MixinHook.on_epoch_end(self, epoch)

    assert hooks_of(Behind()) == ["on_epoch_end"]


def wrapped(function: Any) -> Any:
    @functools.wraps(function)
    def inner(*arguments, **named):
        return function(*arguments, **named)

    return inner


async def alone(self, epoch):
    pass


async def each(self, epoch):
    yield


def one_by_one(self, epoch):
    yield


@pytest.mark.parametrize("function", [alone, each, one_by_one])
@pytest.mark.parametrize("wrap", [wrapped, lambda f: wrapped(wrapped(f))])
def test_what_would_never_run_is_found_behind_functools_wraps(function: Any, wrap: Any) -> None:
    with pytest.raises(PluginError, match=r"coroutine function|is a generator"):
        find_implementations(class_with("on_epoch_end", wrap(function))())


def test_a_context_manager_is_no_hook() -> None:
    with pytest.raises(PluginError, match="is a generator: its body would never run"):
        find_implementations(class_with("on_epoch_end", contextlib.contextmanager(one_by_one))())


def test_a_plain_function_behind_functools_wraps_is_a_hook() -> None:
    seen = []

    class Callback(TrainerCallback):
        @wrapped
        def on_epoch_end(self, epoch):
            seen.append(epoch)

    call(CallbackManager([Callback()]), "on_epoch_end", epoch=5)
    assert seen == [5]


@pytest.mark.parametrize("function", [alone, each, one_by_one])
def test_a_hook_that_answers_what_nobody_would_run_fails(function: Any) -> None:
    cls = class_with("on_epoch_end", lambda self, epoch: function(self, epoch))
    with pytest.raises(CallbackError, match=r"Near .* failed in on_epoch_end: TypeError: it answ"):
        call(CallbackManager([cls()]), "on_epoch_end", epoch=1)


def test_an_answer_of_other_hooks_is_of_no_use_and_does_no_harm() -> None:
    cls = class_with("on_epoch_end", lambda self, epoch: epoch)
    call(CallbackManager([cls()]), "on_epoch_end", epoch=1)


def test_a_function_of_a_module_without_a_mark_is_named(caplog: pytest.LogCaptureFixture) -> None:
    module = types.ModuleType("a_module")
    source = "def on_epoch_end(epoch): pass\ndef helper(): pass\ndef on_log(): pass"
    exec(source, vars(module))
    module.on_log = hookimpl(module.on_log)
    module.on_epoch_start = MixinHook.on_epoch_end  # imported from elsewhere
    CallbackManager([module])
    [said] = caplog.messages
    assert said.startswith("a_module (not installed): a_module.on_epoch_end is called like a hook")


@pytest.mark.parametrize(
    "name",
    [
        *("get_plugin", "is_registered", "get_name", "register", "unregister", "set_blocked"),
        *(
            "add_hookcall_monitoring",
            "enable_tracing",
            "list_name_plugin",
            "subset_hook_caller",
        ),
    ],
)
def test_the_manager_offers_nothing_that_is_not_true(name: str) -> None:
    assert not hasattr(CallbackManager([TrainerCallback()]), name)


class Own(TrainerCallback):
    pass


@pytest.mark.parametrize(
    ("callbacks", "got", "advice"),
    [
        (Own(), "got <", "Write callbacks=[callback]."),
        (Own, "got <class", "Write callbacks=[Own()]."),
        ({"own": Own()}, "got {'own'", "in the order in which they are to be called."),
        ({Own()}, "got {<", "in the order in which they are to be called."),
        ("early_stopping", "got 'early_stopping'", "[trainer.plugins.create('early_stopping')]."),
        (None, "got None", "Leave it out, or write callbacks=[]."),
        (types.ModuleType("a_module"), "got <module 'a_module'>", "Write callbacks=[callback]."),
        (5, "got 5", "Write callbacks=[callback]."),
    ],
)
def test_callbacks_that_are_no_list_are_refused(callbacks: Any, got: str, advice: str) -> None:
    with pytest.raises(PluginError, match=r"^callbacks must be a list of callbacks") as caught:
        CallbackManager(callbacks)
    assert got in str(caught.value)
    assert str(caught.value).endswith(advice)


def test_callbacks_may_come_from_a_generator() -> None:
    manager = CallbackManager(each() for each in (Own, Misfits))
    assert [plugin.name for plugin in manager.plugins] == ["Own", "Misfits"]


class Misfits(TrainerCallback):
    pass


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("state_key", 5, "state_key must be a name, got 5."),
        ("state_version", "2", "state_version must be an integer of at least 1, got '2'."),
        ("state_version", 0, "state_version must be an integer of at least 1, got 0."),
        ("state_version", True, "state_version must be an integer of at least 1, got True."),
        ("critical", "no", "critical of Misfits must be True or False, got 'no'."),
        ("critical", None, "critical of Misfits must be True or False, got None."),
        ("needs_every_update", 1, "needs_every_update of Misfits must be True or False, got 1."),
        ("logs_metrics", "gap", "logs_metrics of Misfits must be a tuple of names, got 'gap'."),
        ("logs_metrics", ["gap"], "must be a tuple of names, got ['gap']. Write logs_metrics ="),
        ("option_prefix", 5, "option_prefix of Misfits must be a str, got 5."),
        ("before", 5, "before must be a tuple of plugin names, got 5."),
        ("after", None, "after must be a tuple of plugin names, got None."),
        ("after", (Own,), "after must be a tuple of plugin names, got (<class"),
        ("close", lambda step: None, "Misfits.close asks for arguments"),
        ("close", "17:30", "Misfits.close is a str, and the trainer calls it when a run ends."),
    ],
)
def test_what_a_callback_says_of_itself_is_checked(attribute: str, value: Any, words: str) -> None:
    callback = Misfits()
    setattr(callback, attribute, value)
    with pytest.raises(PluginError) as caught:
        CallbackManager([callback])
    assert str(caught.value).startswith("Misfits (not installed): ")
    assert words in str(caught.value)


def test_attributes_may_be_properties() -> None:
    class Callback(TrainerCallback):
        state_key = property(lambda self: "a key")
        critical = property(lambda self: False)
        state_version = property(lambda self: 2)

    Plugin(Callback, "x").check()
    [plugin] = CallbackManager([Callback()]).plugins
    assert (plugin.state_key, plugin.critical, plugin.state_version) == ("a key", False, 2)


def test_a_hook_asks_for_its_own_state() -> None:
    class Callback(TrainerCallback):
        def __init__(self, key):
            self.state_key = key

        def on_snapshot_load(self, state, checkpoint):
            if state is not None:
                state["n"].append(4)
            self.got = (state, checkpoint["callback_state"].get("Callback"))

    own, other, fresh = Callback("own"), Callback("other"), Callback("fresh")
    states = {"own": {"n": [1]}, "other": {"n": [2]}, "Callback": {"n": [3]}}
    call(
        CallbackManager([own, other, fresh]),
        "on_snapshot_load",
        checkpoint={"callback_state": states},
        state=states,
    )
    assert own.got == ({"n": [1, 4]}, {"n": [1]})
    assert other.got == ({"n": [2, 4]}, {"n": [2]})
    assert fresh.got == (None, None)
    assert states == {"own": {"n": [1]}, "other": {"n": [2]}, "Callback": {"n": [3]}}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("critcal", "critical"),
        ("state_per_proces", "state_per_process"),
        ("logs_metric", "logs_metrics"),
        ("needs_outputdir", "needs_output_dir"),
        ("hookspec", "hookspecs"),
        ("renamed_option", "renamed_options"),
        ("contracts", "contract"),
    ],
)
def test_a_misspelt_attribute_of_the_class_is_told_with_the_right_name(
    written: str, meant: str, caplog: pytest.LogCaptureFixture
) -> None:
    CallbackManager([type("Misspelt", (TrainerCallback,), {written: False})()])
    assert f"Misspelt.{written} has no effect. Did you mean '{meant}'?" in caplog.text


def test_attributes_of_ones_own_are_let_be(caplog: pytest.LogCaptureFixture) -> None:
    class Own(TrainerCallback):
        critical = False
        critical_ = True  # beside the right one
        passive = True
        states = ()
        best = None

        def __init__(self, logs_metric: str = "x") -> None:
            self.logs_metric = logs_metric

    CallbackManager([Own()])
    assert not caplog.text
