"""Double precision for a whole benchmark, where JAX_ENABLE_X64=1 asks for it.

To be imported before flax and mixjax: what they call float32 is float64 from then on,
parameters, islands and all. Training amplifies rounding; with 29 more bits, what two
runs differ by is no longer rounding.
"""

import jax
import jax.numpy as jnp

ON = bool(jax.config.jax_enable_x64)
if ON:
    jnp.float32 = jnp.float64
