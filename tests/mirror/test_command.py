"""`trainer mirror pull`, and the plugin in `train-lm`."""

import pytest
import torch

from trainer_mirror import MirrorCallback
from trainer_tool.cli import main


def test_pull_brings_the_newest_snapshot_to_go_on_from(make, url, tmp_path, capsys):
    trainer = make(MirrorCallback(url), place=tmp_path / "run", max_steps=6, pause=0.02)
    trainer.train()
    assert main(["mirror", "pull", url, str(tmp_path / "new")]) == 0
    text = capsys.readouterr().out
    assert f"has the snapshot of update 6, of the run {trainer.run.view.run_id}." in text
    assert f"--output_dir {tmp_path / 'new'} --resume" in text
    whole, gone_on = make(place=tmp_path / "whole"), make(place=tmp_path / "new")
    whole.train()
    gone_on.train(True)
    assert torch.equal(gone_on.model[0].weight, whole.model[0].weight)


@pytest.mark.parametrize("what", ["full", "empty", "unknown", "dead"])
def test_pull_says_what_is_wrong(make, url, faults, quick, tmp_path, capsys, what):
    place = tmp_path / "new"
    if what == "full":
        place.mkdir()
        (place / "mine").touch()
    if what == "dead":
        faults.refuses = 10**9
    name = "nonsense://x" if what == "unknown" else url
    code, text = {
        "full": (2, f"{str(place)!r} is not empty. Name a new directory."),
        "empty": (2, f"{url} has no snapshot."),
        "unknown": (2, "there is no client for nonsense://x: Protocol not known: nonsense."),
        "dead": (1, f"{url} cannot be read: ConnectionRefusedError"),
    }[what]
    assert main(["mirror", "pull", name, str(place)]) == code
    assert text in capsys.readouterr().err
