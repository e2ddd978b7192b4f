"""What a loss function may answer, and what becomes of the outputs beside the loss."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from trainer import Loss, Run, Trainer, TrainerConfig
from trainer_callback import TrainerCallback, UsageError


def make(loss_fn, callbacks=(), **config):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        [torch.ones(2, 4) * i for i in range(1, 4)],
        loss_fn=loss_fn,
        config=TrainerConfig(**{"epochs": 1, **config}),
        callbacks=list(callbacks),
        discover=False,
    )


class Keys(dict):
    """A mapping that is an object with `.loss`, too."""

    def __init__(self, loss, logits):
        super().__init__(loss=loss + 1, logits=logits)
        self.loss = loss


FORMS = {
    "a pair": lambda loss, logits: (loss, {"logits": logits}),
    "a mapping": lambda loss, logits: {"loss": loss, "logits": logits},
    "an object": lambda loss, logits: SimpleNamespace(loss=loss, logits=logits),
    "a mapping with .loss": Keys,
}


def by_form(form):
    def loss_fn(model, batch):
        logits = model(batch)
        return form(logits.square().mean(), logits)

    return loss_fn


class Sees(TrainerCallback):
    def __init__(self):
        self.forward, self.batch = [], []

    def on_forward_end(self, loss, outputs):
        self.forward.append(outputs)

    def on_batch_end(self, loss, outputs):
        self.batch.append(outputs)


def logits_of(outputs):
    return outputs["logits"] if isinstance(outputs, dict) else outputs.logits


@pytest.mark.parametrize("form", FORMS)
def test_each_form_trains_as_the_loss_alone_and_shows_its_outputs_detached(form):
    alone, sees = make(by_form(lambda loss, logits: loss)), Sees()
    alone.train()
    trainer = make(by_form(FORMS[form]), [sees])
    trainer.train()
    assert torch.equal(trainer.model.weight, alone.model.weight)
    for outputs in (*sees.forward, *sees.batch):
        assert logits_of(outputs).shape == (2, 3)
        assert not logits_of(outputs).requires_grad
    assert len(sees.forward) == len(sees.batch) == 3


def test_outputs_are_none_where_the_loss_is_alone():
    sees = Sees()
    make(by_form(lambda loss, logits: loss), [sees]).train()
    assert sees.forward == sees.batch == [None] * 3


def test_outputs_are_gone_before_the_backward_pass_where_nobody_asks_for_them():
    alive = []

    class Output:
        pass

    class Marks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss, output):
            ctx.output = weakref.ref(output)
            return loss.clone()

        @staticmethod
        def backward(ctx, gradient):
            gc.collect()
            alive.append(ctx.output() is not None)
            return gradient, None

    class Looks(TrainerCallback):
        def on_batch_end(self, trainer, batch_idx, loss):
            pass

    class Asks(TrainerCallback):
        def on_batch_end(self, outputs):
            pass

    def loss_fn(model, batch):
        output = Output()
        return Marks.apply(model(batch).square().mean(), output), output

    make(loss_fn, [Looks()]).train()
    assert alive == [False] * 3
    alive.clear()
    make(loss_fn, [Asks()]).train()
    assert alive == [True] * 3


def test_outputs_are_gone_before_the_next_forward_pass():
    earlier, alive = [], []

    class Output:
        pass

    def loss_fn(model, batch):
        gc.collect()
        alive.extend(each() is not None for each in earlier)
        output = Output()
        earlier.append(weakref.ref(output))
        return model(batch).square().mean(), output

    class Asks(TrainerCallback):
        def on_batch_end(self, outputs):
            assert outputs is not None

    make(loss_fn, [Asks()], gradient_accumulation_steps=2).train()
    assert alive == [False] * 3


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda output: Loss(output.sum(), -1), "count of a Loss is a number of at least 0"),
        (lambda output: Loss(output.sum(), "2"), "count of a Loss is a number of at least 0"),
        (lambda output: Loss(output.sum(), torch.ones(2)), "count of a Loss is a number"),
        (lambda output: Loss(output, 2), r"not one of shape \(2, 3\)"),
        (lambda output: Loss(output.sum().detach(), 2), "depends on no parameter"),
        (lambda output: Loss(torch.zeros((), requires_grad=True), 0), "depends on no parameter"),
    ],
)
def test_a_sum_that_is_none_is_refused_before_the_first_step(answer, text):
    trainer = make(lambda model, batch: answer(model(batch)))
    with pytest.raises(UsageError, match=text):
        trainer.train()
    assert trainer.step == 0


def test_sums_and_means_in_one_run_are_refused():
    def loss_fn(model, batch):
        output = model(batch)
        return Loss(output.sum(), 2) if batch[0, 0] < 3 else output.mean()

    with pytest.raises(UsageError, match="some losses of this run are a Loss and some a mean"):
        make(loss_fn).train()


def test_a_loop_of_ones_own_reads_answers_or_hands_over_sums():
    model, sees = nn.Linear(4, 3), Sees()
    run = Run(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        config=TrainerConfig(max_steps=2),
        callbacks=[sees],
        discover=False,
    )
    with run.start():
        for turn in run.updates():
            output = run.module(torch.ones(2, 4))
            if turn:
                run.backward(Loss(output.sum(), 2, outputs=output))
            else:
                run.backward(run.read((Loss(output.sum(), 2), output)))
            run.step()
    assert [outputs.shape for outputs in sees.batch] == [(2, 3)] * 2
