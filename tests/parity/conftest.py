"""Reference numbers: arrays that public implementations computed.

MIXJAX_FIXTURES names another folder of files of the same form; sizes and settings are
taken from the files.
"""

import os
import re
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(os.environ.get("MIXJAX_FIXTURES", Path(__file__).parent / "fixtures"))


class Reference:
    """One file of reference numbers."""

    def __init__(self, name: str):
        with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
            self.arrays = {key: file[key] for key in file.files}

    def __getitem__(self, key: str):
        array = self.arrays[key]
        return array.item() if array.ndim == 0 else array

    def part(self, prefix: str) -> dict:
        """{"b": ...} from all "prefix/b"."""
        start = prefix + "/"
        return {
            k[len(start) :]: v for k, v in self.arrays.items() if k.startswith(start)
        }

    def variants(self) -> set[str]:
        """Names of settings that the file holds apart from the main one."""
        return {k.split("/")[1] for k in self.arrays if re.match("hp/.*/", k)}

    def check(self, key: str, value, expected=None) -> None:
        """Asserts |value - out/key| <= tol/key; integers must be equal."""
        expected = self.arrays[f"out/{key}"] if expected is None else expected
        value = np.asarray(value)
        assert value.shape == expected.shape, (key, value.shape, expected.shape)
        if f"tol/{key}" not in self.arrays:
            np.testing.assert_array_equal(value, expected, err_msg=key)
            return
        error = np.abs(value.astype(np.float64) - expected).max(initial=0)
        assert error <= self[f"tol/{key}"], f"{key}: {error} > {self[f'tol/{key}']}"


@pytest.fixture
def reference():
    """reference("mae_pretrain") opens that file."""
    return Reference
