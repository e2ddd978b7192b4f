"""What a callback may use of the `trainer` it is handed, and nothing else of it.

Any loop that offers these members can host the same plugins. This room knows no torch at run time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .records import GradientStats
from .tracked import TrackedRun

if TYPE_CHECKING:
    import torch

__all__ = ["TrainerProtocol"]


class TrainerProtocol(TrackedRun, Protocol):
    """The trainer as callbacks see it.

    Everything is read-only for a callback except `model`, its gradients, `optimizer` and
    `scheduler`, which are writable by design.
    """

    @property
    def model(self) -> torch.nn.Module:
        """The module that is trained (never the compiled wrapper)."""
        ...

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    @property
    def scheduler(self) -> Any:
        """The learning-rate scheduler, stepped as `scheduler_interval` says, or None."""
        ...

    @property
    def config(self) -> Any:
        """The frozen `TrainerConfig` of the run."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def epoch(self) -> int:
        """The current epoch, 0-based; in `on_train_end` the number of epochs completed."""
        ...

    @property
    def step(self) -> int:
        """Optimizer updates done so far, over all epochs and resumes."""
        ...

    @property
    def batch_in_epoch(self) -> int:
        """Micro-batches of this epoch that are done; above 0 in `on_epoch_start` after a mid-epoch
        resume.
        """
        ...

    @property
    def last_update_of_epoch(self) -> bool:
        """From `on_batch_start` on: this micro-batch ends the epoch, so its update is the epoch's
        last.
        """
        ...

    @property
    def train_batches(self) -> int | None:
        """Micro-batches of an epoch in this process, or None where the loader cannot say, or is not
        known yet.
        """
        ...

    @property
    def max_steps(self) -> int | None:
        """Updates of the whole run, those before a resume included, if nothing ends it early; None
        where nobody knows.
        """
        ...

    @property
    def max_epochs(self) -> int | None:
        """Epochs of the whole run, if nothing ends it early; None for a loop without epochs."""
        ...

    @property
    def gradient_accumulation_steps(self) -> int:
        """Micro-batches of an update; the last one of an epoch may have fewer."""
        ...

    @property
    def max_grad_norm(self) -> float | None:
        """The total norm that gradients are clipped to; None where they are not."""
        ...

    @property
    def precision(self) -> str:
        """Arithmetic of the forward pass, as it was chosen: `fp32`, `tf32`, `bf16` or `fp16`."""
        ...

    @property
    def metrics(self) -> Mapping[str, float]:
        """The last known value of every metric logged so far; read-only."""
        ...

    @property
    def metric_names(self) -> Sequence[str] | None:
        """The names of the metrics that this run will have, known before the first step; `NAME*`
        stands for all that begin so, such as those of a metric that answers a mapping, and `*`
        alone for what a callback logs that does not say so by `logs_metrics`. None where nothing
        is known: a loop of one's own.
        """
        ...

    @property
    def loss_scale(self) -> float | None:
        """What the loss of the update under way is multiplied by, so that fp16 does not underflow;
        from `on_step_end` on, that of the next one. None where losses are not scaled. No copy from
        the device is made.
        """
        ...

    @property
    def snapshot_due(self) -> bool:
        """Known before backward, and the same in all processes: a snapshot will follow the update
        now under way.
        """
        ...

    @property
    def has_validation(self) -> bool:
        """Whether there is a validation loader, so that `val_loss` will exist."""
        ...

    @property
    def output_dir(self) -> Path | None:
        """Where the run writes, or None for a run that writes nothing."""
        ...

    @property
    def rank(self) -> int:
        """Number of this process, 0-based; 0 in a run of one."""
        ...

    @property
    def world_size(self) -> int:
        """Processes that train one model together."""
        ...

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes and prints: rank 0."""
        ...

    @property
    def hook(self) -> Any:
        """The hooks that plugins of this run bring, to be called: `trainer.hook.on_x(...)` with
        every argument by its name returns the list of answers, but for None, in the order of the
        calls. In a hook only.
        """
        ...

    def log(self, metrics: Mapping[str, float]) -> None:
        """Sends metrics to `on_log` of every callback as floats, and keeps them in `metrics`.

        Called in another thread than the loop's, or before all callbacks have had
        `on_train_start`, it is sent in the thread of the loop at the next boundary, or behind that
        hook.

        Args:
            metrics: name -> whatever is one number: a scalar of numpy or a tensor of one element,
                too. `step`, `epoch`, `_event` and `_time` are no names: every line of
                `metrics.jsonl` has them.

        Raises:
            TypeError: a value is no number, a name no str.
            ValueError: a name is taken.
            RuntimeError: the run is over, or this is another process.
        """
        ...

    def log_text(self, name: str, text: str) -> None:
        """Sends a text for people to `on_log_text` of every callback, and to `metrics.jsonl`. Of
        threads it is as true as of `log`.

        Args:
            name: what it is, such as `sample`; the same each time.

        Raises:
            TypeError: `name` or `text` is no str.
            RuntimeError: the run is over, or this is another process.
        """
        ...

    def pass_over_training_data(self) -> Iterator[Any]:
        """Returns the batches of a pass over the training data, on the device, beside that of the
        run: for what looks at the data (statistics, a search for a learning rate). It moves no
        random numbers, no order, no position and no state of the run's loader; random numbers of
        the data are its own. What a forward pass draws is the caller's: `torch.random.fork_rng()`
        keeps that apart.

        The order is that of the current epoch, and of several processes each has its share, as many
        batches as in an epoch. Whoever has seen enough leaves it. It opens the data, and starts
        workers, once more.

        Raises:
            UsageError: the loader gives its batches once alone, as a generator does; it is not
                known yet, in a loop of one's own; or there is none.
            RuntimeError: this is another thread or process than that of the run.
        """
        ...

    def compute_loss(self, batch: Any) -> torch.Tensor:
        """Returns the loss of a batch as the training computes it, 0-dim, with a graph; of a `Loss`
        its mean. Buffers and random numbers change. All processes have to call it; `backward()`
        averages over them. Raises a UsageError in a loop of one's own.
        """
        ...

    def change_base_rate(self, rate: float) -> str:
        """Makes `rate` the one on which the first group and the schedule are built, in all
        processes; others follow by the same factor. Returns a sentence; raises a UsageError where
        the schedule does not say what it is built on.
        """
        ...

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        """Returns the sums of named numbers over all processes, the same bits in each; alone, the
        numbers themselves, as floats.

        All processes have to call it, with the same names: behind an update, or at the end of a
        validation or an epoch. Inside an update, and behind a batch of a validation, where their
        calls differ, it is refused.

        Args:
            values: name -> number of this process, 0 where it has none.

        Raises:
            TypeError: a value is no number, a name no str.
            ValueError: another process has other names; in all of them.
            RuntimeError: this is another thread or process than that of the run.
        """
        ...

    def gradient_stats(
        self,
        groups: Mapping[str, Sequence[str]] | None = None,
        *,
        norm_type: float = 2.0,
    ) -> GradientStats:
        """Statistics of the gradients as they are now, one row per group; call it in
        `on_backward_end`. Of a model whose weights are sharded over several processes (FSDP2) they
        are those of the whole, and all processes have to call it.

        Args:
            groups: row name -> names of the parameters in it. None: one row per parameter.
            norm_type: order of the norm in column `norm`: p > 0 or inf.
        """
        ...

    def request_snapshot(self) -> None:
        """Asks for a snapshot at the next boundary, from any thread."""
        ...

    def save_weights(self, name: str) -> str:
        """Writes weights and buffers of `model`, as safely as a snapshot, to
        `OUTPUT_DIR/weights/NAME/`, outside retention.

        All processes have to call it, behind an update; the main one writes.

        Returns:
            The digest of what was written, for `load_weights`.

        Raises:
            SnapshotError: it could not be written, or the run has no `output_dir`.
        """
        ...

    def load_weights(self, name: str, digest: str, *, fallback_step: int | None = None) -> str:
        """Copies what `save_weights` wrote into `model`, bit by bit; all processes have to call it.

        Where it is gone or damaged, the weights of the snapshot of update `fallback_step` are taken
        if there is a sound one.

        Returns:
            Where the weights came from, for people.

        Raises:
            SnapshotError: neither is to be had; the model is unchanged.
        """
        ...

    def note_weights(
        self, detail: str, *, step: int | None = None, epoch: int | None = None
    ) -> None:
        """Says whose weights `model` has now that a callback has put others in, for
        `result.weights`, in all processes; it is true until the next update. `load_weights` says it
        by itself. Of weights that are changed in `on_train_end` without it, only that is known.

        Args:
            detail: one sentence for people, such as `the average over 60 updates`.
            step: the update at which they were, or were validated, as they are now: what was found
                there are their metrics. None: there is none.
            epoch: of that update; None: as the history has it.

        Raises:
            TypeError: `detail` is no str.
            ValueError: `step` or `epoch` is no such number, or there is an epoch alone.
        """
        ...

    def delete_weights(self, name: str) -> None:
        """Removes what `save_weights` wrote; nothing happens where it is gone already."""
        ...
