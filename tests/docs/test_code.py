"""Every python block of the documents runs, through the real trainer."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import torch

from trainer import Trainer
from trainer_callback import HOOKS, CallbackError, TrainerCallback, TrainerProtocol

TRAINER = "Trainer(model, optimizer, train_loader, val_loader, config=config,"


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """A server on this machine; yields the list of what it was sent."""
    sent: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Is silent."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("WEBHOOK_URL", f"http://127.0.0.1:{server.server_port}/")
        yield sent
        server.shutdown()
        thread.join()


def test_every_python_block_runs(section, world, files, webhook):
    for name, text in files.items():
        if "/" not in name:
            (world.place / name).write_text(text)
    if "complete plugin" in section.title:
        name = "src/trainer_loss_spike/__init__.py"
        (world.place / "trainer_loss_spike.py").write_text(files[name])
    namespace = world.make_namespace()
    run_blocks([*section.inherited, *section.blocks], namespace)
    called = train_what_was_made(namespace)
    if (hook := section.title.strip("`").partition("(")[0]) in HOOKS and called:
        assert hook in called


def run_blocks(blocks: list[Any], namespace: dict[str, Any]) -> None:
    blocks = [block for block in blocks if block.language in ("python", "text")]
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if block.language == "text" or "file" in block.words:
            continue
        source = "\n" * block.line + block.text.replace("Trainer(...,", TRAINER)
        code = compile(source, "document", "exec", dont_inherit=True)
        if "raises" not in block.words:
            exec(code, namespace)
            continue
        with pytest.raises(Exception) as caught:  # noqa: PT011  the document names the class
            exec(code, namespace)
        assert type(caught.value).__name__ == block.words["raises"]
        if following is not None and following.language == "text":
            assert " ".join(str(caught.value).split()).startswith(" ".join(following.text.split()))


def train_what_was_made(namespace: dict[str, Any]) -> set[str]:
    """Trains the trainers and callbacks that a section made, or else the callbacks that it
    defined; returns the hooks that were called.
    """
    trainers = [value for value in namespace.values() if isinstance(value, Trainer)]
    for trainer in trainers:
        if trainer.step == 0:
            assert trainer.train().status in ("finished", "stopped")
    if "callbacks" in namespace:
        return train_three_times(namespace, lambda: namespace["callbacks"])
    classes = [
        value
        for value in namespace.values()
        if isinstance(value, type) and issubclass(value, TrainerCallback)
        if value.__module__ == "builtins" and not _is_faulty(value)
    ]
    if not classes or trainers:
        return set()
    return train_three_times(namespace, lambda: [cls() for cls in classes])


def train_three_times(namespace: dict[str, Any], make: Callable[[], list[Any]]) -> set[str]:
    """A run, one that resumes from it, and one that fails."""
    called: set[str] = set()
    config = namespace["config"]
    runs = [(config, False, None), (replace(config, epochs=3), True, None), (config, False, _fail)]
    for settings, resume, loss_fn in runs:
        trainer = Trainer(
            namespace["model"],
            namespace["optimizer"],
            namespace["train_loader"],
            namespace["val_loader"],
            config=settings,
            callbacks=make(),
            loss_fn=loss_fn,
        )
        with contextlib.nullcontext() if loss_fn is None else pytest.raises(ArithmeticError):
            result = trainer.train(resume)
            assert result.status in ("finished", "stopped")
            assert result.switched_off == ()
        namespace["config"] = settings
        called.update(*trainer.run.view.manager.costs().values())
    return called


def _fail(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    raise ArithmeticError("on purpose")


def _is_faulty(cls: type) -> bool:
    return cls.__name__ in ("Typo", "WrongArgument", "Faulty", "Unsaveable")


def test_the_examples_use_nothing_of_the_trainer_that_is_not_in_the_protocol(manual):
    for section in manual:
        for block in section.blocks:
            if block.language == "python":
                for function in ast.walk(ast.parse(block.text)):
                    if isinstance(function, ast.FunctionDef) and function.name in HOOKS:
                        used = {
                            node.attr
                            for node in ast.walk(function)
                            if isinstance(node, ast.Attribute)
                            and isinstance(node.value, ast.Name)
                            and node.value.id == "trainer"
                        }
                        assert used <= set(dir(TrainerProtocol)), (function.name, block.line)


def test_a_loop_becomes_one_of_a_run_by_at_most_ten_lines(manual):
    loops = [each for each in manual if any(block.language == "diff" for block in each.blocks)]
    assert len(loops) == 3
    for section in loops:
        (whole,) = (block.text for block in section.blocks if block.language == "python")
        (diff,) = (block.text.splitlines() for block in section.blocks if block.language == "diff")
        new = [line[1:] for line in diff if not line.startswith("-")]
        assert "\n".join(new) in whole
        assert 0 < len([line for line in diff if line.startswith("+")]) <= 10


@pytest.mark.parametrize("title", ["Like nanoGPT", "A GAN", "Reinforcement learning"])
def test_a_loop_of_the_manual_goes_on_bit_by_bit_where_it_was_killed(manual, world, title):
    (section,) = (each for each in manual if each.title == title)
    source = next(block.text for block in section.blocks if block.language == "python")

    def train(place, max_steps=None):
        torch.manual_seed(0)
        text = re.sub('output_dir="[^"]*"', f'output_dir="{place}"', source)
        if max_steps is not None:
            text = re.sub("max_steps=[0-9]+, ", "", text)
            text = text.replace("TrainerConfig(", f"TrainerConfig(max_steps={max_steps}, ")
            text = re.sub("    max_steps=[0-9]+,\n", "", text)
        namespace: dict[str, Any] = {}
        exec(text, namespace)
        return namespace["run"]

    whole = train("whole")
    first = train("cut", max_steps=7)
    assert first.result.steps == 7
    again = train("cut")
    assert again.result.steps == whole.result.steps > 7
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


class Recipe:
    """One section of the cookbook, trained."""

    def __init__(self, title: str, manual: list[Any], namespace: dict[str, Any]) -> None:
        section = next(each for each in manual if each.title == title)
        run_blocks(section.blocks, namespace)
        self.callback = namespace["callbacks"][0]
        self.namespace = namespace
        self.trainer = Trainer(
            namespace["model"],
            namespace["optimizer"],
            namespace["train_loader"],
            namespace["val_loader"],
            config=namespace["config"],
            callbacks=namespace["callbacks"],
        )

    @property
    def place(self) -> Any:
        return self.trainer.output_dir


@pytest.fixture
def cook(manual, world) -> Callable[[str], Recipe]:
    return lambda title: Recipe(title, manual, world.make_namespace())


def test_the_learning_rates_of_all_groups_are_logged(cook):
    recipe = cook("Log every learning rate")
    recipe.trainer.train()
    assert recipe.trainer.metrics["learning_rate/0"] == 1e-3


def test_frozen_weights_stay_and_then_move(cook):
    recipe = cook("Freeze, then unfreeze")
    weight = recipe.trainer.model.token_embedding.weight
    start, seen = weight.clone(), []

    class Watch(TrainerCallback):
        def on_epoch_end(self):
            seen.append(torch.equal(weight, start))

    trainer = Trainer(
        recipe.trainer.model,
        recipe.trainer.optimizer,
        recipe.namespace["train_loader"],
        config=recipe.trainer.config,
        callbacks=[recipe.callback, Watch()],
    )
    trainer.train()
    assert seen == [True, False]


def test_the_time_of_day_ends_the_run(cook, monkeypatch):
    recipe = cook("Stop at a time of day")
    real = recipe.namespace["datetime"]

    class Evening(real):
        asked = 0

        @classmethod
        def now(cls):
            cls.asked += 1
            return real(2026, 1, 1 if cls.asked < 3 else 2, 21, 0)

    monkeypatch.setitem(recipe.namespace, "datetime", Evening)
    result = recipe.trainer.train()
    assert (result.status, result.stop_reason, result.steps) == ("stopped", "time_of_day", 2)
    assert result.stop_detail == "It is 07:30."


def test_a_file_asks_for_a_snapshot(cook):
    recipe = cook("Save when a file appears")
    recipe.place.mkdir()
    (recipe.place / "SAVE").touch()
    recipe.trainer.train()
    assert not (recipe.place / "SAVE").exists()
    assert (recipe.place / "snapshots" / "step-00000001").exists() or _kept(recipe) == 3


def _kept(recipe: Recipe) -> int:
    return len(list((recipe.place / "snapshots").iterdir()))


def test_sample_text_changes_nothing(cook, world, caplog):
    with caplog.at_level("INFO", "trainer.sample_text"):
        recipe = cook("Show sample text")
        recipe.trainer.train()
    assert len(caplog.records) == 4
    bare = world.make_namespace()
    Trainer(
        bare["model"], bare["optimizer"], bare["train_loader"], bare["val_loader"],
        config=bare["config"],
    ).train()  # fmt: skip
    for one, other in zip(
        bare["model"].parameters(), recipe.trainer.model.parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_gradient_noise_comes_again_after_a_resume(cook):
    whole, cut = cook("Add gradient noise"), cook("Add gradient noise")
    whole.trainer.train()
    first = _again(cut, replace(cut.trainer.config, max_steps=3))
    first.train()
    _again(cut, cut.trainer.config).train(resume=True)
    for one, other in zip(
        whole.trainer.model.parameters(), cut.trainer.model.parameters(), strict=True
    ):
        assert torch.equal(one, other)


def _again(recipe: Recipe, config: Any) -> Trainer:
    spaces = recipe.namespace
    return Trainer(
        spaces["model"], spaces["optimizer"], spaces["train_loader"], spaces["val_loader"],
        config=config, callbacks=[recipe.callback],
    )  # fmt: skip


def test_the_webhook_hears_the_end(cook, webhook):
    recipe = cook("Call a webhook at the end")
    result = recipe.trainer.train()
    assert webhook == [
        {"text": "finished (epochs) after 8 updates", "val_loss": pytest.approx(result.val_loss)}
    ]


def test_a_dead_webhook_does_not_end_the_run(cook, monkeypatch):
    monkeypatch.setenv("WEBHOOK_URL", "http://127.0.0.1:1/")
    recipe = cook("Call a webhook at the end")
    assert recipe.trainer.train().status == "finished"


def test_histograms_count_every_weight(cook):
    recipe = cook("Keep weight histograms")
    recipe.trainer.train()
    files = sorted((recipe.place / "histograms").iterdir())
    assert [path.name for path in files] == [f"step-{n:08d}.json" for n in (2, 4, 6, 8)]
    looks = json.loads(files[0].read_text())
    sizes = {name: weight.numel() for name, weight in recipe.trainer.model.named_parameters()}
    assert {name: sum(look["counts"]) for name, look in looks.items()} == sizes


def test_the_first_module_with_a_nan_is_named(cook):
    recipe = cook("Hunt a NaN")
    with torch.no_grad():
        recipe.trainer.model.blocks[0].attention_norm.weight[0] = float("nan")
    why = r"NanHuntCallback .* FloatingPointError: blocks.0.attention_norm \(LayerNorm\) is not"
    with pytest.raises(CallbackError, match=why):
        recipe.trainer.train()
    assert not recipe.callback.handles


def test_the_curriculum_shows_more_each_epoch(cook):
    recipe = cook("Teach the easy things first")
    seen = []

    class Watch(TrainerCallback):
        def on_epoch_end(self, trainer):
            seen.append(trainer.batch_in_epoch)

    spaces = recipe.namespace
    trainer = Trainer(
        spaces["model"], spaces["optimizer"], spaces["train_loader"],
        config=replace(spaces["config"], epochs=3), callbacks=[recipe.callback, Watch()],
    )  # fmt: skip
    trainer.train()
    assert seen == [2, 3, 4]
