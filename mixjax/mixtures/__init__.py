"""Mixtures: of whole images in pairs (unmix, mixmask, erase), chosen by name; of tokens
(masking, homologous mixing).

`name` of a section is a file of this folder that offers `make`; the section's own name
is what its terms are called in the metrics.
"""

from collections.abc import Callable, Mapping

from mixjax.config.registry import call, makers, take
from mixjax.errors import check_name


def make(config: Mapping) -> dict[str, Callable]:
    """{section: (rng, images [B, H, W, C]) -> tuple of Mixed}.

    UsageError names a field that is wrong.
    """
    known, found = makers(__name__), {}
    for section, fields in config.items():
        field = f"mixtures.{section}"
        (name,) = take(field, dict(fields), "name")
        check_name(f"{field}.name", name, known)
        found[section] = call(field, known[name], fields)
    return found
