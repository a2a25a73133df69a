"""Images/s of the augmentation on the device against Pillow's on the host.

    python bench/augment.py                      generated pictures, 32 x 32
    python bench/augment.py --data=cifar10.npz   real ones: its array train_image

The work is the view of MoCo on CIFAR, from uint8 pictures in memory to normalised
float32 batches: as mixjax does it, jitted, from a set that lies on the device; and as
torchvision does it on Pillow's images, in a plain loop and in one thread per core. All
take turns; a line is the median over rounds, a ratio the median of the ratios of a
round. Threads share one interpreter, so processes may do better: at most as many times
the loop as there are cores, which is what "per core" compares with.
"""

import argparse
import random
import statistics
from collections.abc import Callable

from input import in_threads, timed
from support import record

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201)
VIEW = (
    "crop(32, scale=(.08, 1), filter='bilinear') | flip | "
    f"jitter(.4, .4, .4, .1, p=.8) | gray(.2) | normalize({MEAN}, {STD})"
)


def generated(count: int):
    """Smooth noise, uint8 [count, 32, 32, 3]."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    smooth = (Image.fromarray(c).resize((32, 32), Image.BICUBIC) for c in coarse)
    return np.stack([np.asarray(image) for image in smooth])


# --- the contenders: each a function that sees to `count` images -------------------


def device(images, batch: int) -> Callable[[int], None]:
    """The view as a train step runs it, one batch after the other."""
    import jax

    from mixjax.data import views

    view = views.parse(VIEW, "view")
    resident = jax.device_put(images)

    @jax.jit
    def step(resident, number):
        start = number * batch % (len(images) - batch + 1)
        rows = jax.lax.dynamic_slice_in_dim(resident, start, batch)
        key = jax.random.fold_in(jax.random.key(0), number)
        return jax.vmap(view.device)(jax.random.split(key, batch), rows)

    def run(count):
        for number in range(-(-count // batch)):
            out = step(resident, number)
        out.block_until_ready()

    return run


def jitter(image, rng: random.Random):
    """ColorJitter(.4, .4, .4, .1) of torchvision, on Pillow's images."""
    import numpy as np
    from PIL import Image, ImageEnhance

    kinds = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color, None]
    rng.shuffle(kinds)
    for kind in kinds:
        if kind:
            image = kind(image).enhance(rng.uniform(0.6, 1.4))
            continue
        hue, saturation, value = image.convert("HSV").split()
        shift = np.uint8(int(255 * rng.uniform(-0.1, 0.1)) % 256)
        hue = Image.fromarray(np.asarray(hue) + shift)
        image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    return image


def pillow_view(picture, rng: random.Random, box_rng):
    """VIEW of one picture uint8 [32, 32, 3] -> float32."""
    import numpy as np
    from PIL import Image

    from mixjax.data import host_ops

    box = host_ops.sample_box(32, 32, (0.08, 1), (3 / 4, 4 / 3), box_rng)
    top, left, height, width = box
    image = Image.fromarray(picture).crop((left, top, left + width, top + height))
    image = image.resize((32, 32), Image.BILINEAR)
    if rng.random() < 0.5:
        image = image.transpose(Image.FLIP_LEFT_RIGHT)
    if rng.random() < 0.8:
        image = jitter(image, rng)
    if rng.random() < 0.2:
        image = image.convert("L").convert("RGB")
    scaled = np.asarray(image, np.float32) / 255
    return (scaled - np.float32(MEAN)) / np.float32(STD)


def pillow(images, threads: int) -> Callable[[int], None]:
    """The same on the host, without batching."""
    import numpy as np

    def run(count):
        def share(number):
            rng, box_rng = random.Random(number), np.random.default_rng(number)
            for i in range(number, count, threads):
                pillow_view(images[i % len(images)], rng, box_rng)

        in_threads(share, threads) if threads > 1 else share(0)

    return run


# --- the report --------------------------------------------------------------------


def rows_of(costs: dict[str, list[dict]]) -> list[dict]:
    """A line of the table for each contender."""
    return [
        {
            "name": name,
            "img_per_sec": 1 / statistics.median(t["wall"] for t in turns),
            "cpu_s_per_img": statistics.median(t["cpu"] for t in turns),
            "rounds": turns,
        }
        for name, turns in costs.items()
    ]


def ratio(costs: dict, to: str) -> float:
    """How many times as fast the device is by the clock."""
    pairs = zip(costs["device"], costs[to], strict=True)
    return statistics.median(b["wall"] / a["wall"] for a, b in pairs)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help=".npz file with train_image; else generated")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--images", type=int, default=8192, help="a turn's")
    parser.add_argument("--threads", type=int, default=record.cores())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write the figures to this file")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    from mixjax.runtime import cpu_settings

    cpu_settings.tune()
    import jax

    from mixjax.data import sources

    if options.data:
        images = sources.open_source(f"npz:{options.data}", "train", "").images
    else:
        images = generated(max(2048, options.batch))
    takes = {
        "device": device(images, options.batch),
        "loop": pillow(images, 1),
        "threads": pillow(images, options.threads),
    }
    titles = {
        "device": f"mixjax, batch {options.batch}, {jax.devices()[0].device_kind}",
        "loop": "Pillow, a loop",
        "threads": f"Pillow, {options.threads} threads",
    }
    costs = {name: [] for name in takes}
    for run in takes.values():
        run(options.batch)
    for _ in range(options.rounds):
        for name, run in takes.items():
            costs[name].append(timed(run, options.images))

    rows = rows_of(costs)
    ratios = {to: ratio(costs, to) for to in ("loop", "threads")}
    ratios["per core"] = ratios["loop"] / record.cores()
    what = options.data or "generated pictures"
    print(
        f"{VIEW}\n{what}, {options.rounds} rounds of {options.images} images, "
        f"{record.cores()} cores of {record.processor()}"
    )
    print(f"{'':40}{'img/s':>9}{'CPU us/img':>12}")
    for row in rows:
        cpu_us = 1e6 * row["cpu_s_per_img"]
        print(f"{titles[row['name']]:40}{row['img_per_sec']:9.0f}{cpu_us:12.1f}")
    print(
        f"\nthe device is {ratios['loop']:.2f} times as fast as the loop, "
        f"{ratios['per core']:.2f} times as a loop per core, {ratios['threads']:.2f} "
        f"times as the threads"
    )
    record.write(options.json, rows, ratios=ratios, view=VIEW, data=what)


if __name__ == "__main__":
    main()
