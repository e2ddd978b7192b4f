import os
import resource
import subprocess
import sys
import time
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
    paths = {TokenCache(tmp_path).tokens(b"some text", tokenizer) for _ in range(3)}
    assert tokenizer.encoded == 1
    (path,) = paths
    assert bytes(np.load(path)) == b"some text"


def test_another_text_or_tokenizer_has_another_file(tmp_path):
    cache = TokenCache(tmp_path)
    paths = {
        cache.tokens(b"some text", ByteTokenizer()),
        cache.tokens(b"same text", ByteTokenizer()),
        cache.tokens(b"some text", CharTokenizer("aemost x")),
        cache.tokens(b"some text", CharTokenizer("aemost xy")),
    }
    assert len(paths) == 4


def test_only_finished_files_lie_in_the_folder(tmp_path):
    path = TokenCache(tmp_path).tokens(b"some text", ByteTokenizer())
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"PK\x03\x04 foreign", None])
def test_a_damaged_file_is_written_again(tmp_path, damage):
    path = TokenCache(tmp_path).tokens(b"some text", ByteTokenizer())
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] if damage is None else damage)
    assert TokenCache(tmp_path).tokens(b"some text", ByteTokenizer()) == path
    assert path.read_bytes() == sound


def test_a_bpe_tokenizer_is_trained_once(tmp_path):
    first = TokenCache(tmp_path).tokenizer(BPE, b"banana " * 50)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    second = TokenCache(tmp_path).tokenizer(BPE, b"banana " * 50)
    assert first.to_dict() == second.to_dict()
    assert path.stat().st_mtime_ns == written


def test_a_damaged_bpe_tokenizer_is_trained_again_and_told(tmp_path):
    first = TokenCache(tmp_path).tokenizer(BPE, b"banana " * 50)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    cache = TokenCache(tmp_path)
    assert cache.tokenizer(BPE, b"banana " * 50).to_dict() == first.to_dict()
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
    tokens = cache.tokens(b"some text", ByteTokenizer())
    assert bytes(tokens) == b"some text"
    assert cache.folder is None
    assert len(cache.notes) == 1
    assert "tokens stay in memory" in cache.notes[0]
    assert cache.tokenizer(BPE, b"banana " * 50).vocab_size > 256


def test_an_unusable_folder_that_was_asked_for_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    cache = TokenCache(tmp_path / "file" / "folder")
    with pytest.raises(UsageError, match=r"--cache_dir: .*folder cannot be written: Not a"):
        cache.tokens(b"some text", ByteTokenizer())


def test_an_unknown_home_that_was_asked_for_is_an_error():
    with pytest.raises(UsageError, match="--cache_dir"):
        TokenCache(Path("~nobody-of-this-name/x"))


def damage(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("position", [0, 20, 128, -33, -32, -1])
def test_a_flipped_bit_anywhere_is_noticed_and_the_file_written_again(tmp_path, position):
    path = TokenCache(tmp_path).tokens(b"some text" * 9, ByteTokenizer())
    damage(path, position)
    cache = TokenCache(tmp_path)
    assert bytes(np.load(cache.tokens(b"some text" * 9, ByteTokenizer()))) == b"some text" * 9
    assert cache.notes == [f"{path} was damaged and is written again"]
    again = TokenCache(tmp_path)
    assert again.tokens(b"some text" * 9, ByteTokenizer()) == path
    assert again.notes == []


def test_a_sound_file_of_another_text_is_noticed(tmp_path):
    path = TokenCache(tmp_path).tokens(b"some text", ByteTokenizer())
    other = TokenCache(tmp_path).tokens(b"another t", ByteTokenizer())
    path.write_bytes(other.read_bytes())
    assert (
        bytes(np.load(TokenCache(tmp_path).tokens(b"some text", ByteTokenizer()))) == b"some text"
    )


@pytest.mark.parametrize("content", [b'{"kind": "byte"}', b'{"kind": "char", "characters": "ab"}'])
def test_a_cached_tokenizer_of_another_kind_is_noticed(tmp_path, content):
    first = TokenCache(tmp_path).tokenizer(BPE, b"banana " * 50)
    (path,) = tmp_path.iterdir()
    path.write_bytes(content)
    cache = TokenCache(tmp_path)
    assert cache.tokenizer(BPE, b"banana " * 50).to_dict() == first.to_dict()
    assert "was damaged" in cache.notes[0]


def test_a_folder_that_cannot_be_written_but_has_the_tokens_serves_them(tmp_path, monkeypatch):
    path = TokenCache(tmp_path).tokens(b"some text", ByteTokenizer())
    monkeypatch.setattr(TokenCache, "_write", None)
    assert TokenCache(tmp_path).tokens(b"some text", ByteTokenizer()) == path


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path):
    for name, age in (
        (".trainer-lm-new-old", 90_000),
        (".trainer-lm-new-young", 60),
        (".new-of-others", 90_000),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half.npy").write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    path = TokenCache(tmp_path).tokens(b"some text", ByteTokenizer())
    assert {p.name for p in tmp_path.iterdir()} == {
        ".trainer-lm-new-young",
        ".new-of-others",
        path.name,
    }


def test_two_processes_may_build_the_same_entry_at_once(tmp_path):
    program = (
        "import sys, pathlib, numpy; from trainer_lm.cache import TokenCache\n"
        "from trainer_lm.tokenizer import ByteTokenizer\n"
        "sys.stdin.readline()\n"
        "cache = TokenCache(pathlib.Path(sys.argv[1]))\n"
        "print(numpy.load(cache.tokens(b'text' * 10**6, ByteTokenizer())).size, cache.notes)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for each in running:
        each.stdin.write("\n")
        each.stdin.flush()
    assert [each.communicate()[0] for each in running] == ["4000000 []\n"] * 2
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_keeps_tokens_in_memory_and_leaves_nothing(tmp_path):
    limit = (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    program = (
        "import resource, signal, pathlib, sys; from trainer_lm.cache import TokenCache\n"
        "from trainer_lm.tokenizer import ByteTokenizer\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, {limit})\n"
        "cache = TokenCache()\n"
        "print(len(cache.tokens(b'text' * 10**6, ByteTokenizer())), cache.notes)\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.startswith("4000000 ")
    assert "tokens stay in memory" in done.stdout
    assert list((tmp_path / "trainer-lm").iterdir()) == []
