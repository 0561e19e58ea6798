"""A notebook with every kind of thing that a training run may use, and edits of each."""

THINGS = """
import functools, enum, collections
D = {"a": 1, "f": [lambda x: x]}
S = {1, 2}
SLICE = slice(1, 3)
PART = functools.partial(pow, 2)

class C:
    k = 1
    @property
    def p(self): return self.k + 1
    class Inner: depth = 3

class E(enum.Enum): a = 1

class Thing:
    def __init__(self, v): self.v = v
    def go(self, y): return y * self.v

teacher = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
teacher.set_weights([np.ones((2, 1)), np.full(1, 103.0)])
teach = lambda y: teacher(y)
thing = Thing(5)
bound = thing.go
layer = keras.layers.Rescaling(3)

@functools.lru_cache
def cached(x):
    return x + 7

def decorate(f):
    @functools.wraps(f)
    def wrapper(y):
        return f(y) + 11

    return wrapper

@decorate
def decorated(y): return y + 13

def make(n):
    def inner(y):
        return y * n

    return inner

one, two = make(17), make(19)
f1 = lambda y: y + 23
f2 = lambda y: y + 29

def default(y, a=31, t=(1, 2), *, k=37, g=f1):
    return sum(d["a"] for d in [D]) + y.shape[0]

def helper(y):
    "Docstring."
    things = D, S, SLICE, PART, C, E, thing, bound, layer, cached, decorated, one, two, f1, f2
    return things, default, teach, slots, counts, random, imports

class Cb(keras.callbacks.Callback):
    def __init__(self, n):
        super().__init__()
        self.n = n
    def on_epoch_end(self, epoch, logs=None): helper(self.n)

class Sched(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step): return 0.01 * 41
    def get_config(self): return {}

class Loss(keras.losses.Loss):
    def __init__(self, n):
        super().__init__()
        self._n = n
    def call(self, y, p): return keras.ops.mean(p) * self._n

class Slots:
    __slots__ = ("depth",)
    def __init__(self, depth): self.depth = depth

class Scale(keras.layers.Layer):
    def __init__(self, n):
        super().__init__()
        self._n = n
    def call(self, x): return x * self._n
    def get_config(self): return {"name": self.name}

slots, counts = Slots(89), collections.Counter("aab")
random = np.random.default_rng(97)

def imports(y):
    import helpers

    return helpers.double(y)

class Reg(keras.regularizers.Regularizer):
    def __call__(self, x): return keras.ops.sum(x) * 43
    def get_config(self): return {}

def build():
    keras.utils.set_random_seed(0)
    image = keras.Input((2,))
    x = keras.layers.Dense(3, kernel_regularizer=Reg())(image)
    x = Scale(83)(keras.layers.Lambda(lambda v: v * 47)(x))
    model = keras.Model(image, keras.layers.Dropout(0.5, seed=53)(x))
    model.compile(keras.optimizers.SGD(Sched()), Loss(59), metrics=["mae"])
    model._strength = 101
    return model

def callbacks():
    return [Cb(61), keras.callbacks.ReduceLROnPlateau(factor=0.67)]

SHAPE = 71
shape = 73
"""
EDITS = {  # what a training run uses, and what a reader may make of it
    '"a": 1,': '"a": 2,', "lambda x: x]": "lambda x: -x]", "{1, 2}": "{1, 3}",
    "slice(1, 3)": "slice(1, 4)", "pow, 2": "pow, 3", "k = 1": "k = 2",
    "self.k + 1": "self.k + 2", "depth = 3": "depth = 4", "Enum): a = 1": "Enum): a = 2",
    "Thing(5)": "Thing(6)", "y * self.v": "y - self.v", "Rescaling(3)": "Rescaling(4)",
    "x + 7": "x + 8", "f(y) + 11": "f(y) + 22", "y + 13": "y + 24",
    "make(17)": "make(28)", "make(19)": "make(21)", "y * n": "y - n", "y + 23": "y + 34",
    "y + 29": "y + 31", "a=31": "a=42", "t=(1, 2)": "t=(1, 3)", "k=37": "k=48",
    "g=f1": "g=f2", 'd["a"]': 'd["f"]', "Cb(61)": "Cb(72)", "factor=0.67": "factor=0.78",
    "0.01 * 41": "0.02 * 52", "Loss(59)": "Loss(61)",
    "keras.ops.mean(p)": "keras.ops.max(p)", "* 43": "* 54", "v * 47": "v * 58",
    "seed=53": "seed=64", '["mae"]': '["mse"]', "Slots(89)": "Slots(98)",
    '"aab"': '"abb"', "default_rng(97)": "default_rng(79)", "Scale(83)": "Scale(38)",
    "_strength = 101": "_strength = 110",
    "helpers.double": "helpers.triple", "(1, 103.0)": "(1, 104.0)",
}  # fmt: skip
WITHOUT_EFFECT = {
    "SHAPE = 71": "SHAPE = 72",
    "shape = 73": "shape = 74",
    '"Docstring."': '"Another."',
    "\n\ndef make": "\n# a\n\ndef make",
    "        return y * n": "        # why\n        return (y *\n                n)",
    "    return x + 7": '    "A docstring."\n    return x + 7',
}
