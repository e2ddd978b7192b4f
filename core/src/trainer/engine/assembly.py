"""What a run is made of: models, optimizers and settings, checked, moved to their device, and put
together. Trains nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from trainer_callback import option_text
from trainer_callback.calls.manager import Plugin

from ..config import ConfigError, TrainerConfig
from ..processes.device import choose_precision, find_device
from ..processes.group import check_processes, join_ranks
from ..processes.ranks import Ranks
from ..processes.sharding import check_offload, fsdp_modules, reshard
from ..snapshots.checkpoint import Checkpoint
from ..step.buffers import KeptBuffers
from ..step.compiled import guard_outputs, make_compiler, plain_model
from ..step.gradients import Gradients
from ..step.loss_meter import LossMeter
from ..step.modes import Modes
from ..step.parts import check_optimizer_devices, check_parts, check_together, move_state
from ..step.precision import Precision
from ..step.recomputed import recompute
from ..step.scheduling import check_scheduling
from ..step.update import Updater
from ..step.verdicts import Verdicts
from ..step.weights import Weights
from ..view.view import View
from .accelerated import AcceleratedPrecision, settle
from .alike import check_alike
from .decision import StopDecider
from .hyperparameters import check_hyperparameters, collect_hyperparameters
from .memory import explaining
from .own_callbacks import make_journal, make_manager
from .session import Session

__all__ = ["Setup", "assemble", "check_needs", "move"]

T = TypeVar("T")


@dataclass(frozen=True)
class Setup:
    """What a run is made of.

    Attributes:
        view: what callbacks see.
        session: directory, snapshots and the end of a run.
        trained, evaluated: what to call in place of the model, or of each by its name.
        fsdp_modules: those on which `fully_shard` was called.
        updaters: optimizer -> its step, in the order of the call; "" is one without a name.
        buffers: those that a skipped update puts back; None where none is skipped.
        recompute: lets modules compute their activations again, where that is asked for.
    """

    view: View
    session: Session
    checkpoint: Checkpoint
    decider: StopDecider
    ranks: Ranks
    precision: Precision
    losses: LossMeter
    verdicts: Verdicts
    modes: Modes
    updaters: Mapping[str, Updater]
    buffers: KeptBuffers | None
    trained: Any
    evaluated: Any
    fsdp_modules: Sequence[Any]
    recompute: Callable[[], None]

    @property
    def first(self) -> Updater:
        """The optimizer that callbacks see outside the hooks of a step."""
        return next(iter(self.updaters.values()))

    @property
    def checks_gradients(self) -> bool:
        """Whether gradients are looked at before a step; with several optimizers nobody else would
        tell whose gradients are too large for the loss scale.
        """
        is_shared = len(self.updaters) > 1 and self.precision.scaler is not None
        return self.view.config.check_gradients or is_shared

    def know_metrics(self, validated: Sequence[str]) -> None:
        """Tells callbacks the names of the metrics that the run will have; all processes have to
        call this, for each may have other callbacks.

        Args:
            validated: those of a validation.
        """
        own = ["loss", "learning_rate", "skipped_updates", "train_loss", *validated]
        own += [] if self.view.config.max_grad_norm is None else ["grad_norm"]
        own += [name for plugin in self.view.manager.plugins for name in plugin.logs_metrics]
        everywhere = self.ranks.gather(own, "names of metrics")
        self.view.metric_names = [*dict.fromkeys(name for each in everywhere for name in each)]

    def know_hyperparameters(self, given: object) -> None:
        """Takes `given`, a mapping of names to plain values, into the hyperparameters of the run.
        Raises a ConfigError where it is something else.
        """
        checked = check_hyperparameters(given)
        collect = partial(collect_hyperparameters, self.updaters, checked)
        self.view.collect_hyperparameters = collect

    def reset(self) -> None:
        """Puts whatever changes in a run where a new one has it."""
        self.losses.reset()
        self.verdicts.reset()
        self.precision.reset()
        self.checkpoint.reset()
        for updater in self.updaters.values():
            updater.reset()
        self.modes.leave_evaluation()
        self.view.updater = self.first
        self.view.snapshot_requested = False
        self.view.has_epochs = True

    def prepare_evaluation(self) -> None:
        """Gives all processes one model: compares the weights, and shares the buffers. Raises a
        `ReplicaError` where weights differ.
        """
        self.view.check_replicas()
        self.ranks.share([*self.view.model.buffers()])
        reshard(self.fsdp_modules)


def assemble(
    model: nn.Module | Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer],
    scheduler: Any,
    config: TrainerConfig,
    *,
    callbacks: Sequence[object],
    discover: bool,
    artifacts: Mapping[str, bytes],
    accelerator: Any = None,
    progress: bool | None = None,
    trace_hooks: str | bool = False,
) -> Setup:
    """Checks everything that can be checked before the first step, and puts it together.

    Raises:
        ConfigError: an unknown device, a part of the wrong kind.
        PluginError: a callback that cannot be used.
    """
    several = isinstance(optimizer, Mapping)
    optimizers, schedulers = _by_name(optimizer), {} if scheduler is None else _by_name(scheduler)
    plain, config = _settle(model, config, accelerator)
    whole = _check(plain, optimizers, schedulers, config)
    config = config.shortened()
    manager = make_manager(callbacks, config, discover=discover, progress=progress)
    device = find_device(config.device)
    ranks = join_ranks(device.type)
    if accelerator is not None:
        advice = "On CPUs write Accelerator(cpu=True)"
        check_processes(ranks, "Accelerate", accelerator.num_processes, advice)
    manager.trace(trace_hooks, "" if ranks.is_alone else f"rank {ranks.rank}: ")
    config = _choose(config, device, ranks)
    check_needs(manager.plugins, config)
    compiler, again = _change(_by_name(plain), config, device)
    move(whole, optimizers, device)
    if accelerator is None:
        precision = Precision(config.precision, device, several=several)
    else:
        precision = AcceleratedPrecision(accelerator)
    losses = LossMeter(ranks)
    verdicts = Verdicts(losses, device, ranks)
    buffers = KeptBuffers(whole) if config.on_nonfinite == "skip" else None
    make = partial(Updater, config=config, precision=precision, losses=losses, buffers=buffers)
    updaters: dict[str, Updater] = {}
    for name, each in optimizers.items():
        gradients = Gradients(whole, each, fixed=not ranks.is_alone, only_optimized=several)
        weights = Weights(ranks, batches=config.gradient_accumulation_steps)
        parts = (name, each, schedulers.get(name), gradients)
        updaters[name] = make(*parts, verdicts=verdicts, weights=weights)
    first, shared = next(iter(updaters.values())), (manager, ranks, precision)
    view = View(whole, first, *shared, config=config, device=device)
    view.journal = make_journal(manager)
    check_alike(view, [*updaters.values()])
    called = (model, plain)
    if accelerator is None:
        called = ranks.prepare(whole, model, compiler=compiler, several=several)
    surround = partial(
        _surround, verdicts=verdicts, called=called, artifacts=artifacts, again=again
    )
    return surround(view, updaters, precision, losses, buffers)


def _surround(
    view: View,
    updaters: Mapping[str, Updater],
    precision: Precision,
    losses: LossMeter,
    buffers: KeptBuffers | None,
    *,
    verdicts: Verdicts,
    called: tuple[Any, Any],
    artifacts: Mapping[str, bytes],
    again: Callable[[], None],
) -> Setup:
    """Puts what saves, decides and ends a run round what trains."""
    checkpoint = Checkpoint(
        model=view.model,
        updaters=[*updaters.values()],
        precision=precision,
        losses=losses,
        device=view.device,
        config=view.config,
        ranks=view.ranks,
    )
    if "on_setup" not in view.manager.used:  # which may freeze what is to be left out
        checkpoint.begin(repeats=False)
    setup = Setup(
        view=view,
        session=Session(view, checkpoint, artifacts),
        checkpoint=checkpoint,
        decider=StopDecider(view.config, view.manager, view.ranks),
        ranks=view.ranks,
        precision=precision,
        losses=losses,
        verdicts=verdicts,
        modes=Modes(view.model),
        updaters=updaters,
        buffers=buffers,
        trained=called[0],
        evaluated=called[1],
        fsdp_modules=[*fsdp_modules(view.model)],
        recompute=again,
    )
    setup.know_hyperparameters({})
    return setup


def _check(
    plain: Any,
    optimizers: Mapping[str, torch.optim.Optimizer],
    schedulers: Mapping[str, Any],
    config: TrainerConfig,
) -> nn.Module:
    """Checks the objects of a run, and returns the plain model with all that is trained."""
    check_parts(_by_name(plain), optimizers, config)
    whole = _join(plain)
    check_together(whole, optimizers, schedulers)
    check_scheduling(schedulers, config)
    return whole


def _change(
    models: Mapping[str, nn.Module], config: TrainerConfig, device: torch.device
) -> tuple[Callable[[nn.Module], nn.Module] | None, Callable[[], None]]:
    """Lets modules compute their activations again where that is asked for, and what somebody has
    compiled copy its outputs where it has to; returns what compiles a model, or None, and what does
    the first again.
    """
    compiler = make_compiler(config, device)
    plain = {name: plain_model(each) for name, each in models.items()}
    compiled = compiler is not None or [*plain.values()] != [*models.values()]
    again = partial(recompute, plain, config.checkpoint_activations, compiled=compiled)
    again()
    for each in models.values():
        guard_outputs(each)
    return compiler, again


def _settle(model: Any, config: TrainerConfig, accelerator: Any) -> tuple[Any, TrainerConfig]:
    """Returns the plain model, or models by name, and the settings with an accelerator's."""
    if accelerator is None:
        return model, config
    unwrap, settled = accelerator.unwrap_model, settle(config, accelerator)
    if isinstance(model, Mapping):
        return {name: unwrap(each) for name, each in model.items()}, settled
    return unwrap(model), settled


def _choose(config: TrainerConfig, device: torch.device, ranks: Ranks) -> TrainerConfig:
    """Returns `config` with the precision, and the directory of all processes, that are chosen."""
    place = ranks.on_main(lambda: config.output_dir, "output_dir")  # each may have a fresh one
    arithmetic: Any = choose_precision(config.precision, device)
    return dataclasses.replace(config, output_dir=place, precision=arithmetic)


def check_needs(plugins: Sequence[Plugin], config: TrainerConfig) -> None:
    """Raises a `ConfigError` where a callback needs a place to write and the run has none."""
    for plugin in plugins:
        if config.output_dir is None and plugin.needs_output_dir:
            raise ConfigError(
                f"{plugin.label} needs an output directory, and this run writes nothing. Use "
                f"{option_text('output_dir', 'runs/a')}, or leave it out."
            )


def move(
    whole: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer], device: torch.device
) -> None:
    """Moves the model to its device, and what the optimizers remember of it."""
    check_offload(whole)  # before `to`, which would move what is kept on the host
    with explaining(
        f"where the model moves to {device}", "Use a smaller model, or another device."
    ):
        whole.to(device)
        for optimizer in optimizers.values():
            check_optimizer_devices(optimizer)
            move_state(optimizer)


def _by_name(value: T | Mapping[str, T]) -> dict[str, T]:
    return dict(value) if isinstance(value, Mapping) else {"": value}


def _join(model: nn.Module | Mapping[str, nn.Module]) -> nn.Module:
    """Returns the plain model, or one whose parts are the plain models under their names.

    Raises:
        ConfigError: a name that no part of a module can have.
    """
    if not isinstance(model, Mapping):
        return plain_model(model)
    try:
        return nn.ModuleDict({name: plain_model(each) for name, each in model.items()})
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"the models {', '.join(map(repr, model))} need other names: {error}. Name them as "
            "Python names attributes, such as 'generator'."
        ) from error
