"""The passes of a loop over its data: epochs, and the micro-batches in them. What the loop asks for
next ends what it had before, so that nothing depends on how it was left.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from trainer_callback import TrainerCallback

from ..data.batches import move_to_device
from ..data.loaders import EpochLoader
from ..processes.sharding import reshard
from ..step.update import Updater
from ..writers.progress import ProgressCallback
from .answers import Answers
from .assembly import Setup
from .boundary import Boundary
from .call_order import RunOrderError, check_stepped, refuse
from .run_loaders import Loader, RunLoaders

__all__ = ["Passes"]

logger: logging.Logger = logging.getLogger("trainer")


class Passes:
    """Where the loop is: outside an epoch, in one, or in a micro-batch.

    Attributes:
        loader: what the epoch under way goes through; None: nothing yet.
        loss: of the micro-batch at hand, a 0-dim tensor; None: it had no backward pass.
        backward_names: what the backward passes of that batch were called with: names, or None.
        stepped: those whose step was called in that batch.
        answers: what loss functions have answered in it.
        in_epoch, in_batch: whether an epoch, and a micro-batch, is under way.
        ends_update: whether the micro-batch at hand ends an update, if it has its backward pass.
        is_begun: an epoch has begun in this process.
        is_over: the loop has come to its end.
        run: the number of this run; an iterator of another one gives nothing.
    """

    def __init__(self, setup: Setup, boundary: Boundary, loaders: RunLoaders) -> None:
        """Keeps references."""
        self._setup, self._boundary, self._loaders = setup, boundary, loaders
        self._view, self._checkpoint = setup.view, setup.checkpoint
        self._callbacks, self._config = setup.view.manager, setup.view.config
        self._position, self._losses = setup.view.position, setup.losses
        self._device = setup.view.device
        self._moves = self._device.type != "cpu"
        self._batches_per_update = self._config.gradient_accumulation_steps
        self._has_scaler = setup.precision.scaler is not None
        self._single_updater = setup.first if len(setup.updaters) == 1 else None
        listeners = [each.callback for each in self._callbacks.plugins]
        only_looks = all(isinstance(each, ProgressCallback) for each in listeners)
        has_others = not only_looks or self._single_updater is None
        self._listens = has_others or setup.buffers is not None or not setup.ranks.is_alone
        self._fsdp_modules = setup.fsdp_modules
        self._is_parallel = bool(self._fsdp_modules) or not setup.ranks.is_alone
        self._source: Iterator[tuple[Any, bool]] | None = None
        self.loader: EpochLoader | None = None
        self.loss: Tensor | None = None
        self.backward_names: set[str | None] = set()
        self.stepped: set[str] = set()
        self.answers: Answers = Answers(setup)
        self.run: int = 0
        self._pass = 0
        self.start(resumed=False)

    def start(self, *, resumed: bool) -> None:
        """A run begins.

        Args:
            resumed: it goes on from a snapshot, to whose place the first pass goes.
        """
        self.run += 1
        self.hook: TrainerCallback = self._callbacks.hook
        self.in_epoch: bool = False
        self.in_batch: bool = False
        self.is_begun: bool = False
        self.is_over: bool = False
        self.ends_update: bool = False
        self.answers.start()
        self._resumes = resumed
        self._is_counted = False
        self._source = self.loader = self.loss = None
        self._forget_calls()

    def begin(self, loader: Loader, limit: int | None) -> int:
        """Begins the pass of this epoch over `loader`; returns its number."""
        self.loader = self._loaders.for_training(loader, limit)
        self._pass += 1
        return self._pass

    def check_backward_allowed(self, name: str | None) -> None:
        """Refuses a backward pass that has no batch, or would add to gradients of another loss."""
        refuse(not self.in_batch, "backward()", "call it inside a batch of the loop")
        updaters, stepped = self._setup.updaters, self._position.step == self._position.update
        if name is not None and name not in updaters:
            names = ", ".join(map(repr, updaters))
            raise RunOrderError(f"backward(loss, {name!r}): there is no such optimizer: {names}.")
        mixes = bool(self.backward_names) and (name is None) != (None in self.backward_names)
        way = "name the optimizer in each backward pass of a batch, or in none"
        refuse(mixes, "backward()", way)
        way = "name the optimizer, for a step was taken in this batch: backward(loss, 'name')"
        refuse(name is None and self.loss is not None and stepped, "backward()", way)

    def take(self, loss: Tensor, name: str | None) -> None:
        """Takes note of a backward pass."""
        self.backward_names.add(name)
        if self.loss is not None:
            self.loss = self.loss.detach() + loss.detach()
            return
        self.loss = loss
        position = self._position
        position.window += 1
        if not self._is_counted:
            self._is_counted = True
            position.batch += 1

    def _forget_calls(self) -> None:
        self.backward_names.clear()
        self.stepped.clear()

    def claim_updater(self, name: str | None) -> Updater:
        """Returns what `step(name)` steps."""
        only = self._single_updater
        if only is not None and name is None and self.loss is not None and not self.stepped:
            self.stepped.add(only.name)
            return only
        way = "call run.backward(loss) before it"
        refuse(self.loss is None, "step()", way)
        updaters = self._setup.updaters
        if name is None and len(updaters) == 1:
            name = self._setup.first.name
        if name is None or name not in updaters:
            names = ", ".join(map(repr, updaters))
            raise RunOrderError(f"step({name!r}): there is no such optimizer, but {names}.")
        refuse(name not in self.backward_names and None not in self.backward_names, "step()", way)
        refuse(name in self.stepped, "step()", "it is called once for an optimizer in a batch")
        self.stepped.add(name)
        return updaters[name]

    def next_epoch(self, run: int) -> int:
        """Ends the epoch under way in the run of that number; returns the number of the next.

        Raises:
            StopIteration: there is none.
        """
        position, boundary = self._position, self._boundary
        if self.is_over or run != self.run:
            raise StopIteration
        if self.in_epoch:
            self.end_epoch()
        elif self._resumes:
            self._checkpoint.restore_rng()
            if boundary.stop is not None and position.is_mid_epoch and not boundary.is_signalled:
                self._start_epoch()  # which was cut here: its end comes again
                self._finish_resume()
                self.end_epoch()
        while boundary.stop is None and position.start_epoch() < self._config.epochs:
            self._start_epoch()
            if not position.body_done:
                return position.epoch
            self._finish_resume()
            self.end_epoch()  # whose batches have passed before the resume
        self.is_over = self.is_begun = True
        raise StopIteration

    def next_batch(self, number: int) -> Any:
        """Ends the micro-batch at hand; returns the next of the pass of that number, on the device.

        Raises:
            StopIteration: the epoch, or the run, is over; or another pass is under way.
        """
        position = self._position
        if number != self._pass:
            raise StopIteration
        if self.in_batch:
            self.end_batch()
        elif self._source is None:
            self._finish_resume()
            self._source = self._checkpoint.continue_epoch(position.epoch, position.batch)
        source = self._source
        item = next(source, None) if source and self._boundary.stop is None else None
        if item is None:
            raise StopIteration
        batch, position.is_last = item
        if self.loader is not None:
            self._losses.items = self.loader.items
        if self._moves:
            batch = move_to_device(batch, self._device)
        if position.window == 0:
            position.update = position.step + 1
            if self._listens:
                self._start_update()
        self.in_batch, self._is_counted = True, False
        self.hook.on_batch_start(trainer=self._view, batch_idx=position.batch, batch=batch)
        self.ends_update = position.is_last or position.window + 1 == self._batches_per_update
        if self._is_parallel:
            self._setup.ranks.start_forward(last=self.ends_update)
            reshard(self._fsdp_modules)
        return batch

    def next_without_loader(self, run: int) -> int:
        """Ends the turn of a loop without a loader; returns the number of the next.

        Raises:
            StopIteration: the run is over.
        """
        position = self._position
        if run != self.run:
            raise StopIteration
        if not self.in_epoch:
            if self.is_over:
                raise StopIteration
            self._view.has_epochs = False
            if self._resumes:
                self._checkpoint.restore_rng()
            self._start_epoch()
            self._finish_resume()
            self._source = zip(itertools.count(position.batch), itertools.repeat(False))
        try:
            return int(self.next_batch(self._pass))
        except StopIteration:
            self.end_epoch()
            self.is_over = True
            raise

    def end_epoch(self) -> None:
        """Ends the epoch under way."""
        self.leave_batches()
        self.in_epoch = False
        self._boundary.end_epoch()

    def leave_batches(self) -> None:
        """Ends the batches of an epoch, wherever the loop has left them: a micro-batch that had no
        backward pass, and an update that had no step, do not count.
        """
        position = self._position
        if self.in_batch and self.loss is not None:
            position.is_last |= self.ends_update  # the epoch's end decides and saves, not this one
            self.end_batch()
        self.in_batch = self._setup.ranks.is_in_update = False
        if position.window:
            logger.warning(
                "epoch %d ends inside an update: the last %d batches before update %d do not "
                "count.",
                *(position.epoch, position.window, position.update),
            )
            position.batch -= position.window
            self.drop_update()
        self.close_loader()

    def drop_update(self) -> None:
        """Drops the update under way."""
        for updater in self._setup.updaters.values():
            updater.gradients.drop()
            updater.weights.drop()
        self._losses.drop()
        self._setup.precision.drop()
        self._view.updater = self._setup.first
        self._position.window = 0
        self.loss = self.answers.outputs = None
        self._forget_calls()

    def close_loader(self) -> None:
        """Lets go of the loader, whose workers end."""
        close = getattr(self._source, "close", None)
        if close is not None:
            close()
        self._source = self.loader = None
        self._pass += 1

    def _start_epoch(self) -> None:
        position = self._position
        self._setup.modes.leave_evaluation()
        if position.batch == 0:
            self._losses.start_epoch()
        self.in_epoch = self.is_begun = True
        self.hook.on_epoch_start(trainer=self._view, epoch=position.epoch)
        for updater in self._setup.updaters.values():
            updater.start()
        self._checkpoint.start_epoch(resumed=self._resumes and position.batch > 0)

    def _finish_resume(self) -> None:
        """Goes, in the first epoch behind a resume, to where the snapshot was taken, and does what
        was left to do there.
        """
        resumes, self._resumes = self._resumes, False
        if resumes and self._position.batch:
            self._checkpoint.restore_rng()
        if self._position.validation_pending:
            self._boundary.finish_update()

    def _start_update(self) -> None:
        """Starts an update of a run in which others than the optimizer may change something."""
        self._callbacks.start_update()
        self._setup.ranks.is_in_update = True
        for updater in self._setup.updaters.values():  # gradients may be left since the last one
            updater.gradients.drop()
        if self._setup.buffers is not None:
            self._setup.buffers.keep()

    def end_batch(self) -> None:
        """Ends the micro-batch at hand, and the update where it was its last."""
        position, loss = self._position, self.loss
        self.in_batch = False
        self.backward_names.clear()
        self.stepped.clear()
        if not self._is_counted:
            position.batch += 1
        if loss is None:  # passed over, or dropped
            self.answers.outputs = None
            return
        self.loss = None
        ends = self.ends_update
        if ends and position.step != position.update:
            raise RunOrderError(
                f"batch {position.batch - 1} of epoch {position.epoch} had run.backward() and no "
                "run.step(). Call run.step() behind it, which steps where an update ends, or "
                "run.discard() to leave it out."
            )
        if ends and self._single_updater is None:
            check_stepped(self._setup.updaters, position.update)
            self._setup.ranks.is_in_update = False
        if "on_batch_end" in self._callbacks.used:
            own = loss.detach() if ends else loss.detach().clone()  # the meter still reads it
            outputs, self.answers.outputs = self.answers.outputs, None
            self.hook.on_batch_end(
                trainer=self._view, batch_idx=position.batch - 1, loss=own, outputs=outputs
            )
            del outputs
        if not ends:
            return
        position.window = 0
        if self._setup.buffers is not None:
            self._setup.buffers.end_turn()
        if self._has_scaler:
            self._setup.precision.end_update()
        boundary = self._boundary
        boundary.log_and_schedule()
        if not position.is_last:
            boundary.finish_update()
