"""Describe values and code, so that descriptions are equal only if the values behave alike.

A function or class of a notebook or of this project is described by its bytecode, which does not
depend on comments, and by the globals, closures and modules that it uses. An object is described by
the state that pickle would store, and a Keras object by its configuration and by every attribute
that Keras's own code does not assign.

No library does this: cloudpickle's bytes change with a comment, `inspect.getclosurevars` overlooks
nested functions, `ast` needs source text that lambdas lack, and a traced graph shows neither the
batches nor the callbacks, which are plain Python.
"""

import dis
import functools
import importlib.metadata
import json
import os
import pathlib
import re
import sys
import sysconfig
import types
import warnings
from typing import Any

import keras
import numpy as np

import core
from core.files import array_digest, short_digest

# What a function accesses through these names cannot be determined from its code.
UNREADABLE = {"globals", "vars", "eval", "exec", "open", "input", "__import__"}
UNREADABLE_ATTRIBUTES = {"__dict__", "__globals__", "environ", "getenv", "import_module", "modules"}
ADDED_BY_PYTHON = {"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__"}
ADDED_BY_PYTHON |= {"_abc_impl", "__slotnames__", "__static_attributes__", "__firstlineno__"}
CHANGED_BY_FIT = {"_model", "params", "optimizer", "_compile_config", "history"}

# pip can install packages anywhere, so code in the folder that holds Keras or NumPy also counts as
# installed. If this project is in that folder too, only the package's own folder counts.
_FOLDERS = [pathlib.Path(package.__file__).parent for package in (keras, np)]
INSTALLED = (
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    *(f"{f if core.ROOT.is_relative_to(f.parent) else f.parent}{os.sep}" for f in _FOLDERS),
    "<frozen",
)


class CodeReader:
    """Describes values as JSON data, and collects the code and packages that they use.

    `used` maps the names of functions, classes and globals to their descriptions, `unreadable`
    holds a sentence for everything that cannot be described, and `packages` holds package names.
    """

    def __init__(self, trained_variables):
        self.trained = {id(variable) for variable in trained_variables}
        self.used, self.unreadable, self.packages = {}, set(), set()
        self.seen = {}  # objects by id, kept alive so that no other object gets the same id

    def read(self, value: Any, where: str) -> Any:
        """Return a description of any value, for JSON; `where` names the value in messages."""
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (bytes, np.generic)):
            return repr(value)
        if isinstance(value, keras.Variable) or hasattr(type(value), "__array__"):
            return "a weight" if id(value) in self.trained else array_digest_of(value)
        if isinstance(value, pathlib.PurePath):
            return "a path"  # file locations do not define a training run
        if isinstance(value, types.ModuleType):
            return value.__name__
        if isinstance(value, type):
            return self.read_class(value)
        if isinstance(value, types.FunctionType):
            return self.read_function(value)
        if id(value) in self.seen:
            return f"object {list(self.seen).index(id(value))}"
        self.seen[id(value)] = value
        if not isinstance(value, (dict, list, tuple, set, frozenset)):
            return self.read_object(value, where)
        description = self.read_container(value, where)
        del self.seen[id(value)]  # so that a container and an equal copy look the same
        return description

    def read_container(self, value, where):
        if not isinstance(value, dict):
            parts = [self.read(part, f"{where}.{place}") for place, part in enumerate(value)]
            return parts if isinstance(value, (list, tuple)) else sorted(map(json.dumps, parts))
        # The configuration of a lambda contains a path. Its code is described separately.
        if value.get("class_name") == "__lambda__":
            return "a lambda"
        return {str(name): self.read(part, f"{where}.{name}") for name, part in value.items()}

    def read_object(self, value, where):
        name = self.read_class(type(value))
        if hasattr(value, "__wrapped__"):  # functools.cache, tf.function, jax.jit
            return [name, self.read(value.__wrapped__, where)]
        if hasattr(value, "get_config"):
            return {"class": name} | self.read_keras(value, where)
        if isinstance(value, keras.callbacks.Callback):
            state = {key: part for key, part in vars(value).items() if key not in CHANGED_BY_FIT}
            return {"class": name, "state": self.read(state, where)}
        try:
            reduced = value.__reduce_ex__(4)  # what pickle would store
        except Exception as error:  # for example, of a lock, a file or a generator
            return self.cannot_read(f"{where} is a {name} whose state cannot be read ({error})")
        if isinstance(reduced, str):  # the name of a built-in function or constant
            return self.cannot_read(f"{where} is {reduced}") if reduced in UNREADABLE else reduced
        function, arguments, state, *items = (*reduced, None)[:5]
        items = [list(item) for item in items if item is not None]
        made_by = self.read([function, arguments, items], where)
        return {"class": name, "made by": made_by, "state": self.read(state, where)}

    def read_keras(self, value, where):
        """Return a description of an object whose class is Keras's or a subclass of one."""
        is_graph = isinstance(value, keras.Model) and bool(getattr(value, "outputs", None))
        parts, assigned_by_keras = {}, _assigned_attributes(type(value))
        if is_graph:  # a subclass's get_config may return only its arguments
            parts["config"] = self.read_config(keras.Model(value.inputs, value.outputs), where)
        elif not (isinstance(value, keras.Model) and _is_own(type(value))):
            parts["config"] = self.read_config(value, where)
        state = object.__getstate__(value) or {}
        if isinstance(state, tuple):  # the class has slots
            state = (state[0] or {}) | state[1]
        for name, part in state.items():
            if name not in assigned_by_keras | CHANGED_BY_FIT or _leads_to_own_code(part):
                parts[name] = self.read(part, f"{where}.{name}")
        if isinstance(value, keras.Layer):
            inner = value._flatten_layers(include_self=False, recursive=False)
            parts["layers"] = [self.read(layer, f"{where}.{layer.name}") for layer in inner]
            others = [variable for variable in value.variables if id(variable) not in self.trained]
            parts["weights"] = short_digest([array_digest_of(variable) for variable in others])
        return parts

    def read_config(self, value, where):
        try:
            with warnings.catch_warnings(action="ignore"):  # about lambdas, whose code is read
                config = keras.saving.serialize_keras_object(value.get_config())
        except Exception as error:
            return self.cannot_read(f"{where} has no readable configuration ({error!s:.100})")
        return _without_counters(self.read(config, where))

    def read_class(self, kind):
        """Record a class and its bases, except for installed ones, and return the class's name."""
        for base in kind.__mro__:
            if not _is_own(base):
                self.packages.add(base.__module__.partition(".")[0])
            elif id(base) not in self.seen:
                self.seen[id(base)] = base
                parts = {n: p for n, p in vars(base).items() if n not in ADDED_BY_PYTHON}
                members = {n: self.read_member(p, f"{base.__name__}.{n}") for n, p in parts.items()}
                self.enter(f"class {base.__qualname__}", members)
        return kind.__qualname__

    def read_member(self, member, where):
        if isinstance(member, types.MemberDescriptorType):
            return "a slot"  # its value belongs to the object
        if isinstance(member, property):
            return self.read([member.fget, member.fset, member.fdel], where)
        return self.read(getattr(member, "__func__", getattr(member, "func", member)), where)

    def read_function(self, function):
        """Record a function and all that it uses, unless it is installed, and return its name."""
        module = function.__globals__.get("__name__", "")
        name = f"{module}.{function.__qualname__}".removeprefix("__main__.")
        if not _is_own(function):
            self.packages.add(module.partition(".")[0])
        elif id(function) not in self.seen:
            self.seen[id(function)] = function
            codes = _nested(function.__code__)
            defaults = [function.__defaults__, function.__kwdefaults__, vars(function)]
            code = short_digest([_readable(code) for code in codes])
            description = {"code": code, "defaults": self.read(defaults, name)}
            self.read_names(name, codes, function.__globals__)
            own = self.enter(name, description)
            names = (f"{own}.{free}" for free in function.__code__.co_freevars)
            for free, cell in zip(names, function.__closure__ or (), strict=True):
                if cell != types.CellType():
                    self.enter(free, self.read(cell.cell_contents, free))
        return name

    def read_names(self, name, codes, space):
        """Record the globals and modules that the code of a function uses."""
        used = {i.argval for i in _instructions(codes, "LOAD_GLOBAL", "LOAD_NAME")}
        attributes = {attribute for code in codes for attribute in code.co_names}
        unreadable = (used & UNREADABLE) - space.keys() | (attributes & UNREADABLE_ATTRIBUTES)
        for word in sorted(unreadable):
            self.cannot_read(f"{name} uses {word}")
        for used_name in sorted(used & space.keys()):
            self.read_global(used_name, space[used_name], attributes)
        for module in sorted({i.argval for i in _instructions(codes, "IMPORT_NAME")}):
            package = module.partition(".")[0]
            self.packages.add(package)
            if package not in sys.stdlib_module_names and package not in installed_distributions():
                try:
                    self.read_global(module, importlib.import_module(module), attributes)
                except (ImportError, ValueError) as error:  # ValueError: `from . import ...`
                    self.cannot_read(f"{name} imports {module}, which fails ({error})")

    def read_global(self, name, value, attributes):
        """Record a global or, for a module that is not installed, the attributes that are used."""
        if not isinstance(value, types.ModuleType):
            self.enter(name, self.read(value, name))
        elif not _is_own(value):
            self.packages.add(value.__name__.partition(".")[0])
        elif "getattr" in attributes:
            self.cannot_read(f"getattr may access any attribute of {value.__name__}")
        else:
            for part in sorted(attributes & vars(value).keys()):
                if (id(value), part) not in self.seen:
                    self.seen[id(value), part] = value
                    self.read_global(part, vars(value)[part], attributes)

    def enter(self, name, description):
        """Store a description under `name`, or that with apostrophes if taken; return the name."""
        while self.used.get(name, description) != description:
            name += "'"
        self.used[name] = description
        return name

    def cannot_read(self, sentence):
        self.unreadable.add(sentence)
        return "unreadable"


installed_distributions = functools.cache(importlib.metadata.packages_distributions)


@functools.cache
def _assigned_attributes(kind: type) -> frozenset:
    """Return the names of the attributes that the methods of a class's installed bases assign."""
    names = set()
    for base in kind.__mro__:
        for member in () if _is_own(base) else vars(base).values():
            member = getattr(member, "__func__", getattr(member, "fget", member))
            code = getattr(getattr(member, "__wrapped__", member), "__code__", None)
            if code:
                names |= {i.argval for i in _instructions(_nested(code), "STORE_ATTR")}
    return frozenset(names)


def _leads_to_own_code(value: Any) -> bool:
    function = value.func if isinstance(value, functools.partial) else value
    function = getattr(function, "__func__", function)
    return _is_own(function if isinstance(function, types.FunctionType) else type(value))


def _is_own(thing: Any) -> bool:
    """Return whether a function, class or module is a notebook's or this project's own."""
    if isinstance(thing, types.FunctionType):
        return not thing.__code__.co_filename.startswith(INSTALLED)
    if isinstance(thing, type):
        if thing.__module__ in ("__main__", "builtins"):
            return thing.__module__ == "__main__"
        if thing.__module__ not in sys.modules:  # created by generated code
            return True
        thing = sys.modules[thing.__module__]
    path = getattr(thing, "__file__", None) or INSTALLED[0]  # built-in modules have no file
    return isinstance(thing, types.ModuleType) and not path.startswith(INSTALLED)


def _nested(code: types.CodeType) -> list:
    """Return a code object and those of all functions defined within it, at any depth."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return [code, *(nested for part in inner for nested in _nested(part))]


def _instructions(codes: list, *names: str) -> list:
    return [i for code in codes for i in dis.get_instructions(code) if i.opname in names]


def _readable(code: types.CodeType) -> list:
    """Return the signature and the instructions of one code object."""
    values = []
    for instruction in dis.get_instructions(code):
        value = instruction.argval
        if isinstance(value, types.CodeType):
            value = value.co_name  # its code is described separately
        elif isinstance(value, frozenset):
            value = sorted(map(repr, value))
        values.append([instruction.opname, repr(value)])
    counts = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & 12]
    return [counts, code.co_varnames, code.co_exceptiontable.hex(), values]


def _without_counters(config: Any) -> Any:
    """Return a configuration with names numbered by position, as conv2d#3.

    Keras's own numbers depend on what the process has created before.
    """
    text = json.dumps(config, ensure_ascii=False)
    for place, name in enumerate(dict.fromkeys(re.findall(r'"name": ("[^"]+")', text))):
        numbered = f'"{re.sub(r"_[0-9]+$", "", name[1:-1])}#{place}"'
        text = re.sub(re.escape(name) + "(?!:)", lambda _, new=numbered: new, text)  # not keys
    return json.loads(text)


def array_digest_of(value: Any) -> str:
    """Return a short digest of an array, a tensor or a variable."""
    array = keras.ops.convert_to_numpy(value) if keras.ops.is_tensor(value) else np.asarray(value)
    return short_digest(repr(array.tolist()) if array.dtype.hasobject else array_digest(array))
