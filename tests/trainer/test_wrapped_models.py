"""A model that somebody has wrapped: its names are those of the plain model, or it is refused."""

import pytest
import torch
from torch import nn

from trainer import ConfigError, Trainer, TrainerConfig
from trainer.snapshots.snapshot import list_snapshots, write_snapshot
from trainer.snapshots.state_file import load_state, save_state
from trainer_callback import SnapshotError, TrainerCallback

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's imports


def make(place, wrap=lambda model: model, *, steps=2, callbacks=(), **config):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    wrapped = wrap(model)
    torch.manual_seed(4)
    return Trainer(
        wrapped,
        torch.optim.AdamW(wrapped.parameters(), lr=0.01),
        [torch.randn(3, 4) for _ in range(6)],
        [torch.randn(3, 4)],
        loss_fn=lambda model, batch: model(batch).square().mean(),
        config=TrainerConfig(output_dir=place, epochs=1, max_steps=steps, **config),
        callbacks=callbacks,
        discover=False,
    )


def counted(calls):
    """A backend that compiles nothing and counts."""

    def backend(graph, inputs):
        def run(*values):
            calls.append(1)
            return graph.forward(*values)

        return run

    return lambda model: torch.compile(model, backend=backend)


def test_a_compiled_model_is_called_and_has_the_names_of_the_plain_one(tmp_path):
    calls, models = [], []

    class Sees(TrainerCallback):
        def on_train_start(self, trainer):
            models.append(trainer.model)

    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    make(plain).train()
    make(compiled, counted(calls), callbacks=[Sees()]).train()
    assert calls
    assert type(models[0]) is nn.Sequential
    for place in ("final", "snapshots/step-00000002"):
        states = [load_state(each / place)[0]["model"] for each in (plain, compiled)]
        assert list(states[0]) == list(states[1])
        for name, value in states[0].items():
            assert torch.allclose(value, states[1][name], atol=1e-5), name
    make(compiled, steps=4).train(resume=True)
    make(plain, counted(calls), steps=4).train(resume=True)


def test_a_compiled_model_is_not_compiled_twice(tmp_path):
    calls = []
    make(tmp_path, counted(calls), compile=True).train()
    assert calls


def test_a_compiled_model_trains_in_two_processes(tiny, tmp_path):
    def work(rank):
        calls = []
        code = make(tmp_path, counted(calls)).train().exit_code
        assert calls
        return code

    assert tiny.run_ranks(work) == [0, 0]
    assert "0.weight" in load_state(tmp_path / "final")[0]["model"]


def test_data_parallel_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"DataParallel.*\(model\.module\).*torchrun"):
        make(tmp_path, nn.DataParallel)


def test_somebodys_distributed_data_parallel_is_refused(tiny, tmp_path):
    def work(rank):
        torch.distributed.init_process_group("gloo")
        with pytest.raises(ConfigError, match=r"DistributedDataParallel.*\(model\.module\)"):
            make(tmp_path, nn.parallel.DistributedDataParallel)

    assert tiny.run_ranks(work) == [0, 0]


@pytest.mark.parametrize("outer", [False, True])
def test_a_compiled_part_of_a_model_is_refused(tmp_path, outer):
    def wrap(model):
        model[2] = torch.compile(model[2])
        return torch.compile(model) if outer else model

    with pytest.raises(ConfigError, match=r"model\.2 is .*torch\.compile.*model\.2\.compile\(\)"):
        make(tmp_path, wrap)


def test_a_model_that_is_compiled_in_place_trains(tmp_path):
    def wrap(model):
        model[2].compile(backend="eager")
        return model

    make(tmp_path, wrap).train()
    make(tmp_path, steps=4).train(resume=True)


def test_a_snapshot_with_the_names_of_a_compiled_model_is_refused_in_words(tmp_path):
    make(tmp_path).train()
    (path,) = list_snapshots(tmp_path / "snapshots")
    state, manifest = load_state(path)
    state["model"] = {f"_orig_mod.{name}": value for name, value in state["model"].items()}
    write_snapshot(path, {"state.pt": save_state(state)}, manifest)
    with pytest.raises(SnapshotError, match=r"'_orig_mod\.0\.weight'.* compiled"):
        make(tmp_path, steps=4).train(resume=True)
