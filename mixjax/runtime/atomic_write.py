"""Files that are replaced in one move, so that nobody ever reads half of one."""

import os
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Puts `text` in the place of what a file held."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    os.replace(new, path)
