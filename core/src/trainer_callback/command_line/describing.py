"""A plugin that is loaded -> its description; and a process of its own that loads plugins for it,
so that one that hangs, crashes, or imports torch costs this process nothing.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import dataclasses
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any, Final

from ..discovery import Entry
from ..errors import PluginError
from ..hints import show
from .description import Described, Description
from .installed import InstalledPlugin
from .oddities import find_oddities
from .options import Option
from .sources import Sources, read_own

__all__ = ["LONGEST_IMPORT", "describe", "describe_apart", "serve"]

LONGEST_IMPORT: Final = 10.0
"""Seconds without another module after which an import is given up, by a command that only shows
the plugin.
"""

_LONGEST: Final = 120.0
"""Seconds of an import that goes on and on."""

_GOES_ON: Final = "goes on"

_CODE: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from trainer_callback.command_line.describing import serve; serve()"
)
_INTERRUPTED: Final = "interrupted"


def describe(plugin: InstalledPlugin) -> Description:
    """Returns what the commands show of `plugin`."""
    if plugin.description is not None:
        return plugin.description
    refusal, actions, shown = None, [], []
    try:
        actions, shown = plugin.group.actions, plugin.group.shown("train-lm")
    except PluginError as error:
        refusal = str(error)
    set_up = [each.hook for each in plugin.implementations if each.spec.set_up]
    return Description(
        kind=plugin.kind,
        problem=plugin.problem,
        hooks=plugin.hooks,
        set_up=set_up,
        brings=[f"{each.name}({', '.join(each.arguments)})" for each in plugin.brings.values()],
        needs_others=plugin.unknown is not None,
        before=_read_names(plugin.target, "before"),
        after=_read_names(plugin.target, "after"),
        state_key=plugin.record.state_key if plugin.kind == "live" else None,
        changed=plugin.changed,
        seconds=plugin.seconds,
        refusal=refusal,
        rows=[*_read_rows(plugin, actions)],
        actions=shown,
        oddities=find_oddities(plugin),
    )


def describe_apart(entries: Sequence[Entry]) -> Iterator[Described]:
    """Imports each of the plugins in another process, and yields what is found, in their order.

    Raises:
        KeyboardInterrupt: somebody has pressed Ctrl-C.
    """
    other: _Other | None = None
    try:
        for entry in entries:
            other = _Other() if other is None else other
            answer = other.ask(entry)
            if answer is None:
                why, died = other.explain(entry), not other.is_late
                known = Description("broken", why, seconds=other.seconds, ends_process=died)
                yield Described(known, read_own(entry.value))
                other.end()
                other = None
            elif answer == _INTERRUPTED:
                raise KeyboardInterrupt
            else:
                yield Described(Description(**answer["description"]), answer["sources"])
    finally:
        if other is not None:
            other.end()


class _Other:
    """The other process. It is asked one thing at a time."""

    def __init__(self) -> None:
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        self._process = subprocess.Popen(
            [sys.executable, *flags, "-c", _CODE, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.is_late = False
        self.seconds: float = 0.0

    def ask(self, entry: Entry) -> Any:
        """Returns the answer, or None where there is none."""
        assert self._process.stdin is not None
        fields = (entry.name, entry.value, entry.distribution, entry.version)
        with contextlib.suppress(OSError):  # it is dead: there will be no answer
            self._process.stdin.write(json.dumps(fields) + "\n")
            self._process.stdin.flush()
        began = time.monotonic()
        try:
            while True:
                line = self._answers.get(timeout=LONGEST_IMPORT)
                answer = json.loads(line) if line else None
                self.seconds = time.monotonic() - began
                if answer != _GOES_ON:
                    return answer
                if self.seconds > _LONGEST:
                    raise queue.Empty
        except queue.Empty:
            self.seconds, self.is_late = time.monotonic() - began, True
            return None

    def explain(self, entry: Entry) -> str:
        """Returns why there was no answer about `entry`."""
        where = f"the import of {entry.label}"
        end = "Its options are missing."
        if self.is_late:
            return f"{where} did not end in {self.seconds:.0f} s and was given up. {end}"
        code = self._process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"{where} ended the whole process ({how}). {end}"

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError, ValueError):
                assert stream is not None
                stream.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in self._process.stdout:
                self._answers.put(line)
        self._answers.put("")


def serve() -> None:
    """Answers what the other process asks, until it is gone. What plugins print goes to stderr;
    what they read is empty.
    """
    questions, stream = _take_streams()
    answers = _Answers(stream)
    sources, torch = Sources(), _TorchWatch()
    for line in questions:
        entry = Entry(*json.loads(line))
        try:
            with torch:
                plugin = InstalledPlugin(entry)
                found = dataclasses.replace(describe(plugin), brings_torch=torch.is_seen)
            answer: Any = {"description": vars(found), "sources": sources.read(entry)}
        except KeyboardInterrupt:
            answer = _INTERRUPTED
        answers.write(answer)
    os._exit(0)  # threads of plugins, and what they registered for the end, do not count


class _Answers:
    """Where the answers are written, with a sign now and then that modules are still loaded."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def write(self, answer: Any) -> None:
        """Writes an answer, or a sign."""
        with self._lock:
            self._stream.write(json.dumps(answer) + "\n")
            self._stream.flush()

    def _watch(self) -> None:
        before = 0
        while True:
            time.sleep(1)
            if len(sys.modules) != before:
                before = len(sys.modules)
                self.write(_GOES_ON)


def _take_streams() -> tuple[IO[str], IO[str]]:
    questions = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return questions, answers


class _TorchWatch:
    """Whether torch is imported meanwhile, also where an earlier import has loaded it."""

    def __enter__(self) -> None:
        self.is_seen = False
        self._import = builtins.__import__
        builtins.__import__ = self._watch  # type: ignore[assignment]

    def __exit__(self, *error: object) -> None:
        builtins.__import__ = self._import

    def _watch(self, name: str, names: Any = None, *rest: Any, **named: Any) -> Any:
        if name.partition(".")[0] == "torch":
            importer = str((names or {}).get("__name__"))
            self.is_seen |= importer.partition(".")[0] != "torch"
        return self._import(name, names, *rest, **named)


def _read_names(target: object, attribute: str) -> list[str]:
    names = getattr(target, attribute, ())
    return list(names) if isinstance(names, (list, tuple)) else []  # a property: instances say


def _read_rows(
    plugin: InstalledPlugin, actions: Sequence[argparse.Action]
) -> Iterator[dict[str, Any]]:
    """Yields the options derived from the constructor, then those of its own `add_options`."""
    derived = [_read_option(option) for option in plugin.options]
    yield from derived
    known = {option["flag"] for option in derived} | {f"--{plugin.entry.flag}"}
    known |= {f"--{old}" for old in plugin.old.flags}
    known |= {flag.replace("--", "--no_", 1) for flag in known}
    yield from (_read_action(each) for each in actions if each.option_strings[0] not in known)


def _read_action(action: argparse.Action) -> dict[str, Any]:
    return {
        "flag": action.option_strings[0],
        "type": "" if action.nargs == 0 else str(action.metavar or action.dest.upper()),
        "default": None if action.required else show(action.default),
        "required": action.required,
        "help": action.help or "",
    }


def _read_option(option: Option) -> dict[str, Any]:
    return {
        "flag": f"--{option.flag}",
        "type": option.reader.metavar + " ..." * (option.reader.container is not None),
        "default": None if option.required else show(option.default),
        "required": option.required,
        "help": option.help,
    }
