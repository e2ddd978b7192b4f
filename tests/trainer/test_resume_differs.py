"""What differs between a snapshot's run and the one that resumes it: told once, or refused."""

import logging
import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from trainer import ConfigError, Trainer, TrainerConfig
from trainer.data.loaders import EmptyLoaderError
from trainer.snapshots.facts import describe_data, log_other_data
from trainer.step.schedules import ScheduleError
from trainer_callback import SnapshotError, TrainerCallback


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, **options})


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=0.1)


def make(place, schedule=None, *, optimizer=sgd, loader=None, callbacks=(), **config):
    """Four updates an epoch, of which the run has two unless told otherwise."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
    made = optimizer(model)
    return Trainer(
        model,
        made,
        DataLoader(torch.ones(8, 4), batch_size=2) if loader is None else loader,
        loss_fn=lambda model, batch: model(batch).square().mean(),
        scheduler=None if schedule is None else schedule(made),
        config=TrainerConfig(output_dir=place, **{"epochs": 2, **config}),
        callbacks=callbacks,
        discover=False,
    )


def warned(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


SCHEDULES = {
    "LambdaLR": lambda o: schedules.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: schedules.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: schedules.StepLR(o, 3),
    "MultiStepLR": lambda o: schedules.MultiStepLR(o, [2, 5, 5]),
    "ConstantLR": lambda o: schedules.ConstantLR(o),
    "LinearLR": lambda o: schedules.LinearLR(o),
    "ExponentialLR": lambda o: schedules.ExponentialLR(o, 0.9),
    "SequentialLR": lambda o: schedules.SequentialLR(
        o, [schedules.LinearLR(o), schedules.CosineAnnealingLR(o, 13)], [3]
    ),
    "CosineAnnealingLR": lambda o: schedules.CosineAnnealingLR(o, 16),
    "ChainedScheduler": lambda o: schedules.ChainedScheduler(
        [schedules.LinearLR(o), schedules.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "CyclicLR": lambda o: schedules.CyclicLR(o, 0.01, 0.1, 3),
    "CosineAnnealingWarmRestarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 3, 2),
    "OneCycleLR": lambda o: schedules.OneCycleLR(o, 0.1, total_steps=16),
    "PolynomialLR": lambda o: schedules.PolynomialLR(o, 16),
}


def test_the_table_has_every_scheduler_of_torch():
    refused = {"ReduceLROnPlateau", "LRScheduler"}
    assert {*schedules.__all__} - refused == {*SCHEDULES}


@pytest.mark.parametrize("optimizer", [sgd, adam])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_plain_resume_warns_of_nothing_and_goes_on_exactly(tmp_path, caplog, name, optimizer):
    with warnings.catch_warnings():  # of torch about its own SequentialLR
        warnings.simplefilter("ignore")
        whole = make(None, SCHEDULES[name], optimizer=optimizer, epochs=4)
        whole.train()
        make(tmp_path, SCHEDULES[name], optimizer=optimizer, max_steps=5).train()
        resumed = make(tmp_path, SCHEDULES[name], optimizer=optimizer, epochs=4)
        resumed.train(resume=True)
    assert warned(caplog) == []
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            lambda o: schedules.CosineAnnealingLR(o, 8),
            lambda o: schedules.CosineAnnealingLR(o, 16),
            ["CosineAnnealingLR: T_max 8", "16 has no effect", "rises again from update 8 on"],
        ),
        (
            lambda o: schedules.LinearLR(o, 1.0, 0.0, 8),
            lambda o: schedules.LinearLR(o, 1.0, 0.0, 16),
            ["LinearLR: total_iters 8", "16 has no effect", "is 0 from update 8 on"],
        ),
        (
            lambda o: schedules.StepLR(o, 8),
            lambda o: schedules.StepLR(o, 16),
            ["StepLR: step_size 8", "16 has no effect"],
        ),
        (
            lambda o: schedules.MultiStepLR(o, [4, 9]),
            lambda o: schedules.MultiStepLR(o, [4, 12]),
            ["MultiStepLR: milestones [4, 9]", "[4, 12] has no effect"],
        ),
        (
            lambda o: schedules.CyclicLR(o, 0.01, 0.1, 3),
            lambda o: schedules.CyclicLR(o, 0.01, 0.2, 3),
            ["CyclicLR: max_lrs [0.1]", "[0.2] has no effect"],
        ),
        (
            lambda o: schedules.OneCycleLR(o, 0.1, total_steps=16, pct_start=0.3),
            lambda o: schedules.OneCycleLR(o, 0.1, total_steps=16, pct_start=0.5),
            ["OneCycleLR: the ends of its phases", "has no effect"],
        ),
        (
            SCHEDULES["SequentialLR"],
            lambda o: schedules.SequentialLR(
                o, [schedules.LinearLR(o), schedules.CosineAnnealingLR(o, 99)], [3]
            ),
            ["CosineAnnealingLR: T_max 13", "99 has no effect"],
        ),
        (
            SCHEDULES["SequentialLR"],
            lambda o: schedules.SequentialLR(
                o, [schedules.LinearLR(o), schedules.CosineAnnealingLR(o, 13)], [4]
            ),
            ["SequentialLR: milestones [3]", "[4] has no effect"],
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_new_schedule_that_has_no_effect_is_told(tmp_path, caplog, old, new, told):
    make(tmp_path, old).train()
    resumed = make(tmp_path, new, epochs=4)
    resumed.train(resume=True)
    text = "\n".join(warned(caplog))
    for piece in told:
        assert text.count(piece) == 1, text
    assert text.count("has no effect") == 1
    assert "on_train_start" in text


def test_a_schedule_of_other_parts_is_refused(tmp_path):
    make(tmp_path, SCHEDULES["SequentialLR"]).train()

    def other(o):
        return schedules.SequentialLR(o, [schedules.StepLR(o, 3), schedules.StepLR(o, 4)], [3])

    with pytest.raises(SnapshotError, match=r"\(LinearLR, CosineAnnealingLR\).*\(StepLR, StepLR\)"):
        make(tmp_path, other, epochs=4).train(resume=True)


def test_a_base_rate_that_has_no_effect_is_told_once(tmp_path, caplog):
    make(tmp_path, SCHEDULES["StepLR"]).train()
    make(tmp_path, SCHEDULES["StepLR"], optimizer=lambda m: sgd(m, lr=0.5), epochs=4).train(True)
    (told,) = warned(caplog)
    assert "initial_lr 0.1 of the snapshot; 0.5 has no effect" in told


class FindsRate(TrainerCallback):
    def on_train_start(self, trainer, resumed):
        if not resumed:
            trainer.change_base_rate(0.02)


FOUND_FOR = {
    "StepLR": lambda o: schedules.StepLR(o, 20),
    "eta_min": lambda o: schedules.CosineAnnealingLR(o, 20, eta_min=0.01),
    "none": None,
}


@pytest.mark.parametrize("schedule", FOUND_FOR)
def test_a_rate_that_a_callback_has_found_is_no_setting_of_the_script(tmp_path, caplog, schedule):
    for epochs in (2, 4, 6):
        callbacks = [FindsRate()]
        made = make(tmp_path, FOUND_FOR[schedule], callbacks=callbacks, epochs=epochs)
        made.train(resume="auto")
    assert warned(caplog) == []


def test_another_rate_of_the_script_is_told_beside_one_that_a_callback_has_found(tmp_path, caplog):
    make(tmp_path, SCHEDULES["StepLR"], callbacks=[FindsRate()]).train()
    resumed = make(
        tmp_path,
        SCHEDULES["StepLR"],
        optimizer=lambda m: sgd(m, lr=0.5),
        callbacks=[FindsRate()],
        epochs=4,
    )
    resumed.train(resume=True)
    (told,) = warned(caplog)
    assert "initial_lr 0.02 of the snapshot; 0.5 has no effect" in told


def test_a_setting_of_each_group_is_told(tmp_path, caplog):
    def grouped(*rates):
        def build(model):
            groups = [
                {"params": part.parameters(), "lr": rate}
                for part, rate in zip(model, rates, strict=True)
            ]
            return torch.optim.SGD(groups)

        return build

    make(tmp_path, optimizer=grouped(0.1, 0.2)).train()
    make(tmp_path, optimizer=grouped(0.1, 0.3), epochs=4).train(resume=True)
    (told,) = warned(caplog)
    assert "group 1" in told
    assert "lr 0.2 of the snapshot; 0.3 has no effect" in told


@pytest.mark.parametrize("first", [None, 8])
def test_a_schedule_that_ends_before_the_run_is_refused_before_the_first_step(tmp_path, first):
    """OneCycleLR raises when it is stepped behind its end."""
    steps = []

    class Counts(TrainerCallback):
        def on_step_end(self, trainer):
            steps.append(trainer.step)

    def schedule(total):
        return lambda o: schedules.OneCycleLR(o, 0.1, total_steps=total)

    if first is not None:
        make(tmp_path, schedule(first)).train()
    trainer = make(tmp_path, schedule(8 if first is None else 16), epochs=4, callbacks=[Counts()])
    with pytest.raises(ConfigError, match=r"OneCycleLR ends .*update 8\b.* this run .*update 16\b"):
        trainer.train(resume="auto")
    assert steps == []


def test_a_schedule_that_ends_in_a_run_of_unknown_length_is_an_error_in_words(tmp_path):
    def batches():
        yield from [torch.ones(2, 4)] * 6

    class Stream:
        def __iter__(self):
            return batches()

    trainer = make(tmp_path, lambda o: schedules.OneCycleLR(o, 0.1, total_steps=8), loader=Stream())
    with pytest.raises(ScheduleError, match="OneCycleLR has no rate for the next update"):
        trainer.train()


def test_a_stream_that_ends_before_the_place_of_the_resume_is_refused(tmp_path):
    class Stream:
        def __init__(self, count):
            self.count = count

        def __iter__(self):
            return iter([torch.ones(2, 4)] * self.count)

    make(tmp_path, loader=Stream(6), max_steps=4).train()
    with pytest.raises(EmptyLoaderError, match=r"gave 3 batches in epoch 0.* behind batch 4"):
        make(tmp_path, loader=Stream(3)).train(resume=True)


def test_a_schedule_that_ends_with_the_run_is_not_refused(tmp_path):
    one = make(tmp_path, lambda o: schedules.OneCycleLR(o, 0.1, total_steps=8))
    assert one.train().steps == 8


def test_a_rate_of_zero_for_the_rest_of_the_run_is_told(tmp_path, caplog):
    make(tmp_path, lambda o: schedules.PolynomialLR(o), epochs=2).train()
    (told,) = warned(caplog)
    assert "PolynomialLR" in told
    assert "is 0 from update 5 on" in told


def test_a_scheduler_where_there_was_none_is_refused_in_words(tmp_path):
    make(tmp_path / "a").train()
    make(tmp_path / "b", SCHEDULES["StepLR"]).train()
    with pytest.raises(SnapshotError, match=r"without a scheduler, and this run has StepLR"):
        make(tmp_path / "a", SCHEDULES["StepLR"], epochs=3).train(resume=True)
    with pytest.raises(SnapshotError, match=r"with the scheduler StepLR, and this run has none"):
        make(tmp_path / "b", epochs=3).train(resume=True)


def data(items=8, **options):
    return DataLoader(torch.ones(items, 4), **{"batch_size": 2, **options})


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (data(items=12), "items=8"),
        (data(batch_size=4), "batch_size=2"),
        (data(drop_last=True), "drop_last=False"),
        (data(shuffle=True), "sampler='SequentialSampler'"),
        (data(num_workers=1), "workers=0"),
        ([torch.ones(2, 4)] * 5, "batches=4"),
    ],
)
def test_other_data_in_the_middle_of_an_epoch_is_a_warning(tmp_path, caplog, now, told):
    make(tmp_path, max_steps=1).train()
    make(tmp_path, loader=now).train(resume=True)
    (text,) = warned(caplog)
    assert told in text
    assert "epoch 0" in text
    assert "come again or are left out" in text


def weighted(*weights):
    return data(sampler=WeightedRandomSampler(weights, 8))


def drawn(**options):
    return data(sampler=RandomSampler(range(8), **options))


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (drawn(), drawn(replacement=True), "replacement=False"),
        (drawn(), drawn(num_samples=6), "num_samples=8"),
        (weighted(1, 2, 3, 4), weighted(4, 3, 2, 1), "weights='4, checksum "),
        (
            data(sampler=SubsetRandomSampler(range(6))),
            data(sampler=SubsetRandomSampler(range(2, 8))),
            "indices='6, checksum ",
        ),
    ],
)
def test_other_options_of_the_same_sampler_are_told(tmp_path, caplog, before, now, told):
    make(tmp_path, loader=before, max_steps=1).train()
    make(tmp_path, loader=before, max_steps=2).train(resume=True)
    assert warned(caplog) == []
    make(tmp_path, loader=now).train(resume=True)
    (text,) = warned(caplog)
    assert told in text


def test_a_snapshot_that_knows_no_options_of_samplers_is_resumed_silently(caplog):
    caplog.set_level("INFO")
    now = describe_data(drawn(replacement=True))
    old = {name: now[name] for name in now if name not in ("replacement", "num_samples")}
    log_other_data(old, now, {"epoch": 0, "batch_in_epoch": 1, "epoch_done": False})
    assert caplog.messages == []


def test_other_data_at_the_end_of_an_epoch_is_no_warning(tmp_path, caplog):
    caplog.set_level("INFO")
    make(tmp_path).train()
    caplog.clear()
    make(tmp_path, loader=data(items=12), epochs=3).train(resume=True)
    assert warned(caplog) == []
    (text,) = [each for each in caplog.messages if "items=8" in each]
    assert "items=12" in text
    assert "from the next epoch on" in text


def test_a_place_behind_the_end_of_the_epoch_is_refused(tmp_path):
    make(tmp_path, max_steps=3).train()
    with pytest.raises(SnapshotError, match=r"behind batch 3 of epoch 0.* has 2 batches"):
        make(tmp_path, loader=data(batch_size=4)).train(resume=True)


def test_a_place_behind_the_limit_of_the_epoch_is_refused_by_its_option(tmp_path):
    make(tmp_path, max_steps=3).train()
    with pytest.raises(SnapshotError, match=r"has 2 batches by its limit \(max_train_batches\)"):
        make(tmp_path, max_train_batches=2).train(resume=True)


@pytest.mark.parametrize(
    ("option", "told", "warns"),
    [
        ({"seed": 3}, "seed was 0 in the snapshot's run and is 3", True),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps was 1", True),
        ({"precision": "bf16"}, "precision was 'fp32'", True),
        ({"max_grad_norm": 1.0}, "max_grad_norm was None", True),
        ({"epochs": 3}, "epochs was 2 in the snapshot's run and is 3", False),
        ({"keep_snapshots": 5}, "keep_snapshots was 3", False),
    ],
)
def test_another_setting_is_told_with_its_effect(tmp_path, caplog, option, told, warns):
    caplog.set_level("INFO")
    make(tmp_path, max_steps=1).train()
    caplog.clear()
    make(tmp_path, **option).train(resume=True)
    found = [r for r in caplog.records if told in r.getMessage()]
    (text,) = [r.getMessage() for r in found]
    assert [r.levelno >= logging.WARNING for r in found] == [warns]
    assert "from here on" in text
    if "seed" in option:
        assert "come again or are left out" in text


class Doubles(nn.Module):
    """Its function is somewhere in memory, and says so."""

    def __init__(self):
        super().__init__()
        self.function = lambda x: 2 * x

    def forward(self, x):
        return self.function(x)

    def extra_repr(self):
        return repr(self.function)


def make_of(place, *parts, **config):
    model = nn.Sequential(nn.Linear(4, 3), *parts, nn.Linear(3, 1))
    return Trainer(
        model,
        sgd(model),
        DataLoader(torch.ones(8, 4), batch_size=2),
        loss_fn=lambda model, batch: model(batch).square().mean(),
        config=TrainerConfig(output_dir=place, **config),
        discover=False,
    )


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ([nn.Dropout(0.1)], [nn.Dropout(0.5)], "1 Dropout(p=0.5, inplace=False) where that had 1"),
        ([nn.ReLU(), nn.Tanh()], [nn.Tanh(), nn.ReLU()], "the same parts in another order"),
        ([Doubles()], [Doubles()], None),
    ],
)
def test_a_model_of_the_same_shapes_that_is_built_otherwise_is_told(
    tmp_path, caplog, before, after, text
):
    make_of(tmp_path, *before, max_steps=2).train()
    make_of(tmp_path, *after, max_steps=4).train(resume=True)
    found = [line for line in warned(caplog) if "is built otherwise" in line]
    assert len(found) == (text is not None)
    assert text is None or text in found[0]


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"epochs": 1}, "nothing is left to train: epochs is 1, and 1 epochs and 4 updates"),
        ({"max_steps": 3}, "nothing is left to train: max_steps is 3, and 0 epochs and 3 updates"),
    ],
)
def test_a_resume_behind_the_end_of_the_run_says_what_to_raise(tmp_path, caplog, limits, text):
    with caplog.at_level(logging.INFO):
        make(tmp_path, **limits).train()
        assert "nothing is left" not in caplog.text
        make(tmp_path, **limits).train(resume=True)
    assert [text in message for message in caplog.messages if "nothing is left" in message] == [
        True
    ]
