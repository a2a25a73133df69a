"""Self-attention over a map, global or in windows, with relative positions.

Decomposed relative positions (MViTv2; ViTDet, Li et al., 2022) have one table for rows
and one for columns. The logit of a query at (y, x) and a key at (y', x') gains
q . R_rows[y - y' + n - 1] + q . R_columns[x - x' + m - 1]. Here q is not scaled, while
its product with the key is divided by sqrt(d). Both terms are linear in q, so they can
be computed with longer queries and keys, without a bias of L x L numbers per head.
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
    """Global or windowed attention: [B, L, D] -> [B, L, D].

    L = rows * columns, or one more with a class token.
    """

    heads: int
    window: int  # side of the windows; 0 for global attention
    relative: str  # one of RELATIVE
    table_size: Size  # rows and columns that the relative position tables cover
    class_token: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, size: Size) -> Array:
        """Attends among the tokens x; size: rows and columns of the patch tokens."""
        (b, length, width), side = x.shape, self.window
        if side:
            x = pad_to_windows(x.reshape(b, *size, width), side)  # [B, h, w, D]
            padded_size = x.shape[1:3]
        # Padding precedes the projection: its bias makes keys and values of padded
        # tokens nonzero, and they are attended to, as in ViTDet.
        qkv = dense(3 * width, self.dtype, "qkv")(x)
        parts = jnp.split(qkv, 3, axis=-1)
        if not side:
            heads = [by_head(y, self.heads) for y in parts]  # [B, heads, L, d] each
            attended = joined(self.attend(heads, size))
            return dense(width, self.dtype, "proj")(attended)
        heads = [windows.fold(y, side, self.heads) for y in parts]
        attended = self.attend(heads, (side, side))  # [B, W * heads, n, d]
        attended = windows.unfold(attended, padded_size, side)  # [B, h, w, D]
        rows, columns = size
        attended = attended[:, :rows, :columns].reshape(b, length, width)
        return dense(width, self.dtype, "proj")(attended)

    def attend(self, parts: list[Array], size: Size) -> Array:
        """Attends with the configured positions.

        parts: query, key and value, each [B, N, L, d], with N as in `folded`.
        size: rows and columns of the L tokens.
        """
        query, key, value = parts
        if self.relative == "decomposed":
            tables = [
                self.param(f"rel_pos_{axis}", ZEROS, (2 * n - 1, query.shape[-1]))
                for axis, n in zip("hw", self.table_size, strict=True)
            ]
            query, key = folded(query, key, tuple(tables), size)
        bias = self.position_bias() if self.relative == "bias" else None
        return attend(query, key, value, bias=bias)[0]

    def position_bias(self) -> Array:
        """Returns the bias [heads, L, L] from this block's table."""
        rows, columns = self.table_size
        # The three extra rows are for pairs with the class token.
        offsets = (2 * rows - 1) * (2 * columns - 1) + 3 * self.class_token
        table = self.param("relative_bias", ZEROS, (offsets, self.heads))
        return positions.relative_bias(
            table, self.table_size, class_token=self.class_token
        )


def pad_to_windows(x: Array, side: int) -> Array:
    """Pads x [B, h, w, D] below and to the right with zeros to multiples of `side`."""
    h, w = x.shape[1:3]
    return jnp.pad(x, ((0, 0), (0, -h % side), (0, -w % side), (0, 0)))


def folded(
    query: Array, key: Array, tables: tuple[Array, Array], size: Size
) -> tuple[Array, Array]:
    """Extends queries and keys so that their product includes relative positions.

    query, key: [B, N, L, d], L = rows * columns of `size`; N is the number of heads,
        or of windows times heads.
    tables: the tables of rows and of columns, each [2 n - 1, d]; n may differ from
        `size`, as they are resampled.

    Returns the query and the key for attention.attend, each
    [B, N, L, d + rows + columns] in its dtype.
    """
    (b, n, length, d), (h, w) = query.shape, size
    query_map = query.reshape(b, n, h, w, d)
    row_table, column_table = (
        expand_offsets(table, side).astype(query.dtype)
        for table, side in zip(tables, size, strict=True)
    )  # [d, h, h] and [d, w, w], query before key
    # q . R for every row, or column, that a key can be in.
    row_logits = jnp.einsum(
        "bnhwd,dhk->bnhwk", query_map, row_table, preferred_element_type=jnp.float32
    )
    column_logits = jnp.einsum(
        "bnhwd,dwk->bnhwk", query_map, column_table, preferred_element_type=jnp.float32
    )
    parts = [query_map.astype(jnp.float32) * d**-0.5, row_logits, column_logits]
    long_query = jnp.concatenate(parts, axis=-1).reshape(b, n, length, -1)
    # attend will divide by the square root of the extended length; undo that here.
    long_query = (long_query * long_query.shape[-1] ** 0.5).astype(query.dtype)
    # A key selects the logits of its row and column.
    one_hot = jnp.asarray(one_hot_positions(size), key.dtype)
    one_hot = jnp.broadcast_to(one_hot, (b, n, *one_hot.shape))
    return long_query, jnp.concatenate([key, one_hot], axis=-1)


def expand_offsets(table: Array, side: int) -> Array:
    """Looks up R[query - key + side - 1]: [2 n - 1, d] -> [d, side, side] float32.

    A table for another n is resampled linearly between half-pixel centres.
    """
    shape = 2 * side - 1, table.shape[1]
    if table.shape != shape:
        table = jax.image.resize(table, shape, "linear", antialias=False)
    # The channels take the place of the heads, in a grid of a single column.
    return positions.relative_bias(table, (side, 1), class_token=False)


def one_hot_positions(size: Size) -> np.ndarray:
    """Returns [L, rows + columns], with ones at each token's row and column."""
    h, w = size
    rows, columns = np.divmod(np.arange(h * w), w)
    return np.concatenate([np.eye(h)[rows], np.eye(w)[columns]], axis=1)
