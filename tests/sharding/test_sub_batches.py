"""Groups and turns: reshapes that lose nothing and keep to their order."""

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from mixjax.sharding import sub_batches

few = settings(max_examples=30, deadline=None)
count = st.integers(1, 6)
rest = st.lists(st.integers(0, 3), max_size=3).map(tuple)


def examples(n, rest=()):
    """[n, *rest], where every number tells its example."""
    first = np.arange(n).reshape(n, *(1 for _ in rest))
    return np.broadcast_to(first, (n, *rest))


@few
@given(count, count, rest)
def test_merge_undoes_split(parts, each, rest):
    x = examples(parts * each, rest)
    cut = sub_batches.split(x, parts)
    assert cut.shape == (parts, each, *rest)
    np.testing.assert_array_equal(sub_batches.merge(cut), x)


@few
@given(count, count)
def test_split_keeps_neighbours_together(parts, each):
    cut = sub_batches.split(examples(parts * each), parts)
    for i in range(parts * each):
        assert cut[i // each, i % each] == i


@few
@given(count, count, rest)
def test_deal_gives_example_i_to_part_i_modulo_parts(parts, each, rest):
    x = examples(parts * each, rest)
    dealt = sub_batches.deal(x, parts)
    assert dealt.shape == (parts, each, *rest)
    for i in range(parts * each):
        np.testing.assert_array_equal(dealt[i % parts, i // parts], x[i])


@pytest.mark.parametrize("function", [sub_batches.split, sub_batches.deal])
@pytest.mark.parametrize("asarray", [np.asarray, jnp.asarray])
def test_what_does_not_divide_is_refused(function, asarray):
    with pytest.raises(ValueError, match="batch of 10 does not split into 3"):
        function(asarray(examples(10, (2,))), 3)
