"""What a run writes down about its options is read back as the same run; a file is read as it is
written, or refused by name.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from trainer_callback import UsageError
from trainer_lm import cli
from trainer_lm.cli import main
from trainer_lm.settings import Settings

ODD_TEXTS = [
    "none", "null", "~", "true", "no", "on", "1", "1e3", "0x10", "1_000", "012", "1:30", ".inf",
    "2026-11-26", "", " ", " a b ", "it's \"so\"", "a # b", "a: b", "- a", "--seed", "&a *a", "!x",
    "{a}", "[a, b]", "a\nb\n", "\r\n", "\t", "äöü 東京 🙂", "\u2028\x85\x07", "%", "@", "`", "|",
    "?", "a" * 300 + " " + "b" * 300,
]  # fmt: skip

CALLBACK = """
from enum import Enum
from pathlib import Path
from typing import Literal
from trainer_callback import TrainerCallback, hookimpl

class Colour(Enum):
    RED = 1
    BLUE = "RED"

class Odd(TrainerCallback):
    option_prefix = "odd_"
    def __init__(self, count: int = 1, rate: float = 0.5, name: str = "x", note: str | None = "y",
                 quiet: bool = False, auto: bool | None = True, path: Path = Path("p"),
                 place: Path | None = Path("q"), mode: Literal["on", "off", 3] = "on",
                 choice: Literal["a", True, None, 1.5] = "a", colour: Colour = Colour.RED,
                 maybe: float | None = 1.0, names: list[str] = [], sizes: tuple[int, ...] = (1,),
                 some: set[int] | None = None, pair: tuple[float, float] = (0.9, 0.99),
                 paths: list[Path] = [], colours: list[Colour] = []) -> None:
        self.given = {k: v for k, v in locals().items() if k not in ("self", "__class__")}

    @classmethod
    def add_options(cls, parser):
        parser.add_argument("--own_text", default="d")
        parser.add_argument("--own_times", action="count", default=0)
        parser.add_argument("--own_on", dest="own_switch", action="store_true")
        parser.add_argument("--own_off", dest="own_other", action="store_false")
        parser.add_argument("--own_many", action="append", type=int)
        parser.add_argument("--own_pair", nargs=2, type=float)
        parser.add_argument("--own_any", nargs="*", default=["z"])
        parser.add_argument("--own_maybe", nargs="?", const="c")
        parser.add_argument("--own_typed", type=lambda text: {"of": text}, default=object)
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all tests: plugins are described again where the path is another one."""
    place = tmp_path_factory.mktemp("modules")
    (place / "odd_module.py").write_text(CALLBACK)
    return place


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(modules)


def read(*words: object) -> Settings:
    settings = cli._read([str(word) for word in words])
    assert settings is not None
    return settings


def facts(settings: Settings) -> dict[str, Any]:
    """Everything that a run gets from its options, without its place."""
    parts = (settings.text, settings.model, settings.optimizer, settings.training, settings.samples)
    found: dict[str, Any] = {}
    for part in parts:
        found.update(vars(part))
    found.pop("output_dir")
    for plugin in settings.plugins:
        own = getattr(plugin.callback, "given", vars(plugin.callback))
        found[plugin.name] = {
            name: value.name if isinstance(value, Enum) else repr(value)
            for name, value in own.items()
            if " object at 0x" not in repr(value)
        }
    return found


def round_trip(*words: object) -> tuple[dict[str, Any], dict[str, Any]]:
    first = read(*words)
    Path("written.yaml").write_bytes(first.as_yaml().encode())
    again = read("--config", "written.yaml")
    assert again.as_yaml() == first.as_yaml()
    return facts(first), facts(again)


def test_none_in_a_file_is_none_and_not_the_default() -> None:
    first, again = round_trip("--max_grad_norm", "none", "--snapshot_interval", "none")
    assert again["max_grad_norm"] is again["snapshot_interval"] is None
    assert first == again


@pytest.mark.parametrize("word", ["none", "null", "~", "", "None", "NULL"])
def test_each_word_for_none_is_none(word: str) -> None:
    Path("run.yaml").write_text(f"max_grad_norm: {word}\n")
    assert read("--config", "run.yaml").training.max_grad_norm is None


VALUES: dict[str, list[object]] = {
    "dataset": ["none", "a b.txt", "null"],
    "data_dir": ["none", "~", "a # b"],
    "tokenizer": ["bpe", "char", "byte"],
    "cache_dir": ["none", "true", "-x"],
    "max_steps": ["none", 7, 10**15],
    "max_time": ["none", 1e-7, "1e300"],
    "max_grad_norm": ["none", 1e-7, 3],
    "precision": ["bf16", "fp32", "tf32"],
    "device": ["cpu", "auto", "cuda:1"],
    "eval_interval": ["none", 5, 6],
    "snapshot_interval": ["none", 5, 6],
    "on_nonfinite": ["skip", "stop", "skip"],
    "warmup_steps": ["none", 0, 9],
    "lr_schedule": ["linear", "constant", "cosine"],
    "sample_interval": ["none", 1, 2],
    "overwrite": ["true", "false", "true"],
    "compile": ["true", "no", "max-autotune"],
    "checkpoint_activations": ["none", "blocks.*", "a.*,b.?"],
    "dry_run": ["true", "false", "yes"],
    "snapshot_epochs": ["true", "false", "yes"],
    "snapshot_sync": ["true", "false", "1"],
    "snapshot_frozen": ["true", "false", "0"],
    "check_gradients": ["true", "false", "on"],
    "learning_rate": [1e-5, 0.1, 3],
    "weight_decay": [0, 1e-9, 1],
    "dropout": [0.1, 1e-12, 0],
    "beta1": [0.0, 0.5, 1e-5],
    "beta2": [0.0, 0.5, 1e-5],
    "vocab_size": [300, 301, 302],
    "n_head": [2, 4, 8],
    "n_embd": [8, 16, 32],
}
"""Option -> one value for each of three files; what is not here is a count."""


@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_option_of_the_command_is_read_back_as_it_was(number: int) -> None:
    words = []
    for name in (name for name in read().values if name != "output_dir"):
        words += [f"--{name}={VALUES[name][number] if name in VALUES else number + 2}"]
    first, again = round_trip(*words)
    assert first == again


NEED_MORE = ("--mirror", "--optuna")
"""Flags of plugins that cannot do with their defaults: an address, a trial."""


@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_option_of_the_installed_plugins_is_read_back_as_it_was(number: int) -> None:
    from trainer_callback.plugins import discover

    words = []
    for plugin in discover():
        words += [f"--{plugin.entry.flag}"] if plugin.kind == "flag" else []
        for option in plugin.options:
            value = option.default if number == 0 else "none" if number == 1 else 3
            if option.reader.choices is not None and number == 2:
                value = option.reader.choices[-1]
            if option.reader.is_switch and number:
                value = number == 1
            if value is not None and not isinstance(value, (list, tuple)):
                words += [f"--{option.flag}={str(value).lower()}"]
    usable = []
    for word in words:  # what a plugin refuses is no value of its own
        try:
            read(*usable, word)
            usable.append(word)
        except UsageError:
            pass
        if number == 0 and not word.startswith(NEED_MORE):
            assert word in usable
    first, again = round_trip(*usable)
    assert first == again


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--odd_count=-7 --odd_rate=-1e-30 --odd_quiet --odd_auto=none --odd_note=none",
        "--odd_rate=inf --odd_maybe=-inf --no_odd_auto --odd_mode=off --odd_choice=True",
        "--odd_rate=nan --odd_maybe=none --odd_mode=3 --odd_choice=None",
        "--odd_choice=1.5 --odd_colour=BLUE --odd_colours BLUE RED",
        "--odd_names none '' 'a b' -1e-3 --odd_sizes -1 2 --odd_pair 0 -1e9",
        "--odd_names --odd_sizes --odd_some none --odd_paths 'a b' ~ ä",
        "--odd_some 3 -1 20 --odd_place=none --odd_path='a: b'",
        "--own_times --own_times --own_on --own_off --own_maybe --own_typed 1",
        "--own_many 1 --own_many -2 --own_pair 1 2e-9 --own_any a none",
        "--own_maybe null --own_text= --own_any",
    ],
)
def test_every_type_of_an_option_is_read_back_as_it_was(words: str) -> None:
    first, again = round_trip("--callback", "odd_module:Odd", *shlex.split(words))
    assert first == again


def test_every_text_is_read_back_as_it_was() -> None:
    for text in ODD_TEXTS:
        words = ["--callback=odd_module:Odd", f"--odd_name={text}", f"--own_text={text}"]
        if text:
            words += [f"--odd_path={text}", f"--dataset={text}"]
        first, again = round_trip(*words, "--odd_names", *[t for t in (text, "x") if t[:1] != "-"])
        assert first == again
        assert first["odd_module"]["name"] == repr(text)


def test_a_live_plugins_own_switch_and_a_blocked_plugin_stay_what_they_were() -> None:
    settings = read("--no_plugin", "tensorboard", "--callback", "odd_module:Odd", "--own_on")
    written = settings.as_yaml()
    assert "no_plugin: [tensorboard]" in written
    assert "own_on: true" in written
    assert "own_off: false" not in written


def test_the_command_line_wins_over_the_file_for_lists_and_switches() -> None:
    Path("run.yaml").write_text("odd_names: [a, b]\noverwrite: true\nno_plugin: [ema]\nseed: 3\n")
    words = ["--callback", "odd_module:Odd", "--config", "run.yaml"]
    settings = read(*words, "--odd_names", "c", "--no_overwrite", "--no_plugin", "tensorboard")
    assert settings.values["odd_names"] == ["c"]
    assert settings.training.overwrite is False
    assert settings.values["no_plugin"] == ["tensorboard"]
    assert settings.origins["seed"] == "run.yaml"
    assert settings.origins["overwrite"] == "command line"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs: 3\nseed: 1\nepochs: 4\n", "'epochs' twice, in line 1 and in line 3"),
        ("max-steps: 3\nmax_steps: 4\n", "'max_steps' twice"),
        ("config: other.yaml\n", "line 1, config: other.yaml: this belongs on the command line"),
        ("print_config: true\n", "belongs on the command line"),
        ("help: true\n", "belongs on the command line"),
        ("sample: run\n", "belongs on the command line"),
        ("on: 3\n", "there is no option --on"),
        ("1: 3\n", "there is no option --1"),
        ("null: 3\n", "there is no option --null"),
        ("true: 3\n", "there is no option --true"),
        ("epoch: 3\n", "run.yaml, line 1: there is no option --epoch. Did you mean '--epochs'?"),
        ("? [a, b]\n: 3\n", "is no name of an option"),
        ("? {a: b}\n: 3\n", "is no name of an option"),
        ("model:\n  n_layer: 3\n", "the value of 'model' is a mapping"),
        ("epochs: {a: 1}\n", "the value of 'epochs' is a mapping"),
        ("epochs: [1]\n", "epochs: [1]: it takes one value, and this is a list"),
        ("overwrite: [true]\n", "it takes one value, and this is a list"),
        ("callback: [[a]]\n", "is a list with a list"),
        ("callback: [{a: b}]\n", "is a list with a mapping"),
        ("epochs: many\n", "line 1, epochs: many: invalid int value: 'many'"),
        ("epochs: 3.0\n", "invalid int value: '3.0'"),
        ("epochs: null\n", "epochs: null: it cannot be none"),
        ("dataset: ~\n", "dataset: null: it cannot be none"),
        ("dataset:\n", "dataset: null: it cannot be none"),
        ("seed: true\n", "invalid int value: 'true'"),
        ("overwrite: maybe\n", "'maybe' is neither true nor false"),
        ("quiet: maybe\n", "'maybe' is neither true nor false"),
        ("overwrite: true\nno_overwrite: true\n", "another line says so, too"),
        ("no_overwrite: false\n", "write overwrite: true, or overwrite: false"),
        ("tokenizer: word\n", "'word' is none of byte, char, bpe"),
        ("epochs:\t3\n\tseed: 4\n", "line 1: this is no YAML"),
        ("epochs: [1\n", "this is no YAML"),
        ("epochs: *a\n", "this is no YAML"),
        ("epochs: 3\n---\nepochs: 4\n", "this is no YAML: but found another document"),
        ("base: &a\n  epochs: 3\n<<: *a\n", "the value of 'base' is a mapping"),
        ("<<: {epochs: 3}\n", "'<<' is no name of an option"),
        ("epochs: !!python/object/apply:os.system [ls]\n", "has the tag"),
        ("epochs: !mine 3\n", "has the tag '!mine'"),
        ("", "run.yaml is empty"),
        (" \n\n", "run.yaml is empty"),
        ("- epochs\n", "is no list of options with their values"),
        ("just words\n", "is no list of options with their values"),
        ("output_dir: ''\n", "--output_dir is empty"),
        ("cache_dir: ''\n", "--cache_dir is empty"),
        ("resume: ''\n", "--resume is empty"),
        ("seed: 3\0\n", "this is no YAML"),
    ],
)
def test_a_file_that_is_not_plain_is_refused_by_name(
    text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run.yaml").write_text(text)
    assert main(["--config", "run.yaml", "--print_config"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) <= 2


@pytest.mark.parametrize("content", [b"epochs: 3\xff\n", "epochs: 3\n".encode("utf-16")])
def test_a_file_that_is_not_utf8_is_refused(
    content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run.yaml").write_bytes(content)
    assert main(["--config", "run.yaml"]) == 2
    assert "--config run.yaml is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "said"), [(".", "Is a directory"), ("no.yaml", "No such file")])
def test_a_file_that_cannot_be_read_is_refused(
    name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", name]) == 2
    assert f"--config {name} cannot be read: {said}" in capsys.readouterr().err


def test_a_file_of_comments_sets_nothing() -> None:
    Path("run.yaml").write_text("# epochs: 7\n")
    assert facts(read("--config", "run.yaml")) == facts(read())


@pytest.mark.parametrize(
    ("word", "resume"), [("true", True), ("false", False), ("null", False), ("auto", "auto")]
)
def test_resume_may_stand_in_a_file(word: str, resume: object, tmp_path: Path) -> None:
    (tmp_path / "runs" / "pydoc-1").mkdir(parents=True)
    Path("run.yaml").write_text(f"resume: {word}\n")
    assert read("--config", "run.yaml").resume == resume


def test_anchors_hyphens_and_a_byte_order_mark_are_read() -> None:
    Path("run.yaml").write_text("\ufeffmax-steps: &n 7\nlog_interval: *n\n", encoding="utf-8")
    training = read("--config", "run.yaml").training
    assert (training.max_steps, training.log_interval) == (7, 7)


@pytest.mark.parametrize(
    "words",
    [
        ["--output_dir", ""], ["--cache_dir="], ["--data_dir", ""], ["--dataset", ""],
        ["--resume", ""], ["--config", ""], ["--sample", ""], ["--callback", ""],
        ["--no_plugin", ""], ["--device", ""],
    ],
)  # fmt: skip
def test_an_empty_value_is_refused_by_flag(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert f"{words[0].rstrip('=')} is empty" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["-1e-3", "-1E+3", "-1.e5", "-.5e-10", "-inf", "-nan", "-2"])
def test_a_negative_number_is_a_value_of_any_option(value: str) -> None:
    settings = read("--callback", "odd_module:Odd", "--odd_rate", value, "--odd_pair", value, value)
    assert repr(float(value)) == repr(settings.values["odd_rate"])


def test_a_value_that_begins_with_a_hyphen_is_told_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--prompt", "-hello"]) == 2
    assert "written --prompt=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "ours"),
    [
        ("--lr", "--learning_rate"), ("--bs", "--batch_size"), ("--n-epochs", "--epochs"),
        ("--wd=0.1", "--weight_decay"), ("--max_iters", "--max_steps"), ("-o", "--output_dir"),
        ("--grad_clip", "--max_grad_norm"), ("--context_length", "--block_size"),
    ],
)  # fmt: skip
def test_a_name_that_is_usual_elsewhere_leads_to_ours(
    flag: str, ours: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([flag, "1"]) == 2
    assert f"Here it is {ours}." in capsys.readouterr().err


def test_every_usual_name_leads_to_an_option_and_none_hides_one() -> None:
    from trainer_lm.spelling import _NAMES, find_our_name

    parser = cli.make_parser([], ())
    plugins = {name for name in _NAMES if name.startswith("early_stop")}
    assert [name for name in _NAMES if parser.find(name) is None and name not in plugins] == []
    names = [name for names in _NAMES.values() for name in names.split()]
    assert len(names) == len(set(names))
    assert [name for name in names if parser.find(name)] == []
    assert find_our_name("LR") == "learning_rate"


def test_two_files_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text("epochs: 3\n")
    Path("b.yaml").write_text("seed: 3\n")
    assert main(["--config", "a.yaml", "--config", "b.yaml"]) == 2
    assert "--config is given twice" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "words"), [('"a\\0b"', "code 0"), ('"\\uD800"', "no text")])
def test_a_value_that_no_command_line_can_have_is_refused_by_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str, words: str
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"output_dir: {value}\n")
    assert main(["--config", str(file), "--print_config"]) == 2
    said = capsys.readouterr().err
    assert f"{file}, line 1, output_dir: " in said
    assert words in said


PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_file_of_options_names_files_in_a_locale_without_their_characters(tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text("output_dir: höme\n", encoding="utf-8")
    code = "import os\nfrom trainer_lm.config_file import read_config_file as read\n"
    code += "[option] = read('d.yaml')\nos.mkdir(option.words[0])"
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **PLAIN}, check=True
    )
    assert (tmp_path / "höme").is_dir()
