"""What defines a training: all that would make it another one if it were changed, and what differs between two.

Of Keras's objects the serialised configuration counts; of a notebook's and the project's own functions and classes the compiled
code, so that a comment or a line break changes nothing, with all that they call and the values of the globals that they read.
Where files lie does not count: a `Path` is left out.
"""

import dis
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import sys
import sysconfig
import types
import warnings

import keras
import numpy as np

import core
from core.digests import digest

STOPPING = ("monitor", "mode", "patience", "min_delta", "baseline", "restore_best_weights", "start_from_epoch")
# pip can put packages anywhere; where this project lies beside them, each package counts by itself
PACKAGES = [pathlib.Path(package.__file__).parent for package in (keras, np)]
FOLDERS = {f"{path if core.ROOT.is_relative_to(path.parent) else path.parent}{os.sep}" for path in PACKAGES}
INSTALLED = (*{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}, *FOLDERS, "<frozen")
NO_DOCSTRING = ("<lambda>", "<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")  # their first constant is one like others
NOT_COUNTED = {
    "fit": ("verbose", "validation_batch_size"),
    "batches": ("epoch", "start"),
    "callback": ("folder", "model", "params"),
}
OF_A_RUN = ("images", "labels", "seed")  # settings of batches that differ among runs that are compared
_MISSING = object()


def of_training(model, batches, epochs, early_stopping=None, callbacks=(), replicas=1, **arguments):
    """Return what defines a training as a dictionary that JSON can hold.

    The model is compiled; its present variables count, so that its seed and any pre-trained weights do. `arguments` are those
    of `model.fit`. A callback whose attribute `only_watches` is true is left out.
    """
    reader, backend = _Reader(model.variables), keras.backend.backend()
    callbacks = [each for each in callbacks if not getattr(each, "only_watches", False)]
    reader.follow_object(early_stopping)
    defined = {
        "epochs": epochs,
        "values": reader.values,
        "model": reader.model(model),
        "optimizer": reader(model.optimizer),
        "loss": reader(model.loss),
        "compile": reader(_compile_config(model)),
        "batches": reader(batches),
        "early stopping": early_stopping and {name: reader(getattr(early_stopping, name, None)) for name in STOPPING},
        "callbacks": [reader(each) for each in callbacks],
        "fit": {name: reader(value) for name, value in arguments.items() if name not in NOT_COUNTED["fit"]},
        "precision": keras.config.dtype_policy().name,
        "replicas": replicas,
        "versions": {
            "python": platform.python_version().rpartition(".")[0],
            "keras": keras.__version__,
            backend: importlib.metadata.version(backend),
        },
        "first weights": _weights(model),
    }
    return json.loads(json.dumps(defined | {"code": reader.code}))


def key(definition):
    """Return eight hexadecimal digits: equal ones mean the same training."""
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:8]


def recipe(definition):
    """Return eight hexadecimal digits: equal ones mean the same training but for its seed, first weights, images and labels."""
    batches = dict(definition["batches"])
    batches["settings"] = {name: value for name, value in batches["settings"].items() if name not in OF_A_RUN}
    rest = {name: value for name, value in definition.items() if name != "first weights"}
    return key(rest | {"batches": batches})


def difference(now, before, most=3):
    """Return in words what two definitions differ in, the first `most` of them."""
    now, before = dict(_flat(now)), dict(_flat(before))
    names = [name for name in now | before if now.get(name, _MISSING) != before.get(name, _MISSING)]
    words = [_in_words(name, now.get(name, _MISSING), before.get(name, _MISSING)) for name in names[:most]]
    return "; ".join(words) + f"; and {len(names) - most} more" * (len(names) > most)


def _in_words(name, now, before):
    if before is _MISSING or now is _MISSING:
        return f"{name} is {'new' if before is _MISSING else 'gone'}"
    is_digest = any(re.fullmatch(r"[0-9a-f]{16}", str(value)) for value in (now, before))
    return f"{name} changed" if is_digest else f"{name} is {now!r}, was {before!r}"


def _flat(value, path=""):
    """Yield the path and value of each leaf of nested dictionaries and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, value
        return
    for name, part in items:
        yield from _flat(part, f"{path}.{name}" if path else str(name))


class _Reader:
    """Describes objects; gathers in `code` the functions they lead to and in `values` the globals these read."""

    def __init__(self, variables=()):
        # a function may know a weight by its `id`, which is another in each process
        self.identities = {id(variable): f"id of weight {place}" for place, variable in enumerate(variables)}
        self.code, self.values, self.seen, self.followed = {}, {}, {}, {}

    def __call__(self, value):
        """Return a description of any object that JSON can hold."""
        if isinstance(value, int) and value in self.identities:
            return self.identities[value]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, (bytes, range, slice, complex)):
            return repr(value)
        if isinstance(value, (np.ndarray, keras.Variable)) or keras.ops.is_tensor(value):
            return _array(value)
        if isinstance(value, (types.ModuleType, pathlib.PurePath)):
            return type(value).__name__
        if isinstance(value, (types.FunctionType, type)):
            self.follow(value)
            return value.__qualname__
        if isinstance(value, types.BuiltinFunctionType):
            return value.__qualname__
        if id(value) in self.seen:  # it leads back to itself, or was met before
            return f"seen: {type(value).__name__}"
        self.seen[id(value)] = value  # kept, so that no other object gets its id
        try:
            return self.container(value)
        finally:
            if isinstance(value, (dict, list, tuple, set, frozenset)):
                del self.seen[id(value)]

    def container(self, value):
        if isinstance(value, dict):
            return {str(name): self(part) for name, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [self(part) for part in value]
        if isinstance(value, (set, frozenset)):
            return sorted(json.dumps(self(part)) for part in value)
        if isinstance(value, functools.partial):
            return {"partial": self(value.func), "args": self(value.args), "keywords": self(value.keywords)}
        if isinstance(value, types.MethodType):
            return {"method": self(value.__func__), "of": self(value.__self__)}
        if hasattr(value, "__wrapped__"):  # a cached function
            return self(value.__wrapped__)
        return self.described(value)

    def described(self, value):
        """An object: its class, its own code, its configuration where it has one, and its own settings."""
        if isinstance(value, keras.Model):
            return self.model(value) | {"weights": _weights(value)}
        self.follow_object(value)
        parts = {"class": type(value).__qualname__}
        if isinstance(value, keras.optimizers.Optimizer) and getattr(value, "optimizers", None):
            parts["optimizers"] = [self(part) for part in value.optimizers]
        elif isinstance(value, keras.utils.PyDataset):
            parts["settings"] = self.settings(value, NOT_COUNTED["batches"])
        elif isinstance(value, keras.callbacks.Callback):
            parts["settings"] = self.settings(value, NOT_COUNTED["callback"])
        else:
            parts |= self.configuration(value)
        return parts

    def configuration(self, value):
        """What an object says of itself; the settings of one of our own, which may say too little."""
        parts = {}
        try:
            parts["configuration"] = self(_without_counters(value.get_config()))
        except Exception:  # it has none, or Keras cannot write all of it down
            parts["settings"] = self.settings(value)
            parts["layers"] = [self(layer) for layer in getattr(value, "layers", ())]
        if _is_own(type(value)):
            parts["settings"] = self.settings(value, vars(_ordinary(type(value))))
        return parts

    def settings(self, value, besides=()):
        """An object's public attributes, but for those that Keras manages."""
        besides = {*besides, "name", "input_names", "output_names"}  # names are counted up within a process
        public = {name: part for name, part in getattr(value, "__dict__", {}).items() if name[0] != "_" and name not in besides}
        return {name: self(part) for name, part in public.items() if not isinstance(part, (keras.Layer, keras.Variable))}

    def model(self, model):
        """A model without its weights: the configuration, or the parts, settings and code of a class of our own."""
        self.seen[id(model)] = model
        self.follow_object(model)
        for layer in _layers(model):
            self.follow_object(layer)
        if isinstance(model, keras.Sequential) or type(model).__name__ == "Functional":
            return {"class": type(model).__qualname__, **self.configuration(model)}
        settings = {name: part for name, part in vars(model).items() if isinstance(part, (bool, int, float, str, list, dict))}
        ordinary = vars(keras.Model())
        own = {name: self(part) for name, part in settings.items() if name[0] != "_" and name not in ordinary}
        return {"class": type(model).__qualname__, "settings": own, "parts": [self(layer) for layer in model.layers]}

    def follow_object(self, thing):
        """Gather the code of an object's class, and of functions and objects of our own that it was given."""
        self.follow(type(thing))
        for part in list(getattr(thing, "__dict__", {}).values()):
            if isinstance(part, (types.FunctionType, types.MethodType, functools.partial)) and _leads_to_own(part):
                self(part)
            elif _is_own(type(part)) and not isinstance(part, (keras.Layer, type)):
                self.follow(type(part))

    def follow(self, thing):
        """Gather the code of a function or class of our own, and of what it leads to."""
        if id(thing) in self.followed:
            return
        self.followed[id(thing)] = thing
        if isinstance(thing, type):
            for base in reversed(thing.__mro__):
                if _is_own(base):
                    self.follow_class(base)
        elif isinstance(thing, types.FunctionType):
            if hasattr(thing, "__wrapped__"):
                self(thing.__wrapped__)
            if _is_own(thing):
                self.follow_function(thing)

    def follow_class(self, base):
        for name, member in list(vars(base).items()):
            if name in (
                "__doc__",
                "__module__",
                "__dict__",
                "__weakref__",
                "__annotations__",
                "__abstractmethods__",
                "_abc_impl",
            ):
                continue
            parts = [getattr(member, part, None) for part in ("fget", "fset", "fdel", "func", "__func__")]
            functions = [part for part in (member, *parts) if isinstance(part, types.FunctionType)]
            for function in functions:
                self.follow(function)
            if not functions and (_is_plain(member) or isinstance(member, (dict, set, type, np.ndarray))):
                self.note(f"{base.__qualname__}.{name}", member)

    def follow_function(self, function):
        defaults = [self(function.__defaults__), self(function.__kwdefaults__)]
        own = f"{function.__module__}.{function.__qualname__}".removeprefix("__main__.")
        name = _free_name(own, _short((_code(function.__code__), defaults)), self.code)
        for global_name in sorted(_globals(function.__code__)):
            if global_name in function.__globals__:
                self.see(global_name, function.__globals__[global_name], _names(function.__code__))
        for free, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if cell != types.CellType():
                self.note(f"{name}.{free}", cell.cell_contents)

    def see(self, name, value, names):
        """Follow one global that a function reads; of a module of ours, what it uses."""
        if not isinstance(value, types.ModuleType):
            self.note(name, value)
        elif _is_own(value):
            for part in sorted(names & vars(value).keys()):
                if (id(value), part) not in self.seen:
                    self.seen[id(value), part] = value
                    self.see(part, vars(value)[part], names)

    def note(self, name, value):
        """Describe a value; functions and classes count by their code, all else under its name too."""
        if isinstance(value, (types.FunctionType, type)):
            return self.follow(value)
        if id(value) in self.seen and not _is_plain(value):
            return None
        _free_name(name, self(value), self.values)
        return None


def _free_name(name, value, table):
    """Enter a value under a name or, where others stand under it, under the name with a number; return what it became."""
    number, free = 1, name
    while table.get(free, value) != value:
        number += 1
        free = f"{name} ({number})"
    table[free] = value
    return free


def _ordinary(kind):
    """Return an object with the attributes that Keras itself gives to objects of this kind."""
    return keras.Layer(name="ordinary") if issubclass(kind, keras.Layer) else types.SimpleNamespace()


def _compile_config(model):
    """Return what `compile` was given beside optimiser and loss, as far as it can be written down."""
    try:
        with warnings.catch_warnings(action="ignore"):  # that a function in an optimiser could not be loaded: nobody loads it
            config = model.get_compile_config()
    except Exception:  # an optimiser made of functions: Keras looks for their source, and may not find it
        return None
    return {name: config.get(name) for name in ("metrics", "weighted_metrics", "loss_weights")}


def _leads_to_own(function):
    function = function.func if isinstance(function, functools.partial) else function
    return _is_own(getattr(function, "__func__", function))


def _is_plain(value):
    if isinstance(value, (list, tuple)):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, (bool, int, float, str, bytes, np.generic))


def _layers(layer):
    """Yield the layers within a model or a wrapper of a layer, at any depth."""
    for inner in getattr(layer, "layers", [layer.layer] if hasattr(layer, "layer") else []):
        yield inner
        yield from _layers(inner)


def _is_own(thing):
    """Whether a function, class or module is a notebook's or the project's: not Python's, nor installed."""
    if isinstance(thing, types.FunctionType):
        return not thing.__code__.co_filename.startswith(INSTALLED)
    if isinstance(thing, type):
        if thing.__module__ in ("__main__", "builtins"):
            return thing.__module__ == "__main__"
        thing = sys.modules.get(thing.__module__)
    return isinstance(thing, types.ModuleType) and not (getattr(thing, "__file__", None) or INSTALLED[0]).startswith(INSTALLED)


def _nested(code):
    return [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


def _names(code):
    return set(code.co_names).union(*map(_names, _nested(code)))


def _globals(code):
    """The names of the globals that a function reads, nested functions included; not those of attributes."""
    loads = {
        instruction.argval for instruction in dis.get_instructions(code) if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    return loads.union(*map(_globals, _nested(code)))


def _code(code):
    """Return a code object's bytecode, constants, names and signature; a docstring is none of them."""
    constants = list(code.co_consts)
    documented = code.co_flags & 0x4000000 if sys.version_info >= (3, 13) else code.co_name not in NO_DOCSTRING
    if documented and constants and isinstance(constants[0], str):
        constants[0] = None
    parts = [_code(part) if isinstance(part, types.CodeType) else _constant(part) for part in constants]
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)]
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & 0xC
    return code.co_code.hex(), parts, code.co_names, arguments, counts


def _constant(value):
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def _weights(model):
    return _short([_array(variable) for variable in model.variables])


def _array(value):
    return _short(digest(keras.ops.convert_to_numpy(value)))


def _short(value):
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _without_counters(configuration):
    """Return a configuration in which layers are named by their order: Keras counts their names up within a process.

    Of a lambda only that it is one: its code is followed, and Keras writes the file's name into it.
    """
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
            return "lambda" if part.get("class_name") == "__lambda__" else {name: renamed(inner) for name, inner in part.items()}
        if isinstance(part, (list, tuple)):
            return [renamed(inner) for inner in part]
        return names.get(part, part) if isinstance(part, str) else part

    gather(configuration)
    return renamed(configuration)
