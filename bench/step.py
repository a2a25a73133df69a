"""One MAE training step of mixjax against PyTorch, the same sizes, in turns.

    python bench/step.py                     ViT-S/16, 16 images, float32 on the CPU
    python bench/step.py --model=B --batch=256     on a GPU, bfloat16

Each contender is a process of its own that compiles, warms up, and then waits for its
turn: round after round, one runs while the others sleep, so that a busy machine slows
all alike. A step is forward, backward and AdamW on images that are there already.
PyTorch's contenders are ViTMAEForPreTraining of transformers: eager with the default
AdamW, eager with the fused one, and torch.compile with the fused one (on a GPU all
under bfloat16 autocast). Prints images/s (median over rounds), GFLOP/s or MFU from the
same count of matrix operations for all, and the ratio of mixjax to each.
"""

import statistics
import time

from support import record, take_turns

SIZES = {  # width, depth, heads, patch
    "Ti": (192, 12, 3, 16),
    "S": (384, 12, 6, 16),
    "B": (768, 12, 12, 16),
    "L": (1024, 24, 16, 16),
    "H": (1280, 32, 16, 14),
}
CONTENDERS = {
    "mixjax": "mixjax",
    "eager": "PyTorch eager, default AdamW",
    "fused": "PyTorch eager, fused AdamW",
    "compile": "PyTorch torch.compile, fused AdamW",
}


def mixjax_step(options):
    """A function that runs one step and returns when it is done."""
    from mixjax.runtime import cpu_settings

    cpu_settings.tune()
    from support import mixjax_step

    from configs import masked

    config = masked.imagenet(options.model, SIZES[options.model][3], 800)
    if options.layers:
        config.model.encoder.depth = config.model.decoder.depth = options.layers
    return mixjax_step.prepare(config, options.batch)


def vitmae(size: tuple[int, int, int, int], layers: int | None):
    """ViTMAEForPreTraining of a size, untrained; layers: of encoder and decoder."""
    import transformers

    width, depth, heads, patch = size
    config = transformers.ViTMAEConfig(
        hidden_size=width,
        num_hidden_layers=layers or depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        patch_size=patch,
        decoder_hidden_size=512,
        decoder_num_hidden_layers=layers or 8,
        decoder_num_attention_heads=16,
        decoder_intermediate_size=2048,
        mask_ratio=0.75,
        norm_pix_loss=True,
    )
    return transformers.ViTMAEForPreTraining(config)


def torch_step(options, kind):
    """The same for PyTorch; kind is eager, fused or compile."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = vitmae(SIZES[options.model], options.layers).to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=1e-4,
        betas=(0.9, 0.95),
        weight_decay=0.05,
        fused=None if kind == "eager" else True,
    )
    images = torch.randn(options.batch, 3, 224, 224, device=device)
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    forward = torch.compile(model) if kind == "compile" else model

    def run():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = forward(images).loss
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run, {"versions": f"torch {torch.__version__}"}


def worker(options) -> None:
    """Prepares one contender, then times a turn whenever asked to."""
    name = options.worker
    make = mixjax_step if name == "mixjax" else lambda o: torch_step(o, name)
    begin = time.perf_counter()
    run, facts = make(options)
    for _ in range(2):
        run()
    facts["ready_s"] = time.perf_counter() - begin

    take_turns.serve(facts, take_turns.timed(run, options.steps))


def main() -> None:
    parser = take_turns.parser(__doc__, ",".join(CONTENDERS), batch=16)
    parser.add_argument("--model", choices=SIZES, default="S")
    parser.add_argument("--layers", type=int, help="of encoder and decoder each")
    options = parser.parse_args()
    if options.worker:
        return worker(options)

    takes, ends, facts = {}, [], {}
    for name in options.only.split(","):
        try:
            env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
            takes[name], end, facts[name] = take_turns.start(name, **env)
            ends.append(end)
        except take_turns.NotStarted as error:
            print(f"{name} did not start:\n{error}")
    times = {name: [] for name in takes}
    for _ in range(options.rounds):
        for name, take in takes.items():
            times[name].append(take()["seconds"])
    for end in ends:
        end()
    report(options, times, facts)


def report(options, times, facts) -> None:
    """Prints the table, and writes it where --json says."""
    median = {name: statistics.median(t) for name, t in times.items()}
    own = facts.get("mixjax", {})
    print(
        f"MAE ViT-{options.model}/{SIZES[options.model][3]}"
        + (f" of {options.layers} + {options.layers} layers" if options.layers else "")
        + f", batch {options.batch}, "
        f"{options.rounds} rounds of {options.steps} on {own.get('device')}; "
        + ", ".join(sorted({f["versions"] for f in facts.values()}))
    )
    print(f"{'':38}{'img/s':>9}{'ms':>10}{'GFLOP/s':>10}{'MFU':>7}  mixjax is")
    rows = []
    for name, seconds in median.items():
        rate = own["work"] / seconds if own else 0.0
        mfu = rate / own["peak"] if own.get("peak") else None
        ratio = seconds / median["mixjax"] if own else None
        row = {
            "name": name,
            "img_per_sec": options.batch / seconds,
            "ms": 1e3 * seconds,
            "gflops_per_sec": rate / 1e9,
            "mfu": mfu,
            "mixjax_over_this": ratio,
            "ready_s": facts[name]["ready_s"],
            "rounds": times[name],
        }
        rows.append(row)
        print(
            f"{CONTENDERS[name]:38}{options.batch / seconds:9.2f}{1e3 * seconds:10.1f}"
            f"{rate / 1e9:10.0f}{f'{mfu:7.1%}' if mfu else '      -'}"
            + (f"  {ratio:.2f} x as fast" if ratio and name != "mixjax" else "")
        )
    record.write(options.json, rows, facts=facts)


if __name__ == "__main__":
    main()
