"""Random number generators, saved and put back in the middle of what they do."""

import random

import numpy
import pytest
import torch

from trainer.processes.rng import RandomStream, read_rng, restore_rng

CPU = torch.device("cpu")
DRAWS = {
    "python": random.random,
    "python, half of a pair": lambda: random.gauss(0, 1),
    "numpy": numpy.random.rand,
    "numpy, half of a pair": numpy.random.randn,
    "torch": lambda: torch.rand(()).item(),
    "torch, normal": lambda: torch.randn(3).tolist(),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_every_generator_goes_on_where_it_was(draw):
    before = read_rng(CPU)
    DRAWS[draw]()  # of a pair of normal numbers, the other one waits
    state = read_rng(CPU)
    expected = [DRAWS[draw]() for _ in range(3)]
    restore_rng(before, CPU)
    restore_rng(state, CPU)
    assert [DRAWS[draw]() for _ in range(3)] == expected


@pytest.mark.parametrize("draw", DRAWS)
def test_a_stream_and_the_generators_outside_know_nothing_of_each_other(draw):
    def numbers(between):
        stream = RandomStream(3)
        found = []
        for _ in range(3):
            with stream:
                found.append(DRAWS[draw]())
            between()
        return found

    assert numbers(lambda: None) == numbers(DRAWS[draw])
