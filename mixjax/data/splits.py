"""The language of data.split: "train + val | part(.8, seed=0)".

The text before the first bar is a split of the source, or a sum of several splits.
The operations after it apply from left to right. Each selects some of the examples
that the previous one kept, without changing their order:

  balanced(share, seed)  this share of every class, rounded, but at least one example
  part(share, seed)      a random share of all examples
  rest(share, seed)      all examples that part(share, seed) does not select
  listed(file)           the examples whose file names are lines of a text file

The selection depends only on the source and the arguments. With the same seed, a
smaller share is a subset of a larger one, per class for balanced. balanced and listed
read a whole TFDS set once to learn its labels or names; SimCLR's lists for ImageNet
exist as TFDS sets, tfds:imagenet2012_subset/1pct and /10pct.
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

Places = np.ndarray  # ascending indices of examples
Selection = Callable[[Source], Places]


class Split(NamedTuple):
    """A parsed split."""

    base: str  # the text before the first bar
    selections: tuple[Selection, ...]
    text: str
    field: str


def parse(text: str, field: str) -> Split:
    """Parses a split; UsageError names `field` and the nearest known operation."""
    base, bar, operations = text.partition("|")
    # Only what follows the bar is parsed: TFDS slices are not operations.
    if not bar:
        return Split(text.strip(), (), text, field)
    setting = f"{field}={text!r}"
    calls = views.calls(operations, setting, "split", "train | part(.8, seed=0)")
    selections = tuple(views.build(OPS, *call, setting) for call in calls)
    return Split(base.strip(), selections, text, field)


def take(source: Source, split: Split) -> Source:
    """The examples of `source` that the operations of `split` select.

    Raises UsageError if an operation needs labels or names that the source lacks, or
    if nothing is left.
    """
    taken = source
    for select in split.selections:
        try:
            places = select(taken)
        except UsageError as error:
            raise UsageError(f"{split.field}={split.text!r}: {error}") from error
        if not len(places):
            raise UsageError(
                f"{split.field}={split.text!r} selects none of the {source.size} "
                f"examples of {source.name}."
            )
        taken = subset(taken, places)
    # The name repeats the operations: logs and reports must tell selections apart.
    bar, operations = split.text.partition("|")[1:]
    return taken._replace(name=f"{source.name} {bar}{operations}".strip())


# --- operations --------------------------------------------------------------------


def share_of(share: float, size: int) -> int:
    """The integer nearest to share * size, halves rounded up."""
    # round() would round halves to even.
    return int(share * size + 0.5)


def shuffled(seed: int, number: int, size: int) -> np.ndarray:
    """A permutation of `size`, keyed by the seed and `number` (0, or a class)."""
    return np.random.Generator(np.random.Philox(key=[seed, number])).permutation(size)


def check_draw(share: float, seed: int) -> None:
    """ValueError unless 0 < share < 1 and seed >= 0."""
    if not 0 < share < 1:
        raise ValueError(f"share={share} is not between 0 and 1")
    if seed < 0:
        raise ValueError(f"seed={seed} is negative")


def balanced(share: float, seed: int) -> Selection:
    """Selects this share of every class, rounded, but at least one example."""
    check_draw(share, seed)

    def op(source):
        if not source.classes or source.several:
            labelling = "several labels per picture" if source.several else "no labels"
            raise UsageError(
                f"balanced needs one label per picture, but {source.name} has "
                f"{labelling}."
            )
        labels, places = all_labels(source), []
        for number in range(source.classes):
            members = np.flatnonzero(labels == number)
            count = max(share_of(share, len(members)), 1)
            # A prefix of one permutation, so that a smaller share is a subset.
            chosen = shuffled(seed, number, len(members))[:count]
            places.append(members[chosen])
        return np.sort(np.concatenate(places))

    return op


def part(share: float, seed: int) -> Selection:
    """Selects a random share of all examples."""
    check_draw(share, seed)

    def op(source):
        count = share_of(share, source.size)
        return np.sort(shuffled(seed, 0, source.size)[:count])

    return op


def rest(share: float, seed: int) -> Selection:
    """Selects the examples that part(share, seed) does not."""
    select_part = part(share, seed)
    return lambda source: np.setdiff1d(np.arange(source.size), select_part(source))


def strip_path(name: str) -> str:
    """ "a/b/n01_1.JPEG" -> "n01_1": drops folders and the extension of a picture."""
    name = name.replace("\\", "/").rsplit("/", 1)[-1]
    stem, extension = os.path.splitext(name)
    # Other dots are part of the name, as in "v1.2".
    return stem if extension.lower() in PICTURES else name


def listed(file: str) -> Selection:
    """Selects the examples whose file names are lines of the text file `file`."""

    def op(source):
        # Read when the split is applied: parsing alone touches no files.
        path = Path(file).expanduser()
        if not path.is_file():
            raise UsageError(f"the file {file} does not exist.")
        lines = path.read_text().splitlines()
        lines = [line.strip() for line in lines if line.strip()]
        names = {strip_path(line): line for line in lines}
        if not names:
            raise UsageError(f"{file} lists no pictures.")
        if source.file is None:
            raise UsageError(f"the examples of {source.name} have no file names.")
        picture_names = [strip_path(source.file(i)) for i in range(source.size)]
        places = np.array(
            [i for i, name in enumerate(picture_names) if name in names], int
        )
        _check_matches(names, [picture_names[i] for i in places], file, source)
        return places

    return op


def _check_matches(names: dict, matches: list[str], file: str, source: Source) -> None:
    # A name that is missing or ambiguous would change the selection unnoticed.
    counts = Counter(matches)
    missing = [line for name, line in names.items() if name not in counts]
    if missing:
        raise UsageError(
            f"names in {file} match no picture of {source.name} ({len(missing)} of "
            f"{len(names)}), such as {missing[0]!r}."
        )
    name, count = counts.most_common(1)[0]
    if count > 1:
        raise UsageError(
            f"{file} lists {name!r}, but {count} pictures of {source.name} have this "
            f"name."
        )


OPS = {"balanced": balanced, "part": part, "rest": rest, "listed": listed}
