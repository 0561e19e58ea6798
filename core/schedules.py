"""Learning rates by step."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("cifar100-gan")
class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that rises linearly to `peak` in the first part `warmup` of the steps (0 to 1), and falls to zero at the last."""

    def __init__(self, peak, steps, warmup=0.2):
        self.peak, self.steps, self.warmup = peak, steps, warmup

    def __call__(self, step):
        step, rising = ops.cast(step, "float32") + 1, max(1.0, self.warmup * self.steps)
        falling = max(1.0, self.steps - rising)
        return self.peak * ops.minimum(step / rising, ops.clip((self.steps - step) / falling, 0.0, 1.0))

    def get_config(self):
        return {"peak": self.peak, "steps": self.steps, "warmup": self.warmup}
