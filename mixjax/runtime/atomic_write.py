"""Files that are replaced atomically, so that nobody ever reads half of one."""

import os
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Replaces the content of a file by `text`."""
    # A rename within one folder is atomic; a write is not.
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    os.replace(new, path)
