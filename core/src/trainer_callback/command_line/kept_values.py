"""Settings of the process that are one value of a module: a plugin's import may not change them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

__all__ = ["VALUES", "Restore", "keep_value"]

_NUMPY_ERRORS: Final = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
"""What `numpy.geterr()` returns in a fresh process."""

Restore: TypeAlias = Callable[[], bool]
"""Puts something back; returns whether it had to."""


def keep_value(
    module: str,
    read: Callable[[Any], Any],
    write: Callable[[Any, Any], object],
    default: Callable[[Any], Any] | None = None,
) -> Callable[[], Restore]:
    """Keeps one value of a module, where it is loaded.

    Args:
        read, write: of the module.
        default: the value in a module that is loaded only meanwhile; without it nobody can tell.
    """

    def keep() -> Restore:
        kept = _read(read, sys.modules.get(module))

        def restore() -> bool:
            found = sys.modules.get(module)
            before = kept if kept is not None or default is None else _read(default, found)
            if before is None or _read(read, found) in (None, before):
                return False
            write(found, before)
            return True

        return restore

    return keep


def _read(read: Callable[[Any], Any], module: object) -> Any:
    """Returns the value, or None: not loaded, or only in part; a directory that is gone."""
    with contextlib.suppress(Exception):
        return None if module is None else read(module)


def _read_umask(module: Any) -> int:
    mask: int = module.umask(0o077)
    module.umask(mask)
    return mask


def _keep_names(module: str, *names: str) -> Callable[[], Restore]:
    """Keeps what some names of a module stand for."""
    return keep_value(
        module,
        lambda found: [getattr(found, name) for name in names],
        lambda found, v: vars(found).update(zip(names, v, strict=True)),
    )


VALUES: Final[Mapping[str, Callable[[], Restore]]] = {
    "changed the directory": keep_value("os", lambda os: os.getcwd(), lambda os, v: os.chdir(v)),
    "set the recursion limit": keep_value(
        "sys", lambda sys: sys.getrecursionlimit(), lambda sys, v: sys.setrecursionlimit(v)
    ),
    "set sys.excepthook": _keep_names("sys", "excepthook"),
    "set sys.unraisablehook": _keep_names("sys", "unraisablehook"),
    "set threading.excepthook": _keep_names("threading", "excepthook"),
    "replaced a builtin": _keep_names("builtins", "print", "open", "input", "__import__"),
    "set the umask": keep_value("os", _read_umask, lambda os, v: os.umask(v)),
    "switched the garbage collector": keep_value(
        "gc",
        lambda gc: gc.isenabled(),
        lambda gc, v: gc.enable() if v else gc.disable(),
        lambda gc: True,
    ),
    "set the time limit of sockets": keep_value(
        "socket",
        lambda socket: socket.getdefaulttimeout() or 0.0,
        lambda socket, v: socket.setdefaulttimeout(v or None),
        lambda socket: 0.0,
    ),
    "set the start method of multiprocessing": keep_value(
        "multiprocessing",
        lambda mp: mp.get_start_method(allow_none=True) or "default",
        lambda mp, v: mp.set_start_method(None if v == "default" else v, force=True),
        lambda mp: "default",
    ),
    "called numpy.seterr": keep_value(
        "numpy", lambda np: np.geterr(), lambda np, v: np.seterr(**v), lambda np: _NUMPY_ERRORS
    ),
    "set torch's default dtype": keep_value(
        "torch",
        lambda torch: torch.get_default_dtype(),
        lambda torch, v: torch.set_default_dtype(v),
        lambda torch: torch.float32,
    ),
    "set torch's default device": keep_value(
        "torch",
        lambda torch: torch.get_default_device(),
        lambda torch, v: torch.set_default_device(None if v.type == "cpu" else v),
        lambda torch: torch.device("cpu"),
    ),
    "switched torch's gradients": keep_value(
        "torch",
        lambda torch: torch.is_grad_enabled(),
        lambda torch, v: torch.set_grad_enabled(v),
        lambda torch: True,
    ),
    "set torch's deterministic algorithms": keep_value(
        "torch",
        lambda torch: torch.are_deterministic_algorithms_enabled(),
        lambda torch, v: torch.use_deterministic_algorithms(v),
        lambda torch: False,
    ),
    "set torch's number of threads": keep_value(
        "torch", lambda torch: torch.get_num_threads(), lambda torch, v: torch.set_num_threads(v)
    ),
}
"""What somebody did to the process -> what undoes it."""
