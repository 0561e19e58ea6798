"""What defines a training: all that would make it another one if it were changed, and what differs between two.

Of Keras's objects the serialised configuration counts; of a notebook's and the project's own functions and classes the compiled
code, so that a comment or a line break changes nothing, with all that they call and the values of the globals that they read.
"""

import hashlib
import importlib.metadata
import inspect
import json
import re
import sysconfig
import types

import keras
import numpy as np

from core.digests import digest

STOPPING = ("monitor", "mode", "patience", "min_delta", "baseline", "restore_best_weights", "start_from_epoch")
INSTALLED = (*{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}, "<frozen")


def of_training(model, batches, epochs, early_stopping=None, callbacks=(), replicas=1, **arguments):
    """Return what defines a training as a dictionary that JSON can hold.

    The model is compiled; its present weights count, so that its seed and any pre-trained weights do. `arguments` are those of
    `model.fit`. A callback whose attribute `only_watches` is true is left out.
    """
    reader = _Reader()
    callbacks = [each for each in callbacks if not getattr(each, "only_watches", False)]
    keras_version, backend = keras.__version__, keras.backend.backend()
    defined = {
        "epochs": epochs,
        "values": reader.values,
        "model": reader.model(model),
        "optimizer": reader(model.optimizer),
        "loss": reader(model.loss),
        "loss weights": reader(model.get_compile_config().get("loss_weights") if model.loss else None),
        "batches": reader(batches),
        "early stopping": early_stopping and {name: reader(getattr(early_stopping, name, None)) for name in STOPPING},
        "callbacks": [reader(each) for each in callbacks],
        "fit": {name: reader(value) for name, value in arguments.items() if name not in ("verbose", "validation_batch_size")},
        "precision": keras.config.dtype_policy().name,
        "replicas": replicas,
        "versions": {"keras": keras_version, backend: importlib.metadata.version(backend)},
        "first weights": _weights(model),
    }
    return json.loads(json.dumps(defined | {"code": reader.code}))


def key(definition):
    """Return eight hexadecimal digits: equal ones mean the same training."""
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:8]


def difference(now, before, most=3):
    """Return in words what two definitions differ in, the first `most` of them."""
    now, before = dict(_flat(now)), dict(_flat(before))
    names = [name for name in now | before if now.get(name) != before.get(name)]
    words = [_in_words(name, now.get(name), before.get(name)) for name in names[:most]]
    return "; ".join(words) + f"; and {len(names) - most} more" * (len(names) > most)


def _in_words(name, now, before):
    is_digest = any(re.fullmatch(r"[0-9a-f]{16}", str(value)) for value in (now, before))
    return f"{name} changed" if is_digest else f"{name} is {now!r}, was {before!r}"


def _flat(value, path=""):
    """Yield the path and value of each leaf of nested dictionaries and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None or not value:
        yield path, value
        return
    for name, part in items:
        yield from _flat(part, f"{path}.{name}" if path else str(name))


class _Reader:
    """Describes objects; gathers in `code` the functions they lead to and in `values` the globals these read."""

    def __init__(self):
        self.code, self.values = {}, {}

    def __call__(self, value):
        """Return a description of any object that JSON can hold."""
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, dict):
            return {str(name): self(part) for name, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [self(part) for part in value]
        if isinstance(value, (set, frozenset)):
            return sorted(json.dumps(self(part)) for part in value)
        if isinstance(value, np.ndarray) or keras.ops.is_tensor(value) or isinstance(value, keras.Variable):
            return _array(value)
        if isinstance(value, (types.FunctionType, types.MethodType, type)):
            self.follow(value)
            return value.__qualname__
        return self.described(value)

    def described(self, value):
        """An object: its class, its own code, and its configuration or, where it has none, its settings."""
        if isinstance(value, keras.Model):
            return self.model(value) | {"weights": _weights(value)}
        self.follow_object(value)
        parts = {}
        if isinstance(value, keras.optimizers.Optimizer) and getattr(value, "optimizers", None):
            parts = {"optimizers": [self(part) for part in value.optimizers]}
        elif hasattr(value, "get_config"):
            parts = {"configuration": self(_without_counters(value.get_config()))}
        elif isinstance(value, keras.utils.PyDataset):
            settings = {name: part for name, part in vars(value).items() if name[0] != "_" and name not in ("epoch", "start")}
            parts = {"settings": self(settings)}
        return {"class": type(value).__qualname__, **parts}

    def model(self, model):
        """A model without its weights: the configuration, or the parts and the code of a class of our own."""
        self.follow_object(model)
        for layer in _layers(model):
            self.follow_object(layer)
        functional = isinstance(model, keras.Sequential) or type(model).__name__ == "Functional"
        if functional:
            return {"class": type(model).__qualname__, "configuration": self(_without_counters(model.get_config()))}
        return {"class": type(model).__qualname__, "parts": [self(layer) for layer in model.layers]}

    def follow_object(self, thing):
        """Gather the code of an object's class, and of functions that it was given."""
        self.follow(type(thing))
        for part in getattr(thing, "__dict__", {}).values():
            if isinstance(part, types.FunctionType):
                self.follow(part)

    def follow(self, thing):
        """Gather the code of a function or class of our own, and of what it leads to."""
        thing = inspect.unwrap(getattr(thing, "__func__", thing))
        if isinstance(thing, type):
            for base in reversed(thing.__mro__):
                for member in vars(base).values() if _is_own(base) else ():
                    for function in (member, getattr(member, "fget", None), getattr(member, "__func__", None)):
                        if isinstance(function, types.FunctionType):
                            self.follow(function)
        elif isinstance(thing, types.FunctionType) and _is_own(thing):
            name = f"{thing.__module__}.{thing.__qualname__}".removeprefix("__main__.")
            if name not in self.code:
                self.code[name] = _code(thing)
                self.follow_names(thing)

    def follow_names(self, function):
        names = _names(function.__code__)
        cells = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
        free = dict(zip(function.__code__.co_freevars, cells, strict=False))
        for name in sorted(names | free.keys()):
            if name in free or name in function.__globals__:
                self.see(name, free.get(name, function.__globals__.get(name)), names)

    def see(self, name, value, names):
        """Follow one global that a function reads: a value, a function, or what it uses of a module of ours."""
        if isinstance(value, types.ModuleType):
            if _is_own(value):
                for part in sorted(names & vars(value).keys()):
                    self.see(part, vars(value)[part], names)
        elif isinstance(value, (types.FunctionType, type)):
            self.follow(value)
        elif _is_plain(value) or isinstance(value, (np.ndarray, keras.Model)):
            self.values[name] = None  # what a value leads to may lead back to it
            self.values[name] = self(value)


def _is_plain(value):
    if isinstance(value, (list, tuple)):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, (bool, int, float, str, np.generic))


def _layers(layer):
    """Yield the layers within a model or a wrapper of a layer, at any depth."""
    for inner in getattr(layer, "layers", [layer.layer] if hasattr(layer, "layer") else []):
        yield inner
        yield from _layers(inner)


def _is_own(thing):
    """Whether a function, class or module is a notebook's or the project's: not Python's, nor installed."""
    if isinstance(thing, types.FunctionType):
        return not thing.__code__.co_filename.startswith(INSTALLED)
    if isinstance(thing, types.ModuleType):
        return not (getattr(thing, "__file__", None) or INSTALLED[0]).startswith(INSTALLED)
    return any(_is_own(part) for part in vars(thing).values() if isinstance(part, types.FunctionType))


def _names(code):
    nested = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*(_names(part) for part in nested))


def _code(function):
    """Return a digest of a function's bytecode, constants, names and defaults; its docstring is none of them."""
    defaults = [function.__defaults__, sorted((function.__kwdefaults__ or {}).items())]
    plain = repr(defaults) if _is_plain(function.__defaults__) else ""
    return _short((_constants(function.__code__, function.__doc__), plain))


def _constants(code, docstring=None):
    parts = []
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            own = constant.co_consts[0] if constant.co_consts and isinstance(constant.co_consts[0], str) else None
            parts.append(_constants(constant, own))
        elif isinstance(constant, frozenset):
            parts.append(sorted(map(repr, constant)))
        elif docstring is None or constant != docstring:
            parts.append(repr(constant))
    return code.co_code.hex(), parts, code.co_names


def _weights(model):
    return _short([_array(weight) for weight in model.weights])


def _array(value):
    return _short(digest(keras.ops.convert_to_numpy(value)))


def _short(value):
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _without_counters(configuration):
    """Return a configuration in which layers are named by their order: Keras counts their names up within a process."""
    configuration = keras.saving.serialize_keras_object(configuration)
    names = {}

    def gather(part):
        if isinstance(part, dict):
            name = part.get("name")
            if isinstance(name, str) and not part.keys() <= {"name", "source_name"}:  # a dtype's name is not counted up
                names.setdefault(name, f"{re.sub(r'_[0-9]+$', '', name)}#{len(names)}")
            for inner in part.values():
                gather(inner)
        elif isinstance(part, (list, tuple)):
            for inner in part:
                gather(inner)

    def renamed(part):
        if isinstance(part, dict):
            return {name: renamed(inner) for name, inner in part.items()}
        if isinstance(part, (list, tuple)):
            return [renamed(inner) for inner in part]
        return names.get(part, part) if isinstance(part, str) else part

    gather(configuration)
    return renamed(configuration)
