"""Brings a hook, and calls it."""

from trainer_callback import TrainerCallback


class LookaheadHooks:
    def on_slow_weights_updated(self, trainer, distance):
        "After the slow weights have moved."


class Lookahead(TrainerCallback):
    hookspecs = LookaheadHooks

    def on_step_end(self, trainer):
        trainer.hook.on_slow_weights_updated(trainer=trainer, distance=0.25)
