"""A resumed average is the average of a run that was never interrupted, bit by bit."""

import pytest
import torch

from trainer_ema import EMACallback

OPTIONS = {"decay": 0.9, "every": 2, "start_step": 1}


@pytest.mark.parametrize("stops", [[1], [2], [4], [5], [7], [3, 6], [5, 9]])
def test_stopped_and_resumed_it_ends_in_the_same_average(make, tmp_path, stops):
    whole = make(EMACallback(**OPTIONS))
    losses = whole.train().history
    for resume, stop in enumerate([*stops, None]):
        trainer = make(EMACallback(**OPTIONS), output_dir=tmp_path, max_steps=stop)
        history = trainer.train(resume=bool(resume)).history
    assert torch.equal(trainer.model.weight, whole.model.weight)
    assert history[-1] == losses[-1]


def test_it_may_be_new_at_the_resume(make, weights, tmp_path):
    make(output_dir=tmp_path, max_steps=5).train()
    trainer = make(EMACallback(decay=0.0), weights, output_dir=tmp_path)
    trainer.train(resume=True)
    assert len(weights.trained) == 5
    assert torch.equal(trainer.model.weight, weights.trained[-1])


def test_buffers_may_be_added_at_the_resume(make, tmp_path):
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    settings = {"model": model, "output_dir": tmp_path}
    make(EMACallback(), max_steps=5, **settings).train()
    trainer = make(EMACallback(use_buffers=True), **settings)
    assert trainer.train(resume=True).status == "finished"


def test_a_second_run_of_one_object_starts_clean(make, weights):
    callback = EMACallback(decay=0.9)
    first, second = make(callback), make(callback)
    first.train()
    second.train()
    assert torch.equal(first.model.weight, second.model.weight)


def test_absent_for_a_while_it_starts_a_new_average(make, weights, average_of, tmp_path, caplog):
    make(EMACallback(decay=0.5), output_dir=tmp_path, max_steps=3).train()
    make(output_dir=tmp_path, max_steps=6).train(resume=True)
    trainer = make(EMACallback(decay=0.5), weights, output_dir=tmp_path)
    trainer.train(resume=True)
    assert torch.allclose(trainer.model.weight, average_of(weights.trained, 0.5), atol=1e-6)
    assert "was absent from update 3 to 6: it needs every update" in caplog.text
