"""One run from its start to its end, whichever way its loop is left."""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from trainer_callback import SaveError, SnapshotError, option_text

from ..processes.signals import SignalFlags
from ..result import TrainResult
from ..step.losses import NonFiniteError
from .assembly import Setup
from .blame import blame_hook
from .boundary import Boundary
from .call_order import RunOrderError, refuse
from .memory import explain_memory, explaining
from .passes import Passes
from .session import Resume
from .structure import follow_structure

__all__ = ["Lifetime", "RunContext"]

logger: logging.Logger = logging.getLogger("trainer")

T = TypeVar("T")

_open: Final[weakref.WeakKeyDictionary[Lifetime, int]] = weakref.WeakKeyDictionary()
"""Whose run is under way, and in which process; one that was forked off starts anew."""


class Lifetime:
    """Starts and ends the runs of one `Run`, one after the other."""

    def __init__(self, setup: Setup, boundary: Boundary, passes: Passes) -> None:
        self._setup, self._boundary, self._passes = setup, boundary, passes
        self._held: contextlib.ExitStack | None = None

    @property
    def result(self) -> TrainResult | None:
        """How the last run ended, also where it failed; None before its end."""
        return self._setup.session.result

    @property
    def is_open(self) -> bool:
        """Whether a run has started, and not ended."""
        return self._held is not None

    def start(self, resume: Resume) -> None:
        """Starts a run: directory, signals, `on_setup`, snapshot, `on_train_start`."""
        refuse(self.is_open, "start()", "this run has started already, and has not ended")
        setup, view, passes = self._setup, self._setup.view, self._passes
        with explaining("at the start of the run"), contextlib.ExitStack() as stack:
            stack.enter_context(_alone(self))
            stack.enter_context(setup.session.open(resume))
            stack.enter_context(setup.precision.setting())
            signals = stack.enter_context(SignalFlags().caught())
            setup.decider.start(signals)
            view.senders.start(lambda: signals.raised)
            stack.callback(view.senders.close)
            setup.reset()
            self._boundary.scheduling.start(view.metric_names, validates=view.validates)
            self._boundary.stop = None
            found = setup.session.find(resume)
            resumed, repeats = found is not None, setup.session.set_up(found)
            if repeats:
                follow_structure(setup)
            setup.checkpoint.begin(repeats=repeats)
            setup.session.restore(found)
            for updater in setup.updaters.values():
                updater.start()
                updater.reach.start()
                stack.callback(updater.reach.end)
            passes.start(resumed=resumed)
            self._held = stack.pop_all()
        try:
            passes.hook.on_train_start(trainer=view, resumed=resumed)
            view.manager.check_late()
            view.queue.open()
            if resumed:
                setup.checkpoint.restore_rng()
            self._boundary.decide_at_start(resumed=resumed)
        except BaseException as error:  # Ctrl-C and SystemExit end a run like any other
            self.end(error)
            raise

    def end(self, error: BaseException | None) -> None:
        """Ends the run, and raises what has ended it, or has failed at its end."""
        held, self._held = self._held, None
        assert held is not None
        setup, passes = self._setup, self._passes
        try:
            with explaining("at the end of the run"), held:
                try:
                    if error is None:
                        self._leave_loop()
                except BaseException as caught:
                    error = caught
                if error is not None:
                    error = self._find_first(error)
                    error = explain_memory(error, *self._find_place())
                    error = blame_hook(error, setup.view.manager.plugins)
                passes.close_loader()
                stop, final = self._boundary.stop, passes.is_begun
                error = setup.session.end(stop, error, final=final)
                if isinstance(error, SnapshotError):
                    raise SaveError(str(error)) from error
                if error is not None:
                    raise error
        finally:
            passes.in_epoch = passes.in_batch = False
            passes.is_over = True
            del error  # it holds this frame and the loop's, and so the loader's workers

    def _find_place(self) -> tuple[str, str | None]:
        """Returns where the run is, and what makes that smaller, if it is no update."""
        position = self._setup.view.position
        if self._passes.in_batch:
            return f"in epoch {position.epoch}, update {position.update}", None
        behind = f"behind update {position.step}" if position.step else "before the first update"
        return f"in epoch {position.epoch}, {behind}", (
            f"Use smaller batches, also in a validation, {option_text('precision', 'bf16')}, or a "
            "smaller model, which a snapshot copies to the host with its optimizer."
        )

    def _find_first(self, error: BaseException) -> BaseException:
        """Returns what ends the run: `error`, or an update before it that was bad and not read yet.
        Of several processes none can ask the others here; in Ctrl-C the update is logged.
        """
        if not self._setup.ranks.is_alone:
            return error
        try:
            self._setup.verdicts.settle()
        except NonFiniteError as earlier:
            if isinstance(error, Exception):
                earlier.__cause__ = error
                return earlier
            logger.error("%s", earlier)
        except Exception:  # the device does not answer any more, which is what has ended the run
            logger.debug("the last updates were not read", exc_info=True)
        return error

    def _leave_loop(self) -> None:
        """Deals with a loop that was left before its end, by `break` or `return`."""
        passes = self._passes
        if passes.is_over:
            return
        if self._boundary.stop is not None:  # which the loop has seen itself
            if passes.in_epoch:
                passes.end_epoch()
            return
        self._setup.ranks.leave("break")
        if passes.is_begun:
            passes.leave_batches()
        self._boundary.decide_after_break()
        if passes.is_begun:  # else what the directory holds stays as it is
            self._setup.session.save(due=True)


@contextlib.contextmanager
def _alone(lifetime: Lifetime) -> Iterator[None]:
    """Refuses a run beside another one of this process."""
    if os.getpid() in _open.values():
        raise RunOrderError(
            "start: another run of this process has not ended. Both would draw from the same "
            "random numbers and hear the same signals, so that neither could be resumed exactly. "
            "End that one first, or start this one in a process of its own."
        )
    _open[lifetime] = os.getpid()
    try:
        yield
    finally:
        _open.pop(lifetime, None)  # gone already where nobody holds the run any more


class RunContext(contextlib.AbstractContextManager[T], Generic[T]):
    """A run as a context, which is entered as `run`."""

    def __init__(self, run: T, lifetime: Lifetime, resume: Resume) -> None:
        self._run, self._lifetime, self._resume = run, lifetime, resume

    def __enter__(self) -> T:
        self._lifetime.start(self._resume)
        return self._run

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self._lifetime.end(error)
        finally:
            del error  # its traceback has this frame
