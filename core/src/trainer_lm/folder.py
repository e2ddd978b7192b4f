"""Which files of a folder are the training text and which the validation text.

Reads names only. What looks like a part of the text and is not used is named, so that nobody
validates on something else than he thinks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer_callback import UsageError

__all__ = ["SUFFIXES", "Parts", "find_parts", "pick", "read_role"]

SUFFIXES: Final = (".txt", ".tokens", ".raw", ".parquet")

_ROLES: Final = {
    "train": "train",
    "training": "train",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}

_FILLERS: Final = (
    "data", "dataset", "set", "split", "text", "texts", "corpus", "file", "files", "part", "parts",
    "shard", "shards", "raw", "tokens", "of",
)  # fmt: skip
"""Words that may stand behind the role in a name: `train_data`, `train-0-of-2`."""


@dataclass(frozen=True)
class Parts:
    """The files of one or two roles, in order.

    Attributes:
        files: role -> its files; the first role is trained on, the second validated on.
        notes: one sentence for each thing a person may not expect.
    """

    files: dict[str, list[Path]]
    notes: list[str]


def find_parts(folder: Path) -> Parts:
    """Returns what is to be read of `folder`.

    Raises:
        UsageError: it cannot be told which files are meant, or one of them is not there.
        OSError: the folder cannot be read.
    """
    entries = sorted(folder.iterdir())
    texts = [e for e in entries if _is_text(e)]
    by_role: dict[str, list[Path]] = {}
    for file in texts:
        role = _role_of_file(file.stem)
        if role is not None:
            by_role.setdefault(role, []).append(file)
    if not by_role and len(texts) == 1:
        by_role = {"train": texts}
    if not by_role:
        found = [e.name + "/" * e.is_dir() for e in entries if not e.name.startswith(".")]
        raise UsageError(
            f"{folder} has no file named train, validation or test that ends in "
            f"{', '.join(SUFFIXES)}; found: {_list(found) or 'nothing'}. "
            "Rename them, or name one of them: --dataset FILE."
        )
    files: dict[str, list[Path]] = {}
    notes: list[str] = []
    for role in pick(by_role):
        files[role], gaps = _order(by_role[role])
        notes += gaps
        for file in files[role]:
            if not file.exists():
                raise UsageError(
                    f"{file} is a dead link: what it leads to is not there. Mend it or remove it."
                )
    used = {file for shards in files.values() for file in shards}
    looks = [e for e in entries if e not in used and read_role(e.name) is not None]
    notes.append(
        _describe(folder, list(files.values()), [e.name + "/" * e.is_dir() for e in looks])
    )
    return Parts(files, notes)


def pick(roles: Collection[str]) -> list[str]:
    """Returns what is trained on, and what is validated on where there are two."""
    return [role for role in ("train", "validation", "test") if role in roles][:2]


def read_role(name: str) -> str | None:
    """Returns the role that any word of `name` means; None for a name that says nothing."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((_ROLES[word] for word in words if word in _ROLES), None)


def _role_of_file(stem: str) -> str | None:
    """`wiki.valid`, `train_data`, `validation-00000-of-00001` -> a role; `training_notes` -> None:
    the role is the last word but for fillers.
    """
    words = [word for word in re.split(r"[^a-z]+", stem.lower()) if word]
    while words and words[-1] in _FILLERS:
        words.pop()
    return _ROLES.get(words[-1]) if words else None


def _is_text(path: Path) -> bool:
    """Whether it is a file, or a dead link, by the name of a text; hidden ones are nobody's text
    (`._train.txt` is what macOS leaves).
    """
    is_file = path.is_file() or (path.is_symlink() and not path.exists())
    return is_file and path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _order(shards: list[Path]) -> tuple[list[Path], Iterable[str]]:
    """Returns files of one role by number, and notes about missing ones; refuses files that would
    hold the same text twice.
    """
    found = [re.fullmatch(r"(.*?)(\d+)(?:[-_.]of[-_.](\d+))?", shard.stem) for shard in shards]
    numbers = [int(each[2]) for each in found if each is not None]
    kinds = {
        (each and each[1], each and each[3] and int(each[3]), shard.suffix.lower())
        for each, shard in zip(found, shards, strict=True)
    }
    if len(shards) == 1 and (found[0] is None or found[0][3] is None):
        return shards, ()
    if len(set(numbers)) < len(shards) or len(kinds) > 1:
        raise UsageError(
            f"{shards[0].parent} has {len(shards)} files for one part of the text: "
            f"{_list([shard.name for shard in shards])}. "
            "Keep one of them, or number the parts as NAME-0, NAME-1."
        )
    ordered = [shard for _, shard in sorted(zip(numbers, shards, strict=True))]
    ((_, total, _),) = kinds
    if total and total != len(shards):
        return ordered, [f"{ordered[0].name}: only {len(shards)} of its {total} parts are there"]
    missing = sorted({*range(min(numbers), max(numbers))} - {*numbers})
    if missing:
        return ordered, [f"{ordered[0].name}: number {_list(map(str, missing))} is missing"]
    return ordered, ()


def _describe(folder: Path, parts: list[list[Path]], unused: list[str]) -> str:
    names = [
        files[0].name
        if len(files) == 1
        else f"{files[0].name} to {files[-1].name} ({len(files)} files)"
        for files in parts
    ]
    on = names[1] if len(names) > 1 else "its last 10 %"
    end = f"; not used: {_list(unused)}" if unused else ""
    return f"{folder}: trains on {names[0]}, validates on {on}{end}"


def _list(names: Iterable[str]) -> str:
    known = list(names)
    more = f" and {len(known) - 5} more" if len(known) > 5 else ""
    return ", ".join(known[:5]) + more
