"""Modules whose activations are not kept: the backward pass computes them again, bit by bit."""

from __future__ import annotations

import contextlib
import copyreg
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer_callback import option_text
from trainer_callback.errors import closest

from ..config import ConfigError

__all__ = ["recompute"]

_MOST_SHOWN: Final = 12
_MOST_BYTES: Final = 1 << 20
"""Of a buffer that a forward pass may change: larger ones are masks and caches."""


def recompute(models: Mapping[str, nn.Module], pattern: str | None, *, compiled: bool) -> None:
    """Lets the modules that `pattern` names compute their activations again in the backward pass,
    and no others: those of an earlier run of the same model do not any more.

    Args:
        models: the plain ones; "" is the name of an only one.
        pattern: names of modules, divided by commas; `*` stands for a part between two dots. With
            several models the first part is the model's name.
        compiled: they will be compiled.

    Raises:
        ConfigError: a pattern names no module, or one that cannot be computed again.
    """
    named = {
        ".".join(filter(None, (outer, inner))): module
        for outer, model in models.items()
        for inner, module in model.named_modules()
    }
    for module in named.values():
        if isinstance(module, _Recomputed):
            module.__class__ = module.__class__.__mro__[2]
    for each in [] if pattern is None else pattern.split(","):
        found = [name for name in named if _matches(name, each.strip())]
        if not found:
            raise ConfigError(_explain(each.strip(), [name for name in named if name]))
        for name in found:
            _check(name, named[name], compiled=compiled)
            _change(named[name])


class _Recomputed(nn.Module):
    """Stands before a module's own class. Names, modes and hooks are those of the module, and a
    copy is of its own class again.
    """

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Computes what the module does, and forgets what is between."""
        forward: Callable[..., Any] = super().forward
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        buffers = [] if torch.compiler.is_compiling() else _small(self.buffers())
        if not buffers:
            return checkpoint(forward, *arguments, use_reentrant=False, **named)
        before = [buffer.clone() for buffer in buffers]

        def contexts() -> tuple[Any, Any]:
            return contextlib.nullcontext(), _with_values(buffers, before)

        return checkpoint(forward, *arguments, use_reentrant=False, context_fn=contexts, **named)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Lets a copy, and a pickle, be of the module's own class."""
        reduced: Any = super().__reduce_ex__(protocol)
        make, arguments, *state = reduced
        if make is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return reduced  # of a class that says itself what it is made from
        return (_make, (type(self).__mro__[2], *arguments[1:]), *state)


def _make(kind: type[nn.Module], *arguments: Any) -> nn.Module:
    """Returns a module of which nothing is set yet, for a copy or a pickle."""
    made: nn.Module = kind.__new__(kind, *arguments)
    return made


def _small(buffers: Iterable[Tensor]) -> list[Tensor]:
    return [buffer for buffer in buffers if buffer.nbytes <= _MOST_BYTES]


@contextlib.contextmanager
def _with_values(buffers: list[Tensor], values: list[Tensor]) -> Iterator[None]:
    """Puts `values` into the buffers while it is open: the forward pass comes again, and its means
    of a batch norm must not be counted twice.
    """
    now = [buffer.clone() for buffer in buffers]
    with torch.no_grad():
        for buffer, value in zip(buffers, values, strict=True):
            buffer.data.copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, now, strict=True):
                buffer.data.copy_(value)


def _change(module: nn.Module) -> None:
    if isinstance(module, _Recomputed):
        return
    own = type(module)
    names = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    module.__class__ = type(own.__name__, (_Recomputed, own), names)


def _check(name: str, module: nn.Module, *, compiled: bool) -> None:
    what = f"{option_text('checkpoint_activations')}: {name or 'the model'}"
    if type(module).forward is nn.Module.forward:
        raise ConfigError(
            f"{what} is a {type(module).__name__}, which is never called itself. Name the modules "
            f"in it: {name + '.' if name else ''}*."
        )
    if isinstance(module, torch.jit.ScriptModule) or "forward" in vars(module):
        raise ConfigError(
            f"{what} is compiled by torch.jit, or has got a forward of its own after it was made, "
            "and cannot be changed. Name the modules around it, or in it."
        )
    norms = [each for each in module.modules() if isinstance(each, nn.modules.batchnorm._NormBase)]
    if compiled and any(each.track_running_stats for each in norms):
        raise ConfigError(
            f"{what} has a {type(norms[0]).__name__}, whose means would be counted twice where the "
            "model is compiled. Name modules without one, or leave out compile."
        )


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _explain(pattern: str, names: list[str]) -> str:
    stars = dict.fromkeys(
        ".".join("*" if part.isdecimal() else part for part in name.split(".")) for name in names
    )
    shown = [*stars][:_MOST_SHOWN]
    more = f" and {len(stars) - len(shown)} more" if len(stars) > len(shown) else ""
    return (
        f"{option_text('checkpoint_activations')}: no module is called {pattern!r}."
        f"{closest(pattern, stars)} There are {', '.join(shown) or 'none'}{more}."
    )
