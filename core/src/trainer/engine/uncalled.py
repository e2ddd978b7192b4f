"""Why a hook that a callback implements was not called."""

from __future__ import annotations

from trainer_callback.calls.manager import CallbackManager

from ..view.view import View

__all__ = ["explain_uncalled"]

_LATER = frozenset({"on_train_end", "on_final_saved"})
"""Hooks that are called after this was asked."""


def explain_uncalled(view: View, callbacks: CallbackManager) -> dict[str, dict[str, str]]:
    """Returns plugin -> hook -> reason, of the hooks that were not called in this process."""
    found: dict[str, dict[str, str]] = {}
    for name, hook in callbacks.find_uncalled():
        if hook in _LATER:
            continue
        is_off = name in callbacks.switched_off
        reason = "it was switched off before" if is_off else _explain(hook, view)
        found.setdefault(name, {})[hook] = reason
    return found


def _explain(hook: str, view: View) -> str:
    if hook == "on_gradients_clipped" and view.config.max_grad_norm is None:
        return "nothing is clipped: max_grad_norm is not set"
    if hook.startswith("on_validation") and not view.validates:
        return "there is no validation"
    if hook in ("on_snapshot_save", "on_snapshot_saved") and view.config.output_dir is None:
        return "no snapshot is written without an output_dir"
    if hook in ("on_snapshot_search", "on_snapshot_saved") and not view.is_main_process:
        return "it is called in the main process"
    return _REASONS.get(hook, "the run ended before it was due")


_REASONS = {
    "on_validation_set_start": "nobody has validated set by set",
    "on_validation_batch_end": "nobody has validated set by set",
    "on_validation_set_end": "nobody has validated set by set",
    "on_snapshot_save": "no snapshot was due: see snapshot_interval",
    "on_snapshot_saved": "no snapshot was written before the last boundary",
    "on_snapshot_load": "the run began afresh",
    "on_snapshot_search": "no resume was asked for",
    "on_exception": "nothing was raised",
    "on_log": "nothing was logged: see log_interval",
    "on_log_text": "nobody logged a text",
}
"""Hook -> why it was not called where the run has what it needs."""
