"""The share of items whose largest logit is that of their label."""

from trainer_callback import TrainerCallback, UsageError


class AccuracyCallback(TrainerCallback):
    """Logs NAME_accuracy for each set of a validation.

    Args:
        labels: where a batch has its labels: a key, or the number of a place
        ignored: the label of an item that does not count
    """

    def __init__(self, labels: str = "labels", ignored: int = -100) -> None:
        self.labels = labels
        self.ignored = ignored

    def on_validation_set_start(self, trainer, name):
        self._hits = self._items = None

    def on_validation_batch_end(self, batch, outputs):
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs
        logits = getattr(logits, "logits", logits)
        if logits is None:
            raise UsageError("AccuracyCallback: the loss function answers no outputs beside it.")
        place = int(self.labels) if self.labels.isdigit() else self.labels
        labels = batch[place]
        counts = labels != self.ignored
        hits = ((logits.argmax(-1) == labels) & counts).sum()
        items = counts.sum()  # both stay on the device
        self._hits = hits if self._hits is None else self._hits + hits
        self._items = items if self._items is None else self._items + items

    def on_validation_set_end(self, trainer, name, metrics):
        here = {"hits": float(self._hits or 0), "items": float(self._items or 0)}
        found = trainer.total(here)
        if found["items"]:
            trainer.log({f"{name}_accuracy": found["hits"] / found["items"]})
