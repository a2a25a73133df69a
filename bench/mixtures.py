"""What a mixture costs beside its base method, in turns.

    python bench/mixtures.py                    ResNet-18 on 32 pixels, float32 on a CPU
    python bench/mixtures.py --batch=512        on a GPU, bfloat16

Every contender is a process of its own that compiles, warms up and waits for its turn;
round after round each takes one training step of its CIFAR-10 recipe on the same
pictures. Prints milliseconds per image, the ratio to the method alone (the median over
rounds of the two turns of a round), the ratio of matrix operations, and the ratio of
passes, a backward pass counted as two: asymmetric MoCo has 4 (two forward, one
backward), and a mixture adds 3.
"""

import statistics

from support import record, take_turns

from mixjax.config import registry

METHODS = {  # name -> (recipe, variants, passes of the method alone)
    "MoCo": ("c10_moco", "", 4),
    "MoCo symmetric": ("c10_moco", "symmetric=1", 8),
    "SimCLR": ("c10_simclr", "", 6),
}
MIXTURES = ["none", "both", *registry.names("mixjax.mixtures")]
CONTENDERS = [f"{m}, {x}" for m in METHODS for x in MIXTURES]


def worker(options) -> None:
    """Prepares one contender, then times a turn whenever asked to."""
    from mixjax.runtime import cpu_settings

    cpu_settings.tune()
    from support import mixjax_step

    from mixjax import mixtures
    from mixjax.config import recipes

    name, mixture = options.worker.split(", ")
    file, variants, _ = METHODS[name]
    added = f"mixture={mixture}"
    if mixture not in ("none", "both"):
        added = mixtures.variant(mixture)
    arg = ",".join(filter(None, (variants, added)))
    config = recipes.load(f"{record.ROOT}/configs/{file}.py:{arg}")
    if options.width:
        encoder, width = config.model.encoder, options.width
        encoder.stem_width, encoder.widths = (
            width,
            tuple(width * n for n in (1, 2, 4, 8)),
        )
    each = 2 if "symmetric" in name else 1
    if "queue" in config.method.objective:
        config.method.objective.queue = options.batch * each * 8
    for section in config.method.mixtures.values():
        section.update(mixtures.for_few(section, options.batch))
    run, facts = mixjax_step.prepare(config, options.batch)
    facts["mixed"] = images_mixed(config.method.mixtures, options.batch)
    for _ in range(2):
        run()
    take_turns.serve(facts, take_turns.timed(run, options.steps))


def images_mixed(sections, batch: int) -> int:
    """The number of mixed images that are encoded for each image of a batch."""
    import jax

    from mixjax import mixtures

    images = jax.ShapeDtypeStruct((batch, 32, 32, 3), "float32")
    makers = mixtures.make(sections).values()
    key = jax.random.key(0)
    return sum(len(jax.eval_shape(mixture, key, images)) for mixture in makers)


def main() -> None:
    parser = take_turns.parser(__doc__, ";".join(CONTENDERS), batch=32)
    parser.add_argument(
        "--width", type=int, help="of the first stage, for a quick look"
    )
    options = parser.parse_args()
    if options.worker:
        return worker(options)

    rows, facts, device = [], {}, ""
    for method, (_, _, passes) in METHODS.items():
        names = [n for n in options.only.split(";") if n.startswith(f"{method}, ")]
        if not names:
            continue
        times, answers = take_turns.race(names, options.rounds)
        facts |= answers
        base = names[0]
        if not device:
            device = answers[base]["device"]
            print(f"{options.batch} images, {options.rounds} rounds on {device}")
            print(f"{'':28}{'ms each':>10}{'time':>10}{'operations':>12}{'passes':>10}")
        for name, seconds in times.items():
            rounds = zip(seconds, times[base], strict=True)
            more = 3 * answers[name]["mixed"]
            row = {
                "name": name,
                "ms_each": 1e3 * statistics.median(seconds) / options.batch,
                "time_ratio": statistics.median(a / b for a, b in rounds),
                "work_ratio": answers[name]["work"] / answers[base]["work"],
                "pass_ratio": 1 + more / passes,
                "rounds": seconds,
            }
            rows.append(row)
            print(
                f"{name:28}{row['ms_each']:10.2f}{row['time_ratio']:10.3f}"
                f"{row['work_ratio']:12.3f}{row['pass_ratio']:10.3f}",
                flush=True,
            )
    record.write(options.json, rows, facts=facts)


if __name__ == "__main__":
    main()
