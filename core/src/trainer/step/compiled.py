"""Models that come in a wrapper: what is saved and shown is the plain model, with its own names."""

from __future__ import annotations

import sys
from typing import cast

from torch import nn

from ..config import ConfigError

__all__ = ["plain_model"]


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
