"""MixMask: a coarse mask fills the hidden part of an image from its partner.

Source: Vishniakov et al., "MixMask", 2022, and its code (kirill-vish/MixMask), whose
block masks are BEiT's (Bao et al., 2022). A grid of cells is drawn for a group; ones
keep the own pixel; lam is the share of ones after nearest upsampling.

Departures: `ratio` is the kept share for both kinds (their flag means the hidden share
for discrete masks); a ratio that is a pair (low, high) is drawn anew for each mask, of
which the paper does not say how; block masks at a budget of under 4 cells are refused.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mixjax.errors import UsageError, check_name
from mixjax.mixtures import pairs

Array = jax.Array
KINDS = ("block", "discrete")
SMALLEST = 4  # cells of a rectangle
ASPECT = 0.3  # narrowest side ratio of a rectangle
TRIES = 10  # to place one rectangle
ROUNDS = 64  # rectangles of a mask at most; at 48 x 48 cells about 20 are placed


def make(
    *,
    grid: int,
    kind: str,
    ratio: float | tuple[float, float],
    permutation: str,
    shared: bool,
    groups: int,
) -> Callable:
    """(rng, images [B, H, W, C]) -> (Mixed,).

    grid: cells along a side; kind: "block" or "discrete"; ratio: kept share, or a pair
    to draw it between; permutation, shared, groups: see pairs.py. UsageError for a
    value out of range, a grid finer than the image, or if `groups` do not divide B.
    """
    draw_mask = make_mask(grid=grid, kind=kind, ratio=ratio)
    pairs.check(permutation, groups)

    def mixture(rng, images):
        n = pairs.split(images, groups).shape[1]

        def draw(key):
            where, order = jax.random.split(key)
            mask = draw_mask(where, *images.shape[1:3])
            return mask.mean(), mask, pairs.draw_partner(order, n, permutation)

        drawn = pairs.each_group(rng, draw, groups, shared)
        return (pairs.mix(images, *drawn, permutation),)

    return mixture


def make_mask(*, grid: int, kind: str, ratio: float | tuple[float, float]) -> Callable:
    """(key, height, width) -> [H, W] float32, 1 = own; the settings as in `make`."""
    check_name("mixture.kind", kind, KINDS)
    low, high = bounds(ratio)
    if grid < 2:
        raise UsageError(f"mixture.grid={grid} cannot be mixed; take 2 or more.")
    most = budget(high, grid)
    if kind == "block" and most < SMALLEST:
        # Below 4 cells only rounding lets a rectangle in: at 2 x 2 cells and ratio 0.5,
        # 94 of 100 masks are empty, and wherever the budget is one cell 27 of 100.
        raise UsageError(
            f"mixture.kind='block' at mixture.ratio={ratio} keeps {most} of {grid} x "
            f"{grid} cells, but its rectangles start at {SMALLEST}, so it may place "
            f"none at all; take 'discrete'."
        )

    def draw(key, height, width):
        key, cells = jax.random.split(key)
        share, count = low, most
        if low < high:
            share = jax.random.uniform(key, minval=low, maxval=high)
            count = jnp.clip(jnp.floor(share * grid**2).astype(jnp.int32), 1, most)
        if kind == "discrete":
            return upsample(discrete(cells, grid, share), height, width)
        return upsample(block(cells, grid, count, most), height, width)

    return draw


def bounds(ratio: float | tuple[float, float]) -> tuple[float, float]:
    """(low, high) of mixture.ratio, equal for one number; UsageError out of range."""
    if isinstance(ratio, int | float):
        if not 0 < ratio < 1:
            raise UsageError(f"mixture.ratio={ratio} must lie between 0 and 1.")
        return float(ratio), float(ratio)
    if len(ratio) != 2 or not 0 <= ratio[0] < ratio[1] <= 1:
        raise UsageError(
            f"mixture.ratio={ratio} must be one number or two, the lower first, in "
            f"0 .. 1."
        )
    return float(ratio[0]), float(ratio[1])


def budget(ratio: float, grid: int) -> int:
    """How many of grid x grid cells a block mask keeps: cut, never all or none."""
    return min(max(int(ratio * grid**2), 1), grid**2 - 1)


def block(key: Array, grid: int, count: Array | int, most: int) -> Array:
    """BEiT's sampler: rectangles until `count` cells are ones: [n, n] float32.

    Each takes the first of 10 tries that adds at least one cell and at most what is
    missing; the first rectangle that finds no place ends the mask. So it never
    exceeds `count`, may fall short, and may be empty. most: `count` at most. The ten
    tries see the same mask and are drawn at once. The number of rounds is fixed, so
    devices that hold different groups need not agree when to stop.
    """
    noise = jax.random.uniform(key, (min(most, ROUNDS), TRIES, 4))

    def place(state, noise):
        mask, going = state
        missing = count - mask.sum()
        rectangles, fit = tries(noise, grid, missing)  # [10, n, n], [10]
        new = (rectangles & ~mask).sum(axis=(1, 2))
        good = fit & (new > 0) & (new <= missing)
        first = good & (jnp.cumsum(good) == 1)
        going = going & good.any()
        chosen = (rectangles & first[:, None, None]).any(axis=0) & going
        return (mask | chosen, going), None

    empty = jnp.zeros((grid, grid), bool)
    (mask, _), _ = jax.lax.scan(place, (empty, jnp.array(True)), noise)
    return mask.astype(jnp.float32)


def tries(noise: Array, grid: int, missing: Array) -> tuple[Array, Array]:
    """Rectangles from noise [T, 4] in 0 .. 1: [T, n, n] bool, and [T] whether inside.

    Area uniform between 4 cells and `missing` (whichever is more), log of the aspect
    uniform; sides rounded half to even and less than the grid's; any place in it.
    """
    area = SMALLEST + (missing - SMALLEST) * noise[:, 0]
    aspect = jnp.exp((2 * noise[:, 1] - 1) * -math.log(ASPECT))
    height = jnp.round(jnp.sqrt(area * aspect))
    width = jnp.round(jnp.sqrt(area / aspect))
    top = jnp.floor(noise[:, 2] * (grid - height + 1))
    left = jnp.floor(noise[:, 3] * (grid - width + 1))
    cell = jnp.arange(grid)
    span = lambda start, end: (cell >= start[:, None]) & (cell < end[:, None])
    rows, columns = span(top, top + height), span(left, left + width)
    return rows[:, :, None] & columns[:, None], (height < grid) & (width < grid)


def discrete(key: Array, grid: int, ratio: Array | float) -> Array:
    """Independent cells, one with probability `ratio`, not all equal: [n, n] float32.

    The law of drawing again while all cells are equal, without the loop: how many are
    ones is binomial but neither 0 nor n * n, and given that, any cells are as likely.
    """
    cells = grid**2
    ones = np.arange(1, cells)
    ways = np.array([math.log(math.comb(cells, k)) for k in ones.tolist()])
    ratio = jnp.clip(ratio, 1e-6, 1 - 1e-6)
    logits = ways + ones * jnp.log(ratio) + (cells - ones) * jnp.log1p(-ratio)
    number, order = jax.random.split(key)
    count = 1 + jax.random.categorical(number, logits)
    rank = jax.random.permutation(order, cells)
    return (rank < count).astype(jnp.float32).reshape(grid, grid)


def upsample(mask: Array, height: int, width: int) -> Array:
    """Nearest: pixel p shows cell floor(p * n / size): [n, n] -> [H, W].

    jax.image.resize would take the centre of the pixel: other cells where the size is
    no multiple of n. UsageError if there are more cells than pixels.
    """
    grid = len(mask)
    if grid > min(height, width):
        raise UsageError(
            f"mixture.grid={grid} has more cells than an image of {height} x {width} "
            f"pixels; take {min(height, width)} or less."
        )
    rows, columns = (np.arange(size) * grid // size for size in (height, width))
    return mask[rows[:, None], columns]
