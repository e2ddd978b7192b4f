"""After a resume every point is there once, as in a run that was never interrupted."""

import pytest

from trainer_tensorboard import TensorBoardCallback


def failing_at(step):
    calls = iter(range(1, 1000))

    def loss_fn(model, batch):
        if model.training and next(calls) == step:
            raise RuntimeError("the lights went out")
        return (model(batch) - 1).square().mean()

    return loss_fn


@pytest.mark.parametrize("killed_at", [4, 5, 6, 8, 10])
@pytest.mark.parametrize("interval", [3, 5])
def test_a_killed_run_has_no_double_point(make, read, tmp_path, killed_at, interval):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = {"snapshot_interval": interval, "eval_interval": 2, "snapshot_sync": True}
    make(TensorBoardCallback(histogram_epochs=1), output_dir=whole, **options).train()
    trainer = make(
        TensorBoardCallback(histogram_epochs=1),
        output_dir=killed,
        loss_fn=failing_at(killed_at),
        **options,
    )
    with pytest.raises(RuntimeError, match="lights"):
        trainer.train()
    callback = TensorBoardCallback(histogram_epochs=1)
    make(callback, output_dir=killed, **options).train(resume="auto")
    assert read(killed).scalars == read(whole).scalars
    assert read(killed).histograms == read(whole).histograms


def test_a_run_that_ended_and_goes_on_has_no_double_point(make, read, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    make(TensorBoardCallback(), output_dir=whole).train()
    for resume, stop in [(False, 3), (True, 3), (True, 5), (True, 8), (True, None)]:
        make(TensorBoardCallback(), output_dir=parts, max_steps=stop).train(resume=resume)
    found = read(parts).scalars
    assert found.pop("val_loss")[-1] == read(whole).scalars["val_loss"][-1]
    expected = read(whole).scalars
    assert {tag: found[tag] for tag in ("loss", "learning_rate")} == {
        tag: expected[tag] for tag in ("loss", "learning_rate")
    }


def test_files_of_one_second_are_told_apart_by_their_names(make, tmp_path):
    """TensorBoard reads them in that order, and 10 comes before 9."""
    for resume, stop in [(False, 1), (True, 2), (True, 3)]:
        make(TensorBoardCallback(), output_dir=tmp_path, max_steps=stop).train(resume=resume)
    files = list((tmp_path / "tensorboard").iterdir())
    assert len({file.name.split(".")[3] for file in files}) == len(files) == 3


def test_points_beyond_the_snapshot_are_gone_before_the_run_writes_any(make, read, tmp_path):
    make(TensorBoardCallback(), output_dir=tmp_path, snapshot_interval=5).train()
    snapshot = tmp_path / "snapshots" / "step-00000005"
    trainer = make(TensorBoardCallback(), output_dir=tmp_path, max_steps=5)
    trainer.train(resume=snapshot)
    assert max(step for step, _ in read(tmp_path).scalars["loss"]) == 5


def test_a_reader_that_is_running_drops_what_it_had_read(make, read, tmp_path):
    """TensorBoard hides points that come after the step at which a new session starts."""
    make(TensorBoardCallback(), output_dir=tmp_path, snapshot_interval=5).train()
    running = read(tmp_path)
    callback = TensorBoardCallback()
    trainer = make(callback, output_dir=tmp_path, max_steps=6)
    trainer.train(resume=tmp_path / "snapshots" / "step-00000005")
    running._read.Reload()
    assert [step for step, _ in running.scalars["loss"]] == [1, 2, 3, 4, 5, 6]


def test_it_may_be_new_at_the_resume(make, read, tmp_path):
    make(output_dir=tmp_path, max_steps=5).train()
    make(TensorBoardCallback(), output_dir=tmp_path).train(resume=True)
    assert [step for step, _ in read(tmp_path).scalars["loss"]] == [6, 7, 8, 9, 10]


def test_a_fresh_start_over_an_old_run_begins_with_nothing(make, read, tmp_path):
    make(TensorBoardCallback(), output_dir=tmp_path).train()
    make(TensorBoardCallback(), output_dir=tmp_path, epochs=1, overwrite=True).train()
    assert [step for step, _ in read(tmp_path).scalars["loss"]] == [1, 2, 3, 4, 5]


def test_a_file_that_has_lost_its_end_is_read_as_far_as_it_goes(make, read, tmp_path):
    make(TensorBoardCallback(), output_dir=tmp_path, max_steps=5).train()
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-200])
    make(TensorBoardCallback(), output_dir=tmp_path).train(resume=True)
    steps = [step for step, _ in read(tmp_path).scalars["loss"]]
    assert steps == sorted(set(steps))
    assert steps[-5:] == [6, 7, 8, 9, 10]
