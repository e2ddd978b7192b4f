"""Constructor signatures become options, and options become callbacks."""

from __future__ import annotations

import argparse
import functools
import sys
import types
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NewType, Optional, Union

import pytest

from trainer_callback import PluginError, TrainerCallback, UsageError, hookimpl
from trainer_callback.command_line.options import add_options, collect_options, read_options
from trainer_callback.discovery import Entry
from trainer_callback.plugins import InstalledPlugin

if TYPE_CHECKING:
    from decimal import Decimal


class Colour(Enum):
    RED = 1
    BLUE = "azure"


Seconds = NewType("Seconds", float)


class Everything(TrainerCallback):
    """All types.

    Args:
        count: how many, 100 % of them
        rate: how fast
    """

    def __init__(
        self,
        count: int = 1,
        rate: float = 0.5,
        name: str = "x",
        quiet: bool = False,
        mode: Literal["a", "b", 3] = "a",
        colour: Colour = Colour.RED,
        path: Path = Path("p"),
        maybe: Optional[int] = None,  # noqa: UP045
        either: Union[None, float] = None,  # noqa: UP007, RUF036
        new: int | None = None,
        auto: bool | None = None,
        names: list[str] = [],  # noqa: B006
        sizes: tuple[int, ...] = (),
        pair: tuple[float, float] = (0.9, 0.99),
        some: set[int] | None = None,
        marked: Annotated[int, "unit"] = 2,
        guessed=7,
        guessed_names=("a", "b"),
        seconds: Seconds = Seconds(1.5),
        switch: Literal[True, None, "auto"] = None,
        frozen: frozenset[int] = frozenset(),
        money: Decimal | None = None,
        mixed: tuple[int, str] = (1, "a"),
    ) -> None:
        """Makes one.

        Args:
            name: what it is called
        """
        self.given = {k: v for k, v in locals().items() if k not in ("self", "__class__")}


def parse(target: type, *words: str, prefix: str = "x_") -> dict[str, Any]:
    parser = argparse.ArgumentParser(exit_on_error=False)
    options = read_options(target, prefix)
    add_options(parser, options)
    return collect_options(parser.parse_args(words), options)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), {}),
        (("--x_count", "3"), {"count": 3}),
        (("--x_rate", "1e-3"), {"rate": 1e-3}),
        (("--x_name", "3"), {"name": "3"}),
        (("--x_quiet",), {"quiet": True}),
        (("--x_quiet", "false"), {"quiet": False}),
        (("--no_x_quiet",), {"quiet": False}),
        (("--x_mode", "3"), {"mode": 3}),
        (("--x_colour", "BLUE"), {"colour": Colour.BLUE}),
        (("--x_colour", "azure"), {"colour": Colour.BLUE}),
        (("--x_path", "a/b"), {"path": Path("a/b")}),
        (("--x_maybe", "none"), {"maybe": None}),
        (("--x_maybe", "4"), {"maybe": 4}),
        (("--x_either", "0.5"), {"either": 0.5}),
        (("--x_new", "4"), {"new": 4}),
        (("--x_auto",), {"auto": True}),
        (("--x_auto", "none"), {"auto": None}),
        (("--x_names", "a", "b"), {"names": ["a", "b"]}),
        (("--x_names",), {"names": []}),
        (("--x_sizes", "1", "2"), {"sizes": (1, 2)}),
        (("--x_pair", "0.1", "0.2"), {"pair": (0.1, 0.2)}),
        (("--x_some", "1", "2"), {"some": {1, 2}}),
        (("--x_some", "none"), {"some": None}),
        (("--x_marked", "5"), {"marked": 5}),
        (("--x_seconds", "2.5"), {"seconds": 2.5}),
        (("--x_switch", "true"), {"switch": True}),
        (("--x_switch", "True"), {"switch": True}),
        (("--x_switch", "none"), {"switch": None}),
        (("--x_frozen", "1", "2"), {"frozen": frozenset({1, 2})}),
        (("--x_guessed", "8"), {"guessed": 8}),
        (("--x_guessed_names", "c"), {"guessed_names": ("c",)}),
    ],
)
def test_words_become_values_of_the_parameters_type(words: Any, expected: Any) -> None:
    assert parse(Everything, *words) == expected


@pytest.mark.parametrize(
    "words",
    [
        ("--x_count", "1.5"),
        ("--x_quiet", "perhaps"),
        ("--x_mode", "c"),
        ("--x_colour", "GREEN"),
        ("--x_pair", "1"),
        ("--x_maybe", "many"),
    ],
)
def test_words_of_another_type_are_refused(words: Any) -> None:
    with pytest.raises((argparse.ArgumentError, SystemExit)):
        parse(Everything, *words)


def test_a_type_that_words_cannot_give_is_no_option_and_spoils_no_other() -> None:
    names = [option.parameter for option in read_options(Everything)]
    assert "money" not in names
    assert "mixed" not in names
    assert {"maybe", "new", "sizes"} <= set(names)


def test_help_comes_from_the_docstrings_of_class_and_constructor() -> None:
    helps = {option.parameter: option.help for option in read_options(Everything)}
    assert helps["count"] == "how many, 100 % of them"
    assert helps["name"] == "what it is called"
    parser = argparse.ArgumentParser()
    add_options(parser, read_options(Everything))
    text = " ".join(parser.format_help().split())
    assert "--count N how many, 100 % of them (default: 1)" in text
    assert "--colour {RED,BLUE} (default: RED)" in text
    assert "--pair X X (default: 0.9 0.99)" in text


def test_a_docstring_of_another_kind_costs_the_help_only() -> None:
    class Callback(TrainerCallback):
        """:param x y z w: broken"""

        def __init__(self, x: int = 1) -> None:
            """:raises:"""

    assert [option.help for option in read_options(Callback)] == [""]


def test_a_parameter_without_default_and_annotation_is_a_required_text() -> None:
    class MyCallback(TrainerCallback):
        def __init__(self, my_param):
            self.my_param = my_param

    [option] = read_options(MyCallback)
    assert option.required
    assert parse(MyCallback, "--x_my_param", "5") == {"my_param": "5"}


def test_a_required_parameter_that_words_cannot_give_is_refused() -> None:
    class Callback(TrainerCallback):
        def __init__(self, model: dict) -> None:
            pass

    with pytest.raises(PluginError, match="Callback: the parameter 'model' is a dict"):
        read_options(Callback)


def test_a_default_that_cannot_be_compared_is_fine() -> None:
    class Odd:
        def __eq__(self, other):
            raise RuntimeError

        __hash__ = None

    class Callback(TrainerCallback):
        def __init__(self, odd=Odd(), size=1):  # noqa: B008
            pass

    assert [option.parameter for option in read_options(Callback)] == ["size"]


def test_a_default_that_cannot_be_shown_or_is_long_costs_its_text_only() -> None:
    class Mute:
        def __repr__(self):
            raise RuntimeError

    class Callback(TrainerCallback):
        def __init__(self, odd: int = Mute(), long: str = "word " * 1000):
            pass

    parser = argparse.ArgumentParser()
    add_options(parser, read_options(Callback))
    text = " ".join(parser.format_help().split())
    assert "(default: a Mute)" in text
    assert len(text) < 1000


def load(monkeypatch: pytest.MonkeyPatch, target: object, name: str = "x") -> InstalledPlugin:
    """The plugin `name` of dist-NAME 1.0, whose module holds `target`."""
    module = target
    if not isinstance(target, types.ModuleType):
        module = types.ModuleType("module_of_a_plugin")
        module.Target = target
    module.__name__ += f"_{id(target)}"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    value = module.__name__ if module is target else f"{module.__name__}:Target"
    return InstalledPlugin(Entry(name, value, f"dist-{name}", "1.0"))


def make(plugin: InstalledPlugin, *words: str) -> list[Any]:
    parser = argparse.ArgumentParser(exit_on_error=False)
    plugin.group.join(parser)
    return [made.callback for made in plugin.make_callbacks(parser.parse_args(words))]


class Sized(TrainerCallback):
    def __init__(self, size: int = 3, state_key: str | None = None) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}.")
        self.size = size


def test_a_flag_makes_the_callback_with_the_defaults_of_its_constructor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plugin = load(monkeypatch, Sized)
    assert make(plugin) == []
    assert [callback.size for callback in make(plugin, "--x")] == [3]
    assert [callback.size for callback in make(plugin, "--x", "--x_size", "5")] == [5]
    assert make(plugin, "--no_x", "--x_size", "5") == []


def test_an_option_without_its_flag_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PluginError, match=r"--x_size is given without --x.*Add --x"):
        make(load(monkeypatch, Sized), "--x_size", "5")


@pytest.mark.parametrize(
    ("name", "prefix", "flag", "option"),
    [
        ("x", None, "x", "x_size"),
        ("my-plugin", None, "my_plugin", "my_plugin_size"),
        ("early_stopping", "early_stop_", "early_stopping", "early_stop_size"),
        ("x", "a-b-", "x", "a_b_size"),
        ("x", "", "x", "size"),
    ],
)
def test_the_prefix_is_the_name_unless_the_class_sets_one(
    monkeypatch: pytest.MonkeyPatch, name: str, prefix: str | None, flag: str, option: str
) -> None:
    plugin = load(monkeypatch, type("C", (Sized,), {"option_prefix": prefix}), name)
    assert [each.flag for each in plugin.options] == [option]
    assert [callback.size for callback in make(plugin, f"--{flag}", f"--{option}", "4")] == [4]


class Exits(TrainerCallback):
    def __init__(self) -> None:
        raise SystemExit(3)


class Refuses(TrainerCallback):
    def __init__(self) -> None:
        raise UsageError("not today")


class Needs(TrainerCallback):
    def __init__(self, my_param) -> None:
        pass


@pytest.mark.parametrize(
    ("cls", "words", "message"),
    [
        (Sized, ("--x", "--x_size", "0"), r"^x \(dist-x 1.0\): size must be at least 1, got 0.$"),
        (Exits, ("--x",), r"^x \(dist-x 1.0\) could not be built: SystemExit: 3$"),
        (Refuses, ("--x",), r"^x \(dist-x 1.0\): not today$"),
        (Needs, ("--x",), r"^x \(dist-x 1.0\) needs 'my_param'. Give --x_my_param.$"),
    ],
)
def test_a_constructor_that_refuses_is_answered_in_one_line(
    monkeypatch: pytest.MonkeyPatch, cls: type, words: Any, message: str
) -> None:
    with pytest.raises(PluginError, match=message):
        make(load(monkeypatch, cls), *words)


def make_module(**functions: Any) -> types.ModuleType:
    module = types.ModuleType("trainer_module")
    for name, function in functions.items():
        function.__name__ = name
        setattr(module, name, hookimpl(function))
    return module


def test_a_module_adds_options_and_makes_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_module(
        add_options=lambda parser: parser.add_argument("--sized", type=int),
        make_callbacks=lambda options: [Sized(options.sized)] if options.sized else None,
    )
    plugin = load(monkeypatch, module)
    assert plugin.kind == "live"
    assert make(plugin) == []
    assert [callback.size for callback in make(plugin, "--sized", "6")] == [6]


def test_a_module_with_hooks_of_a_run_is_a_callback_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_module(on_log=lambda: None, make_callbacks=lambda: (Sized(2),))
    found = make(load(monkeypatch, module))
    assert found[0] is module
    assert found[1].size == 2


def test_a_class_adds_options_and_makes_callbacks_by_class_methods(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Own(Sized):
        @classmethod
        def add_options(cls, *, parser):
            parser.add_argument("--own", type=int, default=0)

        @classmethod
        def make_callbacks(cls, options):
            return [cls(size) for size in range(1, options.own + 1)]

    plugin = load(monkeypatch, Own)
    assert [option.flag for option in plugin.options] == ["x_size"]
    assert [callback.size for callback in make(plugin, "--own", "2")] == [1, 2]
    with pytest.raises(argparse.ArgumentError):
        make(plugin, "--own", "many")


def test_a_class_may_add_an_option_to_its_derived_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    class More(Sized):
        @classmethod
        def add_options(cls, parser):
            parser.add_argument("--more")

    assert [
        c.size for c in make(load(monkeypatch, More), "--x", "--more", "1", "--x_size", "2")
    ] == [2]


def test_derived_options_are_there_for_make_callbacks_with_their_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Own(Sized):
        @classmethod
        def add_options(cls, parser):
            parser.add_argument("--x_twice", action="store_true")

        @classmethod
        def make_callbacks(cls, options):
            return [cls(options.x_size * (1 + options.x_twice))] if options.x else []

    plugin = load(monkeypatch, Own)
    assert make(plugin) == []
    assert [callback.size for callback in make(plugin, "--x")] == [3]
    assert [c.size for c in make(plugin, "--x", "--x_twice", "--x_size", "4")] == [8]


def test_a_flag_for_which_make_callbacks_returns_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Own(Sized):
        @classmethod
        def make_callbacks(cls, options):
            return []

    plugin = load(monkeypatch, Own)
    assert make(plugin, "--no_x") == []
    with pytest.raises(PluginError, match="make_callbacks returns nothing for --x"):
        make(plugin, "--x")


def test_an_option_that_a_class_with_make_callbacks_adds_itself_replaces_the_derived_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Own(TrainerCallback):
        def __init__(self, size: complex, count: int = 1) -> None:
            self.size, self.count = size, count

        @classmethod
        def add_options(cls, parser):
            parser.add_argument("--x_size", type=complex)
            parser.add_argument("--x_count", type=lambda text: 2 * int(text), default=0)

        @classmethod
        def make_callbacks(cls, options):
            return [cls(options.x_size, options.x_count)] if options.x_size else None

    plugin = load(monkeypatch, Own)
    assert make(plugin) == []
    [callback] = make(plugin, "--x_size", "1j", "--x_count", "3")
    assert (callback.size, callback.count) == (1j, 6)


def test_an_option_that_the_constructor_has_already_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Own(Sized):
        @classmethod
        def add_options(cls, parser):
            parser.add_argument("--x_size")

    with pytest.raises(PluginError, match=r"^x \(dist-x 1.0\) adds --x_size twice.$"):
        make(load(monkeypatch, Own), "--x")


class Positional(TrainerCallback):
    def __init__(self, first: int = 1, odd: complex = 2j, second: int = 3, /, third=4, *, last=5):
        self.given = (first, odd, second, third, last)


class Anything(TrainerCallback):
    def __init__(self, size: int = 1, *more: int, last: int = 2, **others: int):
        self.given = (size, more, last, others)


class Wrapped(TrainerCallback):
    @functools.wraps(Positional.__init__)
    def __init__(self, *args, **kwargs):
        self.given = args, kwargs


@pytest.mark.parametrize(
    ("cls", "words", "given"),
    [
        (Positional, "--x", (1, 2j, 3, 4, 5)),
        (Positional, "--x --x_first 7", (7, 2j, 3, 4, 5)),
        (Positional, "--x --x_second 7 --x_third 8 --x_last 9", (1, 2j, 7, 8, 9)),
        (Anything, "--x --x_size 7 --x_last 9", (7, (), 9, {})),
        (Wrapped, "--x --x_first 7", ((7,), {})),
    ],
)
def test_every_kind_of_parameter_gets_its_value(
    monkeypatch: pytest.MonkeyPatch, cls: type, words: str, given: Any
) -> None:
    assert [callback.given for callback in make(load(monkeypatch, cls), *words.split())] == [given]


@pytest.mark.parametrize("prefix", ["-x-", "a b", "_", "--", "a.b", 5, b"x_", ("x",)])
def test_a_prefix_that_makes_no_options_is_refused(
    monkeypatch: pytest.MonkeyPatch, prefix: object
) -> None:
    plugin = load(monkeypatch, type("C", (Sized,), {"option_prefix": prefix}))
    assert plugin.kind == "broken"
    assert "option_prefix" in str(plugin.problem)
    assert repr(prefix) in str(plugin.problem)


@pytest.mark.parametrize("name", ["my.plugin", "my-plugin", "my plugin", "class", "2fast", "größe"])
def test_a_name_of_any_kind_is_a_flag(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    plugin = load(monkeypatch, Sized, name)
    flag = plugin.entry.flag
    [callback] = make(plugin, f"--{flag}", f"--{flag}_size", "7")
    assert callback.size == 7


@pytest.mark.parametrize("name", ["_", "-", "+", "_x"])
def test_a_name_without_a_letter_in_front_is_no_flag(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with pytest.raises(PluginError, match="where an option has a name such as --warm_up"):
        make(load(monkeypatch, Sized, name))


@pytest.mark.parametrize("answer", [Sized(), "callback", 5, {"a": 1}])
def test_make_callbacks_that_returns_no_list_is_refused(
    monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    plugin = load(monkeypatch, make_module(make_callbacks=lambda options: answer))
    with pytest.raises(PluginError, match=r"x \(dist-x 1.0\): make_callbacks must return a list"):
        make(plugin)


@pytest.mark.parametrize("hook", ["add_options", "make_callbacks"])
@pytest.mark.parametrize("error", [OSError("why"), SystemExit(1), UsageError("why")])
def test_a_set_up_hook_that_raises_is_named(
    monkeypatch: pytest.MonkeyPatch, hook: str, error: BaseException
) -> None:
    def fails():
        raise error

    with pytest.raises(PluginError, match=r"^x \(dist-x 1.0\)"):
        make(load(monkeypatch, make_module(**{hook: fails})))


def test_two_plugins_that_add_the_same_flag_cannot_be_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = load(monkeypatch, type("First", (Sized,), {"option_prefix": "same_"}), "a")
    second = load(monkeypatch, type("Second", (Sized,), {"option_prefix": "same_"}), "b")
    own = make_module(add_options=lambda parser: parser.add_argument("--same_size"))
    third = load(monkeypatch, own, "c")
    parser = argparse.ArgumentParser()
    first.group.join(parser)
    for plugin in (second, third):
        with pytest.raises(argparse.ArgumentError, match="same_size"):
            plugin.group.join(parser)


def test_what_is_live_cannot_be_created(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = load(monkeypatch, make_module(on_log=lambda: None))
    with pytest.raises(PluginError, match="live in every run"):
        plugin.create()
