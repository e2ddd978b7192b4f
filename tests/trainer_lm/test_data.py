import math
import pickle

import numpy as np
import pytest
import torch

from trainer_callback import UsageError
from trainer_lm.data import Blocks, make_loaders
from trainer_lm.options import TextOptions
from trainer_lm.text import Corpus

TEXT = "".join(f"{number:03d}," for number in range(250))  # 1000 bytes


def make(
    tmp_path,
    *,
    validation=TEXT[:130],
    block_size=16,
    batch_size=4,
    tokenizer="byte",
    **others,
):
    options = TextOptions(
        cache_dir=tmp_path / "cache", tokenizer=tokenizer, batch_size=batch_size, **others
    )
    corpus = Corpus(TEXT.encode(), validation.encode(), "numbers", ("a note",))
    return make_loaders(corpus, options, block_size)


def texts(loader):
    return [bytes(row.tolist()).decode() for batch in loader for row in batch["input_ids"]]


@pytest.mark.parametrize(("length", "count"), [(16, 0), (17, 1), (32, 1), (33, 2), (0, 0)])
def test_blocks_count_whole_blocks_only(length, count):
    assert len(Blocks(np.arange(length, dtype=np.uint8), 16)) == count


def test_labels_are_the_inputs_one_token_later():
    blocks = Blocks(np.arange(100, dtype=np.uint16), 16)
    batch = blocks.__getitems__([0, 3])
    assert batch["input_ids"].tolist() == [list(range(16)), list(range(48, 64))]
    assert torch.equal(batch["labels"], batch["input_ids"] + 1)
    for tensor in batch.values():
        assert tensor.dtype == torch.int64
        assert tensor.is_contiguous()


def test_one_block_is_a_row_of_the_batch():
    blocks = Blocks(np.arange(100, dtype=np.uint8), 16)
    assert torch.equal(blocks[2]["labels"], blocks.__getitems__([1, 2])["labels"][1])


def test_an_index_behind_the_last_block_is_refused():
    with pytest.raises(IndexError):
        Blocks(np.arange(100, dtype=np.uint8), 16)[6]


def test_a_batch_is_memory_of_its_own(tmp_path):
    np.save(tmp_path / "t.npy", np.arange(100, dtype=np.uint8))
    blocks = Blocks(tmp_path / "t.npy", 16)
    blocks.__getitems__([0])["input_ids"].zero_()
    assert blocks[0]["input_ids"][1] == 1


def test_pickled_blocks_are_a_path_and_not_the_tokens(tmp_path):
    np.save(tmp_path / "t.npy", np.zeros(100_000, dtype=np.uint8))
    pickled = pickle.dumps(Blocks(tmp_path / "t.npy", 16))
    assert len(pickled) < 1000
    assert len(pickle.loads(pickled)) == 99_999 // 16


def test_an_epoch_is_one_pass_over_the_training_text(tmp_path):
    train_loader, _, _ = make(tmp_path, batch_size=2)
    blocks = [TEXT[start : start + 16] for start in range(0, 62 * 16, 16)]
    got = texts(train_loader)
    assert sorted(got) == sorted(blocks)
    assert got != blocks


def test_an_incomplete_last_training_batch_is_left_out(tmp_path):
    train_loader, _, _ = make(tmp_path, batch_size=4)
    assert [len(batch["labels"]) for batch in train_loader] == [4] * 15


def test_the_order_is_that_of_the_samplers_generator(tmp_path):
    train_loader, _, _ = make(tmp_path)
    orders = []
    for seed in (1, 1, 2):
        train_loader.sampler.generator = torch.Generator().manual_seed(seed)
        orders.append(texts(train_loader))
    assert orders[0] == orders[1] != orders[2]


def test_validation_keeps_order_and_incomplete_batches(tmp_path):
    _, val_loader, _ = make(tmp_path, batch_size=3)
    assert texts(val_loader) == [TEXT[start : start + 16] for start in range(0, 128, 16)]
    assert [len(batch["labels"]) for batch in val_loader] == [3, 3, 2]


def test_worker_processes_give_the_same_batches(tmp_path):
    _, val_loader, _ = make(tmp_path)
    _, with_workers, _ = make(tmp_path, num_workers=2)
    assert texts(with_workers) == texts(val_loader)


def test_tokens_lie_in_a_mapped_file(tmp_path):
    train_loader, _, _ = make(tmp_path)
    assert isinstance(train_loader.dataset.tokens, np.memmap)
    assert train_loader.dataset.source.parent == tmp_path / "cache"


def test_facts_count_tokens_and_bytes(tmp_path):
    _, _, facts = make(tmp_path, validation="äöü" * 50, tokenizer="char")
    assert (facts.name, facts.train_tokens) == ("numbers", 1000)
    assert (facts.validation_bytes, facts.validation_tokens) == (300, 150)


def test_bits_per_byte_of_a_uniform_guess(tmp_path):
    _, _, facts = make(tmp_path)
    assert facts.bits_per_byte(math.log(256)) == pytest.approx(8.0)
    _, _, facts = make(tmp_path, validation="äöü" * 50, tokenizer="char")
    assert facts.bits_per_byte(math.log(4)) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["byte", "char", "bpe"])
def test_each_tokenizer_makes_batches_within_its_vocabulary(tmp_path, name):
    train_loader, val_loader, facts = make(
        tmp_path, batch_size=2, block_size=4, tokenizer=name, vocab_size=260
    )
    assert facts.tokenizer.name == name
    for loader in (train_loader, val_loader):
        assert max(int(batch["labels"].max()) for batch in loader) < facts.tokenizer.vocab_size


def test_characters_that_only_validation_has_are_told(tmp_path):
    _, _, facts = make(tmp_path, validation=TEXT[:130] + "ab!", tokenizer="char")
    assert facts.notes[0] == "a note"
    assert facts.notes[1].startswith("3 of the 133 characters of the validation text")


@pytest.mark.parametrize(
    ("options", "part"), [({"block_size": 1000}, "training"), ({"block_size": 130}, "validation")]
)
def test_a_text_shorter_than_a_block_is_refused(tmp_path, options, part):
    size = {"training": 1000, "validation": 130}[part]
    with pytest.raises(UsageError, match=rf"{part} text has {size} tokens.*--block_size") as caught:
        make(tmp_path, **options)
    assert f"needs at least {options['block_size'] + 1}" in str(caught.value)


def test_a_batch_larger_than_the_text_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"62 blocks of 16 tokens.*Use --batch_size 62"):
        make(tmp_path, batch_size=63)
    make(tmp_path, batch_size=62)
