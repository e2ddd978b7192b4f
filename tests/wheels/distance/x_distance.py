"""Implements the hook of another distribution."""

from trainer_callback import TrainerCallback


class Distance(TrainerCallback):
    def on_slow_weights_updated(self, trainer, distance):
        trainer.log({"distance": distance})
