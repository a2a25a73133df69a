"""Bytes of MAE's large recipes on each of 8 devices: whole copies against fsdp=8.

    python bench/fsdp_memory.py --json=results/bench_memory.json

The recipes of configs/mae_vitl.py and configs/mae_vith.py as they are but for --batch,
on blank pictures: the state is laid out, and the real training step compiled, for
simulated devices; nothing is trained. Parameters and optimizer do not depend on the
batch, temporaries do. These are what XLA's CPU backend plans for; another device fuses
in its own way. Code generation is cut short, which changes no buffer
(xla_backend_optimization_level=0).
"""

import argparse
import os

from support import record

RECIPES = ("mae_vitl", "mae_vith")
CARDS = (16, 24, 32, 40, 80, 96, 141)  # GB: TPU v3 core and T4 have 16, an H200 141
QUICK = {"xla_backend_optimization_level": 0}


def measure(path: str, changes: dict[str, str], fsdp: int) -> dict:
    """A row: what each device has of a recipe whose copies are cut into `fsdp`."""
    from mixjax import models
    from mixjax.config import recipes
    from mixjax.data import stand_in
    from mixjax.profiling import collectives
    from mixjax.training import explain_step

    config = recipes.override(recipes.load(path), changes)
    config.mesh.fsdp = fsdp
    config.data.on_device = False  # of blank pictures there is no end
    source = stand_in.source(config, models.make(config.model).geometry)
    step = explain_step.compile_step(config, source, QUICK)
    per_device, total = explain_step.measure_state(step.run)
    sent = sum(c.bytes for c in collectives.parse(step.code))
    return {
        "recipe": os.path.basename(path).partition(".")[0],
        "fsdp": fsdp,
        "devices": step.run.mesh.size,
        "batch": config.batch,
        "state_bytes": per_device,  # parameters and optimizer
        "share": per_device / total,
        "temporary_bytes": step.memory.temp_size_in_bytes,
        "collective_bytes": sent,
        "compile_s": step.seconds,
    }


def least_card(size: float) -> str:
    """The smallest of CARDS, in GB, that holds `size` bytes."""
    return next((f"{card} GB" for card in CARDS if size <= card * 1e9), "none")


def report(rows: list[dict]) -> None:
    """Prints the table."""
    first = rows[0]
    print(
        f"each of {first['devices']} simulated devices, batch {first['batch']}, GB "
        f"(10^9 bytes), jax {record.versions()['jax']}"
    )
    print(
        f"{'':24}{'parameters':>12}{'share of':>10}{'tempo-':>10}{'sent in':>10}"
        f"{'fits, by':>12}{'compiled':>10}"
    )
    print(
        f"{'':24}{'+ optimizer':>12}{'a copy':>10}{'raries':>10}{'a step':>10}"
        f"{'the sum':>12}{'s':>10}"
    )
    for row in rows:
        total = row["state_bytes"] + row["temporary_bytes"]
        print(
            f"{row['recipe'] + ', fsdp=' + str(row['fsdp']):24}"
            f"{row['state_bytes'] / 1e9:12.2f}{row['share']:10.3f}"
            f"{row['temporary_bytes'] / 1e9:10.2f}{row['collective_bytes'] / 1e9:10.2f}"
            f"{least_card(total):>12}{row['compile_s']:10.0f}"
        )
    print(
        "fits: the smallest of cards with "
        f"{', '.join(map(str, CARDS))} GB that holds state and temporaries, as "
        "arithmetic"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog="--config.FIELD=VALUE sets a field of all recipes.",
    )
    parser.add_argument("--recipes", default=",".join(RECIPES), help="of configs/")
    parser.add_argument("--batch", type=int, default=128, help="over all devices")
    parser.add_argument("--json", help="write the figures to this file")
    options, changes = parser.parse_known_args()
    if wrong := [c for c in changes if not c.startswith("--config.")]:
        parser.error(f"unknown: {' '.join(wrong)}")
    fields = dict(c.lstrip("-").split("=", 1) for c in changes)
    fields |= {"config.batch": str(options.batch)}
    from mixjax.doctor import devices

    devices.simulate(8)
    rows = []
    for name in options.recipes.split(","):
        for fsdp in (1, 8):
            path = str(record.ROOT / "configs" / f"{name}.py")
            rows.append(measure(path, fields, fsdp))
    report(rows)
    record.write(options.json, rows, batch=options.batch, flags=changes)


if __name__ == "__main__":
    main()
