"""Where the time of a training step goes: part by part, recipes side by side.

    python bench/step_profile.py "--of=mae_vits.py;mimae_vits.py" --batch=16 --views=1,4

Each recipe's step is compiled as in training and traced for a few steps, one after the
other; every operation counts for the part of the network that it comes from, forward
and backward, or for what is around it. Columns are milliseconds of a step. --views: of
an image, of each recipe, so that all get --batch views.
"""

import argparse
import gzip
import json
import re
import tempfile
from pathlib import Path

from support import gpu_steps, record

STEPS = 3
PARTS = {  # as an operation's path names them
    "encoder": r"\((ViT|Beit|Swin|ResNet)\)",
    "decoder": r"\(TokenDecoder\)",
    "pixel head": r"\(PixelHead\)",
    "variational network": r"\(Variational\)",
    "projectors": r"\((Token|Region)?Projector\)|\(Predictor\)|\(Prototypes\)",
    "losses and masks": r"jvp\(",
    "optimizer": r"",
}
INSIDE = {"attention": r"/attn/", "mlp": r"/mlp/", "norms and sums": r""}


def part_of(where: str) -> str:
    """ "transpose(jvp(ViT))/blocks_3/attn/qkv/mul" -> "encoder, attention"."""
    part = next(p for p, regex in PARTS.items() if re.search(regex, where))
    if part not in ("encoder", "decoder"):
        return part
    return f"{part}, {next(k for k, v in INSIDE.items() if re.search(v, where))}"


def by_part(recipe: str, batch: int) -> dict[str, float]:
    """{part: milliseconds of a step} of a recipe with so many images."""
    import jax
    from support import mixjax_step

    from mixjax.config import recipes

    file, _, variants = recipe.partition(":")
    parts = mixjax_step.make(
        recipes.load(f"{record.ROOT}/configs/{file}:{variants}"), batch
    )
    compiled = parts.step.lower(*parts.shapes).compile()
    state, inputs, resident = parts.arguments()
    for _ in range(2):
        state, _ = compiled(state, inputs, resident)
    jax.block_until_ready(state)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                state, _ = compiled(state, inputs, resident)
            jax.block_until_ready(state)
        (file,) = Path(folder).rglob("*.trace.json.gz")
        with gzip.open(file) as opened:
            spans = gpu_steps.operations(json.load(opened))
    places, milliseconds = gpu_steps.places(compiled), {}
    for span, own in zip(spans, gpu_steps.own_times(spans), strict=True):
        operation = span.get("args", {}).get("hlo_op", span["name"])
        part = part_of(places.get(operation, ""))
        milliseconds[part] = milliseconds.get(part, 0.0) + own / 1e3 / STEPS
    return milliseconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--of", default="mae_vits.py;mimae_vits.py", help="recipes")
    parser.add_argument("--batch", type=int, default=16, help="views in a step")
    parser.add_argument("--views", default="1,4", help="of an image, of each recipe")
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args()
    from mixjax.runtime import cpu_settings

    cpu_settings.tune()
    views = [int(v) for v in options.views.split(",")]
    columns = {
        recipe: by_part(recipe, options.batch // each)
        for recipe, each in zip(options.of.split(";"), views, strict=True)
    }
    parts = sorted({p for c in columns.values() for p in c})
    print(f"{'ms a step':32}" + "".join(f"{recipe:>24}" for recipe in columns))
    for part in parts:
        print(
            f"{part:32}" + "".join(f"{c.get(part, 0):24.1f}" for c in columns.values())
        )
    total = "".join(f"{sum(c.values()):24.1f}" for c in columns.values())
    print(f"{'all':32}{total}")
    rows = [{"recipe": r, "ms": c} for r, c in columns.items()]
    record.write(options.json, rows)


if __name__ == "__main__":
    main()
