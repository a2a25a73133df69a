"""What the masked methods cost beside MAE with the same ViT, in turns.

    python bench/methods.py                         ViT-S/16, float32 on the CPU
    python bench/methods.py --model=B --batch=256   on a GPU, bfloat16

Every contender is a process of its own that compiles, warms up and waits for its turn;
round after round each takes one. All get --batch images or views: MixedAE so many
images in groups of four, MI-MAE a quarter as many in four views each. Prints
milliseconds per image (per view of MI-MAE), the ratio to MAE (the median over rounds of
the two turns of a round), and the ratio of matrix operations. The naive row is MixedAE
with global attention and without codes and contrast; steps are those of the recipes.
"""

import statistics

from support import record, take_turns

# name -> (file of configs/, variants, views of an image)
CONTENDERS = {
    "MAE": ("mae", "", 1),
    "MixedAE": ("mixedae", "", 1),
    "MixedAE, naive": ("mixedae", "attend=global,segment=0,homocon=0", 1),
    "MixedAE, no TopK": ("mixedae", "attend=global", 1),
    "MI-MAE": ("mimae", "", 4),
}
SIZES = ("S", "B", "L")


def worker(options) -> None:
    """Prepares one contender, then times a turn whenever asked to."""
    from mixjax.runtime import cpu_settings

    cpu_settings.tune()
    from support import mixjax_step

    from mixjax.config import recipes

    file, variants, views = CONTENDERS[options.worker]
    path = record.ROOT / "configs" / f"{file}_vit{options.model.lower()}.py"
    config = recipes.load(f"{path}:{variants}")
    if options.layers:
        config.model.encoder.depth = config.model.decoder.depth = options.layers
    run, facts = mixjax_step.prepare(config, options.batch // views)
    for _ in range(2):
        run()

    take_turns.serve(facts, take_turns.timed(run, options.steps))


def main() -> None:
    parser = take_turns.parser(__doc__, ";".join(CONTENDERS), batch=16)
    parser.add_argument("--model", choices=SIZES, default="S")
    parser.add_argument("--layers", type=int, help="of encoder and decoder each")
    options = parser.parse_args()
    if options.worker:
        return worker(options)

    times, facts = take_turns.race(options.only.split(";"), options.rounds)
    base = next(iter(times))
    print(
        f"ViT-{options.model}/16, {options.batch} images or views, {options.rounds} "
        f"rounds of {options.steps} on {facts[base]['device']}, "
        f"{facts[base]['versions']}"
    )
    print(f"{'':20}{'ms each':>10}{'time':>10}{'operations':>12}  of {base}")
    rows = []
    for name, seconds in times.items():
        pairs = zip(seconds, times[base], strict=True)
        row = {
            "name": name,
            "ms_each": 1e3 * statistics.median(seconds) / options.batch,
            "time_ratio": statistics.median(a / b for a, b in pairs),
            "work_ratio": facts[name]["work"] / facts[base]["work"],
            "rounds": seconds,
        }
        rows.append(row)
        print(
            f"{name:20}{row['ms_each']:10.2f}{row['time_ratio']:10.3f}"
            f"{row['work_ratio']:12.3f}"
        )
    record.write(options.json, rows, facts=facts)


if __name__ == "__main__":
    main()
