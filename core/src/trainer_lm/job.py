"""The job of `train-lm`: text, tokens, model, run, and what a person reads at the end."""

from __future__ import annotations

import contextlib
import logging
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from trainer import Trainer, TrainResult
from trainer.data.shares import count_batches
from trainer.engine.memory import OutOfMemoryError, explaining
from trainer.processes.device import choose_precision, find_device
from trainer.processes.group import join_ranks, leave_ranks
from trainer.processes.rng import seed_rng
from trainer.writers.output import printing
from trainer.writers.progress import make_progress
from trainer_callback import RunError, TrainerCallback, UsageError
from trainer_callback.calls.manager import Plugin
from trainer_callback.discovery import find_version

from .data import Batch, CorpusSummary, make_loaders
from .measures import METRICS, loss_of, perplexity_inputs
from .memory import check_size, keep_freed_memory, use_large_pages
from .model import GPT, make_optimizer, make_scheduler
from .run_options import RunOptions
from .sample import printable
from .samples import SampleCallback
from .settings import Settings
from .text import load_text
from .tokenizer import Tokenizer, tokenizer_bytes

__all__ = ["run"]

logger: logging.Logger = logging.getLogger("trainer.lm")

_CORE: Final = "trainer-core"


def run(settings: Settings, tell: Callable[..., object]) -> int:
    """Trains as `settings` say and prints a summary; returns the exit code.

    Args:
        tell: see `trainer_lm.cli.main`.

    Raises:
        UsageError: refused before the first step.
    """
    advice = "Use a smaller model (--n_embd, --n_layer) or a smaller text."
    try:
        with explaining("outside the updates", advice):
            return _train(settings, tell)
    finally:
        leave_ranks()


def _train(settings: Settings, tell: Callable[..., object]) -> int:
    device = find_device(settings.training.device)
    ranks = join_ranks(device.type)
    _start_logging(settings, quiet=settings.quiet or not ranks.is_main)
    keep_freed_memory()
    if device.type == "cpu":
        use_large_pages()
    seed_rng(settings.training.seed)
    settings = settings.with_precision(choose_precision(settings.training.precision, device))
    corpus = load_text(settings.text)
    *loaders, summary = make_loaders(
        corpus, settings.text, settings.model.block_size, pin_memory=device.type == "cuda"
    )
    for note in summary.notes:
        logger.info("%s", note)
    options = RunOptions(settings, corpus, summary.tokenizer)
    del corpus  # its tokens are in a file, or with the loaders
    check_size(summary.tokenizer.vocab_size, settings.model)
    model = GPT(summary.tokenizer.vocab_size, settings.model).to(device)
    samples = SampleCallback(summary.tokenizer, settings.samples.sample_interval)
    settings = settings.reserve() if ranks.is_main and not settings.training.dry_run else settings
    try:
        steps = _count_steps(len(loaders[0]) // ranks.world_size, settings)
        tokens = settings.text.batch_size * settings.model.block_size * ranks.world_size
        tokens *= settings.training.gradient_accumulation_steps
        own: dict[str, TrainerCallback] = {"options": options, "samples": samples}
        shown = False if settings.quiet else None
        if (progress := make_progress(shown, items_per_update=tokens, unit="tokens")) is not None:
            own["progress"] = progress
        trainer = _make_trainer(settings, model, loaders, summary.tokenizer, own=own, steps=steps)
        _announce(trainer, summary, settings)
        tell(output_dir=None if settings.training.dry_run else trainer.output_dir)
        result = _call(trainer, settings, alone=ranks.is_alone)
        tell(result=result)
    except UsageError:
        if settings.is_fresh and ranks.is_main:
            _remove_empty(settings.training.output_dir)
        raise
    if ranks.is_main:
        with printing():
            _summarise(result, trainer, summary, samples, show_costs=settings.plugin_costs)
    return result.exit_code


def _count_steps(batches: int, settings: Settings) -> int:
    """Returns the updates of the whole run, where each epoch has so many batches."""
    training = settings.training.shortened()
    batches = count_batches(training.max_train_batches, batches, "max_train_batches") or batches
    updates_per_epoch = math.ceil(batches / training.gradient_accumulation_steps)
    return min(updates_per_epoch * training.epochs, training.max_steps or 2**62)


def _make_trainer(
    settings: Settings,
    model: GPT,
    loaders: Sequence[DataLoader[Batch]],
    tokenizer: Tokenizer,
    *,
    own: Mapping[str, TrainerCallback],
    steps: int,
) -> Trainer:
    """Returns the trainer of a run of so many `steps`, with the command's `own` callbacks by name,
    behind those of the plugins.
    """
    optimizer = make_optimizer(model, settings.optimizer)
    version = find_version(_CORE)
    return Trainer(
        model,
        optimizer,
        *loaders,
        loss_fn=loss_of,
        metrics=METRICS,
        metric_inputs=perplexity_inputs,
        scheduler=make_scheduler(optimizer, settings.optimizer, steps),
        config=settings.training,
        callbacks=[
            *settings.plugins,
            *(Plugin(each, name, _CORE, version) for name, each in own.items()),
        ],
        artifacts={
            "config.yaml": settings.as_yaml().encode(),
            "tokenizer.json": tokenizer_bytes(tokenizer),
        },
        discover=False,
        progress=False,  # it is among `own`
        trace_hooks=settings.trace_hooks,
        hyperparameters=settings.hyperparameters,
    )


def _announce(trainer: Trainer, summary: CorpusSummary, settings: Settings) -> None:
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    logger.info(
        "%s: %s tokens to train on, %s to validate; %s parameters on %s in %s; writing to %s.",
        summary.name,
        f"{summary.train_tokens:,}",
        f"{summary.validation_tokens:,}",
        f"{parameters:,}",
        trainer.device,
        settings.training.precision,
        "nowhere, for this is a dry run" if settings.training.dry_run else trainer.output_dir,
    )


def _call(trainer: Trainer, settings: Settings, *, alone: bool) -> TrainResult:
    try:
        return trainer.train(settings.resume)
    except KeyboardInterrupt:
        hint = "It was a dry run." if settings.training.dry_run else _how_to_go_on(trainer)
        raise KeyboardInterrupt(hint) from None
    except OutOfMemoryError as error:
        line = str(error).removesuffix(error.ending)
        raise RunError(f"{line} --block_size is the length of the inputs.") from error
    except RuntimeError as error:
        if alone or "Connection" not in str(error):  # gloo: closed, or reset, by peer
            raise
        raise RunError(f"another process of this run has died. {_how_to_go_on(trainer)}") from error


def _remove_empty(place: Path | None) -> None:
    """Gives a fresh output directory back, if nothing was written there."""
    for folder in (place, place.parent) if place is not None else ():
        with contextlib.suppress(OSError):
            folder.rmdir()


def _start_logging(settings: Settings, *, quiet: bool) -> None:
    """Shows lines of the trainer, of this command and of the plugins in use, of others from
    warnings on.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    level = logging.WARNING if quiet else logging.INFO
    logging.getLogger("trainer").setLevel(level)
    for plugin in settings.plugins:
        logging.getLogger(type(plugin.callback).__module__.split(".")[0]).setLevel(level)


def _summarise(
    result: TrainResult,
    trainer: Trainer,
    summary: CorpusSummary,
    samples: SampleCallback,
    *,
    show_costs: bool,
) -> None:
    console = Console(highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    detail = f": {result.stop_detail}" if result.stop_detail else ""
    by = f" by {result.stopped_by}" if result.stopped_by else ""
    table.add_row("ended", f"{result.status}{by} ({result.stop_reason}{detail})")
    table.add_row("trained", f"{result.epochs} epochs, {result.steps} updates")
    if result.train_loss is not None:
        table.add_row("training loss", f"{result.train_loss:.4f} nats per token")
    if result.weights.kind != "last":
        table.add_row("the model has", str(result.weights))
    if (found := _validated(result)) is not None:
        loss = found["val_loss"]
        table.add_row("validation loss", f"{loss:.4f} nats per token")
        table.add_row("", f"{summary.bits_per_byte(loss):.4f} bits per byte")
        if "val_accuracy" in found:  # an older run, resumed behind its end, has none
            table.add_row("", f"perplexity {found['val_perplexity']:.4g}")
            table.add_row("", f"accuracy {100 * found['val_accuracy']:.2f} % of the next tokens")
    if result.status == "terminated":
        table.add_row("to go on", _how_to_go_on(trainer).removeprefix("To go on: "))
    for name in result.switched_off:
        table.add_row("switched off", f"{name} failed and was not critical")
    if samples.final_text is not None:
        console.print("\n[bold]Sample[/bold]")
        console.print(printable(samples.final_text), markup=False)
        console.print()
    if show_costs:
        console.print(_costs(result))
    place = None if trainer.config.dry_run else trainer.output_dir
    table.add_row("written", "\n".join(_written(place)) or "nothing: it was a dry run")
    if place is not None:
        table.add_row("its page", f"trainer report {shlex.quote(str(place))}")
    console.print(table)


def _validated(result: TrainResult) -> Mapping[str, float] | None:
    """Returns what was found of the weights that the model has, or else in the last validation."""
    rows = (result.weights.metrics, *reversed(result.history))
    return next((row for row in rows if "val_loss" in row), None)


def _how_to_go_on(trainer: Trainer) -> str:
    place = shlex.quote(str(trainer.output_dir))
    return f"To go on: the same command with --output_dir {place} --resume."


def _costs(result: TrainResult) -> Table:
    """Returns the time that each plugin took in each hook; hooks of the batch are estimates."""
    table = Table(box=None, pad_edge=False, title="Plugin costs", title_justify="left")
    table.add_column("plugin")
    table.add_column("hook")
    for column in ("calls", "seconds", "µs per call"):
        table.add_column(column, justify="right")
    for plugin, hooks in result.callback_costs.items():
        for hook, cost in hooks.items():
            calls, seconds = cost["calls"], cost["seconds"]
            each = f"{seconds / calls * 1e6:,.1f}"
            table.add_row(plugin, hook, f"{calls:,.0f}", f"{seconds:.3f}", each)
    for plugin, reasons in result.uncalled_hooks.items():
        for hook, reason in reasons.items():
            table.add_row(plugin, f"{hook}: {reason}", "0")
    return table


def _written(place: Path | None) -> list[str]:
    if place is None:
        return []
    names = ["final", "snapshots", "metrics.jsonl"]
    names += sorted(p.name for p in place.iterdir() if p.name not in (*names, "weights"))
    return [str(place / n) for n in names if (place / n).exists() and not n.startswith(".")]
