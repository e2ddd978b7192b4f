"""A text as its bytes in UTF-8, which are what its file has, and a piece at a time as `str`: held
whole, one character beyond U+FFFF would make every character of it four bytes.

Knows of one file what it is; which files make a text is decided elsewhere.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from trainer.writers.named_file import read_named
from trainer_callback import UsageError

__all__ = ["pieces", "read_utf8"]

_PIECE: Final = 2**17


def pieces(text: bytes, size: int = _PIECE) -> Iterator[str]:
    """Yields `text` in pieces of at most `size` bytes, cut at the end of a line where there is one,
    and never inside a character.

    Raises:
        UnicodeDecodeError: it is no UTF-8; offsets are those in `text`.
    """
    start = 0
    while start < len(text):
        end = min(start + size, len(text))
        if end < len(text):
            end = text.rfind(b"\n", start, end) + 1 or _before_character(text, end)
        try:
            piece = text[start:end].decode("utf-8")
        except UnicodeDecodeError as error:
            low, high = start + error.start, start + error.end
            raise UnicodeDecodeError("utf-8", text, low, high, error.reason) from None
        yield piece
        start = end


def _before_character(text: bytes, end: int) -> int:
    """The last start of a character at or before `end`, which is no further than 3 bytes away."""
    for position in range(end, end - 4, -1):
        if text[position] & 0xC0 != 0x80:
            return position
    return end  # no UTF-8


def read_utf8(path: Path) -> tuple[bytes, list[str]]:
    """Returns the text of a file without its byte order mark, and notes about it.

    Raises:
        UsageError: it is something else than UTF-8; the message says what, and how to convert it.
        OSError: it cannot be read.
    """
    text = read_named(path)
    foreign = _find_foreign(text)
    if foreign is not None:
        raise UsageError(f"{path} is {foreign}")
    try:
        for _ in pieces(text):
            pass
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8: byte 0x{text[error.start]:02x} at offset {error.start}. "
            f"{_advise(text, error)}"
        ) from None
    zeros = text.count(0)
    notes = [f"{path} has {zeros} bytes of 0, as no text has"] if zeros else []
    return text.removeprefix(codecs.BOM_UTF8), notes


_ICONV: Final = "Convert it first: iconv -f {} -t UTF-8 FILE > NEW_FILE."
_MARKS: Final = (
    # Longer marks first: that of UTF-32-LE begins like that of UTF-16-LE.
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_FORMATS: Final = (
    (b"\x1f\x8b", "a gzip file. Unpack it first: gunzip FILE."),
    (b"BZh", "a bzip2 file. Unpack it first: bunzip2 FILE."),
    (b"\xfd7zXZ\x00", "an xz file. Unpack it first: unxz FILE."),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file. Unpack it first: unzstd FILE."),
    (b"PK\x03\x04", "a zip file (as .docx, .odt and .epub are). Save its text as a .txt file."),
    (b"%PDF-", "a PDF file. Extract its text first: pdftotext FILE."),
    (b"PAR1", "a parquet file. Give it a name that ends in .parquet."),
)


def _find_foreign(text: bytes) -> str | None:
    """What the first bytes say that the file is, with what to do; None for a text of bytes."""
    for mark, encoding in _MARKS:
        if text.startswith(mark):
            return f"{encoding}, not UTF-8. {_ICONV.format(encoding)}"
    for magic, what in _FORMATS:
        if text.startswith(magic) and (magic != b"BZh" or text[4:10] == b"1AY&SY"):
            return what
    # Without a mark: of ASCII in wider units, all bytes but the one are 0.
    head = text[: 2**12]
    zeros = [head[offset::4].count(0) / max(1, len(head) // 4) for offset in range(4)]
    for encoding, is_zero in (
        ("UTF-32LE", (0, 1, 1, 1)),
        ("UTF-32BE", (1, 1, 1, 0)),
        ("UTF-16LE", (0, 1, 0, 1)),
        ("UTF-16BE", (1, 0, 1, 0)),
    ):
        if all(abs(share - wanted) < 0.3 for share, wanted in zip(zeros, is_zero, strict=True)):
            return f"{encoding}, not UTF-8. {_ICONV.format(encoding)}"
    if head.count(0) > len(head) // 20:
        return "no text: it has many bytes of 0. Use --dataset with a UTF-8 text."
    return None


def _advise(text: bytes, error: UnicodeDecodeError) -> str:
    """What to do about a file of bytes that is not UTF-8 at one place."""
    if error.start >= len(text) - 3 and error.reason == "unexpected end of data":
        return "It ends inside a character: it was cut. Fetch it again."
    before = text[: error.start]
    if error.start >= 2**10 and not before[-(2**20) :].isascii():
        return "It is up to there: leave out what is damaged with iconv -c -f UTF-8 -t UTF-8."
    controls = sum(text[: 2**20].count(code) for code in range(1, 9))
    if controls > 10:
        return "It seems to be no text at all. Use --dataset with a UTF-8 text."
    # 0x80 to 0x9f are signs of Windows-1252, such as its dash and its quotes, and none of Latin-1.
    is_windows = any(0x80 <= byte < 0xA0 for byte in text[error.start : error.start + 2**16])
    guess = "WINDOWS-1252" if is_windows else "LATIN1"
    return f"Convert it first, such as with iconv -f {guess} -t UTF-8."
