"""Weights that callbacks keep beside the snapshots, and put back."""

from __future__ import annotations

from trainer_callback import SnapshotError
from trainer_callback.checks import is_count
from trainer_callback.errors import show

from ..processes.sharding import gather_weights, whole_tensors
from ..snapshots.model_state import load_model_state
from .parts import Parts

__all__ = ["Weights"]


class Weights(Parts):
    """Weights of the run's model on the disk."""

    __slots__ = ()

    def save_weights(self, name: str) -> str:
        self.queue.check_process()
        facts = {"step": self.position.step, "epoch": self.position.epoch}
        point = f"save_weights {name!r}"
        self.ranks.meet(point, by_callback=True)
        weights = gather_weights(self._model, keep=self.ranks.is_main)
        return self.ranks.on_main(
            lambda: self.store.save_weights(name, weights, facts), point, by_callback=True
        )

    def load_weights(self, name: str, digest: str, *, fallback_step: int | None = None) -> str:
        own, weights = self._model.state_dict(), {}

        def read() -> tuple[str, tuple[int, int]]:
            source, state, place = self.store.read_weights(
                *(name, digest, fallback_step, self._model, own)
            )
            weights.update(state)
            return source, place

        point = f"load_weights {name!r}"
        source, (epoch, step) = self.ranks.on_main(read, point, by_callback=True)
        fault = None
        try:
            load_model_state(self._model, own, weights, source)
        except SnapshotError as error:  # the main process alone has what may not fit
            fault = str(error)
        fault = next(filter(None, self.ranks.gather(fault, point)), None)
        if fault is not None:
            raise SnapshotError(fault)
        self.ranks.share(whole_tensors(self._model))
        self.note_weights(f"from {source}", epoch=epoch, step=step)
        return source

    def note_weights(
        self, detail: str, *, step: int | None = None, epoch: int | None = None
    ) -> None:
        if not isinstance(detail, str):
            raise TypeError(
                f"note_weights: detail must be a str, got {show(detail)}. Say whose weights the "
                'model has now: trainer.note_weights("the average over 60 updates").'
            )
        known = all(each is None or is_count(each, 0) for each in (step, epoch))
        if not known or (step is None and epoch is not None):
            raise ValueError(
                "note_weights: step and epoch are integers of at least 0 or None, got "
                f"{show(step)} and {show(epoch)}. Give those of the update that the weights are of."
            )
        noted = {"detail": detail, "epoch": epoch, "step": step, "at": self.position.step}
        self.position.weights = noted

    def delete_weights(self, name: str) -> None:
        if self.ranks.is_main:
            self.store.delete_weights(name)
