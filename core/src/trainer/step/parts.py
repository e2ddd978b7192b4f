"""What `Trainer` is handed: refused where it is of the wrong kind, before anything is built."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from trainer_callback.checks import takes

from ..config import ConfigError, TrainerConfig

__all__ = [
    "check_closure",
    "check_loss_fn",
    "check_optimized",
    "check_optimizer_devices",
    "check_parts",
    "check_together",
    "describe_bad_rate",
    "move_state",
    "warn_left_out",
    "with_article",
]

logger: logging.Logger = logging.getLogger("trainer")

_CLOSURE = (
    "which runs the forward pass several times in one update; the trainer runs it once. Use "
    "another optimizer, or a loop of your own."
)


def with_article(kind: type) -> str:
    """Returns the name of `kind` behind `a` or `an`."""
    return f"{'an' if kind.__name__[0] in 'AEIOUaeiou' else 'a'} {kind.__name__}"


def check_parts(
    models: Mapping[str, object],
    optimizers: Mapping[str, object],
    config: object,
) -> None:
    """Looks at the objects of a run, each under its name; "" is the name of an only one.

    Raises:
        ConfigError: one is of the wrong kind.
    """
    for what, parts, kind in (
        ("model", models, nn.Module),
        ("optimizer", optimizers, torch.optim.Optimizer),
        ("config", {"": config}, TrainerConfig),
    ):
        for name, part in parts.items():
            if not isinstance(part, kind) or (name == "" and len(parts) > 1):
                raise ConfigError(
                    f"{what}{f'[{name!r}]' if name else ''} must be {with_article(kind)}, got "
                    f"{_describe(part)}. Write Trainer(model, optimizer, train_loader, val_loader, "
                    "config=TrainerConfig(...)), or Run({name: model}, {name: optimizer})."
                )
        if not parts:
            raise ConfigError(f"there is no {what}: the mapping is empty. Give one, or several.")
    kinds = cast("Mapping[str, nn.Module]", models)
    for model in kinds.values():
        _check_storage(model)
        _check_initialised(model)


def check_together(
    whole: nn.Module,
    optimizers: Mapping[str, torch.optim.Optimizer],
    schedulers: Mapping[str, object],
    *,
    tells: bool = True,
) -> None:
    """Looks whether the optimizers are over parameters of `whole`, and the schedulers of theirs.

    Args:
        tells: say what they leave out.

    Raises:
        ConfigError: they do not belong together.
    """
    stranger = next((name for name in schedulers if name not in optimizers), None)
    if stranger is not None:
        raise ConfigError(
            f"scheduler[{stranger!r}] has no optimizer: there is "
            f"{', '.join(map(repr, optimizers))}. Give it the name of the optimizer that it is of."
        )
    for name, optimizer in optimizers.items():
        _check_steps(optimizer)
        check_optimized(whole.parameters(), optimizer)
        _check_scheduler(schedulers.get(name), optimizer)
    left_out, count = _check_frozen(whole, optimizers)
    if left_out and tells:
        warn_left_out(left_out, count)


def check_optimized(parameters: Iterable[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Sees to it that the optimizer has no others than the model's `parameters`: only those are
    saved, averaged over processes, and moved to the device.

    Raises:
        ConfigError: it has other parameters.
    """
    own = {id(parameter) for parameter in parameters}
    kind = type(optimizer).__name__
    strangers = [
        f"parameter {place} of group {number}, of shape {tuple(parameter.shape)}"
        for number, group in enumerate(optimizer.param_groups)
        for place, parameter in enumerate(group["params"])
        if id(parameter) not in own
    ]
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    if len(strangers) == count:
        raise ConfigError(
            f"none of the parameters of {kind} belongs to the model, so training would "
            "change nothing. Build it from model.parameters(), after fully_shard if the model is "
            "sharded."
        )
    if strangers:
        raise ConfigError(
            f"{kind} has {len(strangers)} of {count} parameters that are not the model's "
            f"({strangers[0]}): they would not be saved, clipped or averaged over processes. Put "
            "what is trained together, such as a loss with weights, into one nn.Module and hand "
            "that to the run and to the optimizer."
        )


def warn_left_out(left_out: Sequence[str], count: int) -> None:
    """Says that the parameters named `left_out`, of `count` that require a gradient, are not in the
    optimizer.
    """
    logger.warning(
        "%d of %d parameters that require a gradient are not in the optimizer, such as %s: "
        "they are not trained, and their gradients count in the gradient norm, as "
        "clip_grad_norm_(model.parameters()) counts them. Add them to the optimizer "
        "(add_param_group), or freeze them: requires_grad_(False).",
        len(left_out),
        count,
        left_out[0],
    )


def check_optimizer_devices(optimizer: torch.optim.Optimizer) -> None:
    """Looks at where the optimizer's parameters are.

    Raises:
        ConfigError: it has a setting that cannot work there.
    """
    for index, group in enumerate(optimizer.param_groups):
        on_cpu = any(parameter.device.type == "cpu" for parameter in group["params"])
        if group.get("capturable") and on_cpu:
            raise ConfigError(
                f"group {index} of {type(optimizer).__name__} has capturable=True, which "
                "is for parameters on a GPU, and has some on the CPU. Set it to False."
            )


def move_state(optimizer: torch.optim.Optimizer) -> None:
    """Moves what the optimizer remembers of a parameter to where the parameter is now. Counts of
    steps stay, as `load_state_dict` leaves them, where the optimizer reads them on the host.
    """
    for group in optimizer.param_groups:
        counts_move = group.get("capturable") or group.get("fused")
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if name != "step" or counts_move:
                    state[name] = _move(value, parameter.device)


def _move(value: Any, device: torch.device) -> Any:
    """Returns `value` with the tensors in its containers on `device`."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _move(item, device) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_move(item, device) for item in value)
    return value


def describe_bad_rate(optimizer: torch.optim.Optimizer) -> str | None:
    """Returns which of the optimizer's settings has become what no update can use, or None: a
    learning rate that is no finite number, another number that is NaN.
    """
    for index, group in enumerate(optimizer.param_groups):
        if "lr" in getattr(optimizer, "defaults", ()) and "lr" not in group:
            return f"group {index} of {type(optimizer).__name__} has lost its learning rate 'lr'"
        for name, value in group.items():
            if isinstance(value, (list, tuple)) and name != "params":
                is_nan = any(map(_is_nan, value))
            else:
                is_nan = _is_nan(value)
            if is_nan or (name == "lr" and not _is_rate(value)):
                what = "the learning rate" if name == "lr" else name
                return (
                    f"{what} of group {index} of {type(optimizer).__name__} has become {value!r}; "
                    "look at what sets it, a scheduler or a callback"
                )
    return None


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _is_rate(value: object) -> bool:
    """Whether `value` is a finite number, or None: some optimizers find their own."""
    try:
        return value is None or (not isinstance(value, str) and math.isfinite(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return False


def check_closure(optimizer: torch.optim.Optimizer, error: Exception) -> None:
    """Looks at what a step without a closure has raised.

    Raises:
        ConfigError: the closure was missing.
    """
    if "closure" in str(error).lower():
        raise ConfigError(
            f"{type(optimizer).__name__} wants a closure in step() ({error}), {_CLOSURE}"
        ) from error


def _check_storage(model: nn.Module) -> None:
    for kind, tensors in (
        ("parameter", model.named_parameters()),
        ("buffer", model.named_buffers()),
    ):
        for name, tensor in tensors:
            if tensor.is_meta:
                raise ConfigError(
                    f"the {kind} {name} is on the meta device, where tensors have a shape "
                    "and no values. Call model.to_empty(device=...), then load or initialize every "
                    "weight and buffer, and build the optimizer after that."
                )


def _check_steps(optimizer: torch.optim.Optimizer) -> None:
    try:
        inspect.signature(type(optimizer).step).bind(optimizer)
        needs_closure = hasattr(optimizer, "first_step") and hasattr(optimizer, "second_step")
    except TypeError:
        needs_closure = True
    except ValueError:  # it has no signature
        needs_closure = False
    if needs_closure:
        raise ConfigError(f"{type(optimizer).__name__} wants a closure in step(), {_CLOSURE}")
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise ConfigError(
            f"{type(optimizer).__name__} has differentiable=True, which is for steps "
            "through which somebody differentiates; parameters cannot be trained so. Leave it out."
        )


def _check_initialised(model: nn.Module) -> None:
    """Refuses parameters without values, as lazy modules have them before their first batch."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ConfigError(
                f"{name} is not initialised. Run a batch through the model first, and "
                "build the optimizer after that."
            )


def _check_frozen(
    model: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer]
) -> tuple[list[str], int]:
    """Refuses an optimizer that has nothing to train, or what another one trains; returns what all
    of them leave out, and the number of parameters that require a gradient.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ids = {id(parameter): name for name, parameter in trained.items()}
    owners: dict[int, str] = {}
    for name, optimizer in optimizers.items():
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not known & ids.keys():
            raise ConfigError(
                f"every parameter of {type(optimizer).__name__} is frozen (requires_grad is "
                "False), so training would change nothing. Call requires_grad_() on what is to be "
                "trained."
            )
        twice = next((each for each in known if each in owners), None)
        if twice is not None:
            raise ConfigError(
                f"the optimizers {owners[twice]!r} and {name!r} both have the parameter "
                f"{ids.get(twice, '(frozen)')}. Give each parameter to one of them."
            )
        owners.update(dict.fromkeys(known, name))
    left_out = [name for name, parameter in trained.items() if id(parameter) not in owners]
    return left_out, len(trained)


def _check_scheduler(scheduler: object, optimizer: torch.optim.Optimizer) -> None:
    if scheduler is None:
        return
    needed = ("step", "state_dict", "load_state_dict")
    if isinstance(scheduler, type) or not all(hasattr(scheduler, name) for name in needed):
        raise ConfigError(
            f"scheduler must be a learning-rate scheduler, got {_describe(scheduler)}. "
            "Write scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 1000), for example."
        )
    other = getattr(scheduler, "optimizer", optimizer)
    if other is not optimizer and other is not getattr(optimizer, "optimizer", optimizer):
        raise ConfigError(
            f"the scheduler {type(scheduler).__name__} belongs to another optimizer "
            f"({with_article(type(other))}), so it would not change the rates of this one. Build "
            "it from the optimizer that the run is given."
        )


def check_loss_fn(loss_fn: Callable[..., Any] | None) -> None:
    """Refuses what cannot be called with a model and a batch.

    Raises:
        ConfigError: it cannot.
    """
    if loss_fn is None:
        return
    way = (
        "Write a function of both: loss_fn=lambda model, batch: "
        "torch.nn.functional.mse_loss(model(batch[0]), batch[1])."
    )
    if not callable(loss_fn):
        raise ConfigError(
            f"loss_fn must be a function (model, batch) -> loss, got {_describe(loss_fn)}. {way}"
        )
    called: Any = loss_fn.forward if isinstance(loss_fn, nn.Module) else loss_fn
    room = getattr(called, "__module__", None)
    if room in ("torch.nn.modules.loss", "torch.nn.functional") or not takes(called, 2):
        name = getattr(loss_fn, "__name__", None) or type(loss_fn).__name__
        raise ConfigError(
            f"loss_fn is called with (model, batch), and {name} does not take that. {way}"
        )


def _describe(part: object) -> str:
    if isinstance(part, type):
        return f"the class {part.__name__}"
    return with_article(type(part))
