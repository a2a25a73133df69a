"""HTML pages in a single file, without scripts or external resources.

All functions escape their texts; arguments that are HTML already are named so.
"""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mixjax.report.style import STYLE

WIDEST, HEAVIEST = 1400, 600_000  # pixels and bytes; larger pictures are made smaller
LONGEST = 20_000  # characters of a text file; the rest is cut


def escape(value) -> str:
    """A value as text of the page."""
    return html.escape(str(value))


def table(heads: Sequence[str], lines: Sequence[Sequence], label: str) -> str:
    """A table that scrolls in its own box; columns of numbers are aligned right."""
    right = [all(is_number(x) for x in column) for column in zip(*lines, strict=True)]
    kinds = [' class="n"' if r else "" for r in right]
    # The closing tag has no attributes, so it is the first word of `tag`.
    row = lambda tag, cells: "".join(
        f"<{tag}{kind}>{escape(shown(cell))}</{tag.partition(' ')[0]}>"
        for cell, kind in zip(cells, kinds, strict=True)
    )
    head = row('th scope="col"', heads)
    body = "".join(f"<tr>{row('td', line)}</tr>" for line in lines)
    return (
        f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def is_number(x) -> bool:
    """Whether a cell is a number; a bool is none, though Python says so."""
    return isinstance(x, int | float) and not isinstance(x, bool)


def shown(x) -> str:
    """The text of a cell: six digits of a float."""
    return f"{x:.6g}" if isinstance(x, float) else str(x)


def section(name: str, title: str, *parts: str) -> str:
    """A section of the page; "" if all its parts, which are HTML, are empty."""
    body = "".join(filter(None, parts))
    if not body:
        return ""
    return f'<section id="{name}"><h2>{escape(title)}</h2>{body}</section>'


def folded(title: str, body: str) -> str:
    """HTML that a click on its title unfolds; "" if it is empty."""
    if not body:
        return ""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def listing(text: str, label: str) -> str:
    """The beginning of a text file, folded."""
    return folded(label, preformatted(text[:LONGEST]))


def preformatted(text: str) -> str:
    """Preformatted lines in a box that scrolls; "" if they are blank."""
    return f'<pre tabindex="0">{escape(text)}</pre>' if text.strip() else ""


def embedded(path: Path) -> str:
    """A picture as a data URI, smaller if it is huge.

    OSError or SyntaxError, as Pillow has it, if the file is broken.
    """
    raw = path.read_bytes()
    with Image.open(io.BytesIO(raw)) as image:
        image.load()  # opening reads the header alone; this finds broken files
        wide, high = image.size
        if wide > WIDEST or len(raw) > HEAVIEST:
            small = image.convert("RGB")
            small.thumbnail((WIDEST, WIDEST * 4))  # sheets of pictures may be tall
            wide, high = small.size
            buffer = io.BytesIO()
            small.save(buffer, "JPEG", quality=85)
            kind, raw = "jpeg", buffer.getvalue()
        else:
            kind = "png"
    data = base64.b64encode(raw).decode()
    alt = escape(path.stem.replace("_", " "))
    return (
        f'<img src="data:image/{kind};base64,{data}" width="{wide}" height="{high}" '
        f'alt="{alt}">'
    )


def document(title: str, links: str, head: str, body: Sequence[str]) -> str:
    """The whole page. All arguments but `title` are HTML; each ends in a newline."""
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            f'<header>{head}<nav aria-label="Parts">{links}</nav></header>',
            "<main>",
            *filter(None, body),
            "</main></body></html>\n",
        )
    )
