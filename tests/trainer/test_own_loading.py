"""Weights whose modules load them in a way of their own, and weights that share their memory."""

import pytest
import torch
from torch import nn

from trainer import Trainer, TrainerConfig
from trainer_callback import SnapshotError, TrainerCallback

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def make(place, model, steps, callbacks=(), lr=0.01):
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=lr),
        [torch.linspace(0, i, 12).reshape(3, 4) for i in range(1, 7)],
        loss_fn=lambda model, batch: model(batch).square().mean(),
        config=TrainerConfig(output_dir=place, epochs=1, max_steps=steps),
        callbacks=callbacks,
        discover=False,
    )


def quantised(width=8):
    torch.manual_seed(3)
    model = nn.Sequential(torch.ao.quantization.QuantStub(), nn.Linear(4, width))
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    return torch.ao.quantization.prepare_qat(model.train())


def test_a_model_whose_fake_quantisation_grows_goes_on_bit_by_bit(tiny, tmp_path):
    make(tmp_path / "whole", quantised(), 4).train()
    make(tmp_path / "run", quantised(), 2).train()
    make(tmp_path / "run", quantised(), 4).train(resume=True)
    states = [tiny.newest_state(tmp_path / name)["model"] for name in ("whole", "run")]
    assert states[0]["1.weight_fake_quant.scale"].shape == (8,)
    assert tiny.difference(*states) is None


def test_another_width_of_it_is_refused_by_name(tmp_path):
    make(tmp_path, quantised(), 2).train()
    with pytest.raises(SnapshotError, match=r"'1\.weight' is of shape \(6, 4\)"):
        make(tmp_path, quantised(6), 4).train(resume=True)


class Grows(nn.Linear):
    """Takes one shape only, and loads it itself."""

    def _load_from_state_dict(self, *arguments):
        super()._load_from_state_dict(*arguments)


def test_what_such_a_module_does_not_take_is_refused_by_name(tmp_path):
    make(tmp_path, nn.Sequential(Grows(4, 2)), 2).train()
    with pytest.raises(SnapshotError, match=r"size mismatch for 0\.weight.*Build the model"):
        make(tmp_path, nn.Sequential(Grows(4, 3)), 4).train(resume=True)


def test_weights_of_such_a_module_come_back_by_name(tmp_path):
    class Loads(TrainerCallback):
        def on_step_end(self, trainer):
            if trainer.step == 1:
                digest = trainer.save_weights("mine")
                scale = trainer.model[1].weight_fake_quant.scale
                scale.resize_(1)
                trainer.load_weights("mine", digest)
                assert scale.shape == (8,)

    assert make(tmp_path, quantised(), 2, [Loads()]).train().status == "finished"


def two_layers(tied, *, same=False):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    if tied:
        model[1].weight = model[0].weight
    elif same:
        with torch.no_grad():
            model[1].weight.copy_(model[0].weight)
    return model


def test_a_snapshot_of_untied_weights_is_refused_where_they_are_tied(tmp_path):
    make(tmp_path, two_layers(tied=False), 2).train()
    with pytest.raises(SnapshotError, match=r"'0\.weight' and '1\.weight' are one tensor"):
        make(tmp_path, two_layers(tied=True), 4).train(resume=True)


def test_tied_weights_and_equal_ones_are_not_refused(tmp_path):
    make(tmp_path, two_layers(tied=True), 2).train()
    assert make(tmp_path, two_layers(tied=True), 4).train(resume=True).steps == 4
    make(tmp_path / "same", two_layers(tied=False, same=True), 2, lr=0.0).train()
    assert make(tmp_path / "same", two_layers(tied=True), 4).train(resume=True).steps == 4
