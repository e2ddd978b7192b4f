"""In a turn of several optimizers each has its own parameters averaged, once."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from trainer_ema import EMACallback


def follow(host, turns, part):
    """Returns the weights of a part of the model after each of its updates."""
    seen = []
    for names in turns:
        host.turn(*names)
        if not names or part in names:
            seen.append(host.model[part].weight.detach().clone())
    return seen


BOTH = [()] * 7
RARE = [("d",), ("d",), ("d", "g")] * 4  # the generator is updated every third time
ALTERNATE = [("d",), ("g",)] * 4


@pytest.mark.parametrize("part", ["d", "g"])
@pytest.mark.parametrize("turns", [BOTH, RARE, ALTERNATE])
@pytest.mark.parametrize("every", [1, 3])
def test_each_part_has_the_average_over_its_own_updates(gan, average_of, part, turns, every):
    callback = EMACallback(0.5, every=every)
    host = gan(callback)
    host.start()
    weights = follow(host, turns, part)
    averages = host.save()["averages"]
    assert_close(averages[f"{part}.weight"], average_of(weights[::every], 0.5))


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_resumed_run_has_the_averages_of_one_that_was_not_interrupted(gan, cut):
    whole = gan(EMACallback(0.9))
    whole.start()
    for names in RARE[:6]:
        whole.turn(*names)
    first = gan(EMACallback(0.9))
    first.start()
    for names in RARE[:cut]:
        first.turn(*names)
    second = gan(EMACallback(0.9))
    second.model.load_state_dict(first.model.state_dict())
    second.step = first.step
    second.start(copy.deepcopy(first.save()))
    for names in RARE[cut:6]:
        second.turn(*names)
    for name, average in whole.save()["averages"].items():
        assert torch.equal(second.save()["averages"][name], average), name


def test_a_part_with_too_few_updates_ends_with_its_own_weights(gan):
    callback = EMACallback(0.9, every=2)
    host = gan(callback)
    host.start()
    follow(host, [("d", "g"), ("d", "g"), ("d",), ("d",)], "g")
    last = host.model["g"].weight.detach().clone()
    callback.on_train_end(host, SimpleNamespace(status="finished"))
    assert torch.equal(host.model["g"].weight, last)
    assert torch.equal(host.model["d"].weight, callback._average.averages["d.weight"])
