import sys

import numpy as np
import pytest
import tokenizers

from trainer_callback import UsageError
from trainer_lm.options import TextOptions
from trainer_lm.tokenizer import (
    BpeTokenizer,
    ByteTokenizer,
    CharTokenizer,
    load_tokenizer,
    tokenizer_bytes,
    train_tokenizer,
)

TEXT = "to be, or not to be:\n\tthat is the question — 東京 🙂\r\n" * 20


@pytest.fixture(params=["byte", "char", "bpe"])
def tokenizer(request):
    return train_tokenizer(TextOptions(tokenizer=request.param, vocab_size=300), [TEXT])


def test_decode_undoes_encode(tokenizer):
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.decode(ids.tolist()) == TEXT


def test_ids_are_small_unsigned_and_within_the_vocabulary(tokenizer):
    ids = tokenizer.encode(TEXT)
    assert ids.ndim == 1
    assert ids.dtype == np.min_scalar_type(tokenizer.vocab_size - 1)
    assert ids.max() < tokenizer.vocab_size


def test_the_empty_text_has_no_tokens(tokenizer):
    ids = tokenizer.encode("")
    assert len(ids) == 0
    assert ids.dtype == tokenizer.encode(TEXT).dtype
    assert tokenizer.decode(ids) == ""


def test_a_file_keeps_a_tokenizer(tokenizer, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_bytes(tokenizer))
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert type(loaded) is type(tokenizer)
    assert loaded.to_dict() == tokenizer.to_dict()
    assert np.array_equal(loaded.encode(TEXT), tokenizer.encode(TEXT))


def test_byte_shows_broken_utf8_as_replacement():
    assert ByteTokenizer().decode([0x61, 0xE6, 0x62]) == "a\ufffdb"


def test_char_turns_unknown_characters_into_id_0():
    tokenizer = CharTokenizer.train("ab🙂")
    assert tokenizer.encode("a\U0010ffffb\ufffd\x00🙂").tolist() == [1, 0, 2, 0, 0, 3]
    assert tokenizer.decode([1, 0, 2]) == "a\ufffdb"


def test_char_counts_the_replacement_character_of_a_text_as_unknown():
    tokenizer = CharTokenizer.train("a\ufffdb")
    assert tokenizer.vocab_size == 3
    assert tokenizer.encode("\ufffdb").tolist() == [0, 2]


def test_char_ids_do_not_depend_on_the_order_of_the_text():
    assert CharTokenizer.train("cab").characters == "abc"


def test_char_holds_more_than_256_characters():
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 1000)))
    tokenizer = CharTokenizer.train(text)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.uint16
    assert tokenizer.decode(ids) == text


def test_bpe_learns_the_words_of_the_text():
    tokenizer = BpeTokenizer.train([TEXT], vocab_size=290)
    assert tokenizer.vocab_size == 290
    assert len(tokenizer.encode("the question")) < 5


def test_bpe_knows_texts_that_it_was_not_trained_on():
    tokenizer = BpeTokenizer.train(["abc " * 50], vocab_size=260)
    assert tokenizer.decode(tokenizer.encode("Ünïcödé 東京 \x00")) == "Ünïcödé 東京 \x00"


def test_bpe_is_the_same_for_the_same_text():
    first, second = (BpeTokenizer.train([TEXT], vocab_size=290) for _ in range(2))
    assert first.to_dict() == second.to_dict()


def test_bpe_encodes_a_text_of_many_pieces_without_loss():
    text = "".join(f"line number {number}, of many\n" for number in range(20_000)) + "x" * 300_000
    tokenizer = BpeTokenizer.train([text[:10_000]], vocab_size=300)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_file_of_bpe_is_one_that_its_library_reads(tmp_path):
    tokenizer = BpeTokenizer.train([TEXT], vocab_size=300)
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_bytes(tokenizer))
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.encode("to be").ids == tokenizer.encode("to be").tolist()


def test_bpe_without_its_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UsageError, match=r'pip install "trainer-core\[hf\]"'):
        train_tokenizer(TextOptions(tokenizer="bpe"), [TEXT])


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"kind": "char"}', '{"kind": "word"}', '{"model": 1}'],
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(UsageError, match=r"t\.json is no tokenizer that can be read"):
        load_tokenizer(tmp_path / "t.json")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        load_tokenizer(tmp_path / "t.json")
