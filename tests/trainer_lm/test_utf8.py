"""A file that is no text in UTF-8 is told what it is, and what to do."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import pytest

from trainer_callback import UsageError
from trainer_lm.utf8 import pieces, read_utf8

TEXT = "To be, or not to be\nthat is the question\n" * 20


def read(folder: Path, content: bytes) -> tuple[bytes, list[str]]:
    (folder / "a.txt").write_bytes(content)
    return read_utf8(folder / "a.txt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (TEXT.encode("utf-16"), "is UTF-16, not UTF-8. Convert it first: iconv -f UTF-16 -t UTF-8"),
        (b"\xfe\xff" + TEXT.encode("utf-16-be"), "is UTF-16, not UTF-8"),
        (TEXT.encode("utf-32"), "is UTF-32, not UTF-8. Convert it first: iconv -f UTF-32 -t UTF-8"),
        (TEXT.encode("utf-16-le"), "is UTF-16LE, not UTF-8. Convert it first: iconv -f UTF-16LE"),
        (TEXT.encode("utf-16-be"), "is UTF-16BE, not UTF-8"),
        (TEXT.encode("utf-32-le"), "is UTF-32LE, not UTF-8"),
        (TEXT.encode("utf-32-be"), "is UTF-32BE, not UTF-8"),
        (TEXT.encode() + "é".encode("latin-1") + b"x", "iconv -f LATIN1 -t UTF-8"),
        (
            TEXT.encode() + "\u201cit\u2019s\u201d".encode("cp1252"),
            "iconv -f WINDOWS-1252 -t UTF-8",
        ),
        ("äöü".encode() * 900 + b"\xff" + "ä".encode(), "iconv -c -f UTF-8 -t UTF-8"),
        (TEXT.encode() + "東".encode()[:2], "It ends inside a character: it was cut"),
        (gzip.compress(TEXT.encode(), mtime=0), "is a gzip file. Unpack it first: gunzip FILE"),
        (bz2.compress(TEXT.encode()), "is a bzip2 file"),
        (lzma.compress(TEXT.encode()), "is an xz file"),
        (b"%PDF-1.7\n" + TEXT.encode(), "is a PDF file. Extract its text"),
        (b"PK\x03\x04" + TEXT.encode(), "is a zip file"),
        (b"PAR1" + TEXT.encode(), "is a parquet file. Give it a name that ends in .parquet"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20, "no text"),
        (b"\x7fELF\x02" + bytes(4000), "is no text: it has many bytes of 0"),
    ],
)
def test_what_is_no_utf8_is_told_what_it_is(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, content)
    assert said in str(caught.value)
    assert str(tmp_path / "a.txt") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stray_zero_in_a_text_is_told(tmp_path: Path) -> None:
    text, notes = read(tmp_path, TEXT.encode() + b"\0")
    assert text == TEXT.encode() + b"\0"
    assert "has 1 bytes of 0" in notes[0]


@pytest.mark.parametrize(
    "text", ["", "a", TEXT, "東京 🙂 ä" * 50, "🙂" * 40, "x" * 100, "BZhang\n", "\x1b[0m\n" * 9]
)
@pytest.mark.parametrize("size", [4, 7, 64])
def test_pieces_are_whole_characters_and_the_whole_text(
    tmp_path: Path, text: str, size: int
) -> None:
    content, notes = read(tmp_path, text.encode())
    assert notes == []
    found = list(pieces(content, size))
    assert "".join(found) == text
    assert all(0 < len(piece.encode()) <= size for piece in found)


def test_the_place_of_a_wrong_byte_is_that_in_the_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="byte 0xff at offset 300005"):
        read(tmp_path, b"x" * 300_005 + b"\xff" + b"y" * 300_000)
