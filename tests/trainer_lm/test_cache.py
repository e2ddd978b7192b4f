from pathlib import Path

import numpy as np
import pytest

from trainer_callback import UsageError
from trainer_lm.cache import TokenCache
from trainer_lm.options import TextOptions
from trainer_lm.tokenizer import ByteTokenizer, CharTokenizer

BPE = TextOptions(tokenizer="bpe", vocab_size=270)


class CountingTokenizer(ByteTokenizer):
    def __init__(self):
        super().__init__()
        self.encoded = 0

    def encode(self, text):
        self.encoded += 1
        return super().encode(text)


def test_a_text_is_encoded_once(tmp_path):
    tokenizer = CountingTokenizer()
    paths = {TokenCache(tmp_path).tokens("some text", tokenizer) for _ in range(3)}
    assert tokenizer.encoded == 1
    (path,) = paths
    assert bytes(np.load(path)) == b"some text"


def test_another_text_or_tokenizer_has_another_file(tmp_path):
    cache = TokenCache(tmp_path)
    paths = {
        cache.tokens("some text", ByteTokenizer()),
        cache.tokens("same text", ByteTokenizer()),
        cache.tokens("some text", CharTokenizer("aemost x")),
        cache.tokens("some text", CharTokenizer("aemost xy")),
    }
    assert len(paths) == 4


def test_only_finished_files_lie_in_the_folder(tmp_path):
    path = TokenCache(tmp_path).tokens("some text", ByteTokenizer())
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"PK\x03\x04 foreign", None])
def test_a_damaged_file_is_written_again(tmp_path, damage):
    path = TokenCache(tmp_path).tokens("some text", ByteTokenizer())
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] if damage is None else damage)
    assert TokenCache(tmp_path).tokens("some text", ByteTokenizer()) == path
    assert path.read_bytes() == sound


def test_a_bpe_tokenizer_is_trained_once(tmp_path):
    first = TokenCache(tmp_path).tokenizer(BPE, "banana " * 50)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    second = TokenCache(tmp_path).tokenizer(BPE, "banana " * 50)
    assert first.to_dict() == second.to_dict()
    assert path.stat().st_mtime_ns == written


def test_a_damaged_bpe_tokenizer_is_trained_again_and_told(tmp_path):
    first = TokenCache(tmp_path).tokenizer(BPE, "banana " * 50)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    cache = TokenCache(tmp_path)
    assert cache.tokenizer(BPE, "banana " * 50).to_dict() == first.to_dict()
    assert "was damaged" in cache.notes[0]


def test_the_default_folder_follows_xdg_cache_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert TokenCache().folder == tmp_path / "trainer-lm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert TokenCache().folder == tmp_path / ".cache" / "trainer-lm"


def test_an_unusable_default_folder_keeps_tokens_in_memory_and_says_so(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache = TokenCache()
    tokens = cache.tokens("some text", ByteTokenizer())
    assert bytes(tokens) == b"some text"
    assert cache.folder is None
    assert len(cache.notes) == 1
    assert "tokens stay in memory" in cache.notes[0]
    assert cache.tokenizer(BPE, "banana " * 50).vocab_size > 256


def test_an_unusable_folder_that_was_asked_for_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    cache = TokenCache(tmp_path / "file" / "folder")
    with pytest.raises(UsageError, match=r"--cache_dir: .*folder cannot be written: Not a"):
        cache.tokens("some text", ByteTokenizer())


def test_an_unknown_home_that_was_asked_for_is_an_error():
    with pytest.raises(UsageError, match="--cache_dir"):
        TokenCache(Path("~nobody-of-this-name/x"))
