"""The language of data.split: "train + val | part(.8, seed=0)".

What stands before the first bar is a split of the source, or several with a plus
between them. Operations follow, left to right, each of which takes some of the
examples that the one before left, in their order:

  balanced(share, seed)  that share of every class, rounded, and one at the least
  part(share, seed)      a random share of all examples
  rest(share, seed)      exactly the examples that part(share, seed) leaves
  listed(file)           those whose file's name is in a text file, one a line

What is taken is a function of the source and the arguments alone. From one class, and
from all, a smaller share is a part of a larger one with the same seed. balanced and
listed read a whole TFDS set once to know its labels or names; the lists of SimCLR for
ImageNet are there as sets of their own, tfds:imagenet2012_subset/1pct and /10pct.
"""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixjax.data import views
from mixjax.data.folders import PICTURES
from mixjax.data.source import Source, all_labels, subset
from mixjax.errors import UsageError

Places = np.ndarray  # numbers of examples, rising
Take = Callable[[Source], Places]


class Split(NamedTuple):
    """A parsed split."""

    base: str  # what stands before the first bar
    takes: tuple[Take, ...]
    text: str
    field: str


def parse(text: str, field: str) -> Split:
    """Text of a split -> Split; UsageError names `field` and the nearest right word."""
    base, bar, rest = text.partition("|")
    if not bar:
        return Split(text.strip(), (), text, field)
    whole = f"{field}={text!r}"
    operations = views.calls(rest, whole, "split", "train | part(.8, seed=0)")
    takes = tuple(views.build(OPS, *call, whole) for call in operations)
    return Split(base.strip(), takes, text, field)


def take(source: Source, split: Split) -> Source:
    """What the operations of `split` leave of `source`.

    UsageError if they need what it does not have, or leave nothing.
    """
    taken = source
    for operation in split.takes:
        try:
            places = operation(taken)
        except UsageError as error:
            raise UsageError(f"{split.field}={split.text!r}: {error}") from error
        if not len(places):
            raise UsageError(
                f"{split.field}={split.text!r} takes none of the {source.size} "
                f"examples of {source.name}."
            )
        taken = subset(taken, places)
    bar, rest = split.text.partition("|")[1:]
    return taken._replace(name=f"{source.name} {bar}{rest}".strip())


# --- operations --------------------------------------------------------------------


def share_of(share: float, size: int) -> int:
    """The whole number next to share * size, halves up."""
    return int(share * size + 0.5)


def shuffled(seed: int, number: int, size: int) -> np.ndarray:
    """A permutation of `size`, a function of the seed and the number of the draw."""
    return np.random.Generator(np.random.Philox(key=[seed, number])).permutation(size)


def check_draw(share: float, seed: int) -> None:
    """ValueError unless 0 < share < 1 and seed >= 0."""
    if not 0 < share < 1:
        raise ValueError(f"share={share} is not between 0 and 1")
    if seed < 0:
        raise ValueError(f"seed={seed} is negative")


def balanced(share: float, seed: int) -> Take:
    """That share of every class, rounded, and one example at the least."""
    check_draw(share, seed)

    def op(source):
        if not source.classes or source.several:
            has = "several labels per picture" if source.several else "no labels"
            raise UsageError(
                f"balanced needs a label per picture, but {source.name} has {has}."
            )
        labels, taken = all_labels(source), []
        for number in range(source.classes):
            members = np.flatnonzero(labels == number)
            count = max(share_of(share, len(members)), 1)
            drawn = shuffled(seed, number, len(members))[:count]
            taken.append(members[drawn])
        return np.sort(np.concatenate(taken))

    return op


def part(share: float, seed: int) -> Take:
    """A random share of all examples."""
    check_draw(share, seed)

    def op(source):
        count = share_of(share, source.size)
        return np.sort(shuffled(seed, 0, source.size)[:count])

    return op


def rest(share: float, seed: int) -> Take:
    """The examples that part(share, seed) leaves."""
    taken = part(share, seed)
    return lambda source: np.setdiff1d(np.arange(source.size), taken(source))


def bare(name: str) -> str:
    """ "a/b/n01_1.JPEG" -> "n01_1", with or without folders and ending."""
    name = name.replace("\\", "/").rsplit("/", 1)[-1]
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in PICTURES else name


def listed(file: str) -> Take:
    """The examples whose file's name is a line of the text `file`."""

    def op(source):
        path = Path(file).expanduser()
        if not path.is_file():
            raise UsageError(f"there is no file {file}.")
        lines = path.read_text().splitlines()
        names = {bare(line.strip()): line.strip() for line in lines if line.strip()}
        if not names:
            raise UsageError(f"{file} names no picture.")
        if source.file is None:
            raise UsageError(f"the examples of {source.name} have no file names.")
        picture_names = [bare(source.file(i)) for i in range(source.size)]
        places = np.array(
            [i for i, name in enumerate(picture_names) if name in names], int
        )
        _check_one_each(names, [picture_names[i] for i in places], file, source)
        return places

    return op


def _check_one_each(names: dict, found: list[str], file: str, source: Source) -> None:
    counts = Counter(found)
    missing = [line for name, line in names.items() if name not in counts]
    if missing:
        raise UsageError(
            f"{len(missing)} of the {len(names)} names in {file} are no pictures of "
            f"{source.name}, the first of them {missing[0]!r}."
        )
    name, count = counts.most_common(1)[0]
    if count > 1:
        raise UsageError(
            f"{file} names {name!r}, but {count} pictures of {source.name} have that "
            f"name."
        )


OPS = {"balanced": balanced, "part": part, "rest": rest, "listed": listed}
