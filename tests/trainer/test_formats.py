"""One stored snapshot of every released format, resumed; `python test_formats.py` writes the one of
today.
"""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from trainer import Trainer, TrainerConfig
from trainer.snapshots.manifest import FORMAT, read_manifest
from trainer.snapshots.state_file import load_state
from trainer_callback import SnapshotError
from trainer_tool.cli import main

DATA = Path(__file__).parent / "data"


def make(place, epochs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5), nn.Linear(2, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return Trainer(
        model,
        optimizer,
        [torch.ones(2, 4), torch.zeros(2, 4)],
        loss_fn=lambda model, batch: model(batch).square().mean(),
        scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 2),
        config=TrainerConfig(epochs=epochs, output_dir=place, log_interval=1),
        discover=False,
    )


def test_every_released_format_is_stored():
    stored = sorted(path.name for path in DATA.glob("format-*"))
    assert stored == [f"format-{number}" for number in range(1, FORMAT + 1)]


@pytest.mark.parametrize("number", range(1, FORMAT + 1))
def test_a_stored_snapshot_resumes(tmp_path, number):
    place = tmp_path / "run"
    (place / "snapshots").mkdir(parents=True)
    shutil.copytree(DATA / f"format-{number}", place / "snapshots" / "step-00000002")
    state, manifest = load_state(DATA / f"format-{number}")
    assert manifest["format"] == number
    trainer = make(place, epochs=3)
    result = trainer.train(resume=True)
    assert (result.status, result.epochs, result.steps) == ("finished", 3, 6)
    assert [entry["epoch"] for entry in result.history] == [0, 1, 2]
    assert state["model"].keys() == trainer.model.state_dict().keys()


@pytest.mark.parametrize("number", range(1, FORMAT + 1))
def test_a_stored_snapshot_is_verified_and_each_damaged_byte_of_it_is_found(tmp_path, number):
    place = tmp_path / "step-00000002"
    shutil.copytree(DATA / f"format-{number}", place)
    assert main(["snapshot", "verify", str(place)]) == 0
    for file in place.iterdir():
        content = file.read_bytes()
        for at in (0, len(content) // 2, len(content) - 1):
            damaged = bytearray(content)
            damaged[at] ^= 1
            file.write_bytes(damaged)
            assert main(["snapshot", "verify", str(place)]) == 1
        file.write_bytes(content)
    assert main(["snapshot", "verify", str(place)]) == 0


def test_a_file_of_one_format_is_not_taken_for_that_of_another(tmp_path):
    shutil.copytree(DATA / f"format-{FORMAT}", tmp_path / "s")
    shutil.copy(DATA / "format-1" / "state.pt", tmp_path / "s")
    with pytest.raises(SnapshotError, match=r"state\.pt"):
        load_state(tmp_path / "s")


if __name__ == "__main__":
    target = DATA / f"format-{FORMAT}"
    make(DATA / "run", epochs=1).train()
    shutil.rmtree(target, ignore_errors=True)
    shutil.move(DATA / "run" / "snapshots" / "step-00000002", target)
    shutil.rmtree(DATA / "run")
    print(read_manifest(target)["format"], sum(p.stat().st_size for p in target.iterdir()))
