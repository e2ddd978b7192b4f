"""What `train-lm` refuses because of the plugins that are installed, or are not."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

TRAIN_LM = "import sys; from trainer_lm.cli import main; sys.exit(main())"
LIVE = "from trainer_callback import hookimpl\n@hookimpl\ndef on_log(metrics): pass\n"


def refuse(site: Any, *words: str) -> str:
    done = site.python("-c", TRAIN_LM, *words)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) <= 2
    return str(done.stderr)


def test_a_plugin_that_is_live_in_every_run_has_no_flag(site: Any) -> None:
    site.install("dist-a", plugins={"heart-beat": "m_a"}, modules={"m_a": LIVE})
    said = refuse(site, "--heart-beat")
    assert "--heart_beat is no option: heart-beat (dist-a 1.0) is live in every run" in said
    assert "--no_plugin heart_beat" in said


def test_a_flag_of_a_plugin_that_is_gone_leads_to_what_is_installed(site: Any) -> None:
    said = refuse(site, "--loss_spike")
    assert "there is no option --loss_spike." in said
    assert "trainer plugins for what is installed" in said


def test_a_flag_of_a_known_plugin_that_is_blocked_says_so(site: Any) -> None:
    site.install("trainer-plugin-early-stopping", plugins={"early_stopping": "m:C"})
    said = refuse(site, "--early_stop_patience", "3", "--no_plugin", "early_stopping")
    assert "--early_stop_patience cannot be used: " in said
    assert "is blocked by --no_plugin" in said


def test_a_broken_plugin_is_a_warning_and_with_strict_plugins_a_refusal(site: Any) -> None:
    site.install("dist-a", plugins={"a": "m_a"}, modules={"m_a": "import gone"})
    done = site.python("-c", TRAIN_LM, "--print_config")
    assert done.returncode == 0
    assert "train-lm: warning: entry point 'a' of dist-a 1.0 could not be imported" in done.stderr
    said = refuse(site, "--print_config", "--strict_plugins")
    assert "entry point 'a' of dist-a 1.0 could not be imported" in said
    assert "--no_plugin a" in said


def test_the_flag_of_a_broken_plugin_is_refused_with_the_reason(site: Any) -> None:
    site.install("dist-a", plugins={"a": "m_a"}, modules={"m_a": "import gone"})
    assert "--a cannot be used: entry point 'a' of dist-a 1.0" in refuse(site, "--a")


def test_a_plugin_that_is_not_on_the_allow_list_is_not_loaded(site: Any) -> None:
    site.install("dist-a", plugins={"a": "m_a"}, modules={"m_a": "import gone"})
    words = ("-c", TRAIN_LM, "--print_config")
    assert site.python(*words, TRAINER_PLUGINS="b").stderr == ""
    done = site.python(*words, "--a", TRAINER_PLUGINS="b")
    assert done.returncode == 2
    assert "--a cannot be used: blocked by TRAINER_PLUGINS" in done.stderr


CLASS = """from trainer_callback import TrainerCallback, hookimpl
class Callback(TrainerCallback):
    WISH = None
    def __init__(self, size: int = 3) -> None: pass
    def on_log(self, metrics): pass
"""


def adding(body: str) -> str:
    """A live plugin whose `add_options` has `body`."""
    return f"{LIVE}@hookimpl\ndef add_options(parser):\n    {body}\n"


def show_config(site: Any, *words: str, **variables: str) -> tuple[str, str]:
    """What `--print_config` prints, and what the command says beside it."""
    done = site.python("-c", TRAIN_LM, "--print_config", *words, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


_ALONE: list[str] = []


@pytest.fixture
def alone(site: Any) -> str:
    """What `--print_config` prints where no plugin is installed; asked once."""
    if not _ALONE:
        _ALONE.append(show_config(site)[0])
    return _ALONE[0]


def test_a_plugin_without_options_stands_in_the_file_of_a_run_that_uses_it(
    site: Any, alone: str
) -> None:
    source = """from trainer_callback import TrainerCallback
class X(TrainerCallback):
    def on_train_start(self): pass"""
    site.install("dist-x", plugins={"x": "m_x:X"}, modules={"m_x": source})
    assert show_config(site, "--x")[0] == f"{alone}x: true  # command line\n"
    assert show_config(site)[0] == alone


WRONG_OPTIONS = {
    "taken": ("parser.add_argument('--batch_size')", "adds --batch_size, which is an option of"),
    "help": ("parser.add_argument('-h', '--hello')", "adds -h, which is an option of the program"),
    "hyphen": ("parser.add_argument('--batch-size')", "adds --batch_size, which is an option of"),
    "other_dest": ("parser.add_argument('--z', dest='seed')", "adds --seed, which is an option of"),
    "default": ("parser.set_defaults(epochs=7)", "sets the default of 'epochs', which is no"),
    "required": ("parser.add_argument('--z', required=True)", "'--z', which every run would have"),
    "positional": ("parser.add_argument('z')", "adds 'z', which every run would have to give"),
    "word": ("parser.add_argument('z', nargs='?')", "adds 'z', where an option has a name such"),
    "one_of": (
        "g = parser.add_mutually_exclusive_group(required=True); g.add_argument('--z')",
        "'--z', which every run would have to give",
    ),
    "short": ("parser.add_argument('-z')", "adds '-z', where an option has a name such as"),
    "number": ("parser.add_argument('-1', '--one')", "adds '-1', which is no name for an option"),
    "twice": ("parser.add_argument('--z'); parser.add_argument('--z')", "adds --z twice"),
    "value": ("parser.add_argument('--z', type=int, default='x')", "invalid int value: 'x'"),
    "metavar": ("parser.add_argument('--z', nargs=2, metavar=('A',))", "argparse cannot use"),
    "raises": ("raise RuntimeError('no')", "failed in add_options: RuntimeError: no"),
    "exits": ("raise SystemExit(0)", "failed in add_options: SystemExit"),
    "parser": ("parser.error('no')", "failed in add_options: AttributeError"),
}


@pytest.mark.parametrize("name", WRONG_OPTIONS)
def test_options_that_cannot_be_had_set_their_plugin_aside_and_change_nothing(
    site: Any, alone: str, name: str
) -> None:
    body, words = WRONG_OPTIONS[name]
    site.install("dist-x", plugins={"x": "m_x"}, modules={"m_x": adding(body)})
    text, said = show_config(site)
    assert text == alone
    assert said.startswith("train-lm: warning: x (dist-x 1.0)")
    assert words in said
    assert said.endswith(" The run goes on without x.\n")
    assert words in refuse(site, "--x")


def test_all_wrong_plugins_at_once_cost_a_warning_each(site: Any, alone: str) -> None:
    for name, (body, _) in WRONG_OPTIONS.items():
        site.install(
            f"dist-{name}", plugins={name: f"m_{name}"}, modules={f"m_{name}": adding(body)}
        )
    for name, (source, _) in WRONG_IMPORTS.items():
        site.install(f"dist-{name}", plugins={name: f"n_{name}"}, modules={f"n_{name}": source})
    text, said = show_config(site)
    assert text == alone
    assert len(said.splitlines()) == len(WRONG_OPTIONS) + len(WRONG_IMPORTS)
    assert "dist-" in refuse(site, "--print_config", "--strict_plugins")
    done = site.python("-c", TRAIN_LM, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: train-lm [options]\n")
    rows = json.loads(site.command("plugins", "--json").stdout)
    assert len(rows) == len(WRONG_OPTIONS) + len(WRONG_IMPORTS)
    done = site.command("plugins", "doctor")
    assert done.returncode == 1
    for name in (*WRONG_OPTIONS, *WRONG_IMPORTS):
        assert f"dist-{name} 1.0" in " ".join(done.stdout.split())


WRONG_IMPORTS = {
    "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt without Ctrl-C"),
    "recursive": ("def f(): f()\nf()", "RecursionError"),
    "mute": (
        "class Mute(Exception):\n    def __str__(self): raise ValueError\nraise Mute",
        "could not be imported: Mute",
    ),
    "talkative": ("raise ValueError('many\\nlines\\n' * 1000)", "ValueError: many lines many"),
}


@pytest.mark.parametrize("name", WRONG_IMPORTS)
def test_an_import_that_fails_in_an_odd_way_is_one_line(site: Any, alone: str, name: str) -> None:
    source, words = WRONG_IMPORTS[name]
    site.install("dist-x", plugins={"x": "m_x"}, modules={"m_x": source})
    text, said = show_config(site)
    assert text == alone
    assert len(said.splitlines()) == 1
    assert len(said) < 1000
    assert words in said
    assert words in refuse(site, "--x")


def test_ctrl_c_while_a_plugin_is_imported_ends_the_command(site: Any) -> None:
    source = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time\ntime.sleep(9)"
    site.install("dist-x", plugins={"x": "m_x"}, modules={"m_x": source})
    listens = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    assert site.python("-c", listens + TRAIN_LM, "--print_config").returncode == 130


PRINTS = "import os\nprint('hello')\nos.write(1, b'raw\\n')\nos.system('echo child')\n"


@pytest.mark.parametrize(
    "source",
    [
        PRINTS + CLASS,
        "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer)\nprint('hello')\n"
        + CLASS,
        "import sys\nsys.stdout.close()\n" + CLASS,
        "import io, sys\nsys.stdout = io.StringIO()\n" + CLASS,
        CLASS + "        print('hello')\n".join(["    def __init__(self, size: int = 3):\n", ""]),
        CLASS + "    @classmethod\n    def add_options(cls, parser):\n        print('hello')\n",
        CLASS + "    @classmethod\n    def make_callbacks(cls, options):\n"
        "        print('hello')\n        return [cls()]\n",
    ],
    ids=["prints", "wraps", "closes", "replaces", "constructor", "add", "make"],
)
def test_what_a_plugin_prints_before_a_run_is_not_in_the_commands_output(
    site: Any, source: str
) -> None:
    site.install("dist-x", plugins={"x": "m_x:Callback"}, modules={"m_x": source})
    text, _ = show_config(site, "--x")
    assert "hello" not in text
    assert "raw" not in text
    assert "child" not in text
    assert text.startswith("dataset: ")
    assert "\nx: true" in text


def test_what_a_type_of_an_option_prints_or_raises_is_a_message(site: Any) -> None:
    source = adding("parser.add_argument('--z', type=read)") + (
        "def read(text):\n    print('hello')\n    return {'a': 1}[text]\n"
    )
    site.install("dist-x", plugins={"x": "m_x"}, modules={"m_x": source})
    assert "hello" not in show_config(site, "--z", "a")[0]
    done = site.python("-c", TRAIN_LM, "--z", "b")
    assert done.returncode == 2
    assert "train-lm: argument --z: 'b': KeyError: 'b'" in done.stderr


def test_a_thread_that_an_import_starts_does_not_keep_the_command(site: Any) -> None:
    source = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
    site.install("dist-x", plugins={"x": "m_x:Callback"}, modules={"m_x": source + CLASS})
    start = time.monotonic()
    assert show_config(site)[1] == ""
    assert time.monotonic() - start < 50
    assert "x (dist-x 1.0): its import started a thread." in show_config(site, "--x")[1]


def test_a_slow_import_is_said_with_its_owner(site: Any) -> None:
    source = "import time\ntime.sleep(3.1)\n" + CLASS
    site.install("dist-x", plugins={"x": "m_x:Callback"}, modules={"m_x": source})
    said = show_config(site)[1]
    assert "train-lm: warning: the import of x (dist-x 1.0) took " in said
    assert "--no_plugin x" in said


@pytest.mark.parametrize("words", ["100 % of it", "%(nothing)s", "%", "50%d"])
def test_a_percent_sign_in_the_help_stands_for_itself(site: Any, words: str) -> None:
    source = adding(f"parser.add_argument('--z', help={words!r})")
    site.install("dist-x", plugins={"x": "m_x"}, modules={"m_x": source})
    done = site.python("-c", TRAIN_LM, "--help")
    assert done.returncode == 0
    assert words in done.stdout


def test_a_help_without_end_is_cut(site: Any) -> None:
    source = adding("parser.add_argument('--z', help='many words ' * 100000)")
    site.install("dist-x", plugins={"x": "m_x"}, modules={"m_x": source})
    done = site.python("-c", TRAIN_LM, "--help")
    assert done.returncode == 0
    assert len(done.stdout) < 20_000


def test_an_option_with_hyphens_can_be_given(site: Any) -> None:
    source = adding("parser.add_argument('--warm-up', type=int)")
    site.install("dist-x", plugins={"x": "m_x"}, modules={"m_x": source})
    assert "\nwarm_up: '4'" in show_config(site, "--warm-up", "4")[0].replace(": 4", ": '4'")
    assert "\nwarm_up: '4'" in show_config(site, "--warm_up=4")[0].replace(": 4", ": '4'")


def install_two(site: Any, **prefixes: str) -> None:
    """Class plugins a and b whose options have one name."""
    for name in "ab":
        source = CLASS.replace("WISH = None", "option_prefix = 'same_'")
        module = {f"m_{name}": source}
        site.install(f"dist-{name}", plugins={name: f"m_{name}:Callback"}, modules=module)


def test_of_two_plugins_with_one_option_the_one_that_is_asked_for_is_used(site: Any) -> None:
    install_two(site)
    both = "both add --same_size. Leave one of them out: --no_plugin"
    for words in ((), ("--b", "--same_size", "5"), ("--a", "--same_size", "5")):
        text, said = show_config(site, *words)
        assert both in said
        assert ("same_size: 5" in text) is bool(words)
    assert "a (dist-a 1.0) and b (dist-b 1.0) " + both in refuse(site, "--a", "--b")
    config = site.folder / "run.yaml"
    config.write_text("b: true\nsame_size: 6\n")
    assert "same_size: 6" in show_config(site, "--config", str(config))[0]
    assert show_config(site, "--no_plugin", "a", "--b", "--same_size", "5")[1] == ""


def test_a_callback_of_this_directory_that_cannot_be_used_is_refused(site: Any) -> None:
    wish = CLASS.replace("WISH = None", "option_prefix = ''").replace("size", "seed")
    (site.folder / "own.py").write_text(wish)
    said = refuse(site, "--callback", "own:Callback", "--print_config")
    assert "own (own:Callback) adds --seed, which is an option of the program" in said


def test_a_flag_that_only_begins_like_a_broken_plugin_is_not_its(site: Any) -> None:
    site.install("dist-e", plugins={"e": "m_e"}, modules={"m_e": "import gone"})
    assert "there is no option --epochz. Did you mean '--epochs'?" in " ".join(
        refuse_last(site, "--epochz").split()
    )


def refuse_last(site: Any, *words: str) -> str:
    """The last line of what the command says while it refuses `words`."""
    done = site.python("-c", TRAIN_LM, *words)
    assert done.returncode == 2
    return str(done.stderr.splitlines()[-1])


def install_twins(site: Any, source: str) -> None:
    for name in "ab":
        entry = "m_" + name + (":Callback" if "class Callback" in source else "")
        site.install(f"dist-{name}", plugins={"x": entry}, modules={f"m_{name}": source})


def test_one_name_in_two_distributions_is_refused_when_it_is_asked_for(
    site: Any, alone: str
) -> None:
    install_twins(site, CLASS)
    assert show_config(site) == (alone, "")
    said = refuse(site, "--x")
    assert "x (dist-a 1.0) and x (dist-b 1.0)" in said
    assert "TRAINER_DISABLE_PLUGINS=dist-a:x or TRAINER_DISABLE_PLUGINS=dist-b:x" in said
    assert "--no_plugin dist-a:x" in said
    for name in ("dist-a", "Dist_A"):
        assert show_config(site, "--x", "--no_plugin", f"{name}:x")[1] == ""
    assert "x: true" in show_config(site, "--x", TRAINER_PLUGINS="dist-b:x")[0]
    assert "x: true" in show_config(site, "--x", TRAINER_DISABLE_PLUGINS="dist-b:x")[0]
    rows = json.loads(site.command("plugins", "--json").stdout)
    assert [row["status"] for row in rows] == ["broken"] * 2
    assert json.loads(site.command("plugins", "show", "dist-b:x", "--json").stdout)["problem"]


def test_one_name_in_two_distributions_is_said_where_each_would_be_live(site: Any) -> None:
    install_twins(site, LIVE)
    said = show_config(site)[1]
    assert said.count("2 installed plugins have the name 'x'") == 2


def test_an_unasked_plugin_whose_make_callbacks_fails_is_a_warning(site: Any, alone: str) -> None:
    source = adding("parser.add_argument('--z')") + (
        "@hookimpl\ndef make_callbacks(options):\n    options.seed = 7\n    return 1 / 0\n"
    )
    site.install("dist-x", plugins={"x": "m_x"}, modules={"m_x": source})
    text, said = show_config(site)
    assert text.replace("z: null  # default\n", "") == alone
    assert "x (dist-x 1.0) failed in make_callbacks: ZeroDivisionError" in said
    assert "failed in make_callbacks: ZeroDivisionError" in refuse(site, "--z", "1")


def test_a_default_that_no_file_can_hold_is_left_out_of_it(site: Any) -> None:
    source = CLASS.replace("size: int = 3", "size: int = object(), path: str = 'p'")
    site.install("dist-x", plugins={"x-y": "m_x:Callback"}, modules={"m_x": source})
    text = show_config(site, "--x-y")[0]
    assert "x_y_size" not in text
    assert "x_y_path: p" in text
    assert "x_y: true" in text


@pytest.mark.parametrize("answer", ["[5]", "[dict]", "5", "{'a': 1}"])
def test_an_unasked_plugin_that_makes_no_callbacks_is_a_warning(
    site: Any, alone: str, answer: str
) -> None:
    source = f"{LIVE}@hookimpl\ndef make_callbacks(options): return {answer}\n"
    site.install("dist-x", plugins={"x": "m_x"}, modules={"m_x": source})
    text, said = show_config(site)
    assert text == alone
    assert said.startswith("x (dist-x 1.0): ")
    assert "make_callbacks" in said
    assert said.endswith("The run goes on without it.\n")


@pytest.mark.parametrize("wish", ["5", "'b'", "(1,)", "{'b': 1}", "None"])
def test_a_wish_for_an_order_that_is_none_breaks_its_plugin_only(site: Any, wish: str) -> None:
    source = CLASS.replace("WISH = None", f"before = {wish}")
    site.install("dist-x", plugins={"x": "m_x:Callback"}, modules={"m_x": source})
    assert "x (dist-x 1.0): before must be a tuple of plugin names, got" in show_config(site)[1]
    [row] = json.loads(site.command("plugins", "--json").stdout)
    assert row["status"] == "broken"


@pytest.mark.parametrize(
    ("own", "words"),
    [("state_key = 'same'", "have the same state key 'same'"), ("after = 'OTHER',", "is a cycle")],
)
def test_live_plugins_that_cannot_be_in_one_run_cost_a_warning(
    site: Any, alone: str, own: str, words: str
) -> None:
    for name, other in ("ab", "ba"):
        source = LIVE + own.replace("OTHER", other)
        site.install(f"dist-{name}", plugins={name: f"m_{name}"}, modules={f"m_{name}": source})
    text, said = show_config(site)
    assert text == alone
    assert words in said
    assert "The run goes on without b." in said
    code = """import io, logging
stream = io.StringIO()
logging.basicConfig(format='%(message)s', stream=stream)
from trainer_callback.plugins import find_live
live = [each.name for each in find_live()]"""
    names, said = site.evaluate(code, "[live, stream.getvalue()]")
    assert names == ["a"]
    assert words in said
