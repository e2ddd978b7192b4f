"""The sets of a validation, and their batches, as plugins are told of them."""

import pytest

pytest.importorskip("transformers", minversion="5.6")

import transformers

from trainer_callback import TrainerCallback, UsageError
from trainer_transformers import Plugins, attach

from .driver import make_trainer, scenarios

pytestmark = pytest.mark.filterwarnings("ignore")

CASE = scenarios.Case("a test", epochs=1)


class Sets(TrainerCallback):
    """Writes down what it is told of sets."""

    def __init__(self):
        self.told = []

    def on_validation_set_start(self, name):
        self.told.append(name)

    def on_validation_batch_end(self, name, batch_idx, batch, loss, outputs):
        assert outputs["y"].shape == batch["labels"].shape
        self.told.append((name, batch_idx, loss.item()))

    def on_validation_set_end(self, name, metrics):
        self.told.append({name: metrics["loss"]} if metrics else name)


def test_each_of_several_sets_is_told_by_its_name(tmp_path):
    trainer, sets = make_trainer(CASE, tmp_path), Sets()
    trainer.eval_dataset = {"one": scenarios.make_data(1, 8), "two": scenarios.make_data(2, 16)}
    attach(trainer, [sets], discover=False).train()
    first, *rest = sets.told
    assert (first, [each[:2] for each in rest if isinstance(each, tuple)]) == (
        "one",
        [("one", 0), ("two", 0), ("two", 1)],
    )
    assert rest[1] == {"one": pytest.approx(rest[0][2])}
    assert rest[2] == "two"
    assert rest[-1] == {"two": pytest.approx((rest[3][2] + rest[4][2]) / 2)}


def test_an_evaluation_of_somebody_elses_inside_of_it_is_not_told(tmp_path):
    class Again(transformers.TrainerCallback):
        def on_evaluate(self, args, state, control, **named):
            if trainer.is_again:
                trainer.is_again = False
                trainer.evaluate(scenarios.make_data(2, 16), metric_key_prefix="again")

    trainer, sets = make_trainer(CASE, tmp_path), Sets()
    trainer.is_again = True
    trainer.add_callback(Again())
    attach(trainer, [sets], discover=False).train()
    assert not trainer.is_again
    assert [type(each) for each in sets.told] == [str, tuple, dict]


def test_who_waits_for_batches_that_do_not_come_is_named(tmp_path, caplog):
    trainer = make_trainer(CASE, tmp_path, label_names=["others"])
    attach(trainer, [Sets()], discover=False).train()
    assert "Hugging Face shows no batches of the validation set 'val', which Sets" in caplog.text
    assert "set label_names" in caplog.text


def test_by_events_alone_who_wants_them_is_refused(tmp_path):
    trainer = make_trainer(CASE, tmp_path)
    trainer.add_callback(Plugins([Sets()], discover=False))
    with pytest.raises(UsageError, match="the start of a validation, which Sets needs"):
        trainer.train()
