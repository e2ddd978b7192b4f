"""Callbacks of others that hear the start and the end of each batch, and do nothing."""

from __future__ import annotations

from typing import Any


def for_fabric(count: int) -> list[Any]:
    class Listener:
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None: ...

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None: ...

    return [Listener() for _ in range(count)]


def for_lightning(count: int) -> list[Any]:
    import lightning

    class Listener(lightning.Callback):  # type: ignore[misc]
        def on_train_batch_start(self, *_: Any) -> None: ...

        def on_train_batch_end(self, *_: Any) -> None: ...

    return [Listener() for _ in range(count)]


def for_transformers(count: int) -> list[Any]:
    from transformers import TrainerCallback

    class Listener(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None: ...

        def on_step_end(self, *_: Any, **__: Any) -> None: ...

    # It warns of two callbacks of one class.
    return [type(f"Listener{number}", (Listener,), {})() for number in range(count)]


def for_skorch(count: int) -> list[Any]:
    from skorch.callbacks import Callback

    class Listener(Callback):  # type: ignore[misc]
        def on_batch_begin(self, net: Any, **_: Any) -> None: ...

        def on_batch_end(self, net: Any, **_: Any) -> None: ...

    return [Listener() for _ in range(count)]


def for_torchtnt(count: int) -> list[Any]:
    from torchtnt.framework.callback import Callback

    class Listener(Callback):  # type: ignore[misc]
        def on_train_step_start(self, state: Any, unit: Any) -> None: ...

        def on_train_step_end(self, state: Any, unit: Any) -> None: ...

    return [Listener() for _ in range(count)]


def for_fastai(count: int) -> list[Any]:
    import fastai.callback.progress  # noqa: F401  the bar that `no_bar` takes away
    from fastai.callback.core import Callback

    class Listener(Callback):  # type: ignore[misc]
        def before_batch(self) -> None: ...

        def after_batch(self) -> None: ...

    return [Listener() for _ in range(count)]


def for_keras(count: int) -> list[Any]:
    import keras

    class Listener(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None: ...

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None: ...

    return [Listener() for _ in range(count)]
