"""Where the text comes from: the embedded corpus, a file, a folder, or a Hugging Face dataset.

Knows nothing of tokens. A text is held in memory as its file has it; newlines are not changed.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from trainer_callback import UsageError

from .options import TextOptions

__all__ = ["Corpus", "load_text"]


@dataclass(frozen=True)
class Corpus:
    """Text to train on and text to validate on.

    Attributes:
        train: the training text, never blank.
        validation: the validation text, never blank.
        name: what was asked for, for people.
        notes: one sentence for each thing a person may not expect.
    """

    train: str
    validation: str
    name: str
    notes: tuple[str, ...] = ()


def load_text(options: TextOptions) -> Corpus:
    """Returns the text that `--dataset` and `--data_dir` name.

    Raises:
        UsageError: there is no such text, it is blank, cannot be read or is not UTF-8.
    """
    name = options.dataset
    try:
        if options.data_dir is not None:
            return _load_data_dir(name, _expand(options.data_dir))
        if name == "pydoc":
            return _load_embedded()
        if name not in _HUB and _expand(name).exists():
            return _load_path(_expand(name), name)
        if name not in _HUB and _looks_like_path(name):
            raise UsageError(f"--dataset {name}: there is no such file or folder. {_WAYS}")
        return _load_hub(name)
    except OSError as error:
        raise UsageError(
            f"{error.filename} could not be read: {error.strerror}. Check path and permissions."
        ) from error


_SUFFIXES: Final = (".txt", ".tokens", ".raw", ".parquet")

_HUB: Final = {
    "wikitext": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "wikitext-103": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
}

_WAYS: Final = (
    "Ways to have text: --dataset pydoc (always there); --dataset FILE (UTF-8 text); --dataset "
    "FOLDER with train, validation and test files as .txt, .tokens, .raw or .parquet; --dataset "
    "NAME --data_dir FOLDER (the same files, without a network); --dataset wikitext, wikitext-103 "
    "or NAME[:CONFIG] of a Hugging Face dataset "
    '(pip install "trainer-core[data]", and a network or its cache).'
)


def _load_embedded() -> Corpus:
    try:
        topics: Mapping[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise UsageError(
            f"--dataset pydoc: this Python comes without its text ({error}). {_WAYS}"
        ) from error
    return _corpus("pydoc", {"train": lambda: "\n".join(topics.values())})


def _load_data_dir(name: str, folder: Path) -> Corpus:
    if name == "pydoc" or (name not in _HUB and _expand(name).exists()):
        raise UsageError(
            f"--data_dir {folder} holds the files of a named dataset, but --dataset is {name}. "
            f"Use --dataset {folder} alone, or --dataset wikitext --data_dir {folder}."
        )
    if not folder.exists():
        raise UsageError(f"--data_dir {folder}: there is no such folder. {_WAYS}")
    _, config = _hub_name(name)
    # A clone of a Hugging Face dataset has a folder for each configuration.
    inner = folder / config if config else folder
    return _load_path(inner if inner.is_dir() else folder, name)


def _load_path(path: Path, name: str) -> Corpus:
    if not path.is_dir():
        return _corpus(name, {"train": lambda: _read(path)})
    files = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES and p.is_file())
    by_role: dict[str, list[Path]] = {}
    for file in files:
        role = _role(file.stem)
        if role is not None:
            by_role.setdefault(role, []).append(file)
    if not by_role and len(files) == 1:
        by_role = {"train": files}
    if not by_role:
        found = ", ".join(file.name for file in files[:5]) or "no file of these kinds"
        raise UsageError(
            f"{path} has no file named train, validation or test that ends in "
            f"{', '.join(_SUFFIXES)}; found: {found}. "
            "Rename them, or name one of them: --dataset FILE."
        )
    used = {role: by_role[role] for role in _pick(by_role)}
    notes = tuple(note for shards in used.values() for note in _check_shards(shards))
    return _corpus(name, {role: _reader(shards) for role, shards in used.items()}, notes)


def _load_hub(name: str) -> Corpus:
    repository, config = _hub_name(name)
    datasets = _extra("datasets", f"--dataset {name} is no file or folder here")
    try:
        splits = datasets.load_dataset(repository, config or None)
    except Exception as error:  # the library and its network raise types of their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"--dataset {name} is no file or folder, and the Hugging Face dataset {repository} "
            f"could not be loaded: {reason.rstrip('.')}. {_WAYS}"
        ) from error
    texts: dict[str, Callable[[], str]] = {}
    for split, rows in splits.items():
        role = _role(split)
        if role is None:
            continue
        if "text" not in rows.column_names:
            raise UsageError(
                f"--dataset {name} has no column 'text'; its columns: "
                f"{', '.join(rows.column_names)}. Write the text to a file and use --dataset FILE."
            )
        texts[role] = lambda rows=rows: _join_rows(rows["text"])  # type: ignore[misc]
    if not texts:
        raise UsageError(
            f"--dataset {name} has no split named train, validation or test; its splits: "
            f"{', '.join(splits)}. Write the text to a file and use --dataset FILE."
        )
    return _corpus(name, texts)


def _corpus(
    name: str, texts: Mapping[str, Callable[[], str]], notes: tuple[str, ...] = ()
) -> Corpus:
    """Decides what to train and validate on; `texts` has a reader for each role there is."""
    roles = _pick(texts)
    train = texts[roles[0]]()
    if len(roles) == 1:
        train, validation = _split(train)
    else:
        validation = texts[roles[1]]()
    if roles not in (["train"], ["train", "validation"]):
        how = f"validates on {roles[1]}" if len(roles) > 1 else "validates on its last 10 %"
        notes += (f"{name} has only {' and '.join(roles)}: trains on {roles[0]}, {how}",)
    if not train.strip() or not validation.strip():
        part = "training" if not train.strip() else "validation"
        raise UsageError(
            f"--dataset {name}: its {part} text is empty ({len(train)} characters to train on, "
            f"{len(validation)} to validate on). Use a longer text."
        )
    return Corpus(train, validation, name, notes)


def _pick(roles: Collection[str]) -> list[str]:
    """What is trained on, and what is validated on where there are two."""
    return [role for role in ("train", "validation", "test") if role in roles][:2]


def _split(text: str) -> tuple[str, str]:
    """The first 90 % and the rest; cut after the last line that ends from 85 to 90 %, if any."""
    low, high = len(text) * 85 // 100, len(text) * 90 // 100
    cut = text.rfind("\n", low, high) + 1 or high
    return text[:cut], text[cut:]


def _read(path: Path) -> str:
    if path.suffix == ".parquet":
        return _read_parquet(path)
    data = path.read_bytes()
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}. "
            "Convert it first, such as with iconv -f LATIN1 -t UTF-8."
        ) from error


def _read_parquet(path: Path) -> str:
    parquet = _extra("pyarrow.parquet", f"{path} is a parquet file")
    try:
        columns: list[str] = parquet.read_schema(path).names
        rows: list[object] = []
        if "text" in columns:
            rows = parquet.read_table(path, columns=["text"]).column("text").to_pylist()
    except Exception as error:  # a damaged file raises any of pyarrow's own
        reason = " ".join(str(error).split()).rstrip(".")
        raise UsageError(f"{path} is no sound parquet file: {reason}. Fetch it again.") from error
    if any(row is not None and not isinstance(row, str) for row in rows) or "text" not in columns:
        raise UsageError(
            f"{path} has no column 'text' of strings; its columns: {', '.join(columns)}. "
            "Rename the column, or write the text to a .txt file."
        )
    return _join_rows(rows)


def _reader(shards: list[Path]) -> Callable[[], str]:
    if len(shards) == 1:
        return lambda: _read(shards[0])
    return lambda: _join_rows(_read(shard) for shard in shards)


def _join_rows(rows: Iterable[Any]) -> str:
    """Rows (str or None) are lines or documents: each ends with a newline, its own or one added."""
    return "".join(row if row and row.endswith("\n") else f"{row or ''}\n" for row in rows)


def _role(stem: str) -> str | None:
    """`wiki.valid`, `validation-00000-of-00001` -> validation; None for names that say nothing."""
    for word in re.split(r"[^a-z]+", stem.lower()):
        if word in _ROLES:
            return _ROLES[word]
    return None


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


def _check_shards(shards: list[Path]) -> Iterable[str]:
    """Notes about files of one role; refuses files that would hold the same text twice."""
    counts = [re.search(r"-\d+-of-(\d+)$", shard.stem) for shard in shards]
    if len(shards) > 1 and not (all(counts) and len({shard.suffix for shard in shards}) == 1):
        names = ", ".join(shard.name for shard in shards)
        raise UsageError(
            f"{shards[0].parent} has {len(shards)} files for one part of the text: {names}. "
            "Keep one of them, or number the parts as NAME-00000-of-00002."
        )
    if counts[0] is not None and int(counts[0][1]) != len(shards):
        yield f"{shards[0].name}: only {len(shards)} of its {int(counts[0][1])} parts are there"


def _expand(path: str | Path) -> Path:
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path.expanduser raises for an unknown user


def _looks_like_path(name: str) -> bool:
    return name.endswith(_SUFFIXES) or name.startswith((".", "/", "~")) or name.count("/") > 1


def _hub_name(name: str) -> tuple[str, str]:
    """`NAME` or `NAME:CONFIG` -> repository and configuration ('' for the only one)."""
    repository, _, config = name.partition(":")
    return _HUB.get(name, (repository, config))


def _extra(module: str, need: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{need}, and {module.partition('.')[0]} could not be imported ({error}). "
            f'pip install "trainer-core[data]". {_WAYS}'
        ) from error
