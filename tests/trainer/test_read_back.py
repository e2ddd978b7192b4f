"""What becomes the newest snapshot was read as a resume reads it. What cannot be read back is
refused before the first step, or when it is saved.
"""

import copy
import datetime
import json
import os
import random
import warnings

import pytest
import torch
from torch import nn

from trainer import ConfigError, Trainer, TrainerConfig
from trainer.config import TrainerConfig as Config
from trainer.snapshots.snapshot import list_snapshots, write_snapshot
from trainer.snapshots.state_file import load_state, save_state
from trainer.snapshots.store import SnapshotStore
from trainer_callback import (
    CallbackError,
    ResumeError,
    SnapshotError,
    TrainerCallback,
    UsageError,
)
from trainer_tool.cli import main


class Image(torch.Tensor):
    """As torchvision's, and fastai's."""


class Net(nn.Module):
    def __init__(self, buffer=None, weight=None):
        super().__init__()
        self.layer = nn.Linear(4, 1)
        if weight is not None:
            self.layer.weight = weight
        self.register_buffer("extra", buffer)

    def forward(self, x):
        return self.layer(x).square().mean()


def make(place, model, callbacks=(), optimizer=None, **options):
    return Trainer(
        model,
        optimizer or torch.optim.AdamW(model.parameters(), lr=0.1),
        [torch.ones(2, 4)] * 3,
        config=TrainerConfig(
            output_dir=place, **{"epochs": 1, "snapshot_interval": 1, "log_interval": 1, **options}
        ),
        callbacks=[*callbacks],
        discover=False,
    )


def subclass(values):
    return values.as_subclass(Image)


def test_tensors_of_a_subclass_are_written_as_plain_ones_and_resume(tmp_path):
    class Keeps(TrainerCallback):
        def on_snapshot_save(self):
            return {"seen": [subclass(torch.ones(2))]}

        def on_snapshot_load(self, checkpoint):
            self.seen = checkpoint["callback_state"]["Keeps"]["seen"][0]

        def on_train_end(self, trainer):
            trainer.save_weights("mine")

    def build():
        weight = nn.Parameter(subclass(torch.ones(1, 4)))
        return Net(subclass(torch.arange(3.0)), weight)

    make(tmp_path, build(), [Keeps()]).train()
    keeps, model = Keeps(), build()
    assert make(tmp_path, model, [keeps], epochs=2).train(resume=True).steps == 6
    assert type(keeps.seen) is torch.Tensor
    for path in ("final", "weights/mine", "snapshots/step-00000006"):
        state, _ = load_state(tmp_path / path)
        assert {type(each) for each in state["model"].values()} == {torch.Tensor}
        assert torch.equal(
            state["model"]["layer.weight"], model.layer.weight.as_subclass(torch.Tensor)
        )
    assert main(["snapshot", "verify", str(tmp_path)]) == 0


def nested(layout):
    with warnings.catch_warnings():  # of torch: a prototype
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)


def masked():
    with warnings.catch_warnings():  # of torch: a prototype
        warnings.simplefilter("ignore")
        return torch.masked.masked_tensor(torch.ones(2), torch.tensor([True, False]))


def per_channel():
    with warnings.catch_warnings():  # of torch: it will go
        warnings.simplefilter("ignore")
        ones = torch.ones(3, 2)
        return torch.quantize_per_channel(ones, torch.ones(3), torch.zeros(3), 0, torch.qint8)


REFUSED = {
    "meta": lambda: torch.ones(2, device="meta"),
    "nested": lambda: nested(torch.strided),
    "jagged": lambda: nested(torch.jagged),
    "masked": masked,
    "quantised per channel": per_channel,
    "four bits": lambda: torch.zeros(2, dtype=torch.uint8).view(torch.uint4),
    "MKL-DNN": lambda: torch.ones(2, 2).to_mkldnn(),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch: masked tensors are a prototype
@pytest.mark.parametrize("kind", sorted({*REFUSED} - {"meta"}))  # .to(device) refuses it
def test_a_buffer_that_cannot_be_read_back_is_refused_before_the_first_step(tmp_path, kind):
    with pytest.raises(ConfigError, match=r"^model\.extra is .*, which a snapshot cannot keep"):
        make(tmp_path, Net(REFUSED[kind]())).train()
    assert list(tmp_path.iterdir()) == []


DEEP: dict = {}
for _ in range(900):
    DEEP = {"a": DEEP}

STATES = {
    **REFUSED,
    "an integer without end": lambda: 1 << 3000,
    "900 dicts in each other": lambda: DEEP,
}


@pytest.mark.parametrize("kind", STATES)
def test_state_that_cannot_be_read_back_is_refused_with_owner_and_path(tmp_path, kind):
    class Odd(TrainerCallback):
        def on_snapshot_save(self):
            return {"seen": [STATES[kind]()]}

    with pytest.raises(CallbackError, match=r"^Odd .*on_snapshot_save: StateError: Odd\.seen\[0\]"):
        make(tmp_path, Net(), [Odd()]).train()
    assert list_snapshots(tmp_path / "snapshots") == []


def quantised():
    with warnings.catch_warnings():  # of torch: it will go
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


WORKS = {
    "float8": lambda: torch.ones(4).to(torch.float8_e4m3fn),
    "complex32": lambda: torch.ones(4, dtype=torch.complex64).to(torch.complex32),
    "complex128": lambda: torch.ones(4, dtype=torch.complex128) * 1j,
    "uint16": lambda: torch.ones(4).to(torch.uint16),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "CSR": lambda: torch.eye(3).to_sparse_csr(),
    "quantised": quantised,
    "conjugated": lambda: torch.tensor([1 + 2j]).conj(),
    "transposed": lambda: torch.arange(6.0).view(2, 3).T,
    "empty": lambda: torch.empty(0, 3),
    "without dimensions": lambda: torch.tensor(2.0),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch: sparse CSR is in beta, and so on
@pytest.mark.parametrize("kind", WORKS)
def test_a_buffer_of_an_odd_kind_is_saved_and_resumed(tmp_path, kind):
    make(tmp_path, Net(WORKS[kind]())).train()
    model = Net(WORKS[kind]())
    assert make(tmp_path, model, epochs=2).train(resume=True).steps == 6
    for path in (tmp_path / "final", tmp_path / "snapshots" / "step-00000006"):
        found = load_state(path)[0]["model"]["extra"]
        assert (found.dtype, found.layout) == (model.extra.dtype, model.extra.layout)
    assert main(["snapshot", "verify", str(tmp_path)]) == 0


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch: sparse CSR is in beta, and so on
@pytest.mark.parametrize("kind", ["sparse", "CSR", "complex128"])
def test_what_safetensors_cannot_hold_is_said_before_the_first_step(tmp_path, caplog, kind):
    class Listens(TrainerCallback):
        def on_train_start(self, trainer):
            self.said = caplog.text

    listens = Listens()
    make(tmp_path, Net(WORKS[kind]()), [listens]).train()
    assert "safetensors cannot hold 'extra', which is " in listens.said
    assert sorted(each.name for each in (tmp_path / "final").iterdir()) == [
        "manifest.json",
        "state.pt",
    ]


def test_a_buffer_made_by_expand_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.extra is expanded.*clone"):
        make(tmp_path, Net(torch.ones(1).expand(3))).train()
    assert make(None, Net(torch.ones(1).expand(3)), snapshot_interval=None).train().steps == 3
    assert make(tmp_path, Net(torch.arange(4).expand((1, -1)))).train().steps == 3


def test_a_parameter_without_values_yet_is_refused_before_the_first_step(tmp_path):
    def build():
        return nn.Sequential(nn.LazyLinear(1))

    with pytest.raises(ConfigError, match=r"0\.weight is not initialised.*Run a batch"):
        make(tmp_path, build())


def test_an_optimizer_with_a_state_dict_of_its_own_is_refused_before_the_first_step(tmp_path):
    class Wrapped(torch.optim.SGD):
        def state_dict(self):
            return {"inner": super().state_dict()}

    model = Net()
    with pytest.raises(ConfigError, match=r"Wrapped\.state_dict\(\) answers no 'state'"):
        make(tmp_path, model, optimizer=Wrapped(model.parameters(), lr=0.1)).train()


def test_a_write_that_cannot_be_read_back_is_a_failed_write_and_older_snapshots_stay(
    tmp_path, caplog
):
    facts = {"step": 1, "plugins": {}, "options": {}, "metrics": {}}
    store = SnapshotStore(Config(output_dir=tmp_path, keep_snapshots=1, snapshot_sync=True))
    store.save(1, {"x": torch.ones(2)}, facts, lambda path: None, {})
    store.collect()
    saved = []
    store.save(2, {"x": datetime.date(2020, 1, 1)}, facts, saved.append, {})
    store.collect()
    assert "step-00000002 could not be written" in caplog.text
    assert ".tmp-" not in caplog.text
    assert saved == []
    assert [each.name for each in (tmp_path / "snapshots").iterdir()] == ["step-00000001"]


def forge(path, change):
    """Rewrites a snapshot with another state and a manifest that fits its bytes."""
    state, manifest = load_state(path)
    state = copy.deepcopy(state)
    change(state)
    write_snapshot(path, {"state.pt": save_state(state)}, manifest)


FORGERIES = {
    "no step": lambda state: state["progress"].pop("step"),
    "another batch": lambda state: state["progress"].update(batch_in_epoch=999),
    "another epoch": lambda state: state["progress"].update(epoch=7),
    "a negative counter": lambda state: state["progress"].update(skipped_in_a_row=-1),
    "a counter that is a float": lambda state: state["progress"].update(step=3.0),
    "a counter that is none": lambda state: state["progress"].update(another=1),
    "no history": lambda state: state["progress"].update(history=None),
    "no optimizer": lambda state: state.pop("optimizer"),
    "no groups": lambda state: state["optimizer"].pop("param_groups"),
    "no class": lambda state: state["classes"].pop("scheduler"),
    "a part of another type": lambda state: state.update(losses=[]),
    "a callback's state of another type": lambda state: state["callback_state"].update(X=3),
    "no numbers of numpy": lambda state: state["rng"].pop("numpy"),
    "cut random numbers": lambda state: state["rng"].update(torch=state["rng"]["torch"][:9]),
    "other processes": lambda state: state["other_ranks"].append({"rng": {}}),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("run") / "run"
    make(place, Net()).train()
    return place


@pytest.mark.parametrize("kind", FORGERIES)
def test_a_forged_or_cut_state_is_refused_at_load_and_by_verify(run, tmp_path, kind, capsys):
    place = tmp_path / "run"
    os.system(f"cp -r '{run}' '{place}'")
    path = list_snapshots(place / "snapshots")[0]
    forge(path, FORGERIES[kind])
    with pytest.raises(SnapshotError, match="step-00000003"):
        make(tmp_path / "other", Net(), epochs=2).train(resume=path)
    assert main(["snapshot", "verify", str(place)]) == 1
    assert capsys.readouterr().out.count("sound") == 3


def test_a_position_that_the_loader_has_not_is_refused(run, tmp_path):
    path = list_snapshots(run / "snapshots")[1]
    trainer = make(tmp_path / "other", Net())
    trainer = Trainer(
        trainer.model, trainer.optimizer, [torch.ones(2, 4)], config=trainer.config, discover=False
    )
    with pytest.raises(
        SnapshotError, match="behind batch 2 of epoch 0, and an epoch of the training loader has 1"
    ):
        trainer.train(resume=path)


def test_an_unsound_newest_snapshot_gives_way_to_the_one_before_it(run, tmp_path, caplog):
    place = tmp_path / "run"
    os.system(f"cp -r '{run}' '{place}'")
    forge(list_snapshots(place / "snapshots")[0], FORGERIES["no step"])
    caplog.set_level("INFO")
    assert make(place, Net()).train(resume=True).steps == 3
    assert "it has no 'progress.step'. Trying the snapshot before it." in caplog.text
    assert "resumed from" in caplog.text


def test_what_is_refused_before_the_first_step_is_a_usage_error(run, tmp_path):
    path = list_snapshots(run / "snapshots")[0]
    with pytest.raises(ResumeError) as caught:
        make(tmp_path / "other", nn.Sequential(nn.Linear(4, 1))).train(resume=path)
    assert isinstance(caught.value, UsageError)
    assert isinstance(caught.value, SnapshotError)
    with pytest.raises(ResumeError, match="No such file"):
        make(tmp_path / "other", Net()).train(resume=tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["a text file", "a dead link", "a pipe"])
def test_a_snapshot_that_is_no_directory_is_passed_over_with_a_word(run, tmp_path, caplog, kind):
    place = tmp_path / "run"
    os.system(f"cp -r '{run}' '{place}'")
    odd = place / "snapshots" / "step-00000009"
    if kind == "a text file":
        odd.write_text("mine")
    elif kind == "a dead link":
        odd.symlink_to(tmp_path / "nowhere")
    else:
        os.mkfifo(odd)
    assert make(place, Net(), epochs=2).train(resume=True).steps == 6
    assert f"{odd / 'manifest.json'}: " in caplog.text
    assert os.path.lexists(odd) == (kind != "a dead link")
    for each in list_snapshots(place / "snapshots"):
        if each != odd:
            os.system(f"rm -r '{each}'")
    if kind != "a dead link":
        with pytest.raises(ResumeError, match="none of the 1 snapshots is sound"):
            make(place, Net(), epochs=2).train(resume="auto")


def test_a_directory_whose_name_is_no_text_works(tmp_path):
    place = tmp_path / os.fsdecode(b"run-\xff\xfe")
    make(place, Net()).train()
    random.seed(1)
    assert make(place, Net(), epochs=2).train(resume=True).steps == 6
    assert main(["snapshot", "verify", str(place)]) == 0


def strict(text):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_manifests_and_what_the_command_prints_are_strict_json(tmp_path, capsys):
    class Logs(TrainerCallback):
        def __init__(self, worst=float("inf")):
            self.worst = worst

        def on_step_end(self, trainer):
            trainer.log({"bad": float("nan"), "best": float("-inf")})

    make(tmp_path, Net(), [Logs()]).train()
    for path in tmp_path.rglob("manifest.json"):
        manifest = strict(path.read_bytes())
        assert manifest["metrics"]["bad"] == "nan"
        assert manifest["metrics"]["best"] == "-inf"
        assert manifest["plugins"]["Logs"]["options"]["worst"] == "inf"
    for action in ("list", "show", "verify"):
        assert main(["snapshot", action, str(tmp_path), "--json"]) == 0
        strict(capsys.readouterr().out)
    assert main(["snapshot", "show", str(tmp_path)]) == 0
    assert "bad nan" in capsys.readouterr().out.replace("\n", " ")
    assert make(tmp_path, Net(), [Logs()], epochs=2).train(resume=True).steps == 6


def test_an_older_manifest_with_nan_is_read_and_shown_as_strict_json(run, tmp_path, capsys, caplog):
    from trainer.snapshots.manifest import MANIFEST, read_manifest
    from trainer_callback.digests import seal_json

    place = tmp_path / "run"
    os.system(f"cp -r '{run}' '{place}'")
    path = list_snapshots(place / "snapshots")[0]
    facts = {**read_manifest(path), "metrics": {"val_loss": float("nan")}}
    (path / MANIFEST).write_bytes(seal_json(facts))
    assert b"NaN" in (path / MANIFEST).read_bytes()
    assert main(["snapshot", "verify", str(place), "--json"]) == 0
    assert strict(capsys.readouterr().out)[0]["manifest"]["metrics"]["val_loss"] == "nan"
    caplog.set_level("INFO")
    assert make(place, Net(), epochs=2).train(resume=True).steps == 6
    assert "Trying the snapshot before it" not in caplog.text
