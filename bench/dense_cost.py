"""What a picture costs in each recipe of segmentation and detection, and how it grows.

    python bench/dense_cost.py [--only=coco_vitdet_vitb] [--json=FILE]

Matrix operations of forward and backward pass, counted on shapes, and bytes that the
backward pass keeps, before the compiler fuses, of one picture at the recipe's size;
bytes of parameters and optimizer. Then the same with sides of one half, and with half
and twice as many regions. Nothing is compiled or run: where devices are at hand,
bench/step.py measures. Rematerialised work is not counted.
"""

import argparse
import json

from support import record

BATCH = 2
RECIPES = (
    "ade20k_uper_vitb:bias=1",
    "ade20k_uper_vitl",
    "coco_vitdet_vitb",
    "coco_cascade_vitl",
    "coco_cascade_vitl:form=detectron2",
    "coco_c4_r50",
    "voc_c4_r50",
)


def halved(config) -> dict:
    """{field: value} of a canvas with sides of one half."""
    side = config.model.encoder.image_size[0]
    small = side // 32 * 16
    shrink = lambda view: view.replace(f"canvas={side}", f"canvas={small}").replace(
        f"jitter({side}", f"jitter({small}"
    )
    shrink_crop = lambda view: shrink(view).replace(f"crop({side}", f"crop({small}")
    return {
        "model.encoder.image_size": (small, small),
        "data.views": tuple(shrink_crop(v) for v in config.data.views),
        "data.eval_view": shrink(config.data.eval_view).replace(
            f"fit({side}, longest={side}", f"fit({small}, longest={small}"
        ),
    }


def variants(config) -> dict[str, dict]:
    """{what: fields} to count a recipe with."""
    variants = {"as it is": {}, "half the side": halved(config)}
    if config.method.name == "detect":
        for word, factor in (("half", 0.5), ("twice", 2)):
            samples = int(config.method.boxes.samples * factor)
            variants[f"{word} the regions"] = {"method.boxes.samples": samples}
    return variants


def measure(name: str, what: str, fields: dict) -> dict:
    """A row: the costs of one picture of a recipe with `fields` changed."""
    import jax

    from mixjax import data, models
    from mixjax.config import recipes
    from mixjax.data import stand_in
    from mixjax.profiling import device_memory
    from mixjax.sharding import meshes
    from mixjax.training import build

    file, _, argument = name.partition(":")
    config = recipes.load(f"{record.ROOT}/configs/{file}.py:{argument}")
    # Two, for a batch norm of one value knows no spread.
    config.update_from_flattened_dict({**fields, "batch": BATCH})
    mesh = meshes.make(fsdp=1)
    source = stand_in.source(config, models.make(config.model).geometry)
    how = dict(batch=BATCH, seed=0, mesh=mesh, opened=(source, source))
    run = build.assemble(config, mesh, data.make(config.data, **how))
    rows = lambda x: jax.ShapeDtypeStruct((BATCH, *x.shape[1:]), x.dtype)
    batch = jax.tree.map(rows, run.example)
    kept = device_memory.kept(run.method.loss, run.layout, batch)
    return {
        "recipe": name,
        "what": what,
        "tflop": operations(config, run, batch) / BATCH / 1e12,
        "kept_bytes": kept.examples // BATCH,
        "state_bytes": device_memory.total(run.layout),
    }


def operations(config, run, batch) -> float:
    """Matrix operations of the gradient on a batch, without what remat repeats."""
    import jax
    import optax

    from mixjax import methods, models
    from mixjax.profiling import flops
    from mixjax.training.initial_state import first_state

    model = config.model.to_dict()
    for part in model.values():
        if isinstance(part, dict) and "remat" in part:
            part["remat"] = False if part["remat"] in (True, False) else "none"
    network = models.make(model)
    method = methods.make(config.method, network, clock=run.clock)

    def gradient(variables, batch):
        state = first_state(variables, optax.identity())
        key = jax.random.key(0)
        return jax.grad(lambda p: method.loss(p, state, batch, key)[0])(state.params)

    return flops.count(gradient, run.variables, batch)


def main() -> None:
    from mixjax.config import recipes
    from mixjax.profiling import device_memory

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(RECIPES))
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args()
    rows = []
    print(f"{'recipe':36}{'':20}{'TFLOP':>8}{'kept':>13}{'state':>13}")
    for name in options.only.split(","):
        file, _, argument = name.partition(":")
        config = recipes.load(f"{record.ROOT}/configs/{file}.py:{argument}")
        for what, fields in variants(config).items():
            row = measure(name, what, fields)
            sizes = (
                device_memory.text(row["kept_bytes"]),
                device_memory.text(row["state_bytes"]),
            )
            print(f"{name:36}{what:20}{row['tflop']:8.3f}{sizes[0]:>13}{sizes[1]:>13}")
            rows.append(row)
    record.write(options.json, json.loads(json.dumps(rows)))


if __name__ == "__main__":
    main()
