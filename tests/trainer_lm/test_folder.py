"""Which files of a folder are taken for what: said in one line, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer_callback import UsageError
from trainer_lm.options import TextOptions
from trainer_lm.text import Corpus, load_text


def load(folder: Path, *names: str) -> Corpus:
    """Loads a folder whose files contain their own names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{name}\n")
    return load_text(TextOptions(dataset=str(folder)))


def test_a_dead_link_where_a_part_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "valid.txt").symlink_to("gone.txt")
    with pytest.raises(UsageError, match=r"valid\.txt is a dead link"):
        load(tmp_path, "train.txt")


@pytest.mark.parametrize("name", ["VALID.TXT", "Valid.Txt", "corpus.DEV.Raw"])
def test_capitals_do_not_matter(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, "train.txt", name).validation == f"{name}\n".encode()


def test_notes_beside_a_corpus_are_not_trained_on(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"found: corpus\.txt, my_training_notes\.txt"):
        load(tmp_path, "corpus.txt", "my_training_notes.txt")


def test_what_looks_like_a_part_and_is_not_used_is_named(tmp_path: Path) -> None:
    names = ["train_data.txt", "training_notes.txt", "valid.csv", "._train.txt", "test/a.txt"]
    (said,) = load(tmp_path, *names, "val.txt", "README.txt", "train.txt.gz").notes
    assert said == (
        f"{tmp_path}: trains on train_data.txt, validates on val.txt; not used: ._train.txt, "
        "test/, train.txt.gz, training_notes.txt, valid.csv"
    )


def test_a_folder_without_a_validation_file_says_what_it_validates_on(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n" * 50)
    notes = load(tmp_path, "valid.csv").notes
    assert notes[-1].endswith("trains on a.txt, validates on its last 10 %; not used: valid.csv")


@pytest.mark.parametrize("form", ["train-{}.txt", "train{}.txt", "my.train_{}.txt", "train.{}.raw"])
def test_numbers_without_zeros_in_front_are_in_their_order(tmp_path: Path, form: str) -> None:
    names = [form.format(number) for number in (0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9)]
    corpus = load(tmp_path, *names, "valid.txt")
    ordered = "".join(f"{form.format(number)}\n" for number in range(12))
    assert corpus.train == ordered.encode()
    assert "train" in corpus.notes[0]
    assert "(12 files)" in corpus.notes[0]


def test_a_number_that_is_missing_is_named(tmp_path: Path) -> None:
    notes = load(tmp_path, "train-1.txt", "train-2.txt", "train-4.txt", "val.txt").notes
    assert "train-1.txt: number 3 is missing" in notes


@pytest.mark.parametrize(
    "names",
    [
        ("valid.txt", "validation.txt"),
        ("valid-1.txt", "validation-2.txt"),
        ("valid-1.txt", "valid-1.raw"),
        ("valid-1.txt", "valid-2.raw"),
        ("valid-1.txt", "valid-01.txt"),
        ("valid.txt", "valid-1.txt"),
        ("valid-0-of-2.txt", "valid-1-of-3.txt"),
        ("valid-0-of-2.txt", "valid-1.txt"),
        ("wiki-2.valid.txt", "wiki-103.valid.txt"),
        ("valid.txt", "VALID.txt"),
    ],
)
def test_files_that_may_be_one_text_twice_are_refused(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError, match="has 2 files for one part of the text"):
        load(tmp_path, "train.txt", *names)


def test_hidden_files_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found: nothing"):
        load(tmp_path, "._train.txt", ".valid.txt")


def test_folders_are_listed_where_there_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found: train/, valid/"):
        load(tmp_path, "train/a.txt", "valid/a.txt")


def test_one_text_for_both_parts_is_told(tmp_path: Path) -> None:
    (tmp_path / "valid.txt").symlink_to("train.txt")
    assert f"{tmp_path}: training and validation text are the same" in (
        load(tmp_path, "train.txt").notes
    )
