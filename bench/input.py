"""Images/s of the host pipeline on JPEG files against the same work without it.

    python bench/input.py                      pictures of smooth noise
    python bench/input.py --folder=PHOTOS      real ones, from any folder of pictures

The files are 500 x 375 JPEGs of quality 90 in a temporary folder, read from the page
cache. The work is "decode_crop(224, scale=(.2, 1))", bytes to uint8 crops, in its two
forms: antialias=False, which OpenCV resizes, and antialias=True, which Pillow does.
Each is measured bare, in a plain loop and in plain threads, and as the pipeline: read,
decoded, cropped, batched and put on the devices (here the CPU). tf.data, where
TensorFlow is installed, makes float32 crops without antialiasing, in a process of its
own. All take turns; a line is the median over rounds, a ratio the median of the ratios
of a round. "per core" is images/s over the cores that the threads can fill.
"""

import argparse
import functools
import importlib.util
import itertools
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from support import record, take_turns

HEIGHT, WIDTH, QUALITY = 375, 500, 90
FORMS = {"opencv": "antialias=False", "pillow": "antialias=True"}
TITLES = {
    "decode": "decode, a loop",
    "loop": "decode and crop, a loop",
    "pool": "decode and crop, {} threads",
    "pipeline": "pipeline, {} threads",
    "tfdata": "tf.data, {} threads, float32 crops",
}


# --- the files -------------------------------------------------------------------


def photographs(folder: str):
    """The pictures of `folder` without end, cut to WIDTH x HEIGHT in their middle."""
    from PIL import Image, ImageOps

    from mixjax.data import folders

    paths, _ = folders.find_pictures(Path(folder))
    if not paths:
        sys.exit(f"error: --folder={folder} holds no picture")
    for path in itertools.cycle(paths):
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image).convert("RGB")
        yield ImageOps.fit(image, (WIDTH, HEIGHT), Image.BICUBIC)


def noise():
    """Smooth noise without end; its octaves make files as large as photographs'."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    octaves = ((4, 60), (12, 35), (40, 20), (120, 20))  # cells across, their strength
    while True:
        total = np.full((HEIGHT, WIDTH, 3), 128.0)
        for cells, strength in octaves:
            shape = (3, cells * 3 // 4, cells)
            for c, plane in enumerate(rng.normal(0, strength, shape).astype("f4")):
                plane = Image.fromarray(plane).resize((WIDTH, HEIGHT), Image.BICUBIC)
                total[:, :, c] += plane
        yield Image.fromarray(total.clip(0, 255).astype("u1"))


def write_files(pictures, folder: str, count: int) -> list[str]:
    """Saves `count` of the pictures as JPEGs; their paths."""
    paths = [os.path.join(folder, f"{i:05}.jpg") for i in range(count)]
    for path, picture in zip(paths, pictures, strict=False):
        picture.save(path, quality=QUALITY)
    return paths


# --- the contenders: each a function that sees to `count` images -------------------


def in_threads(work: Callable, threads: int) -> None:
    """Runs work(0) .. work(threads - 1) at the same time."""
    running = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def bare(op: Callable, paths: list[str], count: int, threads: int) -> None:
    """Reads `count` files and gives each to op(bytes, rng), and nothing else."""
    import numpy as np

    def share(number):
        rng = np.random.default_rng(number)
        for path in itertools.islice(itertools.cycle(paths), number, count, threads):
            with open(path, "rb") as file:
                op(file.read(), rng)

    in_threads(share, threads) if threads > 1 else share(0)


def pipeline(options, folder: str, view: str) -> Callable:
    """A function of `count`: the next so many images as batches on the devices."""
    from configs import common
    from mixjax import data
    from mixjax.sharding import meshes

    config = common.data(f"folder:{folder}", "train", "validation")
    config.views, config.eval_view = (view,), view
    config.eval_batch, config.threads = options.batch, options.threads
    mesh = meshes.make(fsdp=1)
    sets = data.make(config, batch=options.batch, seed=0, mesh=mesh)
    first = 0

    def run(count):
        nonlocal first
        end = first + count // options.batch
        for batch in sets.train.batches(first, end):
            batch["images"][0].block_until_ready()
        first = end

    return run


def tfdata(options, paths: list[str]) -> Callable:
    """The same for tf.data, as TensorFlow's own recipes write it."""
    import tensorflow as tf

    def crop(path):
        data = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(data),
            tf.zeros((1, 0, 4)),
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.2, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], axis=0)
        image = tf.io.decode_and_crop_jpeg(data, window, channels=3)
        return tf.image.resize(image, (224, 224), tf.image.ResizeMethod.BICUBIC)

    def run(count):
        files = tf.data.Dataset.from_tensor_slices(paths).repeat().take(count)
        files = files.map(crop, num_parallel_calls=options.threads)
        files = files.batch(options.batch, drop_remainder=True).prefetch(2)
        choice = tf.data.Options()
        choice.threading.private_threadpool_size = options.threads
        for _ in files.with_options(choice):
            pass

    return run


# --- turns -------------------------------------------------------------------------


def timed(run: Callable, count: int) -> dict:
    """Seconds by the clock and of all cores that an image takes."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    run(count)
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    return {"wall": wall / count, "cpu": cpu / count}


def cpu_seconds() -> float:
    """What all threads of this process have used so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def contenders(options, folder: str, paths: list[str]) -> dict:
    """{(form, name): a function of `count`}, all but tf.data."""
    import numpy as np

    from mixjax.data import decode, views

    decoded = lambda data, rng: decode.pixels(data, 3)
    contenders = {
        ("", "decode"): functools.partial(bare, decoded, paths, threads=1),
    }
    for form, antialias in FORMS.items():
        text = f"decode_crop(224, scale=(.2, 1), {antialias})"
        op = views.parse(text, "view").host
        assert op(Path(paths[0]).read_bytes(), np.random.default_rng(0)).shape[0] == 224
        contenders[form, "loop"] = functools.partial(bare, op, paths, threads=1)
        contenders[form, "pool"] = functools.partial(
            bare, op, paths, threads=options.threads
        )
        contenders[form, "pipeline"] = pipeline(options, folder, text)
    return contenders


def measure(options, folder: str, paths: list[str]) -> tuple[dict, str]:
    """({(form, name): the costs of its turns}, why tf.data did not run or "")."""
    parts = contenders(options, folder, paths)
    takes = {
        k: functools.partial(timed, run, options.images) for k, run in parts.items()
    }
    end = lambda: None
    absent = "" if options.tfdata else "--no-tfdata"
    if options.tfdata and importlib.util.find_spec("tensorflow") is None:
        absent = "TensorFlow is absent"
    if not absent:
        try:
            quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "XLA_FLAGS": "", "FILES": folder}
            takes["opencv", "tfdata"], end, _ = take_turns.start("tfdata", **quiet)
        except take_turns.NotStarted as error:
            absent = f"it did not start: {error}"
    for run in parts.values():
        run(options.batch)
    costs = {key: [] for key in takes}
    for _ in range(options.rounds):
        for key, take in takes.items():
            costs[key].append(take())
    end()
    return costs, absent


def worker(options) -> None:
    """The process of tf.data."""
    paths = sorted(str(p) for p in Path(os.environ["FILES"]).iterdir())
    run = tfdata(options, paths)
    run(options.batch)
    take_turns.serve({}, lambda: timed(run, options.images))


# --- the report --------------------------------------------------------------------


def rows_of(costs: dict, threads: int) -> list[dict]:
    """A line of the table for each contender."""
    rows = []
    for (form, name), turns_ in costs.items():
        wall = statistics.median(t["wall"] for t in turns_)
        cores = 1 if name in ("decode", "loop") else min(threads, record.cores())
        rows.append(
            {
                "form": FORMS.get(form, ""),
                "name": name,
                "img_per_sec": 1 / wall,
                "img_per_sec_per_core": 1 / wall / cores,
                "cpu_s_per_img": statistics.median(t["cpu"] for t in turns_),
                "rounds": turns_,
            }
        )
    return rows


def ratio(costs: dict, of: tuple, to: tuple, what: str) -> float:
    """How many times as fast `of` is as `to`, by "wall" or "cpu" seconds."""
    pairs = zip(costs[of], costs[to], strict=True)
    return statistics.median(b[what] / a[what] for a, b in pairs)


def ratios_of(costs: dict, threads: int) -> list[dict]:
    """The pipeline against the bare forms of its own work, and against tf.data."""
    used = min(threads, record.cores())
    rows = []
    for form in FORMS:
        own, loop, pool = ((form, n) for n in ("pipeline", "loop", "pool"))
        rows.append(
            {
                "form": FORMS[form],
                "to": "bare decode and crop",
                "per_core": ratio(costs, own, loop, "wall") / used,
                "threads": ratio(costs, own, pool, "wall"),
                "cpu": ratio(costs, own, loop, "cpu"),
            }
        )
    if ("opencv", "tfdata") in costs:
        own, other = ("opencv", "pipeline"), ("opencv", "tfdata")
        rows.append(
            {
                "form": FORMS["opencv"],
                "to": "tf.data",
                "threads": ratio(costs, own, other, "wall"),
                "cpu": ratio(costs, own, other, "cpu"),
            }
        )
    return rows


def report(options, rows: list[dict], ratios: list[dict], absent: str) -> None:
    """Prints the tables."""
    print(f"{'':54}{'img/s':>8}{'per core':>10}{'CPU ms/img':>12}")
    for row in rows:
        title = TITLES[row["name"]].format(options.threads)
        print(
            f"{row['form']:17}{title:37}{row['img_per_sec']:8.0f}"
            f"{row['img_per_sec_per_core']:10.0f}{1e3 * row['cpu_s_per_img']:12.3f}"
        )
    if absent:
        print(f"{FORMS['opencv']:17}{'tf.data':37}not run: {absent}")
    print("\nthe pipeline's speed as a share of")
    for row in ratios:
        if row["to"] == "tf.data":
            print(
                f"{row['form']:17}tf.data  {row['threads']:.2f} by the clock, "
                f"{row['cpu']:.2f} by CPU time"
            )
            continue
        print(
            f"{row['form']:17}bare decode and crop per core  {row['per_core']:.1%} of "
            f"a loop by the clock, {row['cpu']:.1%} by CPU time, {row['threads']:.1%} "
            f"of as many plain threads"
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", help="take the pictures from here; else noise")
    parser.add_argument("--files", type=int, default=512)
    parser.add_argument("--threads", type=int, default=record.cores())
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=2048, help="a turn's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tfdata", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.images = -(-options.images // options.batch) * options.batch
    return options


def main() -> None:
    options = arguments()
    if options.worker:
        return worker(options)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from mixjax.runtime import cpu_settings

    cpu_settings.tune()
    with tempfile.TemporaryDirectory(prefix="mixjax-bench-") as folder:
        pictures = photographs(options.folder) if options.folder else noise()
        paths = write_files(pictures, folder, options.files)
        size = sum(os.path.getsize(p) for p in paths) / len(paths)
        about = (
            f"{len(paths)} JPEGs of {WIDTH} x {HEIGHT}, {size / 1e3:.0f} kB on average"
            + ", "
            + ("from photographs" if options.folder else "generated smooth noise")
        )
        print(
            f"{about}; batch {options.batch}, {options.rounds} rounds of "
            f"{options.images} images, {record.cores()} cores of {record.processor()}"
        )
        costs, absent = measure(options, folder, paths)
    rows = rows_of(costs, options.threads)
    ratios = ratios_of(costs, options.threads)
    report(options, rows, ratios, absent)
    record.write(options.json, rows, ratios=ratios, files=about, absent=absent)


if __name__ == "__main__":
    main()
