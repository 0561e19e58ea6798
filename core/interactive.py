"""Interactive output in Jupyter: figures that are updated during training, and sliders."""

from collections.abc import Callable

import ipywidgets
import keras
import matplotlib.pyplot as plt
from IPython import get_ipython
from IPython.display import HTML, display

import core


class LiveFigure(keras.callbacks.Callback):
    """In Jupyter, shows the figure that `draw` returns for the history, a list per metric."""

    only_watches = True

    def __init__(self, draw: Callable):
        super().__init__()
        self.draw, self.history, self.shown = draw, {}, None

    def on_train_begin(self, logs=None):
        if not core.HEADLESS and get_ipython() is not None:
            self.shown = display(HTML(""), display_id=True)  # reserves a place above printed lines

    def on_epoch_end(self, epoch, logs=None):
        for name, value in (logs or {}).items():
            self.history = self.history | {name: [*self.history.get(name, []), value]}
        if self.shown:
            figure = self.draw(self.history)
            self.shown.update(figure)
            plt.close(figure)


def play(show: Callable, **choices) -> None:
    """Let the reader choose the arguments of `show`, and call it after every choice.

    `choices` maps the name of each argument to its possible values: a range becomes a slider, and a
    list a menu. In a headless run, `show` is called once, with the first value of each.
    """
    if core.HEADLESS:
        show(**{name: values[0] for name, values in choices.items()})
        return
    for name, values in choices.items():
        if isinstance(values, range):
            choices[name] = ipywidgets.SelectionSlider(options=values)
    ipywidgets.interact(show, **choices)
