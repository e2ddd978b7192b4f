"""A hook of torch that a callback has registered on the model: its failure is the callback's."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from trainer import Run, TrainerConfig
from trainer_callback import CallbackError, TrainerCallback


class Watches(TrainerCallback):
    def __init__(self, kind):
        self.kind = kind

    def on_train_start(self, trainer):
        register = getattr(trainer.model[1], f"register_{self.kind}")
        self.handle = register(partial(self.look, "it"))

    def look(self, name, *_):
        raise FloatingPointError(f"{name} is not finite")

    def close(self):
        self.handle.remove()


def train(model, *callbacks):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = Run(model, optimizer, config=TrainerConfig(epochs=1), callbacks=callbacks)
    with run.start():
        for _ in run.epochs():
            for batch in run.batches([torch.ones(2, 4)]):
                run.backward(run.module(batch).square().mean())
                run.step()


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook"])
def test_a_failing_hook_of_torch_is_blamed_on_the_callback_that_registered_it(kind):
    with pytest.raises(CallbackError) as caught:
        train(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)), Watches(kind))
    said = "Watches (not installed) failed in a hook of torch, look: FloatingPointError: it is not"
    assert str(caught.value).startswith(said)
    assert isinstance(caught.value.__cause__, FloatingPointError)


def test_a_failing_model_is_nobodys_but_its_own():
    class Fails(nn.Linear):
        def forward(self, x):
            raise FloatingPointError("of the model")

    with pytest.raises(FloatingPointError, match="of the model"):
        train(nn.Sequential(nn.Linear(4, 4), Fails(4, 1)), Watches("forward_hook"))
