"""Models that come in a wrapper: what is saved and shown is the plain model, with its own names."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import nn
from torch.utils._pytree import tree_iter

from trainer_callback import option_text

from ..config import ConfigError, TrainerConfig
from ..data.batches import clone

__all__ = ["guard_outputs", "make_compiler", "plain_model"]

logger: logging.Logger = logging.getLogger("trainer")

_GRAPHS: Final = ("reduce-overhead", "max-autotune")
"""Modes that record CUDA graphs: each replay writes to the same memory."""


def make_compiler(
    config: TrainerConfig, device: torch.device
) -> Callable[[nn.Module], nn.Module] | None:
    """Returns what compiles a model as `config.compile` says, or None.

    Raises:
        ConfigError: the mode would overwrite gradients of an update that is under way.
    """
    mode = config.compile
    if mode is False:
        return None
    if mode is True:
        return _compile
    if mode in _GRAPHS and device.type != "cuda":
        text = "compile: %r records CUDA graphs, and %s has none: it is compiled without them."
        logger.info(text, mode, device)
    elif mode in _GRAPHS and config.gradient_accumulation_steps > 1:
        raise ConfigError(
            f"{option_text('compile', mode)} records CUDA graphs, and the next micro-batch of an "
            "update would overwrite the gradients of the one before. Use "
            f"{option_text('compile', 'max-autotune-no-cudagraphs')}, or no accumulation."
        )
    return lambda module: _compile(module, mode)


def _compile(module: nn.Module, mode: str | None = None) -> nn.Module:
    compiled = cast(nn.Module, torch.compile(module, mode=mode))
    compiled.register_forward_pre_hook(_allow_sizes, with_kwargs=True)
    guard_outputs(compiled)
    return compiled


def guard_outputs(model: nn.Module) -> None:
    """Has the outputs of `model` copied if somebody's `torch.compile`, of it, in place, of its
    `forward` or of a part, may record CUDA graphs; once, for several runs may have the same model.
    """
    if not any(map(_records_graphs, model.modules())):
        return
    in_place = model._compiled_call_impl
    if in_place is None and _copy_outputs not in model._forward_hooks.values():
        model.register_forward_hook(_copy_outputs)
    elif in_place is not None and not isinstance(in_place, _Copied):  # a hook would be compiled too
        model._compiled_call_impl = _Copied(in_place)


def _records_graphs(part: nn.Module) -> bool:
    """Whether it was compiled so; the backend `cudagraphs` does not say what it does."""
    for each in (part, part._compiled_call_impl, getattr(part, "forward", None)):
        settings = getattr(each, "__dict__", {}).get("get_compiler_config", dict)() or {}
        if settings.get("triton.cudagraphs"):
            return True
    return False


@dataclass
class _Copied:
    """A call whose outputs are copied."""

    call: Callable[..., Any]

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return clone(self.call(*arguments, **named))


def _allow_sizes(module: nn.Module, arguments: Any, named: Any) -> None:
    """Tells the compiler, in an evaluation, that batches have various sizes: else the last one of a
    set, which is mostly smaller, has the model compiled once more. Training keeps to one size.
    """
    if torch.is_grad_enabled():
        return
    for leaf in tree_iter((arguments, named)):
        if isinstance(leaf, torch.Tensor) and leaf.dim() > 0:
            torch._dynamo.maybe_mark_dynamic(leaf, 0)


def _copy_outputs(module: nn.Module, arguments: Any, outputs: Any) -> Any:
    """Returns copies of `outputs`, whose memory the next replay of a graph writes to: losses are
    read behind several batches, and a callback, or a loss function that calls the model twice, may
    keep them.
    """
    return clone(outputs)


def plain_model(model: nn.Module) -> nn.Module:
    """Returns the module inside the wrapper that `torch.compile` returns, or `model` itself.

    Raises:
        ConfigError: it is in a wrapper of several devices or processes, or a part of it is in any
            wrapper: its weights would have the wrapper's names.
    """
    inner = cast(nn.Module, model._orig_mod) if _is_compiled(model) else model
    for name, part in inner.named_modules():
        where = f"model.{name}" if name else "the model"
        if isinstance(part, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise ConfigError(
                f"{where} is wrapped in {type(part).__name__}, which gives its weights "
                "other names. Pass the module inside (model.module), and start one process for "
                "each device with torchrun: the gradients are averaged then."
            )
        if _is_compiled(part):
            raise ConfigError(
                f"{where} is what torch.compile returned, which gives its weights other "
                f"names. Compile it in place, {where}.compile(), or compile the whole model."
            )
    return inner


def _is_compiled(module: nn.Module) -> bool:
    """Whether it is the wrapper of `torch.compile`; where there is one, its module is imported."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    return compiler is not None and isinstance(module, compiler.OptimizedModule)
