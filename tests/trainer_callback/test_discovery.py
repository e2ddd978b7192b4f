"""Discovery, against real folders of installed distributions in a process of its own."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from torch import nn
from torch.optim import SGD

from trainer import Trainer

MODULE = "from trainer_callback import hookimpl\n@hookimpl\ndef on_log(metrics): pass\n"
CLASS = """from trainer_callback import TrainerCallback
class Callback(TrainerCallback):
    def __init__(self, size: int = 3) -> None:
        self.size = size
    def on_log(self, metrics): pass
"""
FIND = "from trainer_callback.discovery import find_entries"
ENTRIES = "[[e.name, e.distribution, e.version, e.problem] for e in find_entries()]"
DISCOVER = "from trainer_callback.plugins import discover"
KINDS = "{p.entry.name: [p.kind, p.problem] for p in discover()}"
WARNINGS = """import logging
logging.basicConfig(format='%(message)s', stream=sys.stdout)
from trainer_callback.plugins import find_live
from trainer_callback.calls.manager import CallbackManager
live = find_live()"""


def test_plugins_are_listed_by_name_with_distribution_and_version(site: Any) -> None:
    site.install("dist-b", "2.0", plugins={"b": "module_b"})
    site.install("dist-a", "1.0", plugins={"z": "module_z:Z", "a": "module_a"})
    assert site.evaluate(FIND, ENTRIES) == [
        ["a", "dist-a", "1.0", None],
        ["b", "dist-b", "2.0", None],
        ["z", "dist-a", "1.0", None],
    ]


def test_discovery_imports_no_plugin(site: Any) -> None:
    site.install("dist-a", plugins={"a": "module_a"}, modules={"module_a": "raise SystemExit"})
    source = f"{FIND}\nfind_entries()"
    assert site.evaluate(source, "'module_a' in sys.modules") is False


def test_the_plugin_system_imports_neither_torch_nor_numpy(site: Any) -> None:
    source = "\n".join(
        f"import trainer_callback.{room}"
        for room in ("calls.manager", "calls.saved_state", "checks", "plugins", "state", "tensors")
    )
    loaded = "[name for name in ('torch', 'numpy', 'trainer', 'rich') if name in sys.modules]"
    assert site.evaluate(source, loaded) == []


def test_the_order_does_not_depend_on_the_order_of_installation(site: Any, tmp_path: Any) -> None:
    plugins = {"dist-c": "c", "dist-a": "a", "dist-b": "b"}
    found = []
    for order in (sorted(plugins), sorted(plugins, reverse=True)):
        place = type(site)(tmp_path / order[0], site._bare)
        for distribution in order:
            name = plugins[distribution]
            place.install(distribution, plugins={name: f"m_{name}"}, modules={f"m_{name}": MODULE})
        found.append(
            place.evaluate(WARNINGS, "[p.name for p in CallbackManager([], live).plugins]")
        )
    assert found == [["a", "b", "c"]] * 2


@pytest.mark.parametrize(
    ("variables", "blocked", "word"),
    [
        ({"TRAINER_DISABLE_PLUGINS": "a-a, b"}, {"a_a", "b"}, "TRAINER_DISABLE_PLUGINS"),
        ({"TRAINER_PLUGINS": "c"}, {"a_a", "b"}, "TRAINER_PLUGINS"),
        ({"TRAINER_DISABLE_PLUGIN_AUTOLOAD": "1"}, {"a_a", "b", "c"}, "AUTOLOAD"),
        ({"TRAINER_DISABLE_PLUGIN_AUTOLOAD": "0", "TRAINER_PLUGINS": ""}, set(), ""),
    ],
)
def test_the_environment_blocks_plugins_before_they_are_imported(
    site: Any, variables: dict[str, str], blocked: set[str], word: str
) -> None:
    for name in ("a_a", "b", "c"):
        site.install(f"dist-{name}", plugins={name: f"m_{name}"}, modules={f"m_{name}": MODULE})
    source = f"{DISCOVER}\nfound = discover()"
    facts = "[[p.entry.name, p.kind, p.problem, f'm_{p.entry.name}' in sys.modules] for p in found]"
    for name, kind, problem, imported in site.evaluate(source, facts, **variables):
        assert imported is (name not in blocked)
        assert kind == ("blocked" if name in blocked else "live")
        assert problem is None or word in problem


def test_no_plugin_blocks_a_plugin_before_it_is_imported(site: Any) -> None:
    site.install("dist-a", plugins={"a-a": "m_a"}, modules={"m_a": "raise SystemExit"})
    source = f"{DISCOVER}\nfound = discover(['a_a'])"
    facts = "[found[0].kind, found[0].problem, 'm_a' in sys.modules]"
    assert site.evaluate(source, facts) == ["blocked", "blocked by --no_plugin", False]


def test_discover_false_imports_no_plugin_and_true_imports_it(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "m_of_discover_false"
    site.install("dist-a", plugins={"a": name}, modules={name: MODULE})
    monkeypatch.syspath_prepend(site.folder)
    monkeypatch.setenv("TRAINER_PLUGINS", "a")
    for discover in (False, True):
        model = nn.Linear(4, 1)
        optimizer = SGD(model.parameters(), 0.1)
        trainer = Trainer(model, optimizer, [1], discover=discover, progress=False)
        assert (name in sys.modules) is discover
        assert [p.label for p in trainer.run.view.manager.plugins] == ["a (dist-a 1.0)"] * discover
    monkeypatch.delitem(sys.modules, name)


BROKEN = {
    "missing_import": ("import absent_module", "absent_module"),
    "exits": ("raise SystemExit(3)", "SystemExit"),
    "syntax": ("def (", "SyntaxError"),
    "raises": ("1 / 0", "ZeroDivisionError"),
    "no_attribute": ("", "Callback"),
    "no_callback": ("class Callback: pass", "no TrainerCallback"),
    "no_hooks": ("Callback = object()", "no hooks"),
    "misspelt": (CLASS.replace("on_log", "on_logs"), "Did you mean 'on_log'?"),
    "wrong_argument": (CLASS.replace("metrics", "metric"), "Did you mean 'metrics'?"),
    "unusable_parameter": (CLASS.replace("int = 3", "object"), "'size' is a object"),
}


@pytest.fixture
def broken_site(site: Any) -> Any:
    for name, (source, _) in BROKEN.items():
        module = {f"m_{name}": source}
        site.install(f"dist-{name}", "0.3", plugins={name: f"m_{name}:Callback"}, modules=module)
    site.install("dist-good", plugins={"good": "m_good"}, modules={"m_good": MODULE})
    return site


def test_a_broken_plugin_is_a_warning_with_its_name_and_the_others_live(broken_site: Any) -> None:
    source = """import io
stream = io.StringIO()
import logging
logging.basicConfig(format='%(message)s', stream=stream)
from trainer_callback.plugins import find_live
live = find_live()"""
    names, text = broken_site.evaluate(source, "[[p.name for p in live], stream.getvalue()]")
    assert names == ["good"]
    lines = {name: line for name in BROKEN for line in text.splitlines() if f"dist-{name} " in line}
    for name, (_, word) in BROKEN.items():
        assert word in lines[name]
        assert f"dist-{name} 0.3" in lines[name]


def test_nothing_of_a_broken_plugin_is_registered(broken_site: Any) -> None:
    facts = "[[p.target, p.hooks, p.options] for p in discover() if p.kind == 'broken']"
    assert broken_site.evaluate(DISCOVER, facts) == [[None, [], []]] * len(BROKEN)


def test_a_broken_plugin_that_is_asked_for_is_an_error(broken_site: Any) -> None:
    source = """from trainer_callback import PluginError
from trainer_callback.plugins import create
messages = {}
for name in NAMES:
    try:
        create(name)
    except PluginError as error:
        messages[name] = str(error)""".replace("NAMES", repr(list(BROKEN)))
    messages = broken_site.evaluate(source, "messages")
    for name, (_, word) in BROKEN.items():
        assert word in messages[name]


def test_of_two_plugins_with_one_name_none_is_used_until_somebody_says_which(site: Any) -> None:
    site.install("dist-b", plugins={"same-name": "m_b:Callback"}, modules={"m_b": CLASS})
    site.install("dist-a", plugins={"same_name": "m_a:Callback"}, modules={"m_a": CLASS})
    kinds = "[[p.entry.distribution, p.kind, p.problem] for p in discover()]"
    for row, distribution in zip(site.evaluate(DISCOVER, kinds), ("dist-a", "dist-b"), strict=True):
        assert row[:2] == [distribution, "broken"]
        assert "same_name (dist-a 1.0) and same-name (dist-b 1.0)" in row[2]
    source = """from trainer_callback import PluginError
from trainer_callback.plugins import create
try:
    create('same_name')
except PluginError as error:
    words = str(error)
made = [type(create(f'{name}:same-name', size=5)).__module__ for name in ('dist_a', 'DIST-b')]"""
    words, made = site.evaluate(source, "[words, made]")
    assert "TRAINER_DISABLE_PLUGINS=dist-a:same_name" in words
    assert made == ["m_a", "m_b"]
    for variables, module in (
        ({"TRAINER_DISABLE_PLUGINS": "dist-a:same_name"}, "m_b"),
        ({"TRAINER_PLUGINS": "dist-a:same_name, other"}, "m_a"),
    ):
        code = "from trainer_callback.plugins import create\nleft = create('same_name')"
        assert site.evaluate(code, "type(left).__module__", **variables) == module


def test_one_entry_point_twice_in_a_distribution_is_one(site: Any) -> None:
    site.install("dist-a", plugins={"a": "m_a"}, modules={"m_a": MODULE})
    file = site.folder / "dist_a-1.0.dist-info" / "entry_points.txt"
    once = file.read_text()
    file.write_text(once.replace("a = m_a\n", "a = m_a\na = m_a\n"))
    assert site.evaluate(FIND, ENTRIES) == [["a", "dist-a", "1.0", None]]
    file.write_text(once.replace("a = m_a\n", "a = m_a\na = m_b\n"))
    for row in site.evaluate(FIND, ENTRIES):
        assert "the entry point 'a' is there more than once" in row[3]
        assert "'m_a' and 'm_b'" in row[3]


@pytest.mark.parametrize("value", ["a:b:c", "a b", ":", "", "m_a:", "m_a:[x]", "m_a-b:C", "..m"])
def test_an_entry_point_that_names_nothing_is_broken_with_its_value(site: Any, value: str) -> None:
    site.install("dist-a", plugins={"a": value}, modules={"m_a": MODULE})
    site.install("dist-b", plugins={"b": "m_a [extra]"})
    kinds = site.evaluate(DISCOVER, KINDS)
    assert kinds["a"][0] == "broken"
    assert "dist-a 1.0 could not be imported" in kinds["a"][1]
    assert kinds["b"] == ["live", None]


@pytest.mark.parametrize(
    ("text", "is_usable"),
    [
        (b"Metadata-Version: 2.1\nName: dist-a\n", False),
        (b"Metadata-Version: 2.1\nVersion: 1.0\n", False),
        (b"Name: dist-a\nVersion: 1.0\nSummary: \xff\xfe\n", None),
        (b"", False),
    ],
)
def test_broken_metadata_break_their_own_plugin_only(
    site: Any, text: bytes, is_usable: bool | None
) -> None:
    site.install("dist-a", plugins={"a": "m_a"}, modules={"m_a": MODULE})
    site.install("dist-b", plugins={"b": "m_b"}, modules={"m_b": MODULE})
    (site.folder / "dist_a-1.0.dist-info" / "METADATA").write_bytes(text)
    found = {name: problem for name, _, _, problem in site.evaluate(FIND, ENTRIES)}
    assert found["b"] is None
    assert is_usable is None or (found["a"] is None) is is_usable
    for words in (("plugins",), ("plugins", "doctor"), ("plugins", "show", "a")):
        done = site.command(*words)
        assert done.returncode in (0, 1)
        assert "Traceback" not in done.stderr


def test_a_module_that_answers_for_its_attributes_cannot_spoil_the_names(site: Any) -> None:
    lazy = "def __getattr__(name): raise RuntimeError(name)\n"
    site.install("dist-a", plugins={"a": "m_a:Lazy"}, modules={"m_a": lazy})
    site.install("dist-b", plugins={"b": "m_b:Callback"}, modules={"m_b": CLASS})
    source = """import m_a, m_b
from trainer_callback.calls.manager import CallbackManager
labels = [p.label for p in CallbackManager([m_b.Callback()]).plugins]"""
    assert site.evaluate(source, "labels") == ["b (dist-b 1.0)"]


def test_a_damaged_distribution_does_not_hide_the_others(site: Any) -> None:
    site.install("dist-a", plugins={"a": "m_a"}, modules={"m_a": MODULE})
    site.install("dist-odd", plugins={"odd": "m_odd"})
    (site.folder / "dist_odd-1.0.dist-info" / "entry_points.txt").write_text("[x]\nno equals\n")
    site.install("dist-bare", plugins={"bare": "m_bare"})
    (site.folder / "dist_bare-1.0.dist-info" / "METADATA").unlink()
    found = {name: problem for name, _, _, problem in site.evaluate(FIND, ENTRIES)}
    assert found["a"] is None
    assert "odd" not in found
    assert "metadata of its distribution cannot be read" in found["bare"]


def test_a_callback_made_in_code_is_named_by_where_its_class_was_installed(site: Any) -> None:
    modules = {"m_door": "from m_room import Callback", "m_room": CLASS}
    site.install("dist-a", "1.5", plugins={"a": "m_door:Callback"}, modules=modules)
    site.install("dist-m", "2.5", plugins={"m": "m_live"}, modules={"m_live": MODULE})
    source = """import m_door, m_live
from trainer_callback.calls.manager import CallbackManager
class Own(m_door.Callback): pass
labels = [p.label for p in CallbackManager([m_door.Callback(), m_live, Own()]).plugins]"""
    assert site.evaluate(source, "labels") == [
        "a (dist-a 1.5)",
        "m (dist-m 2.5)",
        "Own (not installed)",
    ]


def test_a_plugin_made_by_name_is_the_callback_itself(site: Any) -> None:
    site.install("dist-a", plugins={"my-plugin": "m_a:Callback"}, modules={"m_a": CLASS})
    source = """from trainer_callback.plugins import create
from trainer_callback.calls.manager import CallbackManager
label = CallbackManager([create('my_plugin', size=4)]).plugins[0].label"""
    assert site.evaluate(source, "label") == "my-plugin (dist-a 1.0)"


def test_an_unknown_name_is_answered_with_what_is_installed(site: Any) -> None:
    site.install("dist-a", plugins={"early_stopping": "m_a:Callback"}, modules={"m_a": CLASS})
    done = site.python("-c", "from trainer_callback.plugins import create; create('early_stoping')")
    assert "Did you mean 'early_stopping'? Installed: early_stopping." in done.stderr


ONE_OFF = """from trainer_callback import PluginError
from trainer_callback.plugins import read_one_off
try:
    plugin = read_one_off(VALUE)
    facts = [plugin.entry.name, [o.flag for o in plugin.options]]
except PluginError as error:
    facts = str(error)"""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("trainer_my_callback:Callback", ["my_callback", ["my_callback_size"]]),
        ("trainer_my_callback.py:Callback", ["my_callback", ["my_callback_size"]]),
    ],
)
def test_a_class_of_a_module_in_the_current_directory_has_its_derived_options(
    site: Any, value: str, expected: Any
) -> None:
    (site.folder / "trainer_my_callback.py").write_text(CLASS)
    assert site.evaluate(ONE_OFF.replace("VALUE", repr(value)), "facts") == expected


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("absent:Callback", "--callback absent:Callback: absent:Callback could not be imported"),
        ("trainer_my_callback:Absent", "Absent"),
        ("not a module", "could not be imported"),
        ("", "could not be imported"),
    ],
)
def test_a_one_off_callback_that_cannot_be_had_is_refused(
    site: Any, value: str, words: str
) -> None:
    (site.folder / "trainer_my_callback.py").write_text(CLASS)
    assert words in site.evaluate(ONE_OFF.replace("VALUE", repr(value)), "facts")
