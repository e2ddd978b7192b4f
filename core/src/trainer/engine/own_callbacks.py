"""The callbacks of a run: those that were given, those that are live in every run, and the core's
own.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer_callback.calls.manager import CallbackManager, Plugin
from trainer_callback.discovery import find_version
from trainer_callback.plugins import find_live

from ..config import TrainerConfig
from ..writers.journal import Journal
from ..writers.metrics_file import MetricsFile
from ..writers.progress import make_progress

__all__ = ["make_journal", "make_manager"]


def make_manager(
    callbacks: Sequence[object],
    config: TrainerConfig,
    *,
    discover: bool,
    progress: bool | None,
) -> CallbackManager:
    """Returns what calls `callbacks`, and behind them the core's own: the writer of
    `metrics.jsonl`, where there is a place to write, and what shows the progress, so that all have
    logged before it.

    Args:
        discover: use the installed plugins that are live in every run.
        progress: as that of `Run`; False: nothing is shown.

    Raises:
        PluginError: a callback that cannot be used.
    """
    own: dict[str, object] = {}
    if config.output_dir is not None:
        own["metrics_file"] = MetricsFile(config.output_dir / "metrics.jsonl")
    if (shown := make_progress(progress)) is not None:
        own["progress"] = shown
    version = find_version("trainer-core")
    last = [Plugin(each, name, "trainer-core", version) for name, each in own.items()]
    return CallbackManager(callbacks, [*(find_live() if discover else []), *last])


def make_journal(manager: CallbackManager) -> Journal:
    """Returns what was logged by a run with these callbacks."""
    found = (each.callback for each in manager.plugins)
    return Journal(next((each for each in found if isinstance(each, MetricsFile)), None))
