"""The files that weights come in: safetensors, torch's, NumPy's and detectron2's."""

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mixjax.errors import UsageError
from mixjax.export import safe_unpickle
from mixjax.export.name_rules import Arrays

OURS = "mixjax"  # the entry of a file's notes that is ours
INSIDE = ("model", "state_dict", "teacher", "student", "model_state", "module")


# --- reading ---------------------------------------------------------------------


def read(path: Path, what: str) -> tuple[Arrays, dict]:
    """({name: array}, our notes in the file, {} if it has none).

    Floating numbers become float32. what: to call the file in messages. UsageError if
    it is missing, broken, not of a known form, or would have to run something.
    """
    if not path.is_file():
        raise UsageError(f"{what}: there is no such file.")
    with open(path, "rb") as file:
        start = file.read(9)
    if path.suffix == ".npz":
        named, notes = read_npz(path, what)
    elif start[8:9] == b"{" or path.suffix == ".safetensors":
        named, notes = read_safetensors(path, what)
    elif start[:2] == b"PK" or start[:1] == b"\x80" or path.suffix in (".pth", ".pt"):
        named, notes = read_torch(path), {}
    else:
        raise UsageError(
            f"{what} is neither safetensors nor a file of torch, NumPy or detectron2."
        )
    if not named:
        raise UsageError(f"{what} has no tensors.")
    return {name: as_float(array) for name, array in named.items()}, notes


def as_float(array: np.ndarray) -> np.ndarray:
    """float32 of any floating type; other types as they are."""
    if array.dtype.kind in "biu" and array.dtype.names is None:
        return array
    return array.astype(np.float32)


def read_safetensors(path: Path, what: str) -> tuple[Arrays, dict]:
    import safetensors  # late: training does without it

    try:
        with safetensors.safe_open(path, "np") as file:
            notes = file.metadata() or {}
            named = {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, ValueError, TypeError, OSError) as error:
        reason = f"{error}".replace("\n", " ")
        raise UsageError(f"{what} is broken: {reason}.") from error
    return named, notes_of(notes.get(OURS), what)


def read_npz(path: Path, what: str) -> tuple[Arrays, dict]:
    try:
        with np.load(path, allow_pickle=False) as file:
            named = {name: file[name] for name in file.files}
    except safe_unpickle.BROKEN as error:
        reason = f"{error}".splitlines()[0] if f"{error}" else type(error).__name__
        raise UsageError(f"{what} is broken: {reason}.") from error
    notes = named.pop(OURS, None)
    return named, notes_of(None if notes is None else str(notes), what)


def notes_of(text: str | None, what: str) -> dict:
    try:
        notes = json.loads(text) if text else {}
    except json.JSONDecodeError as error:
        raise UsageError(f"{what}: its notes are broken: {error}.") from error
    return notes if isinstance(notes, dict) else {}


def read_torch(path: Path) -> Arrays:
    """The tensors of a file of torch's or detectron2's, wherever they are in it."""
    found = safe_unpickle.read(path)

    def tensors(thing) -> dict:
        thing = thing if isinstance(thing, dict) else {}
        halves = {
            k: v.tensor for k, v in thing.items() if isinstance(v, safe_unpickle.Half)
        }
        both = thing | halves
        return {k: v for k, v in both.items() if isinstance(v, safe_unpickle.Tensor)}

    here = found
    while inside := [k for k in INSIDE if isinstance(here, dict) and is_dict(here, k)]:
        here = here[inside[0]]
    if not tensors(here):
        raise UsageError(f"{path} holds no weights, neither alone nor as {INSIDE}.")

    def arrays():
        return {str(name): x.array() for name, x in tensors(here).items()}

    return safe_unpickle.guarded(arrays, path)


def is_dict(here: dict, key: str) -> bool:
    return isinstance(here.get(key), dict)


# --- writing ---------------------------------------------------------------------


def write_safetensors(path: Path, named: Arrays, notes: Mapping) -> None:
    """Names and arrays, and `notes` as JSON under "mixjax"."""
    notes = {"format": "pt", OURS: json.dumps(notes)}
    from safetensors import numpy  # late, as above

    numpy.save_file(named, path, metadata=notes)


def write_npz(path: Path, named: Arrays, notes: Mapping) -> None:
    """The same in NumPy's form, which has no code in it."""
    with open(path, "wb") as file:
        np.savez(file, **named, **{OURS: np.array(json.dumps(notes))})


def write_detectron2(path: Path, named: Arrays, notes: Mapping) -> None:
    """detectron2's {"model", "__author__", "matching_heuristics"}, a pickle.

    Its instructions are written one by one, so nothing is run here, and neither what
    they say nor who can read them depends on the version of NumPy. notes: not kept.
    """
    with open(path, "wb") as file:
        file.write(b"\x80\x03}(" + text("model") + b"}(")
        for name, array in named.items():
            file.write(text(name))
            instructions(file, array)
        file.write(b"u" + text("__author__") + text("mixjax"))
        file.write(text("matching_heuristics") + b"\x88u.")


def text(word: str) -> bytes:
    encoded = word.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def instructions(file, array: np.ndarray) -> None:
    """Writes what makes `array`: numpy's own way to restore one."""
    number = lambda n: b"J" + struct.pack("<i", n)
    raw = lambda data: b"B" + struct.pack("<I", len(data))
    kind = array.dtype.newbyteorder("<")
    data = np.ascontiguousarray(array, kind).tobytes()
    file.write(b"cnumpy.core.multiarray\n_reconstruct\n")
    file.write(b"cnumpy\nndarray\n" + number(0) + b"\x85" + raw(b"b") + b"b\x87R(")
    file.write(number(1) + b"(" + b"".join(map(number, array.shape)) + b"t")
    # Of dtype: its name, and the state that sets the order of bytes.
    file.write(b"cnumpy\ndtype\n" + text(kind.str[1:]) + b"\x89\x88\x87R(")
    file.write(number(3) + text("<") + b"NNN" + number(-1) * 2 + number(0) + b"tb")
    file.write(b"\x89" + raw(data))
    file.write(data)
    file.write(b"tb")


WRITERS = {
    "safetensors": write_safetensors,
    "npz": write_npz,
    "pkl": write_detectron2,
}


def place(finished: Path, final: Path) -> None:
    """Moves complete files from folder `finished` to `final`, each in one move."""
    final.mkdir(parents=True, exist_ok=True)
    for path in sorted(finished.iterdir(), key=lambda p: p.suffix == ".md"):
        os.replace(path, final / path.name)
