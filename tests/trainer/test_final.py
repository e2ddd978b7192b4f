"""`final/`: the finished model in a form that other programs read."""

import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model
from torch import nn

from trainer import Trainer, TrainerConfig
from trainer.snapshots.final import save_safetensors
from trainer.snapshots.manifest import verify
from trainer.snapshots.state_file import load_state
from trainer_callback import TrainerCallback


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.last = nn.Linear(4, 4)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.first(x)).square().mean()


def write(model, path):
    with path.open("wb") as file:
        save_safetensors(model.state_dict())(file)


def test_tied_weights_are_kept_once_and_load_again(tmp_path):
    model = Tied()
    write(model, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["first.bias", "first.weight", "last.bias"]
        assert file.metadata() == {"format": "pt", "last.weight": "first.weight"}
    other = Tied()
    load_model(other, tmp_path / "model.safetensors")
    assert torch.equal(other.last.weight, model.first.weight)


def test_a_view_of_the_same_memory_with_other_strides_is_no_tied_weight(tmp_path):
    model = Tied()
    model.register_buffer("turned", model.first.weight.detach().T)
    write(model, tmp_path / "model.safetensors")
    found = load_file(tmp_path / "model.safetensors")
    assert torch.equal(found["turned"], model.first.weight.T)


def test_final_holds_the_model_as_the_callbacks_left_it(tmp_path):
    class Restore(TrainerCallback):
        def on_train_end(self, trainer, result):
            with torch.no_grad():
                trainer.model.first.bias.fill_(3.0)

    model = Tied()
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        [torch.ones(2, 4)] * 3,
        config=TrainerConfig(epochs=1, output_dir=tmp_path / "run"),
        callbacks=[Restore()],
        discover=False,
        artifacts={"config.yaml": b"epochs: 1\n", "tokenizer.json": b"{}"},
    )
    trainer.train()
    final = tmp_path / "run" / "final"
    manifest = verify(final)
    names = ["config.yaml", "model.safetensors", "state.pt", "tokenizer.json"]
    assert sorted(manifest["files"]) == names
    state, _ = load_state(final)
    assert torch.equal(state["model"]["first.bias"], torch.full((4,), 3.0))
    assert torch.equal(load_file(final / "model.safetensors")["first.bias"], torch.full((4,), 3.0))
    for place in (final, final.parent):
        assert (place / "config.yaml").read_bytes() == b"epochs: 1\n"
    assert manifest["step"] == 3


def test_every_snapshot_has_the_configuration_beside_it(tiny, tmp_path):
    trainer = tiny.trainer(tmp_path, epochs=1)
    trainer.train()
    files = {path.name for path in (tmp_path / "snapshots" / "step-00000006").iterdir()}
    assert files == {"config.yaml", "manifest.json", "state.pt"}
