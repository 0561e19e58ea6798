"""Printed progress of training runs that are not watched in Jupyter."""

import time

import keras


class EpochLine(keras.callbacks.Callback):
    """Prints one line per epoch: its duration, the estimated minutes left, and the logs."""

    only_watches = True

    def __init__(self, epochs: int, name: str):
        super().__init__()
        self.epochs, self.name = epochs, name

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.perf_counter() - self.start
        minutes_left = (self.epochs - epoch - 1) * seconds / 60
        scores = "  ".join(f"{name} {value:.4f}" for name, value in logs.items())
        epoch_of = f"{self.name}: epoch {epoch + 1:3}/{self.epochs}"
        print(f"{epoch_of}  {seconds:4.0f} s  {minutes_left:4.1f} min left  {scores}", flush=True)
