"""What the loss functions of a run answer, batch by batch: losses in one form, and outputs for the
hooks that ask for them.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from torch import Tensor

from ..data.batches import detach
from ..step.answers import Loss, check_total, read_answer
from ..step.losses import LossError, check_count
from .assembly import Setup
from .call_order import refuse

__all__ = ["Answers"]


class Answers:
    """The answers of a run.

    Attributes:
        outputs: of the batch at hand, detached, where a hook asks for them; else None.
        are_sums: the losses of the run are a `Loss`, in all processes; None: there was none yet.
    """

    def __init__(self, setup: Setup) -> None:
        """Keeps references."""
        self._setup, self._callbacks = setup, setup.view.manager
        self._batches_per_update = setup.view.config.gradient_accumulation_steps
        self.start()

    def start(self) -> None:
        """A run begins."""
        self.outputs: Any = None
        self.are_sums: bool | None = None

    def read(self, answer: Any) -> Tensor | Loss:
        """Returns the loss in an answer, and keeps its outputs.

        Raises:
            LossError: there is no loss in it.
        """
        loss, outputs = read_answer(answer)
        if outputs is not None:
            self.keep_outputs(outputs)
        return loss

    def keep_outputs(self, outputs: Any) -> None:
        """Keeps what a loss function has answered beside the loss, where a hook asks for it."""
        asked = self._callbacks.asked
        if "outputs" in asked["on_forward_end"] or "outputs" in asked["on_batch_end"]:
            self.outputs = detach(outputs)

    def drop_outputs(self) -> None:
        """The hook behind the forward pass was called: only the one behind the batch is left."""
        if "outputs" not in self._callbacks.asked["on_batch_end"]:
            self.outputs = None

    def agree_on_form(self, loss: Tensor | Loss) -> None:
        """Notes, at the first loss of a run, whether losses are sums; all processes have to call
        this. Refuses another form later.

        Raises:
            LossError: in all of them, where some answer a `Loss` and some a mean.
        """
        if self.are_sums is None:
            own = (False, False, 0.0)
            if isinstance(loss, Loss):
                check_total(loss)
                check_count(float(loss.count))
                own = (True, isinstance(loss.count, Tensor), float(loss.count))
            forms = self._setup.ranks.gather(own, "form of the loss")
            if len({form[0] for form in forms}) == 1:
                self.are_sums = own[0]
                for updater in self._setup.updaters.values():
                    updater.weights.on_device = any(form[1] for form in forms)
                    window = sum(form[2] for form in forms) * self._batches_per_update
                    updater.weights.expected = window
                return
        raise LossError(
            "some losses of this run are a Loss and some a mean, which are weighted in different "
            "ways. Answer trainer.Loss(total, count) for each batch, in all processes, or for none."
        )

    def divide(
        self, loss: Any, name: str | None, earlier: Set[str | None]
    ) -> tuple[Tensor, Tensor]:
        """Takes a `Loss` into the window of its optimizer; returns its mean, for people, and what
        its backward pass begins with.

        Args:
            name: of the optimizer, or None.
            earlier: those of the backward passes of this batch before.

        Raises:
            LossError: it is no sum that can be trained on.
            RunOrderError: it is not clear whose it is, or the second one of its batch.
        """
        check_total(loss)
        updaters = self._setup.updaters
        way = "name the optimizer of a Loss, where there are several: backward(loss, 'name')"
        refuse(name is None and len(updaters) > 1, "backward()", way)
        way = "add the parts of a batch up into one Loss"
        refuse(name in earlier, "backward()", way)
        updater = self._setup.first if name is None else updaters[name]
        part, count = updater.weights.divide(loss)
        self._setup.losses.add_sum(loss.total, count, updater.name)
        if loss.outputs is not None:
            self.keep_outputs(loss.outputs)
        return loss.mean, part * self._setup.precision.divisor
