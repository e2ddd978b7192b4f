"""Losses that are sums: the gradient of an update is that of the mean over all its items, however
they are cut into micro-batches and processes.
"""

import itertools

import numpy
import pytest
import torch
from torch import nn

from trainer import Loss, NonFiniteError, Run, Trainer, TrainerConfig
from trainer_callback import TrainerCallback, UsageError

LENGTHS = (2, 30, 5, 25, 0, 7, 1, 12)


def sequences():
    """Eight sequences of (tokens, 5), padded to 30 tokens, and their masks."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(8, 30, 5, generator=generator, dtype=torch.float64)
    mask = torch.arange(30) < torch.tensor(LENGTHS)[:, None]
    return [(tokens[i], mask[i]) for i in range(8)]


def sum_of(model, batch, *, on_device=False):
    tokens, mask = batch
    each = model(tokens).square().sum(-1) * mask
    return Loss(each.sum(), mask.sum() if on_device else int(mask.sum()))


def make_model():
    torch.manual_seed(0)
    return nn.Linear(5, 3).double()


def make(loss_fn, *, rows, steps, callbacks=(), kind=torch.optim.SGD, val=False, **config):
    model = make_model()
    loader = torch.utils.data.DataLoader(sequences(), batch_size=rows)
    return Trainer(
        model,
        kind(model.parameters(), lr=0.05),
        loader,
        torch.utils.data.DataLoader(sequences(), batch_size=3) if val else None,
        loss_fn=loss_fn,
        config=TrainerConfig(
            **{"epochs": 2, "log_interval": 1, **config}, gradient_accumulation_steps=steps
        ),
        callbacks=list(callbacks),
        discover=False,
    )


def expected():
    """Weights of two epochs in plain torch: updates of four sequences each."""
    model, data = make_model(), sequences()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        for start in (0, 4):
            tokens, mask = (
                torch.stack(each) for each in zip(*data[start : start + 4], strict=True)
            )
            loss = (model(tokens).square().sum(-1) * mask).sum() / mask.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.weight.detach()


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize(("rows", "steps"), [(4, 1), (1, 4), (2, 2)])
def test_the_gradient_is_that_of_all_items_however_an_update_is_cut(rows, steps, on_device):
    def loss_fn(model, batch):
        return sum_of(model, batch, on_device=on_device)

    trainer = make(loss_fn, rows=rows, steps=steps)
    trainer.train()
    assert (trainer.model.weight - expected()).abs().max() < 1e-12


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize(("rows", "steps"), [(2, 1), (1, 2)])
def test_the_gradient_is_that_of_all_processes(tiny, tmp_path, rows, steps, on_device):
    def work(rank):
        def loss_fn(model, batch):
            return sum_of(model, batch, on_device=on_device and rank == 1)

        trainer = make(loss_fn, rows=rows, steps=steps)
        result = trainer.train()
        torch.save((trainer.model.weight.detach(), result.train_loss), tmp_path / str(rank))

    assert tiny.run_ranks(work) == [0, 0]
    found = [torch.load(tmp_path / str(rank)) for rank in (0, 1)]
    alone = make(sum_of, rows=4, steps=1).train()
    for weight, loss in found:  # each second batch, so that an update has the same sequences
        assert (weight - expected()).abs().max() < 1e-12
        assert loss == pytest.approx(alone.train_loss, rel=1e-12)
    assert torch.equal(found[0][0], found[1][0])


def test_a_process_with_sums_and_one_with_means_are_refused(tiny):
    def work(rank):
        def loss_fn(model, batch):
            loss = sum_of(model, batch)
            return loss if rank else loss.total

        try:
            make(loss_fn, rows=2, steps=1).train()
        except Exception as error:
            return 7 if "some a mean" in str(error) else 8
        return 0

    assert tiny.run_ranks(work) == [7, 7]


def test_the_reported_means_are_weighted_by_items():
    result = make(sum_of, rows=1, steps=1, val=True, epochs=1).train()
    alike = make(sum_of, rows=8, steps=1, val=True, epochs=1).train()
    model = make_model().requires_grad_(False)
    total = sum(sum_of(model, each).total for each in sequences()) / sum(LENGTHS)
    assert alike.train_loss == pytest.approx(float(total), rel=1e-14)
    assert result.val_loss != alike.val_loss  # other updates
    frozen = [make(sum_of, rows=rows, steps=1, val=True, epochs=1) for rows in (1, 8)]
    for trainer in frozen:
        trainer.optimizer.param_groups[0]["lr"] = 0.0
    losses = [(each.train_loss, each.val_loss) for each in (t.train() for t in frozen)]
    assert losses == [(pytest.approx(float(total), rel=1e-14),) * 2] * 2


def test_hooks_see_the_mean_of_the_micro_batch():
    seen = []

    class Sees(TrainerCallback):
        def on_forward_end(self, loss):
            seen.append(float(loss))

        def on_batch_end(self, loss):
            seen.append(float(loss))

    make(sum_of, rows=1, steps=4, epochs=1, callbacks=[Sees()]).train()
    model = make_model().requires_grad_(False)
    first = [sum_of(model, each) for each in sequences()[:4]]
    means = [float(each.total / count) for each, count in zip(first, LENGTHS, strict=False)]
    assert seen[:8] == pytest.approx([mean for mean in means for _ in range(2)], rel=1e-14)


@pytest.mark.parametrize("steps", [1, 2])
def test_an_update_without_items_is_skipped_and_said_once(steps, caplog):
    skips = []

    class Sees(TrainerCallback):
        def on_step_end(self, trainer, skipped):
            skips.append((skipped, trainer.model.weight.detach().clone()))

    def loss_fn(model, batch):
        loss = sum_of(model, batch)
        return Loss(loss.total * (trainer.step % 2), loss.count * (trainer.step % 2))

    trainer = make(
        loss_fn, rows=1, steps=steps, callbacks=[Sees()], kind=torch.optim.AdamW, epochs=1
    )
    trainer.train()
    assert [skipped for skipped, _ in skips] == [True, False] * (4 // steps)
    weights = [make_model().weight.detach(), *(weight for _, weight in skips)]
    changed = [not torch.equal(*pair) for pair in itertools.pairwise(weights)]
    assert changed[:2] == [False, True]
    assert caplog.text.count("no process had an item in it") == 1


def test_fp16_and_a_large_count_neither_overflow_nor_skip():
    skips = []

    class Sees(TrainerCallback):
        def on_step_end(self, skipped):
            skips.append(skipped)

    def loss_fn(model, batch):
        each = model(batch).square()
        return Loss(each.float().sum(), each.numel())

    model = nn.Linear(64, 4096)
    config = TrainerConfig(epochs=1, precision="fp16", gradient_accumulation_steps=2)
    loader = [torch.ones(8, 64)] * 8
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    Trainer(
        model, optimizer, loader, loss_fn=loss_fn, config=config, callbacks=[Sees()], discover=False
    ).train()
    assert skips == [False] * 4


def test_several_optimizers_have_each_their_own_count():
    torch.manual_seed(0)
    parts = {name: nn.Linear(2, 1).double() for name in "ab"}
    plain = {name: nn.Linear(2, 1).double() for name in "ab"}
    for name, model in plain.items():
        model.load_state_dict(parts[name].state_dict())
    optimizers = {n: torch.optim.SGD(m.parameters(), lr=0.1) for n, m in parts.items()}
    batches = [torch.randn(n, 2, dtype=torch.float64) for n in (3, 5)]
    run = Run(
        parts,
        optimizers,
        config=TrainerConfig(epochs=1, gradient_accumulation_steps=2),
        discover=False,
    )
    with run.start():
        for _ in run.epochs():
            for batch in run.batches(batches):
                run.backward(Loss(run.module["a"](batch).square().sum(), len(batch)), "a")
                run.step("a")
                run.backward(Loss(run.module["b"](batch[1:]).square().sum(), len(batch) - 1), "b")
                run.step("b")
    plain["a"](torch.cat(batches)).square().mean().backward()
    plain["b"](torch.cat([each[1:] for each in batches])).square().mean().backward()
    for name, model in plain.items():
        after = model.weight - 0.1 * model.weight.grad
        assert (after - parts[name].weight).abs().max() < 1e-12


@pytest.mark.parametrize("at", [20, 33])
def test_a_run_that_was_killed_goes_on_with_the_same_bits(tiny, tmp_path, at):
    def work(place, kills=None):
        options = {"output_dir": place, "snapshot_interval": 1, "snapshot_sync": True, "epochs": 3}
        trainer = make(sum_of, rows=1, steps=3, callbacks=[tiny.killer(kills)], **options)
        trainer.train(resume="auto")

    assert tiny.child(lambda: work(tmp_path / "whole")).wait() == 0
    assert tiny.child(lambda: work(tmp_path / "killed", at)).wait() == -9
    assert tiny.child(lambda: work(tmp_path / "killed")).wait() == 0
    states = [tiny.newest_state(tmp_path / name) for name in ("whole", "killed")]
    assert tiny.difference(*states) is None


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("rows", [4, 8])
def test_a_mean_over_no_items_is_told_of_where_a_batch_had_none(rows, on_device):
    def loss_fn(model, batch):
        loss = sum_of(model, batch, on_device=on_device)
        return Loss(loss.total * float("nan"), loss.count * (rows == 4))

    with pytest.raises(NonFiniteError) as raised:
        make(loss_fn, rows=rows, steps=1).train()
    assert ("a mean over no items is NaN" in str(raised.value)) is (rows == 8)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("wrong", [-4, float("nan"), float("inf"), True])
@pytest.mark.parametrize("at", [0, 5])
def test_a_count_that_is_none_is_refused_also_on_the_device(steps, wrong, at):
    seen = itertools.count()

    def loss_fn(model, batch):
        found = sum_of(model, batch, on_device=True)
        return Loss(found.total, torch.tensor(wrong) if next(seen) == at else found.count)

    trainer = make(loss_fn, rows=1, steps=steps)
    with pytest.raises(UsageError, match="the count of a Loss is a number of at least 0"):
        trainer.train()
    assert trainer.step == at // steps


@pytest.mark.parametrize("wrong", [-3.0, float("nan"), float("inf")])
def test_a_tensor_that_is_no_count_is_refused_also_behind_a_number(wrong):
    counts = iter([3, torch.tensor(wrong)])
    wrongly = make(lambda model, batch: Loss(model(batch[0]).sum(), next(counts)), rows=4, steps=1)
    with pytest.raises(UsageError, match="the count of a Loss is a number of at least 0"):
        wrongly.train()


def test_a_count_of_one_process_that_is_none_ends_all(tiny):
    def work(rank):
        def loss_fn(model, batch):
            found = sum_of(model, batch, on_device=True)
            return Loss(found.total, -found.count if rank else found.count)

        with pytest.raises(Exception, match="the count of a Loss is a number of at least 0"):
            make(loss_fn, rows=2, steps=1).train()

    assert tiny.run_ranks(work, seconds=30) == [0, 0]


def test_a_count_of_numpy_is_a_number():
    def loss_fn(model, batch):
        found = sum_of(model, batch)
        return Loss(found.total, numpy.int64(found.count))

    found = [make(each, rows=2, steps=2).train().train_loss for each in (sum_of, loss_fn)]
    assert found[0] == found[1]


def test_means_in_a_validation_behind_sums_in_the_training_count_by_items():
    def loss_fn(model, batch):
        found = sum_of(model, batch)
        return found if model.training else batch[1].sum(-1).double().mean()

    result = make(loss_fn, rows=2, steps=1, val=True).train()
    assert result.val_loss == pytest.approx(sum(LENGTHS) / len(LENGTHS), rel=1e-12)


@pytest.mark.parametrize("wrong", [-1, float("nan")])
def test_a_count_in_a_validation_that_is_none_is_refused(wrong):
    def loss_fn(model, batch):
        found = sum_of(model, batch)
        return found if model.training else Loss(found.total, torch.tensor(wrong))

    with pytest.raises(UsageError, match="the count of a Loss is a number of at least 0"):
        make(loss_fn, rows=2, steps=1, val=True).train()
