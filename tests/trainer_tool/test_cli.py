"""The command `trainer plugins`, against folders of installed distributions."""

from __future__ import annotations

import json
from typing import Any

import pytest

CALLBACK = '''"""A plugin."""
from typing import Literal
from trainer_callback import TrainerCallback
class Callback(TrainerCallback):
    """Says how warm it is.

    Args:
        limit: degrees from which on it is hot
    """
    state_version = 4
    def __init__(self, limit: float = 30.0, unit: Literal["C", "F"] = "C", *, names: list[str]):
        pass
    def on_log(self, metrics): pass
    def on_train_end(self): pass
'''
LIVE = "from trainer_callback import hookimpl\n@hookimpl\ndef on_log(metrics): pass\n"


@pytest.fixture
def plugins(site: Any) -> Any:
    """One plugin of each kind."""
    site.install(
        "trainer-plugin-warmth",
        "1.2",
        plugins={"warmth": "trainer_warmth:Callback"},
        modules={"trainer_warmth": CALLBACK},
        metadata=[
            "Summary: How warm it is",
            "Project-URL: Documentation, https://example.org/docs",
            "Home-page: https://example.org",
            "Requires-Dist: trainer-core>=0.1",
        ],
    )
    site.install("dist-live", plugins={"a_live": "m_live"}, modules={"m_live": LIVE})
    site.install("dist-broken", plugins={"broken": "m_broken"}, modules={"m_broken": "import gone"})
    site.install("dist-no", plugins={"unwanted": "m_no"}, modules={"m_no": "raise SystemExit"})
    return site


def read(site: Any, *arguments: str, code: int = 0, **variables: str) -> Any:
    done = site.command(*arguments, "--json", **variables)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_the_list_has_every_plugin_in_call_order_with_its_state(plugins: Any) -> None:
    rows = read(plugins, "plugins", TRAINER_DISABLE_PLUGINS="unwanted")
    facts = [(row["name"], row["distribution"], row["version"], row["status"]) for row in rows]
    assert facts == [
        ("a_live", "dist-live", "1.0", "live"),
        ("warmth", "trainer-plugin-warmth", "1.2", "flag"),
        ("broken", "dist-broken", "1.0", "broken"),
        ("unwanted", "dist-no", "1.0", "blocked"),
    ]
    assert rows[1]["hooks"] == ["on_log", "on_train_end"]
    assert rows[1]["options"] == ["--warmth_limit", "--warmth_unit", "--warmth_names"]
    assert "gone" in rows[2]["problem"]
    assert rows[3]["problem"] == "blocked by TRAINER_DISABLE_PLUGINS"


def test_before_and_after_change_the_list_as_they_change_a_run(site: Any) -> None:
    for name, wish in (("a", "after = ('b',)"), ("b", "")):
        source = CALLBACK.replace("state_version = 4", wish)
        site.install(
            f"dist-{name}", plugins={name: f"m_{name}:Callback"}, modules={f"m_{name}": source}
        )
    assert [row["name"] for row in read(site, "plugins", "list")] == ["b", "a"]


def test_the_table_can_be_read_at_80_columns_and_when_piped(plugins: Any) -> None:
    done = plugins.command("plugins", COLUMNS="80", TRAINER_DISABLE_PLUGINS="unwanted")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["name", "distribution", "version", "active"]
    assert "a_live    dist-live              1.0      in every run" in lines
    assert "warmth    trainer-plugin-warmth  1.2      by --warmth" in lines
    assert "  hooks: on_log, on_train_end" in lines
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_no_plugin_at_all_is_said_with_what_to_do(site: Any) -> None:
    assert "pip install" in site.command("plugins").stdout
    assert read(site, "plugins") == []


def test_one_plugin_is_shown_with_options_hooks_links_and_place(plugins: Any) -> None:
    facts = read(plugins, "plugins", "show", "warmth", TRAINER_PLUGINS="warmth")
    assert facts["hooks"] == ["on_log", "on_train_end"]
    assert facts["state_version"] == 4
    assert facts["file"] == str(plugins.folder / "trainer_warmth.py")
    assert facts["links"] == {
        "Documentation": "https://example.org/docs",
        "Homepage": "https://example.org",
    }
    assert facts["options"] == [
        {
            "flag": "--warmth_limit",
            "type": "X",
            "default": "30.0",
            "required": False,
            "help": "degrees from which on it is hot",
        },
        {
            "flag": "--warmth_unit",
            "type": "{C,F}",
            "default": "C",
            "required": False,
            "help": "",
        },
        {
            "flag": "--warmth_names",
            "type": "TEXT ...",
            "default": None,
            "required": True,
            "help": "",
        },
    ]
    text = plugins.command("plugins", "show", "warmth", TRAINER_PLUGINS="warmth").stdout
    for words in (
        "warmth (trainer-plugin-warmth 1.2)",
        "How warm it is",
        "by --warmth",
        "https://example.org/docs",
        "version 4",
        "--warmth_limit X  (default: 30.0)",
        "--warmth_names TEXT ...  (required)",
    ):
        assert words in text


HAND_WRITTEN = (
    LIVE
    + """
@hookimpl
def add_options(parser):
    parser.add_argument("--warm_up", type=int, default=3, metavar="N", help="updates before it")
    parser.add_argument("--warm_loud", action="store_true", help="say it")
"""
)


def test_options_that_a_plugin_adds_itself_are_listed_and_shown(site: Any) -> None:
    site.install("dist-a", plugins={"a": "m_a"}, modules={"m_a": HAND_WRITTEN})
    assert read(site, "plugins")[0]["options"] == ["--warm_up", "--warm_loud"]
    text = site.command("plugins", "show", "a").stdout
    assert "--warm_up N  (default: 3)\n  updates before it\n" in text
    assert "--warm_loud" in text


def test_a_long_path_stands_behind_its_title(plugins: Any) -> None:
    done = plugins.command("plugins", "show", "warmth", TRAINER_PLUGINS="warmth", COLUMNS="40")
    assert f"file     {plugins.folder / 'trainer_warmth.py'}\n" in done.stdout


def test_the_doctor_finds_an_option_that_train_lm_has_itself(site: Any) -> None:
    source = HAND_WRITTEN.replace("--warm_up", "--batch_size")
    site.install("dist-a", plugins={"a": "m_a"}, modules={"m_a": source})
    finding = find(site)["a"]
    assert (
        "a (dist-a 1.0) adds --batch_size, which is an option of the program" in finding["problem"]
    )
    assert "--no_plugin a" in finding["advice"]


@pytest.mark.parametrize("added", ['"warmth"', '"--warmth", required=True'])
def test_the_doctor_finds_what_every_run_would_have_to_give(site: Any, added: str) -> None:
    source = HAND_WRITTEN.replace('"--warm_loud"', added).replace(', action="store_true"', "")
    site.install("dist-a", plugins={"a": "m_a"}, modules={"m_a": source})
    assert "which every run would have to give" in find(site)["a"]["problem"]


def test_the_doctor_finds_a_flag_that_means_help(site: Any) -> None:
    source = HAND_WRITTEN.replace('"--warm_up"', '"-h", "--warm_up"')
    site.install("dist-a", plugins={"a": "m_a"}, modules={"m_a": source})
    assert "a (dist-a 1.0) adds -h, which is an option of the program" in find(site)["a"]["problem"]


def test_the_doctor_finds_the_value_of_another_option(site: Any) -> None:
    source = HAND_WRITTEN.replace('"--warm_up",', '"--warm_up", dest="seed",')
    site.install("dist-a", plugins={"a": "m_a"}, modules={"m_a": source})
    assert "a (dist-a 1.0) adds --seed, which is an option of" in find(site)["a"]["problem"]


def test_the_doctor_finds_an_import_of_torch(site: Any) -> None:
    for name, source in (("a", "import torch\n"), ("b", "import torch.nn\n"), ("c", "")):
        site.install(
            f"dist-{name}", plugins={name: f"m_{name}"}, modules={f"m_{name}": source + LIVE}
        )
    found = find(site)
    assert set(found) == {"a", "b"}
    for name in "ab":
        assert f"{name} (dist-{name} 1.0) imports torch, which takes" in found[name]["problem"]


def test_the_doctor_finds_what_an_import_changes(site: Any) -> None:
    source = "import signal\nsignal.signal(signal.SIGTERM, print)\n"
    site.install("dist-a", plugins={"a": "m_a"}, modules={"m_a": source + LIVE})
    assert "a (dist-a 1.0): its import set a signal handler." in find(site)["a"]["problem"]


def test_the_doctor_finds_a_state_version_that_is_no_count(site: Any) -> None:
    source = CALLBACK.replace("state_version = 4", "state_version = '4'")
    site.install("dist-a", plugins={"a": "m_a:Callback"}, modules={"m_a": source})
    problem = find(site)["a"]["problem"]
    assert "state_version must be an integer of at least 1, got '4'" in problem


def test_a_broken_plugin_can_be_shown(plugins: Any) -> None:
    assert "gone" in plugins.command("plugins", "show", "broken").stdout
    assert read(plugins, "plugins", "show", "broken")["file"] is None


def test_an_unknown_plugin_is_refused_with_the_nearest(plugins: Any) -> None:
    done = plugins.command("plugins", "show", "warmht")
    assert done.returncode == 2
    assert "Did you mean 'warmth'?" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_doctor_finds_nothing_where_nothing_is_wrong(plugins: Any) -> None:
    variables = {"TRAINER_PLUGINS": "warmth,a_live"}
    assert read(plugins, "plugins", "doctor", **variables) == []
    done = plugins.command("plugins", "doctor", **variables)
    assert (done.returncode, done.stdout) == (0, "Nothing is wrong with the installed plugins.\n")


def find(site: Any, *arguments: str, **variables: str) -> dict[str, dict[str, str]]:
    """What the doctor finds, by plugin."""
    found = read(site, "plugins", "doctor", *arguments, code=1, **variables)
    return {finding["plugin"]: finding for finding in found}


def test_the_doctor_names_what_is_broken_and_what_to_do(plugins: Any) -> None:
    misspelt = CALLBACK.replace("on_log", "on_logs")
    plugins.install("dist-typo", plugins={"typo": "m_typo:Callback"}, modules={"m_typo": misspelt})
    plugins.install("dist-twin", plugins={"warmth": "m_twin"}, modules={"m_twin": LIVE})
    found = find(plugins)
    assert set(found) == {"broken", "typo", "unwanted", "warmth"}
    assert "Did you mean 'on_log'?" in found["typo"]["problem"]
    assert "pip uninstall dist-broken" in found["broken"]["advice"]
    assert "SystemExit" in found["unwanted"]["problem"]
    assert "have the name 'warmth': warmth (dist-twin 1.0) and warmth" in found["warmth"]["problem"]
    assert "TRAINER_DISABLE_PLUGINS=trainer-plugin-warmth:warmth" in found["warmth"]["advice"]
    done = plugins.command("plugins", "doctor")
    assert done.returncode == 1
    assert "-> pip install --upgrade dist-broken" in done.stdout


@pytest.mark.parametrize(
    ("requirement", "fits"),
    [
        ("trainer-core>=0.1", True),
        ("Trainer_Core>=99", False),
        ("trainer-core<0.1", False),
        ("trainer-core>=99; extra == 'more'", True),
        ("trainer-core>=99; python_version < '3'", True),
        ("other>=99", True),
        ("not a requirement !", True),
    ],
)
def test_the_doctor_finds_a_core_that_does_not_fit(site: Any, requirement: str, fits: bool) -> None:
    site.install(
        "dist-a",
        plugins={"a": "m_a"},
        modules={"m_a": LIVE},
        metadata=[f"Requires-Dist: {requirement}"],
    )
    if fits:
        assert read(site, "plugins", "doctor") == []
    else:
        finding = find(site)["a"]
        assert "a (dist-a 1.0) needs" in finding["problem"]
        assert "is installed" in finding["problem"]
        assert "pip install" in finding["advice"]


def test_the_doctor_finds_a_flag_that_two_plugins_add_and_names_both(site: Any) -> None:
    source = CALLBACK.replace("state_version = 4", "option_prefix = 'same_'")
    for name in "ab":
        module = {f"m_{name}": source}
        site.install(f"dist-{name}", plugins={name: f"m_{name}:Callback"}, modules=module)
    found = find(site)["b"]
    assert "a (dist-a 1.0) and b (dist-b 1.0) both add --same_limit" in found["problem"]
    assert "--no_plugin b" in found["advice"]


def test_the_doctor_finds_a_circle_of_wishes(site: Any) -> None:
    for name, other in ("ab", "ba"):
        source = CALLBACK.replace("state_version = 4", f"after = ('{other}',)")
        module = {f"m_{name}": source}
        site.install(f"dist-{name}", plugins={name: f"m_{name}:Callback"}, modules=module)
    assert "cycle" in find(site)[""]["problem"]
    assert [row["name"] for row in read(site, "plugins")] == ["a", "b"]


def test_the_doctor_finds_a_variable_that_names_no_plugin(plugins: Any) -> None:
    variables = {"TRAINER_PLUGINS": "warmth,a_liv"}
    assert "Did you mean 'a_live'?" in find(plugins, **variables)[""]["problem"]


def test_the_doctor_finds_unknown_options_in_a_file(plugins: Any) -> None:
    config = plugins.folder / "run.yaml"
    config.write_text("epochs: 3\nwarmth: true\nwarmth_limt: 4\nbroken_size: 3\nno_warmth: true\n")
    variables = {"TRAINER_DISABLE_PLUGINS": "unwanted"}
    found = read(plugins, "plugins", "doctor", "--config", str(config), code=1, **variables)
    problems = [finding["problem"] for finding in found]
    assert len(found) == 3
    assert any("'warmth_limt'. Did you mean 'warmth_limit'?" in problem for problem in problems)
    assert any("'broken_size'" in f["problem"] and "gone" in f["advice"] for f in found)


@pytest.mark.parametrize("text", ["a: [", "- a\n- b\n", None])
def test_a_file_that_the_doctor_cannot_read_is_refused(site: Any, text: str | None) -> None:
    config = site.folder / "run.yaml"
    if text is not None:
        config.write_text(text)
    done = site.command("plugins", "doctor", "--config", str(config))
    assert done.returncode == 2
    assert "run.yaml" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["list"], ["show", "warmth"], ["doctor"]])
def test_the_command_imports_no_torch_and_no_numpy(plugins: Any, words: list[str]) -> None:
    source = f"""import contextlib, io
from trainer_tool.cli import main
with contextlib.redirect_stdout(io.StringIO()):
    main(['plugins', *{words}])"""
    assert plugins.evaluate(source, "[n for n in ('torch', 'numpy') if n in sys.modules]") == []


def test_what_a_plugin_prints_does_not_get_into_the_json(site: Any) -> None:
    site.install("dist-a", plugins={"a": "m_a"}, modules={"m_a": "print('hello')\n" + LIVE})
    assert [row["name"] for row in read(site, "plugins")] == ["a"]


def test_the_command_alone_says_what_it_can_do(site: Any) -> None:
    done = site.command("--help")
    assert done.returncode == 0
    assert "plugins" in done.stdout
    assert site.command().returncode == 2
    assert site.command("unknown").returncode == 2


MIGRATES = """
    def on_snapshot_save(self): return {}
    def migrate_state(self, state, old_version): return state
"""
OBJECT = """
from trainer_callback import hookimpl
class Watch:
    @hookimpl
    def on_log(self, metrics): pass
    def {name}(self): pass
watch = Watch()
"""


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (CALLBACK.replace("limit: float = 30.0", "limit=30.0"), "options --a_limit have no type"),
        (
            CALLBACK.replace("state_version = 4", "state_version = 1") + MIGRATES,
            "has migrate_state, and its state has no version above 1.",
        ),
        (
            CALLBACK + MIGRATES.replace("migrate_state", "_migrate"),
            "has state of version 4 and no migrate_state, so a snapshot with an older one",
        ),
    ],
    ids=["untyped", "unversioned", "unmigrated"],
)
def test_the_doctor_finds_what_is_hardly_meant(site: Any, source: str, problem: str) -> None:
    site.install("dist-a", plugins={"a": "m_a:Callback"}, modules={"m_a": source})
    assert problem in find(site)["a"]["problem"]
    assert "its author can" in find(site)["a"]["advice"]


def test_the_doctor_finds_nothing_in_state_of_its_first_version(site: Any) -> None:
    plain = CALLBACK.replace("state_version = 4", "pass") + MIGRATES.replace("migrate", "_migrate")
    full = CALLBACK + MIGRATES
    for name, source in (("a", plain), ("b", full)):
        module = {f"m_{name}": source}
        site.install(f"dist-{name}", plugins={name: f"m_{name}:Callback"}, modules=module)
    assert read(site, "plugins", "doctor") == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("on_epoch_end", "is not marked with @hookimpl"),
        ("on_epoch_ends", ", which is nearly on_epoch_end, is not marked"),
        ("on_validaton_strt", ", which is nearly on_validation_start, is not marked"),
        ("on_logs", ", which is nearly on_log, is not marked"),
    ],
)
def test_the_doctor_finds_a_method_that_looks_like_a_hook(site: Any, name: str, words: str) -> None:
    module = "from trainer_callback import hookimpl\n@hookimpl\ndef on_log(metrics): pass\n"
    module += f"def {name}(): pass\n"
    site.install("dist-a", plugins={"a": "m_a:watch"}, modules={"m_a": OBJECT.format(name=name)})
    site.install("dist-b", plugins={"b": "m_b"}, modules={"m_b": module})
    found = find(site)
    assert (
        f"a (dist-a 1.0): Watch.{name}{words if words[0] == ',' else ' ' + words}"
        in (found["a"]["problem"])
    )
    assert f"m_b.{name}" in found["b"]["problem"]


@pytest.mark.parametrize("name", ["on_loot", "log", "on_epoch_of_stars", "_on_epoch_end", "close"])
def test_the_doctor_leaves_other_methods_alone(site: Any, name: str) -> None:
    site.install("dist-a", plugins={"a": "m_a:watch"}, modules={"m_a": OBJECT.format(name=name)})
    assert read(site, "plugins", "doctor") == []
