"""Whose names a file has: the dialects that are read, and which of them fits best."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from mixjax.errors import UsageError
from mixjax.export import resnet, swin, vit
from mixjax.export.name_rules import Arrays, Rule, place_of, to_ours


class Dialect(NamedTuple):
    """The names of one kind of encoder and of what may be on it."""

    name: str
    encoder: str  # a file of models/
    rules: tuple[Rule, ...]


DIALECTS = (  # where two fit equally well, the first is taken
    Dialect("timm or MAE", "vit", (*vit.MAE, *vit.HEAD, *vit.PROBE)),
    Dialect("Hugging Face's ViT", "vit", vit.HF_WHOLE),
    Dialect("Hugging Face's ViT", "vit", vit.HF_WHOLE_MEMORY),
    Dialect("Hugging Face's ViT", "vit", vit.HF_WHOLE_SLIP),
    Dialect("Hugging Face's ViT", "vit", vit.HF),
    Dialect("Hugging Face's ViT", "vit", vit.HF_MEMORY),
    Dialect("timm's BEiT", "beit", (*vit.BEIT, *vit.HEAD)),
    Dialect("SimMIM's ViT", "beit", vit.SIMMIM),
    Dialect("timm's Swin", "swin", swin.TIMM),
    Dialect("Microsoft's Swin", "swin", swin.MICROSOFT),
    Dialect("SimMIM's Swin", "swin", swin.SIMMIM),
    Dialect("Hugging Face's Swin", "swin", swin.HF_WHOLE),
    Dialect("Hugging Face's Swin", "swin", swin.HF_WHOLE_MEMORY),
    Dialect("Hugging Face's Swin", "swin", swin.HF),
    Dialect("Hugging Face's Swin", "swin", swin.HF_MEMORY),
    Dialect("MoCo", "resnet", resnet.MOCO),
    Dialect("torchvision", "resnet", resnet.TORCHVISION),
    Dialect("detectron2", "resnet", resnet.DETECTRON2),
)
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "encoder_q.")
PREFIXES += ("base_encoder.", "student.", "net.")
# Buffers that follow from the configuration, and parts that are of no use here.
UNUSED = re.compile(
    r"(.*\.)?(num_batches_tracked|relative_position_index|attn_mask|queue|queue_ptr)"
    r"|(.*\.)?(encoder_k|momentum_encoder|teacher|projection_head|prototypes|predictor"
    r"|pooler|momentum|head_dist)\..*"
)


def stripped(named: Arrays) -> Iterator[Arrays]:
    """The names as they are, then without prefixes; what has another one is dropped."""
    waiting = [named]
    for _ in range(200):
        if not waiting:
            return
        now = waiting.pop(0)
        yield now
        for prefix in PREFIXES:
            inside = [n for n in now if n.startswith(prefix)]
            if inside:
                waiting.append({n[len(prefix) :]: now[n] for n in inside})


def recognise(named: Arrays, what: str) -> tuple[Dialect, Arrays]:
    """The dialect that names most of the tensors, and the tensors under its names.

    what: to call the file in messages. UsageError if none fits, or if tensors are left
    that the best does not know.
    """
    best, most, chosen = None, 0, named
    for names in stripped(named):
        for dialect in DIALECTS:
            known = sum(place_of(n, dialect.rules) is not None for n in names)
            if known > most:
                best, most, chosen = dialect, known, names
    if best is None:
        raise UsageError(
            f"{what}: none of its {len(named)} tensors has a name that is known here "
            f"(timm, torchvision, MAE, MoCo, SimMIM, detectron2, Hugging Face); they "
            f"begin with {', '.join(sorted(named)[:3])}."
        )
    left = [
        n for n in chosen if place_of(n, best.rules) is None and not UNUSED.fullmatch(n)
    ]
    if left:
        raise UsageError(
            f"{what} looks like {best.name}, but {len(left)} of its tensors are of "
            f"another network: {', '.join(left[:4])}."
        )
    return best, chosen


def ours(named: Arrays, dialect: Dialect, what: str) -> Arrays:
    """{our path: array} of tensors of a dialect; UsageError names the file."""
    try:
        return to_ours(named, dialect.rules)
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from error
