"""The two-layer perceptron of transformer blocks."""

import flax.linen as nn
import jax

from maskdit.layers.linear import Linear

Array = jax.Array


class Mlp(nn.Module):
    """`fc2(gelu(fc1(x)))` with the tanh form of GELU.

    Attributes:
      hidden: width between the two layers.
      dtype: dtype of the products.
    """

    hidden: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps tokens `[B, N, D]` to `[B, N, D]`."""
        inner = Linear(self.hidden, dtype=self.dtype, axes=("embed", "mlp"), name="fc1")(x)  # [B, N, hidden]
        inner = nn.gelu(inner, approximate=True)
        return Linear(x.shape[-1], dtype=self.dtype, axes=("mlp", "embed"), name="fc2")(inner)
