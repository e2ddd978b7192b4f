"""Plugins as an ordinary callback of transformers, for trainers that are out of reach."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

import transformers
from torch import nn

from trainer.config import read_path
from trainer.hosting import HostedRun, make_callbacks
from trainer_callback import RunError, UsageError

from .checkpoints import mark_written
from .metrics import PREFIX
from .session import Options, Session
from .settings import find_folder

__all__ = ["Plugins"]

logger: logging.Logger = logging.getLogger("trainer")

_OUT_OF_REACH: Final = {
    "on_forward_end": "the loss of a batch",
    "on_batch_end": "the loss of a batch",
    "on_validation_start": "the start of a validation",
    "on_validation_set_start": "the start of a validation",
    "on_validation_batch_end": "the batches of a validation",
    "on_validation_set_end": "the sets of a validation",
}
_BATCH: Final = frozenset({"batch"})


class Plugins(transformers.TrainerCallback):  # type: ignore[misc]
    """Plugins on the events of a trainer, where `attach` cannot have the trainer itself. A plugin
    that needs more than events tell is refused before the first step, by name.
    """

    def __init__(
        self,
        entries: Sequence[object],
        *,
        discover: bool = True,
        output_dir: str | Path | None = None,
        strict: bool = False,
    ) -> None:
        """Takes what `attach` does.

        Raises:
            PluginError: an entry cannot be used.
        """
        place = None if output_dir is None else read_path(output_dir, "output_dir")
        self._options = Options(make_callbacks(entries), discover, place, strict)
        self._session: Session | None = None
        self._told = _Told()
        self._limit = 0.0
        self._place: Path | None = None
        self._loss, self._steps, self._last_logged = 0.0, 0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        place = find_folder(args, self._options.output_dir)
        for each in [*_open]:
            if each is not self and each._told.state is state:
                raise UsageError(
                    "Plugins: there are two of them in this trainer. Give all plugins in one list."
                )
            if each is self or each._place == place:
                each._leave()
        self._place = place
        _check(args, state)
        self._limit = float(args.max_grad_norm or 0.0)
        told = self._told = _Told()
        told.model, told.optimizer = named["model"], named["optimizer"]
        told.lr_scheduler = named["lr_scheduler"]
        told.args, told.state, told.control = args, state, control
        told.accelerator = _Gradients(args, told.optimizer)
        step = int(state.global_step)
        checkpoint = Path(args.output_dir or ".") / f"checkpoint-{step}" if step else None
        session = self._session = Session(told, self._options, checkpoint)
        session.note_loader(named["train_dataloader"])
        session.open(refuse=lambda run: _refuse(run, resumes=step > 0))
        self._loss, self._steps, self._last_logged = 0.0, 0, step
        _open.add(self)
        session.begin(control)
        if session.is_ended_at_start:
            logger.warning(
                "plugins had ended this run, and end it again; by its events alone a trainer "
                "cannot be kept from one more update, which plugins do not see. Use "
                "trainer_transformers.attach(trainer, [...]) to have none."
            )

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        if self._is_over:
            return
        self._live.finish_epoch(control)
        self._live.start_epoch()
        self._loss, self._steps = 0.0, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        if self._is_over:
            return
        if self._clips:
            args.max_grad_norm = 0.0  # the gradients are clipped here, when they were shown
        self._live.start_window_by_events()

    def on_substep_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        if self._is_over:
            return
        self._told.accelerator.sync_gradients = False
        self._live.end_batch()
        self._live.start_batch(None)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        if self._is_over:
            return
        session = self._live
        session.end_backward()
        if self._clips:
            args.max_grad_norm = self._limit
            norm = nn.utils.clip_grad_norm_(self._told.model.parameters(), self._limit)
            session.end_clipping(norm, self._limit)

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        if self._is_over:
            return
        self._told.control = control
        self._live.end_step()
        self._live.end_update(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        if self._is_over:
            return
        self._told.control = control
        session = self._live
        session.train_loss = self._loss / self._steps if self._steps else None
        session.end_epoch(control)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **named: Any
    ) -> None:
        session, found = self._session, metrics or {}
        if session is None or not session.is_live:
            return
        self._told.control = control
        if found.keys() & {f"{PREFIX}_loss", f"{PREFIX}_runtime"}:
            session.end_validation(found)
        elif session.is_due and any(name.startswith(f"{PREFIX}_") for name in found):
            raise UsageError(
                "Plugins: the trainer evaluates several sets one after the other, and no event "
                "tells which is the last. Use trainer_transformers.attach(trainer, [...]) instead."
            )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **named: Any) -> None:
        if self._session is None or not self._session.is_live or not logs:
            return
        if any(name.startswith(f"{PREFIX}_") for name in logs):
            return
        if "loss" in logs:
            done, self._last_logged = state.global_step - self._last_logged, state.global_step
            self._loss, self._steps = self._loss + logs["loss"] * done, self._steps + done
            own = {"loss"} if self._clips else {"loss", "grad_norm"}
            self._session.log_own({name: logs[name] for name in sorted(own & logs.keys())})
        self._session.log(logs)

    def on_save(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        if self._is_over:
            return
        self._live.finish_epoch(control)
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._live.save(folder, mark_written(folder))
        self._live.tell_saved()

    def on_train_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        session = self._live
        session.finish_epoch(control)
        self._forget()
        session.end()

    def _forget(self) -> None:
        """Keeps nothing of a training that is over."""
        if self._told.args is not None:
            self._told.args.max_grad_norm = self._limit
        self._session, self._told = None, _Told()
        _open.discard(self)

    def _leave(self) -> None:
        """Ends a training that an exception has ended, of which no event tells."""
        session = self._live
        self._forget()
        session.end(RunError("the training was left, and has begun again."))

    @property
    def _clips(self) -> bool:
        """Whether gradients are clipped here, and not by the trainer."""
        run = self._live.run
        looks = run is not None and run.manager.used & {"on_backward_end", "on_gradients_clipped"}
        return bool(looks and self._limit)

    @property
    def _is_over(self) -> bool:
        return self._live.is_ended_at_start

    @property
    def _live(self) -> Session:
        assert self._session is not None
        return self._session


_open: Final[WeakSet[Plugins]] = WeakSet()
"""Those whose training has begun and not ended, as far as events tell."""


def _check(args: Any, state: Any) -> None:
    """Refuses what events do not tell enough of."""
    for name, holds in (
        ("auto_find_batch_size=True", args.auto_find_batch_size),
        ("a search for hyperparameters", state.is_hyper_param_search),
        ("DataParallel", args.n_gpu > 1),
        ("DeepSpeed", bool(args.deepspeed)),
        ("FSDP", bool(args.fsdp)),
    ):
        if holds:
            raise UsageError(
                f"Plugins: plugins cannot follow {name} by the events of a trainer. Leave it out, "
                "or train with trainer.Trainer."
            )


def _refuse(run: HostedRun, *, resumes: bool) -> None:
    """Refuses plugins that need what no event tells; says of others what they are not told.

    Raises:
        UsageError: names them.
    """
    manager = run.manager
    found = [(what, manager.implementers(hook)) for hook, what in _OUT_OF_REACH.items()]
    found.append(("a batch", manager.askers("on_batch_start", _BATCH)))
    if resumes:
        what = "the time before the optimizer is restored"
        found.append((what, manager.implementers("on_setup")))
    for what, names in found:
        if names:
            raise UsageError(
                f"Plugins: no event of a trainer tells {what}, which {_join(names)} "
                f"{'needs' if len(names) == 1 else 'need'}. Use "
                "trainer_transformers.attach(trainer, [...]) instead."
            )
    if names := manager.implementers("on_exception"):
        logger.info("no event of a trainer tells an exception: %s will not see one.", _join(names))


def _join(names: set[str]) -> str:
    return " and ".join(sorted(names))


class _Told:
    """What the events have told of a trainer."""

    model: Any = None
    optimizer: Any = None
    lr_scheduler: Any = None
    args: Any = None
    state: Any = None
    control: Any = None
    accelerator: Any = None


class _Gradients:
    """What is asked of an accelerator, as far as the optimizer that it has prepared knows it."""

    def __init__(self, args: Any, optimizer: Any) -> None:
        self._optimizer = optimizer
        self.scaler: Any = getattr(optimizer, "scaler", None)
        self.sync_gradients: bool = True
        precision = "fp16" if self.scaler is not None else "bf16" if args.bf16 else "no"
        self.mixed_precision: str = precision
        self.native_amp: bool = precision != "no"

    @property
    def optimizer_step_was_skipped(self) -> bool:
        """Whether the loss scaler has refused the last step."""
        return bool(getattr(self._optimizer, "step_was_skipped", False))
