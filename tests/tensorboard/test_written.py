"""What is in the event files."""

import json
import logging

import pytest
import torch
from torch import nn

from trainer import Trainer, TrainerConfig
from trainer.writers.metrics_file import read_logged
from trainer_callback import TrainerCallback
from trainer_early_stopping import EarlyStoppingCallback
from trainer_gradient_monitor import GradientMonitorCallback
from trainer_tensorboard import TensorBoardCallback

NAMES = ("weight", "bias")


def test_every_logged_value_is_a_scalar_at_its_update(make, read, tmp_path):
    make(TensorBoardCallback(), output_dir=tmp_path).train()
    lines = [json.loads(line) for line in read_logged(tmp_path / "metrics.jsonl")]
    expected = {}
    for line in lines:
        step, _, _ = line.pop("step"), line.pop("epoch"), line.pop("_event")
        for name, value in line.items():
            expected.setdefault(name, []).append((step, pytest.approx(value, rel=1e-6)))
    assert read(tmp_path).scalars == expected
    assert {"loss", "learning_rate", "train_loss", "val_loss"} <= expected.keys()


def test_the_statistics_of_the_gradient_monitor_are_there(make, read, tmp_path):
    monitor = GradientMonitorCallback(monitor_interval=2, report=False)
    make(TensorBoardCallback(), monitor, output_dir=tmp_path).train()
    tags = [tag for tag in read(tmp_path).scalars if "grad" in tag]
    assert tags
    assert [step for step, _ in read(tmp_path).scalars[tags[0]]] == [2, 4, 6, 8, 10]


def test_what_another_callback_logs_at_the_very_end_is_there(make, read, tmp_path):
    class Late(TrainerCallback):
        def on_train_end(self, trainer):
            trainer.log({"late": 7.0})

    make(TensorBoardCallback(), Late(), output_dir=tmp_path).train()
    assert read(tmp_path).scalars["late"] == [(10, 7.0)]


def test_configuration_and_model_are_text(make, read, tmp_path):
    make(TensorBoardCallback(), output_dir=tmp_path).train()
    texts = read(tmp_path).texts
    assert [step for step, _ in texts["config"]] == [0]
    assert "| epochs | 2 |" in texts["config"][0][1]
    assert "Linear(in_features=4" in texts["model"][0][1]


def test_a_text_that_anybody_sends_is_there_as_it_is(make, read, tmp_path):
    class Sends(TrainerCallback):
        def on_epoch_end(self, trainer, epoch):
            trainer.log_text("sample", f"# epoch {epoch}\n  *as it is*")

    make(TensorBoardCallback(), Sends(), output_dir=tmp_path).train()
    assert read(tmp_path).texts["sample"] == [
        (5, "    # epoch 0\n      *as it is*"),  # a block of code, for TensorBoard shows Markdown
        (10, "    # epoch 1\n      *as it is*"),
    ]


def test_histograms_come_every_so_many_epochs(make, read, tmp_path):
    trainer = make(TensorBoardCallback(histogram_epochs=2), output_dir=tmp_path, epochs=4)
    trainer.train()
    histograms = read(tmp_path).histograms
    assert set(histograms) == {f"{a}/{b}" for a in ("weights", "gradients") for b in NAMES}
    for tag in ("weights/weight", "gradients/weight"):
        assert [event[:2] for event in histograms[tag]] == [(10, 4), (20, 4)]
    least, most = histograms["weights/weight"][-1][2:]
    weight = trainer.model.weight
    assert (least, most) == (weight.min().item(), weight.max().item())


def test_the_histogram_of_a_gradient_is_what_the_last_update_had(make, read, tmp_path):
    seen = []

    class Watch(TrainerCallback):
        def on_backward_end(self, trainer):
            seen.append(trainer.model.weight.grad.clone())

    callbacks = (TensorBoardCallback(histogram_epochs=1), Watch())
    make(*callbacks, output_dir=tmp_path, epochs=1, max_grad_norm=1e-3).train()
    [(_, _, least, most)] = read(tmp_path).histograms["gradients/weight"]
    assert (least, most) == (seen[-1].min().item(), seen[-1].max().item())


def test_by_default_there_are_no_histograms(make, read, tmp_path):
    make(TensorBoardCallback(), output_dir=tmp_path).train()
    assert read(tmp_path).histograms == {}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_left_out_of_histograms(make, read, tmp_path, bad):
    class Broken(nn.Linear):
        def __init__(self):
            super().__init__(4, 1)
            self.unused = nn.Parameter(torch.tensor([bad, bad]))
            self.narrow = nn.Parameter(torch.tensor([bad, 1.0]).bfloat16())

    callback = TensorBoardCallback(histogram_epochs=1)
    result = make(callback, model=Broken(), output_dir=tmp_path, epochs=1).train()
    assert result.switched_off == ()
    histograms = read(tmp_path).histograms
    assert "weights/unused" not in histograms
    assert histograms["weights/narrow"] == [(5, 1, 1.0, 1.0)]


def test_a_run_without_output_directory_is_told_and_goes_on(make, caplog):
    caplog.set_level(logging.INFO, "trainer.tensorboard")
    assert make(TensorBoardCallback(histogram_epochs=1)).train().switched_off == ()
    assert "no output directory" in caplog.text


def test_it_changes_no_weight(make, tmp_path):
    plain, watched = make(), make(TensorBoardCallback(histogram_epochs=1), output_dir=tmp_path)
    plain.train()
    watched.train()
    assert torch.equal(plain.model.weight, watched.model.weight)


def test_an_option_out_of_range_is_refused_with_one_that_works():
    with pytest.raises(ValueError, match="Use histogram_epochs=1"):
        TensorBoardCallback(histogram_epochs=-1)


class Odd(nn.Module):
    """Trains one layer; `values` is a parameter beside it."""

    def __init__(self, values, name="values"):
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.register_parameter(name, nn.Parameter(values))

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1e20, 2e20, -3e20], (3, -3e20, 2e20)),
        ([3e38, -3e38, 0.0], (3, -3e38, 3e38)),
        (torch.tensor([1e300, 1.0, -1e250], dtype=torch.float64), (3, -1e250, 1e300)),
        (torch.tensor([3 + 4j, 0j]), (2, 0.0, 5.0)),
        (torch.tensor([3, 4], dtype=torch.bfloat16), (2, 3.0, 4.0)),
    ],
)
def test_a_histogram_has_every_finite_value_whatever_its_size(
    make, read, tmp_path, values, expected
):
    model = Odd(torch.as_tensor(values))
    callback = TensorBoardCallback(histogram_epochs=1)
    result = make(callback, model=model, output_dir=tmp_path, epochs=1).train()
    assert result.switched_off == ()
    ((_, count, least, most),) = read(tmp_path).histograms["weights/values"]
    assert (count, least, most) == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_a_tensor_without_a_histogram_is_left_out_with_a_word(make, read, tmp_path, caplog):
    class Dense(TrainerCallback):
        def on_train_end(self, trainer):
            trainer.model.values = None  # such a tensor has no place in a finished model

    model = Odd(torch.ones(3, 3).to_sparse_csr())
    model.values.requires_grad_(False)
    callback = TensorBoardCallback(histogram_epochs=1)
    result = make(callback, Dense(), model=model, output_dir=tmp_path).train()
    assert result.switched_off == ()
    assert len(read(tmp_path).histograms["weights/layer.weight"]) == 2
    assert caplog.text.count("no histogram of weights/values") == 1


@pytest.mark.parametrize(
    "name",
    [
        "<!--<script>",
        "a & b",
        "nul\0",
        "new\nline",
        "tur\u202en",
        "half \ud800",
        "$x$",
        "x" * 9999,
    ],
)
def test_any_name_can_be_written(make, read, tmp_path, name):
    class Says(TrainerCallback):
        def on_epoch_end(self, trainer):
            trainer.log({name: 1.0})
            trainer.log_text(name, name)

    callback = TensorBoardCallback()
    result = make(Says(), callback, output_dir=tmp_path, epochs=1).train()
    assert result.switched_off == ()
    assert len(read(tmp_path).scalars) == 5


def test_an_option_with_a_bar_or_a_line_break_keeps_the_table_of_the_configuration(
    make, read, tmp_path
):
    place = tmp_path / "a|b\nc<d>"
    make(TensorBoardCallback(), output_dir=place, epochs=1).train()
    ((_, text),) = read(place).texts["config"]
    row = next(line for line in text.splitlines() if "output_dir" in line)
    assert row.endswith(r"/a\|b\nc&lt;d&gt; |")
    assert all(line.startswith("| ") for line in text.splitlines())


def test_histograms_that_are_never_due_are_told_once(make, tmp_path, caplog):
    make(TensorBoardCallback(histogram_epochs=3), output_dir=tmp_path, epochs=2).train()
    assert caplog.text.count("histogram_epochs 3 has no effect in a run of 2 epochs") == 1


def test_every_metric_of_every_validation_set_is_there_by_its_name(read, tmp_path):
    class Extremes:
        def reset(self):
            self.found = []

        def update(self, outputs, targets):
            self.found.append(outputs)

        def compute(self):
            found = torch.cat(self.found)
            return {"least": float(found.min()), "most": float(found.max())}

    model = nn.Linear(4, 1)
    data = [torch.ones(2, 4), torch.zeros(2, 4)]
    stopper = EarlyStoppingCallback(monitor="noisy/f1", patience=1, min_delta=10)
    result = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        data,
        {"clean": data, "noisy": data[:1]},
        loss_fn=lambda model, batch: (model(batch).square().mean(), model(batch)),
        metrics={"f1": lambda outputs, batch: outputs[:, 0], "seen": Extremes()},
        metric_inputs=lambda outputs, batch: (outputs, batch),
        config=TrainerConfig(epochs=4, output_dir=tmp_path, device="cpu"),
        callbacks=[stopper, TensorBoardCallback()],
        discover=False,
    ).train()
    assert (result.stop_reason, result.epochs) == ("patience", 2)
    found = read(tmp_path).scalars
    names = ["loss", "f1", "seen_least", "seen_most"]
    for name in [f"{of}{each}" for of in ("val_", "clean/", "noisy/") for each in names]:
        rows = [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in result.history]
        assert found[name] == rows
    assert found["restored_noisy/f1"] == [(4, pytest.approx(stopper.best, rel=1e-6))]
