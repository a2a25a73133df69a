"""The state of training as one value, and the contracts between the rooms.

Shape letters, the same everywhere: B batch, H W C image, L patch tokens, D width,
P pixels per patch, N views or masks, K queue length, prototypes or group members
(said where used), G groups, V a visible or encoded part of L.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax

Array = jax.Array
ALL = 0  # a value of Method.together
Tree = dict  # a nested dict of arrays; an absent part is {}, never None


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes, arrays only.

    Randomness is not here (it is `step_key(seed, step)`), nor is the position in the
    data (it is a function of the step), so a restored state continues exactly.
    """

    step: Array  # [] int32, steps done
    params: Tree
    opt_state: Tree
    stats: Tree  # batch statistics
    teacher: Tree  # an EMA copy of parameters
    memory: Tree  # queues, pointers, centres, gates


class Variables(NamedTuple):
    """The initial values of a method."""

    params: Tree
    stats: Tree
    teacher: Tree
    memory: Tree


class Aux(NamedTuple):
    """What a loss returns besides its value."""

    stats: Tree
    carry: Tree  # handed to Method.update after the optimizer
    metrics: dict[str, Array]  # scalars


class Clock(NamedTuple):
    """The number of steps of a run, and of an epoch of its schedules."""

    total_steps: int
    steps_per_epoch: float

    @property
    def epochs(self) -> float:
        return self.total_steps / self.steps_per_epoch

    def steps(self, epochs: float) -> int:
        """The number of steps nearest to `epochs`, at least 1; 0 for 0."""
        return max(1, round(epochs * self.steps_per_epoch)) if epochs else 0


class Geometry(NamedTuple):
    """How a network divides an image into tokens."""

    image_size: tuple[int, int]
    channels: int
    patch: int  # side of an input token in pixels
    grid: tuple[int, int]  # rows, columns of tokens
    any_size: bool  # whether other image sizes, such as small crops, are accepted


class Network(NamedTuple):
    """Named parts (encoder, decoder, ...) behind pure functions.

    `inputs` holds keyword arguments for the parts, as inputs[part]; for init they may
    also be a function from the outputs so far.
    """

    init: Callable  # (rng, images [B,H,W,C], **inputs) -> (params, stats)
    apply: Callable  # (params, stats, images, *, train, rng=None, **inputs)
    #                  -> (outputs: dict, stats)
    run: Callable  # (params, stats, outputs: dict, parts, *, train, rng=None, **inputs)
    #                -> (outputs, stats): only the named parts, on the outputs so far
    parts: tuple[str, ...]  # all names, in order
    encode: Callable  # (params, stats, images, **for the encoder) -> its outputs
    features: Callable  # (params, stats, images) -> [B, D]
    geometry: Geometry


class Method(NamedTuple):
    """A learning method; see methods/."""

    init: Callable  # (rng, batch) -> Variables
    loss: Callable  # (params, state, batch, rng) -> (scalar, Aux)
    update: Callable  # (state, carry) -> state, after the optimizer
    features: Callable  # (state, images) -> [B, D], what every evaluator reads
    show: Callable  # (state, batch, rng) -> {caption: images [B,H,W,C]} to look at;
    #                 evals/pictures.py describes other kinds of columns
    together: int  # consecutive examples that one term of the loss needs: 1 if every
    #                example stands alone, g for groups of g, ALL for the whole batch
    predict: Callable | None = None  # (state, batch) -> predictions for the evaluators
    #                of dense tasks; None for other methods


class Objective(NamedTuple):
    """What a siamese method computes from the outputs of a network; see objectives/.

    outputs: those of one branch, after the last part: "features" [B, D], "projection"
    [B, d] and, if the network has them, "prediction" [B, d], "scores" [B, K]. All
    predictions and targets that are compared with each other get the same key.
    """

    init: Callable  # (rng, outputs: shapes) -> memory
    predict: Callable  # (outputs, memory, rng) -> prediction, keeps the gradient
    target: Callable  # (outputs, memory, rng, view) -> target of view number `view`;
    #                   any stop-gradient is here
    compare: Callable  # (prediction, target, memory) -> [B], never a mean
    remember: Callable  # (memory, targets: outputs by view, clean) -> memory


class Mixed(NamedTuple):
    """Mixed images; the batch B = G * n consists of G groups of n images."""

    images: Array  # [B, H, W, C]
    lam: Array  # [B] the exact share of the image itself
    mask: Array  # [G, H, W, 1] that share for each pixel: 1 own, 0 the partner's
    partner: Array | None  # [G, n] index of the partner in the group; None: none


def step_key(seed: int, step: Array) -> Array:
    """The random key of a step; every draw of the step derives from it."""
    return jax.random.fold_in(jax.random.key(seed), step)


def example_keys(key: Array, index: Array) -> Array:
    """[B] keys, one per example, independent of its place in the batch.

    index: [B] int32, the numbers of the examples in the dataset. What is drawn for an
    example therefore depends neither on the number of devices nor on accumulation.
    """
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
