"""Files that are not the plugin's own are never touched."""

import pytest

from trainer_callback import TrainerCallback, UsageError
from trainer_tensorboard import TensorBoardCallback

NAMES = ("events.out.tfevents.1700000000.host.1.0", "events.out.tfevents.9900000000.x", "notes.txt")


def put(place):
    (place / "tensorboard").mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (place / "tensorboard" / name).write_bytes(name.encode() * 1000)


def assert_untouched(place):
    for name in NAMES:
        assert (place / "tensorboard" / name).read_bytes() == name.encode() * 1000


def test_event_files_of_others_stay_at_a_fresh_start_a_resume_and_an_overwrite(make, tmp_path):
    put(tmp_path)
    make(TensorBoardCallback(), output_dir=tmp_path, max_steps=4).train()
    assert_untouched(tmp_path)
    make(TensorBoardCallback(), output_dir=tmp_path, max_steps=8).train(resume=True)
    assert_untouched(tmp_path)
    make(TensorBoardCallback(), output_dir=tmp_path, max_steps=3, overwrite=True).train()
    assert_untouched(tmp_path)
    own = [path for path in (tmp_path / "tensorboard").iterdir() if path.name not in NAMES]
    assert len(own) == 1


def test_files_that_came_between_two_runs_stay(make, tmp_path):
    make(TensorBoardCallback(), output_dir=tmp_path, max_steps=4).train()
    put(tmp_path)
    make(TensorBoardCallback(), output_dir=tmp_path, max_steps=8).train(resume=True)
    assert_untouched(tmp_path)


@pytest.mark.parametrize("first", [True, False])
def test_a_writer_that_a_callback_opened_itself_loses_nothing(make, read, tmp_path, first):
    from torch.utils.tensorboard import SummaryWriter

    class Own(TrainerCallback):
        def on_train_start(self, trainer):
            self.writer = SummaryWriter(str(trainer.output_dir / "tensorboard"))
            self.writer.add_scalar("own", 1.0, trainer.step)
            self.writer.flush()

        def on_train_end(self):
            self.writer.close()

    for steps in (4, 8):
        callbacks = [Own(), TensorBoardCallback()]
        callbacks = callbacks if first else callbacks[::-1]
        make(*callbacks, output_dir=tmp_path, max_steps=steps).train(resume="auto")
    scalars = read(tmp_path).scalars
    assert [step for step, _ in scalars["own"]] == [0, 4]
    assert [step for step, _ in scalars["loss"]] == [*range(1, 9)]


def test_foreign_event_files_are_told(make, tmp_path, caplog):
    caplog.set_level("INFO")
    put(tmp_path)
    make(TensorBoardCallback(), output_dir=tmp_path, max_steps=1).train()
    assert caplog.text.count("2 event files that are not its own") == 1


def test_a_file_in_the_way_of_the_folder_is_refused_before_the_first_step(make, tmp_path):
    (tmp_path / "tensorboard").write_text("mine")
    trainer = make(TensorBoardCallback(), output_dir=tmp_path)
    with pytest.raises(UsageError, match="tensorboard' is no folder"):
        trainer.train()
    assert trainer.step == 0
    assert (tmp_path / "tensorboard").read_text() == "mine"
