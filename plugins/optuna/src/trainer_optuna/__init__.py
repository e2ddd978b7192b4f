"""Reports a metric to an optuna trial, and prunes what is hopeless."""

from .callback import OptunaCallback

__all__ = ["OptunaCallback"]
