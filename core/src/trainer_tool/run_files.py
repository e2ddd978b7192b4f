"""What a run has written into its output directory, for pages and tables of runs. Reads files only,
also those of a run that goes on or was killed. Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from trainer.snapshots.manifest import MANIFEST, read_manifest
from trainer.snapshots.run_record import METRICS, RunRecord
from trainer.snapshots.snapshot import list_snapshots, step_of
from trainer.writers.named_file import read_named
from trainer_callback import SnapshotError, UsageError

__all__ = ["Point", "RunFiles", "read_runs"]

Point = tuple[int, float]
"""An update and a value, which may be NaN or infinite."""

_MOST_GRADIENTS: Final = 120
"""Lines of a gradient record that are read: more columns than fit a screen only take time."""


@dataclass
class RunFiles:
    """One run.

    Attributes:
        place: its output directory.
        name: the part of the path that tells it from the others.
        state: how it stands, in words.
        series: metric -> its points, in the order of the file.
        texts: update, name and text, in the order of the file.
        step: the last update that the log has.
        epoch: of that update.
        snapshots: updates of the snapshots that are there.
        resumes: updates behind which it went on from a snapshot.
        costs: plugin and hook -> seconds and calls, the dearest first; empty until it ends.
        manifest: of the finished model, or of the newest snapshot; empty where there is none.
        options: name -> value as written.
        gradients: record of the gradient monitor -> some of its lines.
        problems: what could not be read and does not matter to the rest.
    """

    place: Path
    name: str = ""
    state: str = ""
    series: dict[str, list[Point]] = field(default_factory=dict)
    texts: list[tuple[int, str, str]] = field(default_factory=list)
    step: int = 0
    epoch: int = 0
    snapshots: list[int] = field(default_factory=list)
    resumes: list[int] = field(default_factory=list)
    costs: dict[str, tuple[float, float]] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    gradients: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_runs(places: Sequence[Path]) -> list[RunFiles]:
    """Returns the runs in `places`, each with a name of its own.

    Raises:
        UsageError: one is named twice, holds no run, or has a file that cannot be read.
    """
    known: dict[Path, Path] = {}
    for place in places:
        other = known.setdefault(place.resolve(), place)
        if other is not place:
            raise UsageError(
                f"{str(other)!r} and {str(place)!r} are the same directory. Name each run once."
            )
    runs = [_read_run(place) for place in places]
    for run, name in zip(runs, _tell_apart([*known]), strict=True):
        run.name = name
    return runs


def _tell_apart(places: Sequence[Path]) -> list[str]:
    """Returns as many of the last parts of each path as it takes for no two to be equal."""
    for count in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-count:]) for place in places]
        if len({*names}) == len(names):
            break
    return names


def _read_run(place: Path) -> RunFiles:
    run = RunFiles(place)
    ended = _read_log(run, _read_lines(place / METRICS, place))
    run.state = _read_owner(place / ".lock") or "cut off"
    if ended is not None and not run.state.startswith("going on"):
        parts = [str(ended.get(name)) for name in ("status", "stop_reason", "stop_detail")]
        run.state = ", ".join(part for part in parts if part not in ("", "None")) or "ended"
    record = RunRecord.read(place)
    run.resumes = [step for step in (record.resumes if record else []) if isinstance(step, int)]
    snapshots = list_snapshots(place / "snapshots")
    run.snapshots = sorted(map(step_of, snapshots))
    for path in (place / "final", *snapshots):
        if not run.manifest and (path / MANIFEST).exists():
            try:
                run.manifest = read_manifest(path)
            except SnapshotError as error:
                run.problems.append(str(error))
    run.options = _read_options(place / "config.yaml", run.manifest)
    for path in sorted(place.glob("gradient_flow/**/gradients.jsonl")):
        run.gradients["/".join(path.parts[len(place.parts) : -1])] = _read_gradients(path)
    return run


def _read_lines(path: Path, place: Path) -> list[str]:
    """Returns the whole lines of a file; of a last one that is being written, nothing."""
    try:
        content = read_named(path)
        return content[: content.rfind(b"\n") + 1].decode().split("\n")[:-1]
    except FileNotFoundError:
        raise UsageError(
            f"there is no run in {str(place)!r}: it has no {path.name}. Name the output directory "
            "of a run."
        ) from None
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{str(path)!r} cannot be read: byte {error.start} is not UTF-8. No run has written it."
        ) from error


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
        if isinstance(found, dict) and all(_is_step(found.get(n)) for n in ("step", "epoch")):
            return found
    except (ValueError, RecursionError):
        pass
    raise UsageError(
        f"{str(path)!r} cannot be read: line {number} is none that a run has written. Remove it, "
        "or name another run."
    )


def _is_step(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def _read_log(run: RunFiles, lines: Sequence[str]) -> Mapping[str, Any] | None:
    """Takes in the lines of the log; returns how the run ended, or None."""
    ended: Mapping[str, Any] | None = None
    for number, text in enumerate(lines, 1):
        line = _parse(run.place / METRICS, number, text)
        run.step, run.epoch = line.pop("step"), line.pop("epoch")
        for name in ("_event", "_time"):
            line.pop(name, None)
        if isinstance(line.get("callback_costs"), dict):
            run.costs = _read_costs(line["callback_costs"])
            ended = line["ended"] if isinstance(line.get("ended"), dict) else {}
            continue
        for name, value in line.items():
            if isinstance(value, dict) and name == "text":
                run.texts += [(run.step, key, str(each)) for key, each in value.items()]
                continue
            point = (run.step, _to_number(value, run.place / METRICS, number))
            points = run.series.setdefault(name, [])
            if points[-1:] != [point]:  # a validation at an epoch's end is logged twice
                points.append(point)
    return ended


def _read_costs(costs: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Returns plugin and hook -> seconds and calls, the dearest first; what is none is left out."""
    found: dict[str, tuple[float, float]] = {}
    with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
        for plugin, hooks in costs.items():
            for hook, cost in hooks.items():
                found[f"{plugin} {hook}"] = (float(cost["seconds"]), float(cost["calls"]))
    return dict(sorted(found.items(), key=lambda each: -each[1][0]))


def _to_number(value: object, path: Path, number: int) -> float:
    if isinstance(value, (int, float)) or value in ("nan", "inf", "-inf"):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    raise UsageError(f"{str(path)!r} cannot be read: line {number} has {value!r} for a number.")


def _read_owner(lock: Path) -> str:
    """Returns whose run it is that goes on, or an empty text. The lock itself is not tried: a run
    that starts would be refused.
    """
    try:
        owner = json.loads(lock.read_bytes())
        pid, host = int(owner["pid"]), str(owner["host"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return ""
    if host != socket.gethostname():
        return f"going on as process {pid} of {host}, or killed there"
    try:
        os.kill(max(pid, 1), 0)
    except (ProcessLookupError, OverflowError):
        return ""
    except OSError:  # somebody else's
        pass
    return f"going on as process {pid}"


def _read_options(path: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Returns the options of `train-lm` where it wrote them, else those of trainer and plugins."""
    if path.exists():
        from trainer_lm.config_file import read_config_file

        return {
            each.name: ", ".join("null" if word is None else word for word in each.words)
            for each in read_config_file(str(path))
        }
    options = {name: str(value) for name, value in manifest.get("options", {}).items()}
    for key, plugin in manifest.get("plugins", {}).items():
        own = plugin.get("options")
        for name, value in own.items() if isinstance(own, dict) else ():
            options[f"{key}.{name}"] = str(value)
    return options


def _read_gradients(path: Path) -> list[dict[str, Any]]:
    lines = _read_lines(path, path.parent)
    every = -(-len(lines) // _MOST_GRADIENTS) or 1
    found = [_parse(path, number, lines[number - 1]) for number in _spread(len(lines), every)]
    for line in found:
        layers = line.get("layers")
        columns = [layers.get(key) for key in _LAYERS] if isinstance(layers, dict) else [None]
        lengths = {len(column) if isinstance(column, list) else -1 for column in columns}
        if len(lengths) > 1 or -1 in lengths:
            raise UsageError(f"{str(path)!r} cannot be read: it is no record of gradients.")
    return found


_LAYERS: Final = ("name", "rms_pre_clip", "verdict")


def _spread(count: int, every: int) -> Iterator[int]:
    """Yields the numbers of some lines, the first and the last among them."""
    yield from range(1, count, every)
    if count:
        yield count
