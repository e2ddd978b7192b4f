"""A tracker whose client is not there."""

import importlib
import importlib.util

import pytest

from trainer.testing import make_tiny_trainer
from trainer_callback import UsageError

CALLBACKS = {"mlflow": "MLflowCallback", "trackio": "TrackioCallback", "wandb": "WandbCallback"}


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_client_that_is_not_installed_is_named_before_the_first_step(name, tmp_path, monkeypatch):
    if importlib.util.find_spec(name) is not None:  # trackers' own environment
        pytest.skip(f"{name} is installed here")
    (tmp_path / name).mkdir()  # a folder of that name is no library
    monkeypatch.syspath_prepend(tmp_path)
    callback = getattr(importlib.import_module(f"trainer_{name}"), CALLBACKS[name])()
    trainer = make_tiny_trainer([callback], output_dir=tmp_path / "run")
    with pytest.raises(UsageError, match=rf'pip install "{name}>='):
        trainer.train()
    assert trainer.step == 0
