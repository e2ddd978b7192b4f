"""Text to token ids and back: bytes, characters, or byte-pair encoding.

Knows nothing of files other than the one JSON file that a tokenizer is kept in, nor of torch.
"""

from __future__ import annotations

import itertools
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from trainer_callback import UsageError

from .options import TextOptions
from .utf8 import pieces

if TYPE_CHECKING:
    import tokenizers

__all__ = [
    "BpeTokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "TokenArray",
    "Tokenizer",
    "load_tokenizer",
    "parse_tokenizer",
    "tokenizer_bytes",
    "train_tokenizer",
]

TokenArray: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]
"""Token ids, 1-D, of the smallest unsigned type that holds the vocabulary."""


class Tokenizer(ABC):
    """Text to ids and back.

    Attributes:
        name: what `--tokenizer` calls it.
        vocab_size: number of distinct ids; ids are 0 to `vocab_size - 1`.
    """

    name: ClassVar[str]
    vocab_size: int

    @abstractmethod
    def encode(self, text: str) -> TokenArray:
        """Returns the ids of `text`."""

    def encode_pieces(self, texts: Iterable[str]) -> Iterator[TokenArray]:
        """Yields the ids of each of `texts`, which are read a few at a time."""
        return map(self.encode, texts)

    @abstractmethod
    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> str:
        """Returns the text of `ids`; what is no valid text is shown as U+FFFD."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Returns what `load_tokenizer` needs, as plain JSON data."""


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8: knows every text, needs no training."""

    name = "byte"
    vocab_size = 256

    def encode(self, text: str) -> TokenArray:
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> str:
        return np.asarray(ids, dtype=np.uint8).tobytes().decode("utf-8", errors="replace")

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.name}


class CharTokenizer(Tokenizer):
    """One id for each character of the training text; id 0 stands for all others.

    Args:
        characters: the known characters, without repetition; the first gets id 1.
    """

    name = "char"
    unknown: ClassVar[int] = 0

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self.vocab_size: int = len(characters) + 1
        self._codes = _code_points("\ufffd" + characters)  # id -> code point
        dtype = np.min_scalar_type(self.vocab_size - 1)
        # Code point -> id; the last entry stands for all that are higher.
        self._ids = np.full(int(self._codes.max()) + 2, self.unknown, dtype)
        self._ids[self._codes] = np.arange(self.vocab_size, dtype=dtype)

    @classmethod
    def train(cls, texts: Iterable[str]) -> CharTokenizer:
        """Returns the tokenizer of the characters of `texts`."""
        characters: set[str] = set()
        for text in texts:
            characters.update(text)
        return cls("".join(sorted(characters - {"\ufffd"})))

    def encode(self, text: str) -> TokenArray:
        ids: TokenArray = self._ids.take(_code_points(text), mode="clip")
        return ids

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> str:
        return self._codes[np.asarray(ids, dtype=np.int64)].tobytes().decode("utf-32-le")

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.name, "characters": self.characters}


class BpeTokenizer(Tokenizer):
    """Byte-pair encoding over bytes: knows every text, frequent words are one token.

    Source: Sennrich et al., arXiv:1508.07909, over bytes as in GPT-2; by the library `tokenizers`.

    Args:
        tokenizer: a trained `tokenizers.Tokenizer`.
    """

    name = "bpe"

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.vocab_size: int = tokenizer.get_vocab_size()
        self._dtype = np.min_scalar_type(self.vocab_size - 1)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> BpeTokenizer:
        """Returns a tokenizer trained on `texts`, of at most `vocab_size` tokens.

        Raises:
            UsageError: the library `tokenizers` is not installed.
        """
        _import_tokenizers()
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(iter(texts), trainer)
        return cls(tokenizer)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BpeTokenizer:
        """Returns the tokenizer of what `to_dict` returned.

        Raises:
            UsageError: the library `tokenizers` is not installed.
            ValueError: it is no such tokenizer.
        """
        _import_tokenizers()
        from tokenizers import Tokenizer

        try:
            return cls(Tokenizer.from_str(json.dumps(data)))
        except Exception as error:  # the library raises plain Exception
            raise ValueError(str(error)) from error

    def encode(self, text: str) -> TokenArray:
        """Returns the ids of `text`, which is cut into pieces, at line ends where there are any."""
        ids = [np.empty(0, self._dtype), *self.encode_pieces(pieces(text.encode("utf-8")))]
        return np.concatenate(ids)

    def encode_pieces(self, texts: Iterable[str]) -> Iterator[TokenArray]:
        remaining = iter(texts)
        # One call encodes on all cores; an Encoding is large, so only a few of them live at a time.
        while batch := list(itertools.islice(remaining, 32)):
            encodings = self._tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            yield from (np.array(encoding.ids, self._dtype) for encoding in encodings)

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> str:
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False))

    def to_dict(self) -> dict[str, Any]:
        """Returns the file format of `tokenizers`, which its users can load too."""
        data: dict[str, Any] = json.loads(self._tokenizer.to_str())
        return data


def train_tokenizer(options: TextOptions, texts: Iterable[str]) -> Tokenizer:
    """Returns the tokenizer that `--tokenizer` names, trained on `texts` where it needs training.

    Raises:
        UsageError: bpe, and the library `tokenizers` is not installed.
    """
    if options.tokenizer == "byte":
        return ByteTokenizer()
    if options.tokenizer == "char":
        return CharTokenizer.train(texts)
    return BpeTokenizer.train(texts, options.vocab_size)


def tokenizer_bytes(tokenizer: Tokenizer) -> bytes:
    """Returns the contents of the JSON file that `load_tokenizer` reads."""
    return json.dumps(tokenizer.to_dict()).encode("ascii")


def parse_tokenizer(content: bytes) -> Tokenizer:
    """Returns the tokenizer of what `tokenizer_bytes` returned, or of a file of `tokenizers`.

    Raises:
        ValueError: it is no tokenizer.
        UsageError: it is bpe and `tokenizers` is not installed.
    """
    data = json.loads(content)
    if not isinstance(data, dict):
        raise ValueError("it is no mapping")
    kind = data.get("kind", "bpe")
    if kind == "byte":
        return ByteTokenizer()
    if kind == "char":
        characters = data.get("characters")
        if not isinstance(characters, str) or len(set(characters)) != len(characters):
            raise ValueError("it has no list of characters")
        return CharTokenizer(characters)
    return BpeTokenizer.from_dict(data)


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Returns the tokenizer in the file `path`, written by this program or by `tokenizers`.

    Raises:
        UsageError: it cannot be read, is no tokenizer, or is bpe and `tokenizers` is not installed.
    """
    try:
        return parse_tokenizer(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"{path} is no tokenizer that can be read: {reason}. "
            "Give a tokenizer.json that train-lm wrote."
        ) from error


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")


def _import_tokenizers() -> None:
    # Set by hand, it keeps the library from warning about each loader process that is forked later.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--tokenizer bpe needs the library tokenizers, which could not be imported: {error}. "
            'pip install "trainer-core[hf]", or use --tokenizer byte.'
        ) from error
