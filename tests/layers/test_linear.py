import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from maskdit.layers.gradients import plain_gradients
from maskdit.layers.linear import Linear
from maskdit.layers.modulate import gate_add, norm_modulate

RNG = np.random.RandomState(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return Linear(5).apply({"params": {"kernel": kernel, "bias": bias}}, x)


CASES = {
    "linear": (linear, (normal(2, 3, 4), normal(4, 5), normal(5))),
    "linear_on_vectors": (linear, (normal(2, 4), normal(4, 5), normal(5))),
    "norm_modulate": (norm_modulate, (3 + 2 * normal(2, 3, 8), normal(2, 8), normal(2, 8))),
    "gate_add": (gate_add, (normal(2, 3, 4), normal(2, 3, 4), normal(2, 4))),
}


@pytest.mark.parametrize("name", CASES)
def test_hand_written_gradient_is_the_plain_one(name):
    function, inputs = CASES[name]
    out, back = jax.vjp(function, *inputs)
    g = normal(*out.shape)

    def plainly(*inputs):
        with plain_gradients():
            return function(*inputs)

    plain_out, plain_back = jax.vjp(plainly, *inputs)
    np.testing.assert_allclose(out, plain_out, rtol=1e-6, atol=1e-6)
    for ours, plain in zip(back(g), plain_back(g), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_forward_mode_is_plain_only(name):
    function, inputs = CASES[name]
    tangents = tuple(normal(*x.shape) for x in inputs)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(function, inputs, tangents)

    with plain_gradients():
        _, ahead = jax.jvp(function, inputs, tangents)
    _, back = jax.vjp(function, *inputs)
    g = normal(*ahead.shape)
    both = sum(jnp.vdot(a, b) for a, b in zip(back(g), tangents, strict=True))
    np.testing.assert_allclose(jnp.vdot(ahead, g), both, rtol=1e-4)


def test_sixteen_bit_gradients_keep_their_dtypes():
    x, shift = normal(2, 3, 8).astype(jnp.bfloat16), normal(2, 8).astype(jnp.bfloat16)
    gradients = jax.grad(lambda *a: norm_modulate(*a).astype(jnp.float32).sum(), argnums=(0, 1, 2))(x, shift, shift)
    assert {g.dtype for g in gradients} == {jnp.dtype("bfloat16")}
    module = Linear(5, dtype="bfloat16")
    params = meta.unbox(module.init(jax.random.key(0), x))
    gradients = jax.grad(lambda p: module.apply(p, x).astype(jnp.float32).sum())(params)
    assert {g.dtype for g in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


def test_norm_statistics_do_not_cancel():
    # E[x^2] - E[x]^2 loses all digits here.
    x = 1e4 + normal(1, 2, 64)
    zeros = jnp.zeros((1, 64))
    wide = np.asarray(x, np.float64)
    wanted = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(norm_modulate(x, zeros, zeros), wanted, atol=5e-3)


def test_parameters_carry_axis_names():
    boxed = Linear(5, axes=("embed", "mlp")).init(jax.random.key(0), normal(2, 4))
    spec = nn.get_partition_spec(boxed)["params"]
    assert tuple(spec["kernel"]) == ("embed", "mlp")
    assert tuple(spec["bias"]) == ("mlp",)


def test_interceptors_find_the_layer():
    def double(call, args, kwargs, context):
        out = call(*args, **kwargs)
        return 2 * out if isinstance(context.module, Linear) and context.method_name == "__call__" else out

    x, kernel, bias = CASES["linear"][1]
    with nn.intercept_methods(double):
        doubled = linear(x, kernel, bias)
    np.testing.assert_allclose(doubled, 2 * linear(x, kernel, bias), rtol=1e-6)
