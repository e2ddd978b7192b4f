"""Sets that a sharded model goes through outside a run, with shares that differ by a batch."""

import pytest
import torch
from torch.utils.data import DataLoader


def make(sharded, divided):
    def loss_fn(model, batch):
        outputs = model(batch)
        return outputs.square().mean(), outputs

    return sharded.trainer(None, divided=divided, loss_fn=loss_fn)


@pytest.mark.parametrize("count", [10, 12, 16])
def test_a_set_is_measured_and_predicted_as_by_a_whole_model(tiny, tmp_path, sharded, count):
    data = torch.arange(400.0).reshape(100, 4).sin().double()

    def work(rank):
        trainer = make(sharded, divided=rank is not None)
        for name in ("before", "behind"):
            loss = trainer.evaluate(DataLoader(data[:count], batch_size=4))
            outputs = trainer.predict(DataLoader(data[:count], batch_size=4), everywhere=True)
            torch.save((loss, outputs), tmp_path / f"{name}-{rank}")
            if name == "before":
                trainer.train()

    assert tiny.run_ranks(work) == [0, 0]
    alone = make(sharded, divided=False)
    expected = alone.evaluate(DataLoader(data[:count], batch_size=4))
    outputs = alone.predict(DataLoader(data[:count], batch_size=4))
    for rank in (0, 1):
        found = torch.load(tmp_path / f"before-{rank}")
        assert found[0] == pytest.approx(expected, abs=1e-12)
        assert (found[1] - outputs).abs().max() < 1e-12
    behind = [torch.load(tmp_path / f"behind-{rank}") for rank in (0, 1)]
    assert behind[0][0] == behind[1][0] != expected
    assert torch.equal(behind[0][1], behind[1][1])
    assert float(behind[0][1].square().mean()) == pytest.approx(behind[0][0]["test_loss"])


@pytest.mark.parametrize("call", ["evaluate", "predict"])
def test_a_set_with_fewer_batches_than_processes_is_refused(tiny, sharded, call):
    def work(rank):
        trainer = make(sharded, divided=True)
        loader = DataLoader(torch.ones(3, 4).double(), batch_size=4)
        with pytest.raises(Exception, match=r"has.* batch.* for .* processes"):
            getattr(trainer, call)(loader)

    assert tiny.run_ranks(work) == [0, 0]
