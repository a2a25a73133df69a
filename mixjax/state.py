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
ALL = 0  # of Method.together
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
    """What a method starts from."""

    params: Tree
    stats: Tree
    teacher: Tree
    memory: Tree


class Aux(NamedTuple):
    """What a loss returns beside the scalar."""

    stats: Tree
    carry: Tree  # handed to Method.update after the optimizer
    metrics: dict[str, Array]  # scalars


class Clock(NamedTuple):
    """How many steps a run has, and how long an epoch of its schedules is."""

    total_steps: int
    steps_per_epoch: float

    @property
    def epochs(self) -> float:
        return self.total_steps / self.steps_per_epoch

    def steps(self, epochs: float) -> int:
        """The number of steps nearest to `epochs`, at least 1; 0 for 0."""
        return max(1, round(epochs * self.steps_per_epoch)) if epochs else 0


class Geometry(NamedTuple):
    """How a network cuts an image into tokens."""

    image_size: tuple[int, int]
    channels: int
    patch: int  # side of an input token in pixels
    grid: tuple[int, int]  # rows, columns of tokens
    any_size: bool  # whether other image sizes, such as small crops, will do


class Network(NamedTuple):
    """Named parts (encoder, decoder, ...) behind pure functions.

    `inputs` holds keyword arguments for parts, inputs[part] for each; for init also
    a function that makes them of the outputs so far.
    """

    init: Callable  # (rng, images [B,H,W,C], **inputs) -> (params, stats)
    apply: Callable  # (params, stats, images, *, train, rng=None, **inputs)
    #                  -> (outputs: dict, stats)
    run: Callable  # (params, stats, outputs: dict, parts, *, train, rng=None, **inputs)
    #                -> (outputs, stats): the named parts alone, on outputs so far
    parts: tuple[str, ...]  # all names, in order
    encode: Callable  # (params, stats, images, **for the encoder) -> its outputs
    features: Callable  # (params, stats, images) -> [B, D]
    geometry: Geometry


class Method(NamedTuple):
    """A way of learning; see methods/."""

    init: Callable  # (rng, batch) -> Variables
    loss: Callable  # (params, state, batch, rng) -> (scalar, Aux)
    update: Callable  # (state, carry) -> state, after the optimizer
    features: Callable  # (state, images) -> [B, D], what every evaluator reads
    show: Callable  # (state, batch, rng) -> {caption: images [B,H,W,C]} to look at;
    #                 for columns of other kinds see evals/pictures.py
    together: int  # consecutive examples that one term of the loss looks at: 1 where
    #                each stands alone, g for groups of g, ALL for the whole batch
    predict: Callable | None = None  # (state, batch) -> what a dense task's evaluator
    #                reads; None where there is no dense task


class Objective(NamedTuple):
    """What a siamese method makes of a network's outputs; see objectives/.

    outputs: one branch's, after the last part: "features" [B, D], "projection" [B, d]
    and, where the network has them, "prediction" [B, d], "scores" [B, K]. One key is
    given to all the predictions and targets that are compared with each other.
    """

    init: Callable  # (rng, outputs: shapes) -> memory
    predict: Callable  # (outputs, memory, rng) -> prediction, keeps the gradient
    target: Callable  # (outputs, memory, rng, view) -> target of view number `view`;
    #                   a stop of the gradient lives here
    compare: Callable  # (prediction, target, memory) -> [B], never a mean
    remember: Callable  # (memory, targets: outputs by view, clean) -> memory


class Mixed(NamedTuple):
    """Images of a mixture, made of [G, n] groups of a batch B = G * n."""

    images: Array  # [B, H, W, C]
    lam: Array  # [B] the exact share of the own image
    mask: Array  # [G, H, W, 1] the share of it in each pixel: 1 own, 0 partner
    partner: Array | None  # [G, n] place of the partner in the group; None: none


def step_key(seed: int, step: Array) -> Array:
    """The key of everything random in one step."""
    return jax.random.fold_in(jax.random.key(seed), step)


def example_keys(key: Array, index: Array) -> Array:
    """[B] keys, one per example, the same wherever in the batch an example is.

    index: [B] int32, the examples' numbers in the data set. So what is drawn for an
    example depends neither on the device count nor on gradient accumulation.
    """
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
