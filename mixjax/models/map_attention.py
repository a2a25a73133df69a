"""Self-attention over the tokens of a map, in windows or not, and where they are.

Relative positions in two parts, rows and columns (MViTv2; ViTDet, Li et al., 2022): to
the logit of a query and a key at (y, x) and (y', x') comes
q . R_rows[y - y' + n - 1] + q . R_columns[x - x' + m - 1], with the query as it is,
while its product with the key is divided by sqrt(d). Both terms are linear in q, so
they go into longer queries and keys, and no bias of L x L numbers per head arises.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mixjax.models import positions, windows
from mixjax.models.attention import attend, by_head, joined
from mixjax.models.linear import dense

Array = jax.Array
Size = tuple[int, int]
ZEROS = nn.initializers.zeros
RELATIVE = ("none", "decomposed", "bias")


class Attention(nn.Module):
    """[B, L, D] -> [B, L, D], L = (1 +) rows * columns, in windows or over all."""

    heads: int
    window: int  # 0: none
    relative: str
    table_size: Size  # rows and columns that tables of relative positions are for
    class_token: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, size: Size) -> Array:
        """size: rows and columns of the patch tokens."""
        (b, length, width), side = x.shape, self.window
        if side:
            x = padded(x.reshape(b, *size, width), side)  # [B, h, w, D]
            whole, size = size, x.shape[1:3]
        qkv = dense(3 * width, self.dtype, "qkv")(x)
        parts = jnp.split(qkv, 3, axis=-1)
        if not side:
            mixed = joined(self.attend([by_head(y, self.heads) for y in parts], size))
            return dense(width, self.dtype, "proj")(mixed)
        parts = [windows.fold(y, side, self.heads) for y in parts]
        # [B, W * heads, n, d] -> [B, h, w, D], without the padding [B, L, D]
        mixed = windows.unfold(self.attend(parts, (side, side)), size, side)
        mixed = mixed[:, : whole[0], : whole[1]].reshape(b, length, width)
        return dense(width, self.dtype, "proj")(mixed)

    def attend(self, parts: list[Array], size: Size) -> Array:
        """Queries, keys and values [B, N, L, d] -> [B, N, L, d]."""
        query, key, value = parts
        if self.relative == "decomposed":
            tables = [
                self.param(f"rel_pos_{axis}", ZEROS, (2 * n - 1, query.shape[-1]))
                for axis, n in zip("hw", self.table_size, strict=True)
            ]
            query, key = folded(query, key, tuple(tables), size)
        bias = self.bias() if self.relative == "bias" else None
        return attend(query, key, value, bias=bias)[0]

    def bias(self) -> Array:
        """[heads, L, L] from a table of this block."""
        rows, columns = self.table_size
        offsets = (2 * rows - 1) * (2 * columns - 1) + 3 * self.class_token
        table = self.param("relative_bias", ZEROS, (offsets, self.heads))
        options = {"class_token": self.class_token}
        return positions.relative_bias(table, self.table_size, **options)


def padded(x: Array, side: int) -> Array:
    """[B, h, w, D] with zeros below and to the right, up to multiples of `side`."""
    h, w = x.shape[1:3]
    return jnp.pad(x, ((0, 0), (0, -h % side), (0, -w % side), (0, 0)))


def folded(
    query: Array, key: Array, tables: tuple[Array, Array], size: Size
) -> tuple[Array, Array]:
    """Queries and keys for attention.attend that hold their positions.

    query, key: [B, N, L, d], L = rows * columns of `size`; N: heads, or windows and
    heads. tables: of rows and of columns, each [2 n - 1, d] for any n, resampled to
    what `size` needs. Returns [B, N, L, d + rows + columns] twice, in query's dtype.
    """
    (b, n, length, d), (h, w) = query.shape, size
    cells = query.reshape(b, n, h, w, d)
    options = {"preferred_element_type": jnp.float32}
    row, column = (
        by_offset(table, side).astype(query.dtype)
        for table, side in zip(tables, size, strict=True)
    )  # [d, h, h] and [d, w, w], query and key
    row = jnp.einsum("bnhwd,dhk->bnhwk", cells, row, **options)
    column = jnp.einsum("bnhwd,dwk->bnhwk", cells, column, **options)
    parts = [cells.astype(jnp.float32) * d**-0.5, row, column]
    long = jnp.concatenate(parts, axis=-1).reshape(b, n, length, -1)
    # attend divides by the root of the new length, which is not ours to divide by.
    long = (long * long.shape[-1] ** 0.5).astype(query.dtype)
    place = jnp.asarray(places(size), key.dtype)
    place = jnp.broadcast_to(place, (b, n, *place.shape))
    return long, jnp.concatenate([key, place], axis=-1)


def by_offset(table: Array, side: int) -> Array:
    """[2 n - 1, d] -> [d, side, side], R[query - key + side - 1], float32.

    Where n is not `side` the table is resampled, linear between half-pixel centres.
    """
    wanted = 2 * side - 1, table.shape[1]
    if table.shape != wanted:
        table = jax.image.resize(table, wanted, "linear", antialias=False)
    return positions.relative_bias(table, (side, 1), class_token=False)


def places(size: Size) -> np.ndarray:
    """[L, rows + columns]: ones at the row and at the column of each token."""
    h, w = size
    rows, columns = np.divmod(np.arange(h * w), w)
    return np.concatenate([np.eye(h)[rows], np.eye(w)[columns]], axis=1)
