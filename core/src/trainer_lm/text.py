"""Where the text comes from: the embedded corpus, a file, a folder, or a Hugging Face dataset.

Knows nothing of tokens. A text is held in memory as its file has it, in UTF-8; newlines are not
changed.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final, TypeAlias

from trainer_callback import UsageError

from .folder import SUFFIXES, find_parts, pick, read_role
from .options import TextOptions
from .utf8 import pieces, read_utf8

__all__ = ["Corpus", "load_text"]

_Reader: TypeAlias = Callable[[], tuple[bytes, list[str]]]
"""What gives a text, in UTF-8, and notes about it."""


@dataclass(frozen=True)
class Corpus:
    """Text to train on and text to validate on, both in UTF-8.

    Attributes:
        train: the training text, never blank.
        validation: the validation text, never blank.
        name: what was asked for, for people.
        notes: one sentence for each thing a person may not expect.
    """

    train: bytes
    validation: bytes
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
        what = f"{error.filename or name} could not be read: {error.strerror}."
        raise UsageError(f"{what} Check path and permissions.") from error


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
    return _corpus("pydoc", {"train": lambda: ("\n".join(topics.values()).encode(), [])})


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
        return _corpus(name, {"train": _reader([path])})
    parts = find_parts(path)
    texts = {role: _reader(files) for role, files in parts.files.items()}
    corpus = _corpus(name, texts)
    return dataclasses.replace(corpus, notes=(*corpus.notes, *parts.notes))


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
    texts: dict[str, _Reader] = {}
    found = _choose_splits(name, list(splits))
    for role, split in found.items():
        rows = splits[split]
        if "text" not in rows.column_names:
            raise UsageError(
                f"--dataset {name} has no column 'text'; its columns: "
                f"{', '.join(rows.column_names)}. Write the text to a file and use --dataset FILE."
            )
        texts[role] = lambda rows=rows: (_join_rows(rows["text"]), [])  # type: ignore[misc]
    if not texts:
        raise UsageError(
            f"--dataset {name} has no split named train, validation or test; its splits: "
            f"{', '.join(splits)}. Write the text to a file and use --dataset FILE."
        )
    corpus = _corpus(name, texts)
    others = sorted({*splits} - {*found.values()})
    note = [f"{name}: splits that are not used: {', '.join(others)}"] if others else []
    return dataclasses.replace(corpus, notes=(*corpus.notes, *note))


def _choose_splits(name: str, splits: Iterable[str]) -> dict[str, str]:
    """Returns role -> its split: of several the one whose name is the role's alone.

    Raises:
        UsageError: of several none is.
    """
    by_role: defaultdict[str, list[str]] = defaultdict(list)
    for split in splits:
        if (role := read_role(split)) is not None:
            by_role[role].append(split)
    for role, names in by_role.items():
        plain = [split for split in names if split == role]
        if len(names) > 1 and not plain:
            raise UsageError(
                f"--dataset {name} has several splits for one part of the text: "
                f"{', '.join(names)}. Write the text of one to a file and use --dataset FILE."
            )
        by_role[role] = plain or names
    return {role: names[0] for role, names in by_role.items()}


def _corpus(name: str, texts: Mapping[str, _Reader]) -> Corpus:
    """Decides what to train and validate on; `texts` has a reader for each role there is."""
    roles = pick(texts)
    train, notes = texts[roles[0]]()
    if len(roles) == 1:
        train, validation = _split(train)
    else:
        validation, more = texts[roles[1]]()
        notes += more
    if roles not in (["train"], ["train", "validation"]):
        how = f"validates on {roles[1]}" if len(roles) > 1 else "validates on its last 10 %"
        only = f"{name} has only {' and '.join(roles)}: trains on {roles[0]}, {how}"
        notes.insert(0, only)
    if _is_blank(train) or _is_blank(validation):
        part = "training" if _is_blank(train) else "validation"
        raise UsageError(
            f"--dataset {name}: its {part} text is empty ({len(train)} bytes to train on, "
            f"{len(validation)} to validate on). Use a longer text."
        )
    if train == validation:
        notes.append(f"{name}: training and validation text are the same")
    return Corpus(train, validation, name, tuple(notes))


def _is_blank(text: bytes) -> bool:
    return not any(piece.strip() for piece in pieces(text))


def _split(text: bytes) -> tuple[bytes, bytes]:
    """The first 90 % and the rest; cut after the last line that ends from 85 to 90 %, if any."""
    low, high = len(text) * 85 // 100, len(text) * 90 // 100
    cut = text.rfind(b"\n", low, high) + 1
    if cut == 0:
        cut = high
        while cut < len(text) and text[cut] & 0xC0 == 0x80:  # inside a character
            cut += 1
    return text[:cut], text[cut:]


def _reader(files: list[Path]) -> _Reader:
    def read() -> tuple[bytes, list[str]]:
        if len(files) == 1 and files[0].suffix.lower() != ".parquet":
            return read_utf8(files[0])
        notes: list[str] = []
        return _join_rows(_rows(files, notes)), notes

    return read


def _rows(files: list[Path], notes: list[str]) -> Iterator[str | bytes | None]:
    for file in files:
        if file.suffix.lower() == ".parquet":
            yield from _read_parquet(file)
        else:
            text, more = read_utf8(file)
            notes += more
            yield text


def _read_parquet(path: Path) -> Iterator[str | None]:
    parquet = _extra("pyarrow.parquet", f"{path} is a parquet file")
    try:
        file = parquet.ParquetFile(path)
        columns: list[str] = file.schema_arrow.names
        kind = str(file.schema_arrow.field("text").type) if "text" in columns else ""
        if "string" in kind or kind == "null":
            for batch in file.iter_batches(columns=["text"]):
                yield from batch.column(0).to_pylist()
            return
    except Exception as error:  # a damaged file raises any of pyarrow's own
        reason = " ".join(str(error).split()).rstrip(".")
        raise UsageError(f"{path} is no sound parquet file: {reason}. Fetch it again.") from error
    raise UsageError(
        f"{path} has no column 'text' of strings; its columns: {', '.join(columns)}. "
        "Rename the column, or write the text to a .txt file."
    )


def _join_rows(rows: Iterable[str | bytes | None]) -> bytes:
    """Rows are lines or documents: each ends with a newline, its own or one added."""
    text = io.BytesIO()
    for row in rows:
        data = row.encode("utf-8") if isinstance(row, str) else row or b""
        text.write(data)
        if not data.endswith(b"\n"):
            text.write(b"\n")
    return text.getvalue()


def _expand(path: str | Path) -> Path:
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path.expanduser raises for an unknown user


def _looks_like_path(name: str) -> bool:
    return name.endswith(SUFFIXES) or name.startswith((".", "/", "~")) or name.count("/") > 1


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
