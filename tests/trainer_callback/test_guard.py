"""The import of a plugin changes nothing outside of it, in a process of its own."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

LIVE = "from trainer_callback import hookimpl\n@hookimpl\ndef on_log(metrics): pass\n"
FIND = """import io, logging, os, random, signal, sys, threading, warnings
words = io.StringIO()
handler = logging.StreamHandler(words)
logging.getLogger("trainer").addHandler(handler)
from trainer_callback.plugins import find_live
EARLY
before = VALUE
live = find_live()
after = VALUE
names = [each.name for each in live]
facts = [before == after, words.getvalue(), names]"""

CHANGES = {
    "environment": ("os.environ['NEW'] = '1'", "dict(os.environ)", "set an environment variable"),
    "removed": ("del os.environ['PATH']", "dict(os.environ)", "set an environment variable"),
    "signal": (
        "signal.signal(signal.SIGTERM, print)",
        "signal.getsignal(signal.SIGTERM)",
        "set a signal handler",
    ),
    "ctrl_c": (
        "signal.signal(signal.SIGINT, signal.SIG_IGN)",
        "signal.getsignal(signal.SIGINT)",
        "set a signal handler",
    ),
    "root": (
        "logging.basicConfig(level=1, force=True)",
        "[logging.root.level, list(logging.root.handlers)]",
        "configured logging",
    ),
    "disabled": (
        "logging.disable(50)",
        "logging.getLogger('trainer').isEnabledFor(40)",
        "configured logging",
    ),
    "config": (
        "import logging.config\nlogging.config.dictConfig({'version': 1})",
        "logging.getLogger('trainer').disabled",
        "configured logging",
    ),
    "warnings": ("warnings.simplefilter('ignore')", "list(warnings.filters)", "set filters"),
    "reset": ("warnings.resetwarnings()", "list(warnings.filters)", "set filters of warnings"),
    "show": ("warnings.showwarning = print", "warnings.showwarning", "set filters of warnings"),
    "directory": ("os.chdir('/')", "os.getcwd()", "changed the directory"),
    "recursion": (
        "sys.setrecursionlimit(5000)",
        "sys.getrecursionlimit()",
        "set the recursion limit",
    ),
    "hook": ("sys.excepthook = print", "sys.excepthook", "set sys.excepthook"),
    "unraisable": ("sys.unraisablehook = print", "sys.unraisablehook", "set sys.unraisablehook"),
    "of_threads": (
        "threading.excepthook = print",
        "threading.excepthook",
        "set threading.excepthook",
    ),
    "builtin": (
        "import builtins\nbuiltins.print = lambda *words: None",
        "print is __import__('builtins').print and len(repr(print)) < 30",
        "replaced a builtin",
    ),
    "umask": ("os.umask(0)", "[os.umask(0o22), os.umask(0o22)][0]", "set the umask"),
    "collector": (
        "import gc\ngc.disable()",
        "__import__('gc').isenabled()",
        "switched the garbage collector",
    ),
    "sockets": (
        "import socket\nsocket.setdefaulttimeout(9)",
        "__import__('socket').getdefaulttimeout()",
        "set the time limit of sockets",
    ),
    "start": (
        "import multiprocessing\nmultiprocessing.set_start_method('spawn')",
        "__import__('multiprocessing').get_start_method(allow_none=True)",
        "set the start method of multiprocessing",
    ),
    "thread": (
        "threading.Thread(target=threading.Event().wait).start()",
        "all(t.daemon for t in threading.enumerate()[1:])",
        "started a thread",
    ),
    "random": ("random.seed(0); random.random()", "random.getstate()", ""),
    "stdout": ("sys.stdout = sys.stderr = None", "[sys.stdout, sys.stderr]", ""),
    "numpy": ("import numpy\nnumpy.seterr(all='raise')", "0", "called numpy.seterr"),
}


def run(site: Any, source: str, value: str, early: str = "") -> list[Any]:
    """Whether `value` is after the import what it was, what was said, and the live plugins."""
    modules = {"m_x": f"import logging, os, random, signal, sys, threading, warnings\n{source}\n"}
    modules["m_x"] += LIVE
    site.install("dist-x", plugins={"x": "m_x"}, modules=modules)
    code = FIND.replace("VALUE", value).replace("EARLY", early)
    answer: list[Any] = site.evaluate(code, "facts")
    return answer


@pytest.mark.parametrize("name", CHANGES)
def test_what_an_import_changes_is_put_back_and_said(site: Any, name: str) -> None:
    source, value, words = CHANGES[name]
    is_same, said, names = run(site, source, value)
    assert is_same
    assert names == ["x"]
    assert (f"x (dist-x 1.0): its import {words}" in said) if words else said == ""


def test_filters_of_warnings_that_concern_one_message_or_category_stay(site: Any) -> None:
    source = """class Own(UserWarning): pass
warnings.filterwarnings('ignore', message='just this', module='m')
warnings.simplefilter('always', Own)
warnings.simplefilter('ignore')"""
    value = "[f[0] for f in warnings.filters if f[1] or f[2].__module__ != 'builtins']"
    is_same, said, _ = run(site, source, value)
    assert not is_same
    assert "set filters of warnings" in said


IN_TORCH = {
    "torch.set_default_dtype(torch.float64)": "torch.get_default_dtype()",
    "torch.set_default_device('meta')": "str(torch.get_default_device())",
    "torch.set_grad_enabled(False)": "torch.is_grad_enabled()",
    "torch.use_deterministic_algorithms(True)": "torch.are_deterministic_algorithms_enabled()",
    "torch.set_num_threads(torch.get_num_threads() + 1)": "torch.get_num_threads()",
    "torch.manual_seed(7)": "torch.get_rng_state().tolist()",
    "numpy.random.seed(7)": "numpy.random.get_state()[1].tolist()",
}


def test_settings_and_random_numbers_of_torch_and_numpy_are_put_back(site: Any) -> None:
    source = "import torch, numpy\n" + "\n".join(IN_TORCH)
    value = f"[{', '.join(IN_TORCH.values())}]"
    is_same, said, _ = run(site, source, value, early="import torch, numpy")
    assert is_same
    for words in (
        "default dtype",
        "default device",
        "gradients",
        "deterministic",
        "number of threads",
    ):
        assert f"torch's {words}" in said


def test_a_torch_that_the_plugin_brings_has_its_own_defaults_again(site: Any) -> None:
    source = "import torch\ntorch.set_default_dtype(torch.float64)\ntorch.set_grad_enabled(False)"
    site.install("dist-x", plugins={"x": "m_x"}, modules={"m_x": f"{source}\n{LIVE}"})
    code = "from trainer_callback.plugins import find_live\nfind_live()\nimport torch"
    facts = "[str(torch.get_default_dtype()), torch.is_grad_enabled()]"
    assert site.evaluate(code, facts) == ["torch.float32", True]


def test_it_works_in_a_thread_and_without_streams(site: Any) -> None:
    site.install("dist-x", plugins={"x": "m_x"}, modules={"m_x": "print('hello')\n" + LIVE})
    code = """import json, os, sys, threading
from trainer_callback.plugins import find_live
found = []
def find(): found.append([each.name for each in find_live()])
thread = threading.Thread(target=find)
thread.start()
thread.join()
out = os.dup(1)
for number in (0, 1, 2):
    os.close(number)
sys.stdout = sys.stderr = None
find()
os.write(out, json.dumps(found).encode())"""
    done = site.python("-c", code)
    assert json.loads(done.stdout.splitlines()[-1]) == [["x"], ["x"]]


def test_a_keyboard_interrupt_that_nobody_pressed_breaks_the_plugin_only(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer_callback.discovery import Entry
    from trainer_callback.plugins import InstalledPlugin

    site.install("dist-x", plugins={"x": "m_k"}, modules={"m_k": "raise KeyboardInterrupt"})
    monkeypatch.syspath_prepend(site.folder)
    plugin = InstalledPlugin(Entry("x", "m_k", "dist-x", "1.0"))
    assert "KeyboardInterrupt without Ctrl-C" in str(plugin.problem)
    assert "m_k" not in sys.modules


def test_what_a_plugin_prints_at_the_end_of_the_process_goes_to_stderr(site: Any) -> None:
    source = """import atexit
atexit.register(print, 'at the end')
@atexit.register
def kept(): print('kept')
def gone(): print('gone')
atexit.register(gone)
atexit.unregister(gone)
"""
    site.install("dist-x", plugins={"x": "m_x"}, modules={"m_x": source + LIVE})
    code = "from trainer_callback.plugins import find_live\nfind_live()\nimport atexit\n"
    done = site.python("-c", code + "atexit.register(print, 'of the program')")
    assert done.stdout == "of the program\n"
    assert done.stderr == "kept\nat the end\n"
