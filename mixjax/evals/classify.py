"""Accuracy of the network's own classifier on held-out images, each counted once."""

from collections.abc import Callable

from mixjax.evals import scores
from mixjax.evals.features import embedder, extract

LEDGER = True


def predictor(network) -> Callable:
    """(state, images [B, H, W, C]) -> logits [B, K], in evaluation mode."""

    def predict(state, images):
        outputs, _ = network.apply(state.params, state.stats, images, train=False)
        return outputs["logits"]

    return predict


def make(
    *, protocol: str, examples: int, sets, network, mesh, check: Callable
) -> Callable | None:
    """The evaluator: top-1, top-5 and mean per class, or VOC's mean average precision.

    protocol: the first part of the metrics' names, such as "finetune". examples: number
    of held-out examples, spread evenly; 0 for all. Returns None if there is no held-out
    split.
    """
    held_out = sets.test(examples)
    if held_out is None:
        return None
    predict = embedder(predictor(network), held_out, mesh)

    def run(state, step, writer):
        # [N, K], and [N] or, with several labels per image, [N, K]
        logits, labels = extract(predict, held_out, state, check)
        metrics = scores.all_of(logits, labels) | {"examples": len(labels)}
        return {f"{protocol}/{name}": value for name, value in metrics.items()}

    return run
