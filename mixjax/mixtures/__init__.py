"""Image mixtures by name, for pre-training and fine-tuning; masks and mixing of tokens.

`name` in a section is a file of this folder that defines `make`; in siamese
pre-training the section's own name is what metrics call its terms. `make` returns

    mixture(rng, images [B, H, W, C])             -> tuple of Mixed, or
    mixture(rng, images, index)                   -> tuple of Mixed

index [B]: the numbers of the examples in the data set, for draws that must not depend
on an example's place in the batch. Siamese methods weight losses, and supervised
training weights targets, by Mixed.lam and Mixed.partner.
"""

import inspect
from collections.abc import Callable, Mapping

import jax.numpy as jnp

from mixjax.config.registry import call, load, take
from mixjax.state import ALL


def make(config: Mapping) -> dict[str, Callable]:
    """{section: mixture} for the sections of a config; see make_one."""
    return {name: make_one(f"mixtures.{name}", config[name]) for name in config}


def make_one(field: str, fields: Mapping) -> Callable:
    """The mixture of one section: (rng, images, index=None) -> tuple of Mixed.

    Without an index the examples count as numbered by their places in the batch.
    UsageError names a field that is wrong; `field` is the name of the section.
    """
    (name,) = take(field, dict(fields), "name")
    mixture = call(field, load(__name__, name, f"{field}.name").make, fields)
    by_number = "index" in inspect.signature(mixture).parameters

    def mix(rng, images, index=None):
        if not by_number:
            return mixture(rng, images)
        return mixture(rng, images, jnp.arange(len(images)) if index is None else index)

    return mix


def together(fields: Mapping) -> int:
    """The number of consecutive images of which one term may need all (see Method).

    A mixture with a field `chunk` draws and pairs within that many consecutive images;
    any other one pairs within `groups` parts of the whole batch.
    """
    return fields.get("chunk", ALL)


def for_few(fields: Mapping, count: int) -> Mapping:
    """The section of a mixture, changed so that it can mix a few images to look at.

    With as many groups as a recipe has, an image might be its own partner: groups
    become so few, or chunks so small, that each holds at least two images and all are
    equally large, as far as `count` allows.
    """
    if "groups" in fields:
        divisors = [n for n in range(1, count // 2 + 1) if count % n == 0]
        groups = max((n for n in divisors if n <= fields["groups"]), default=1)
        return {**fields, "groups": groups}
    if "chunk" in fields:
        most = min(fields["chunk"], count)
        sizes = [n for n in range(2, most + 1, 2) if count % n == 0]
        return {**fields, "chunk": max(sizes, default=2)}
    return fields


def variant(name: str) -> str:
    """What a recipe takes after its colon for a mixture, with the paper's values.

    A file whose fields are more than permutation, shared and groups says in PAPER what
    its paper sets them to, unless configs/siamese.py does: recipes have no defaults for
    fields that they do not know.
    """
    paper = getattr(load(__name__, name, "mixture"), "PAPER", {})
    fields = [f"mixture.{key}={value}" for key, value in paper.items()]
    return ",".join([f"mixture={name}", *fields])
