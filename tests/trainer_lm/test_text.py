import json
import os
import subprocess
import sys
import threading
import types
from typing import NamedTuple

import pytest

from trainer_callback import UsageError
from trainer_lm.options import TextOptions
from trainer_lm.text import load_text

LINES = "".join(f"line {number}\n" for number in range(100))


class Loaded(NamedTuple):
    """A corpus as text."""

    train: str
    validation: str
    name: str
    notes: tuple[str, ...]


def load(dataset, **options):
    corpus = load_text(TextOptions(dataset=str(dataset), **options))
    return Loaded(corpus.train.decode(), corpus.validation.decode(), corpus.name, corpus.notes)


def write(folder, **files):
    for name, text in files.items():
        (folder / name.replace("__", "-").replace("_", ".")).write_text(text)
    return folder


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the library `datasets`, which cannot be used without a network."""

    class Rows(dict):
        column_names = property(list)

    module = types.ModuleType("datasets")
    module.splits, module.asked = {}, []

    def load_dataset(repository, config):
        module.asked.append((repository, config))
        if not module.splits:
            raise ConnectionError("Couldn't reach the Hub.")
        return {split: Rows(columns) for split, columns in module.splits.items()}

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_the_default_is_pythons_language_reference_split_90_to_10():
    corpus = load_text(TextOptions())
    assert corpus.name == "pydoc"
    assert b"expression" in corpus.train
    size = len(corpus.train) + len(corpus.validation)
    assert size > 300_000
    assert 0.85 < len(corpus.train) / size <= 0.9


def test_a_file_is_cut_at_the_end_of_a_line(tmp_path):
    corpus = load(write(tmp_path, a_txt=LINES) / "a.txt")
    assert corpus.train + corpus.validation == LINES
    assert corpus.train.endswith("\n")
    assert corpus.notes == ()


def test_a_file_of_one_line_is_cut_at_90_percent(tmp_path):
    corpus = load(write(tmp_path, a_md="x" * 1000) / "a.md")
    assert (len(corpus.train), len(corpus.validation)) == (900, 100)


def test_newlines_and_non_ascii_stay_and_the_byte_order_mark_goes(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffäß\r\n東京\n".encode() * 9)
    corpus = load(tmp_path / "a.txt")
    assert corpus.train.startswith("äß\r\n東京\n")


@pytest.mark.parametrize("suffix", ["txt", "tokens", "raw"])
@pytest.mark.parametrize("validation", ["valid", "validation", "val", "dev"])
def test_a_folder_has_train_and_validation_files(tmp_path, suffix, validation):
    (tmp_path / f"wiki.train.{suffix}").write_text("train\n")
    (tmp_path / f"wiki.{validation}.{suffix}").write_text("valid\n")
    (tmp_path / f"wiki.test.{suffix}").write_text("test\n")
    (tmp_path / "README.txt").write_text("nothing")
    corpus = load(tmp_path)
    assert (corpus.train, corpus.validation) == ("train\n", "valid\n")
    (said,) = corpus.notes
    assert f"trains on wiki.train.{suffix}, validates on wiki.{validation}.{suffix}; not" in said
    assert f"not used: wiki.test.{suffix}" in said


def test_without_a_training_file_it_trains_on_validation_and_says_so(tmp_path):
    corpus = load(write(tmp_path, valid_txt="v\n", test_txt="t\n"))
    assert (corpus.train, corpus.validation) == ("v\n", "t\n")
    assert "trains on validation, validates on test" in corpus.notes[0]


def test_without_a_validation_file_it_validates_on_test_and_says_so(tmp_path):
    corpus = load(write(tmp_path, train_txt="a\n", test_txt="t\n"))
    assert (corpus.train, corpus.validation) == ("a\n", "t\n")
    assert "validates on test" in corpus.notes[0]


def test_a_folder_with_a_single_text_file_is_as_that_file(tmp_path):
    assert (
        load(write(tmp_path, book_txt=LINES)).validation == load(tmp_path / "book.txt").validation
    )


def test_numbered_parts_are_joined_in_order(tmp_path):
    parts = {"train-00001-of-00002.txt": "b\n", "train-00000-of-00002.txt": "a", "val.txt": "v"}
    for name, text in parts.items():
        (tmp_path / name).write_text(text)
    corpus = load(tmp_path)
    assert corpus.train == "a\nb\n"
    assert len(corpus.notes) == 1


def test_missing_parts_are_told(tmp_path):
    (tmp_path / "train-00000-of-00041.txt").write_text(LINES)
    assert "only 1 of its 41 parts" in load(tmp_path).notes[0]


def test_two_forms_of_one_text_are_refused(tmp_path):
    write(tmp_path, train_txt="a", train_raw="a", val_txt="v")
    with pytest.raises(UsageError, match=r"train\.raw, train\.txt"):
        load(tmp_path)


def test_a_file_that_is_not_used_may_be_there_twice(tmp_path):
    write(tmp_path, train_txt="a", val_txt="v", test_txt="t", test_raw="t")
    assert load(tmp_path).validation == "v"


def test_a_folder_without_such_files_lists_what_is_there(tmp_path):
    with pytest.raises(UsageError, match=r"found: a\.txt, b\.txt"):
        load(write(tmp_path, a_txt="a", b_txt="b"))


def test_parquet_rows_are_lines(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [" = Title = \n", "", None, "no newline"]
    for name in ("train-00000-of-00001", "validation-00000-of-00001"):
        parquet.write_table(
            pyarrow.table({"id": [1, 2, 3, 4], "text": rows}), tmp_path / f"{name}.parquet"
        )
    corpus = load(tmp_path)
    assert corpus.train == corpus.validation == " = Title = \n\n\nno newline\n"


@pytest.mark.parametrize("column", [{"content": ["a"]}, {"text": [1]}])
def test_parquet_without_a_text_column_names_its_columns(tmp_path, column):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(column), tmp_path / "a.parquet")
    with pytest.raises(
        UsageError, match=f"no column 'text' of strings; its columns: {next(iter(column))}"
    ):
        load(tmp_path / "a.parquet")


def test_damaged_parquet_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"a\.parquet is no sound parquet file"):
        load(write(tmp_path, a_parquet="PAR1 not really") / "a.parquet")


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match=r'pip install "trainer-core\[data\]"'):
        load(write(tmp_path, a_parquet="") / "a.parquet")


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_an_empty_text_is_refused(tmp_path, text):
    with pytest.raises(UsageError, match="its training text is empty"):
        load(write(tmp_path, a_txt=text) / "a.txt")


def test_an_empty_validation_text_is_refused(tmp_path):
    with pytest.raises(UsageError, match="its validation text is empty"):
        load(write(tmp_path, train_txt="a", val_txt=""))


def test_a_file_that_is_not_utf8_names_byte_and_offset(tmp_path):
    (tmp_path / "a.txt").write_bytes("ä ".encode() + "ä".encode("latin1"))
    with pytest.raises(UsageError, match=r"a\.txt is not UTF-8: byte 0xe4 at offset 3"):
        load(tmp_path / "a.txt")


def test_an_unreadable_path_names_the_cause():
    with pytest.raises(UsageError, match="could not be read: File name too long"):
        load("./" + "a" * 300)


@pytest.mark.parametrize("name", ["./nothing", "nothing.txt", "/nothing/at/all", "~/nothing"])
def test_a_missing_path_names_all_ways_to_have_text(name):
    with pytest.raises(UsageError, match="no such file or folder") as caught:
        load(name)
    assert_names_all_ways(caught.value)


@pytest.mark.parametrize("name", ["wikitext", "wikitext-103", "wikitexxt"])
def test_without_the_library_datasets_all_ways_are_named(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=f"--dataset {name} ") as caught:
        load(name)
    assert_names_all_ways(caught.value)


def test_without_a_network_all_ways_are_named(hub):
    with pytest.raises(UsageError, match=r"Couldn't reach the Hub\. Ways") as caught:
        load("wikitext")
    assert_names_all_ways(caught.value)


def assert_names_all_ways(error):
    message = str(error)
    assert "\n" not in message
    for way in (
        "pydoc",
        "FILE",
        "FOLDER",
        "--data_dir",
        "wikitext, wikitext-103",
        "trainer-core[data]",
    ):
        assert way in message


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("wikitext", ("Salesforce/wikitext", "wikitext-2-raw-v1")),
        ("wikitext-103", ("Salesforce/wikitext", "wikitext-103-raw-v1")),
        ("some/stories", ("some/stories", None)),
        ("some/stories:small", ("some/stories", "small")),
    ],
)
def test_other_names_are_hugging_face_datasets(hub, name, asked):
    hub.splits = {"train": {"text": ["a\n", "", "b"]}, "validation": {"text": ["v"]}}
    corpus = load(name)
    assert hub.asked == [asked]
    assert (corpus.train, corpus.validation, corpus.name) == ("a\n\nb\n", "v\n", name)


def test_the_library_datasets_itself_loads_wikitext(tmp_path, monkeypatch):
    """From a clone of the repository where the library looks first; in a process of its own, since
    the library asks for HF_HUB_OFFLINE when it is imported.
    """
    import pyarrow
    from pyarrow import parquet

    clone = tmp_path / "Salesforce" / "wikitext"
    (clone / "wikitext-2-raw-v1").mkdir(parents=True)
    configs = [{"config_name": "wikitext-2-raw-v1", "data_dir": "wikitext-2-raw-v1"}]
    (clone / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    for split, rows in {"train": ["a\n", "", "b\n"], "validation": ["v\n"]}.items():
        table = pyarrow.table({"text": rows})
        parquet.write_table(table, clone / "wikitext-2-raw-v1" / f"{split}-00000-of-00001.parquet")
    code = (
        "from trainer_lm.options import TextOptions; from trainer_lm.text import load_text;"
        "corpus = load_text(TextOptions(dataset='wikitext'));"
        "print([corpus.train.decode(), corpus.validation.decode()])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")},
    )
    assert done.stdout.splitlines()[-1:] == ["['a\\n\\nb\\n', 'v\\n']"], done.stderr


def test_of_several_splits_for_one_part_the_plain_one_is_taken_and_the_others_are_named(hub):
    hub.splits = {name: {"text": [name]} for name in ("train_sft", "train", "validation", "notes")}
    corpus = load("team/set")
    assert corpus.train == "train\n"
    assert corpus.notes[-1] == "team/set: splits that are not used: notes, train_sft"


def test_several_splits_for_one_part_are_refused_by_name(hub):
    hub.splits = {name: {"text": [name]} for name in ("train_sft", "train_gen", "validation")}
    with pytest.raises(UsageError, match=r"several splits for one part .*: train_sft, train_gen\."):
        load("team/set")


def test_a_dataset_without_text_names_its_columns(hub):
    hub.splits = {"train": {"image": [1], "label": [2]}}
    with pytest.raises(UsageError, match="no column 'text'; its columns: image, label"):
        load("mnist")


def test_a_dataset_without_known_splits_names_its_splits(hub):
    hub.splits = {"unsupervised": {"text": ["a"]}}
    with pytest.raises(UsageError, match="its splits: unsupervised"):
        load("some/stories")


def test_a_named_dataset_is_read_from_data_dir_without_a_network(tmp_path):
    write(tmp_path, train_txt="a\n", val_txt="v\n")
    corpus = load("wikitext", data_dir=tmp_path)
    assert (corpus.name, corpus.train, corpus.validation) == ("wikitext", "a\n", "v\n")


def test_data_dir_may_be_a_clone_with_a_folder_for_each_configuration(tmp_path):
    for config, text in (
        ("wikitext-2-raw-v1", "two"),
        ("wikitext-103-raw-v1", "one hundred and three"),
    ):
        (tmp_path / config).mkdir()
        write(tmp_path / config, train_txt=text, val_txt="v")
    assert load("wikitext", data_dir=tmp_path).train == "two"
    assert load("wikitext-103", data_dir=tmp_path).train == "one hundred and three"


def test_a_missing_data_dir_names_all_ways(tmp_path):
    with pytest.raises(UsageError, match=r"--data_dir .*no such folder") as caught:
        load("wikitext", data_dir=tmp_path / "nothing")
    assert_names_all_ways(caught.value)


def test_data_dir_beside_a_dataset_that_needs_none_is_refused(tmp_path):
    for dataset in ("pydoc", tmp_path):
        with pytest.raises(UsageError, match=r"Use --dataset .* alone"):
            load(dataset, data_dir=tmp_path)


def test_a_device_is_refused_and_a_failed_read_names_its_file():
    with pytest.raises(UsageError, match="/dev/zero could not be read: it is a device"):
        load("/dev/zero")
    if sys.platform == "linux":
        with pytest.raises(UsageError, match="/proc/self/mem could not be read: "):
            load("/proc/self/mem")


def test_a_pipe_is_read_to_its_end_and_a_wait_for_it_is_said(tmp_path, caplog):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Timer(2.5, lambda: pipe.write_text(LINES))
    writer.start()
    assert load(pipe).train + load(write(tmp_path, a_txt=LINES) / "a.txt").validation == LINES
    writer.join()
    assert caplog.messages == [f"{pipe} is a pipe: waiting until its writer closes it."]
