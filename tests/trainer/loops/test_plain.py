"""A loop over `Run` trains, bit by bit, what the same loop in plain torch does."""

import math

import pytest
import torch
from torch import nn


def weights(models):
    return [each.detach().clone() for model in models for each in model.parameters()]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


def test_nanogpt(loops):
    loop = loops.kinds["nanogpt"](None, validate=False)
    loop.train()
    plain = loops.kinds["nanogpt"](None, validate=False)
    torch.manual_seed(5)
    for step in range(11):
        for group in plain.optimizer.param_groups:
            group["lr"] = 0.01 * 0.5 * (1 + math.cos(math.pi * step / 20))
        for _ in range(2):
            (plain.loss_of(*plain.get_batch("train")) / 2).backward()
        nn.utils.clip_grad_norm_(plain.model.parameters(), 1.0)
        plain.optimizer.step()
        plain.optimizer.zero_grad()
    assert_same(weights([loop.model]), weights([plain.model]))


@pytest.mark.parametrize("detaches", [True, False])
def test_gan(loops, detaches):
    """`backward(loss, name)` reaches that optimizer's parameters only: nothing needs `detach`."""

    class Gan(loops.kinds["gan"]):
        def train(self, resume=False):
            run = self.run
            with run.start(resume):
                for _ in run.epochs():
                    for real in run.batches(self.data):
                        fake = run.module["g"](self.noise(real))
                        run.backward(self.judge(real, True), "d")
                        shown = fake.detach() if detaches else fake
                        run.backward(self.judge(shown, False), "d")
                        run.step("d")
                        run.backward(self.judge(fake, True), "g")
                        run.step("g")

    loop = Gan(None)
    loop.train()
    plain = Gan(None)
    schedule = torch.optim.lr_scheduler.StepLR(plain.optimizers["d"], 3)
    g, d = plain.models["g"], plain.models["d"]
    torch.manual_seed(5)
    for _ in range(3):
        for real in plain.data:
            fake = g(plain.noise(real))
            plain.judge(real, True).backward()
            plain.judge(fake.detach(), False).backward()
            nn.utils.clip_grad_norm_(d.parameters(), 1.0)
            plain.optimizers["d"].step()
            schedule.step()
            g.zero_grad()
            plain.judge(fake, True).backward()
            nn.utils.clip_grad_norm_(g.parameters(), 1.0)
            plain.optimizers["g"].step()
            d.zero_grad()
    assert_same(weights([*loop.models.values()]), weights([g, d]))
