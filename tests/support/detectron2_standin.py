"""Configurations of Detectron2, run without it: what they set, as nested dicts."""

import builtins
from pathlib import Path

FRAMEWORKS = {"detectron2", "fvcore", "downstream"}


class Node(dict):
    """A config: fields are attributes, and those not there yet come into being."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self.setdefault(name, Node())

    def __setattr__(self, name, value):
        self[name] = value

    def pop(self, name):
        return super().pop(name, None)


class Name:
    """Anything that is imported: it has every attribute, and a call is a Node."""

    def __init__(self, name):
        self.name = name

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return SPECIAL.get(name) or Name(name)

    def __call__(self, **fields):
        return Node(fields, _target_=self.name)


def lazy(target):
    """LazyCall: the fields that it is called with, and its name."""
    return lambda **fields: Node(fields, _target_=target.name)


def base(path):
    """model_zoo.get_config: an empty config that knows where it comes from."""
    return Node(model=Node(_base_=path), dataloader=Node(_base_=path))


SPECIAL = {"LazyCall": lazy, "get_config": base}


def read(path: Path) -> Node:
    """The names that a lazy config defines."""

    def import_(name, globals=None, locals=None, fromlist=(), level=0):
        if level:
            return read(path.parent / f"{name}.py")
        top = name.partition(".")[0]
        if top in FRAMEWORKS:
            return Name(name if fromlist else top)
        return __import__(name, globals, locals, fromlist, level)

    names = {"__builtins__": vars(builtins) | {"__import__": import_}}
    exec(compile(path.read_text(), str(path), "exec"), names)
    return Node({k: v for k, v in names.items() if not k.startswith("__")})


def at(config, path: str):
    """The value at a dotted path; numbers are places in lists."""
    for word in path.split("."):
        config = config[int(word)] if word.isdigit() else config[word]
    return config
