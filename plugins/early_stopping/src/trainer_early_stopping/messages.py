"""What a person reads: what is watched, what is the best so far, why the run ends."""

from __future__ import annotations

from .decision import Rule, State

__all__ = ["describe_best", "describe_start", "describe_stop"]


def describe_start(
    monitor: str, rule: Rule, state: State, first_epoch: int, eval_interval: int | None
) -> str:
    """Returns what is watched, and when it can end the run at the earliest.

    Args:
        first_epoch: the epoch of the next check.
        eval_interval: updates between two checks inside an epoch; None where an epoch has one.
    """

    def earliest(checks: int) -> str:
        if eval_interval is None:
            return _count(max(first_epoch + checks, rule.min_epochs), "epoch")
        done = max(first_epoch, rule.min_epochs)
        epochs = f"{_count(done, 'epoch')} and " if done else ""
        rhythm = f"one every {eval_interval} updates and at each epoch's end"
        return f"{epochs}{_count(checks, 'check')} ({rhythm})"

    better = "lower" if rule.mode == "min" else "higher"
    share = " of the best" if rule.min_delta_mode == "rel" else ""
    margin = f" of more than {rule.min_delta:g}{share}" if rule.min_delta else ""
    text = (
        f"{monitor} ({better} is better) and ends the run after {_count(rule.patience, 'check')} "
        f"in a row without an improvement{margin}: at the earliest after "
        f"{earliest(rule.checks_left(state))}"
    )
    if rule.single_check_options:
        text += f", by {' or '.join(rule.single_check_options)} after {earliest(1)}"
    return text + "."


def describe_best(monitor: str, rule: Rule, state: State, earlier: float | None) -> str:
    """Returns the new best and where it was seen; `earlier` is the best before it."""
    where = f"in epoch {state.best_epoch}, update {state.best_step}"
    text = f"{monitor} {state.best:.6g} {where}, is the best so far"
    if earlier is not None:
        text += f" (before: {earlier:.6g})"
    if state.wait:
        text += f", and a miss all the same: it does not beat the baseline {rule.baseline:.6g}"
    return text + "."


def describe_stop(monitor: str, rule: Rule, state: State) -> str:
    """Returns value and epoch of the end that `state` asks for, and the best; not its reason."""
    findings = {
        "patience": f"is miss {state.wait} in a row",
        "stopping_threshold": f"is better than {rule.stopping_threshold}",
        "divergence_threshold": f"is worse than {rule.divergence_threshold}",
        "non_finite": "is not finite",
    }
    value = f"{monitor} {state.last_value:.6g} in epoch {state.stopped_epoch}"
    best = "nothing was best"
    if state.best is not None:
        best = f"the best was {state.best:.6g} in epoch {state.best_epoch}"
    return f"{value} {findings[state.stop_reason or 'patience']}; {best}."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
