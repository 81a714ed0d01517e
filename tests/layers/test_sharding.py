"""Products with weights that are cut over devices: the same numbers as on one, and the collectives that were meant."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskdit.layers.linear import Linear
from maskdit.layers.sharding import network_lines
from maskdit.layers.stack import run_stack
from maskdit.performance.hlo import collectives
from maskdit.training import mesh as meshes
from maskdit.training.mesh import MeshShape

RNG = np.random.RandomState(0)
X = jnp.asarray(RNG.standard_normal((8, 6, 16)), jnp.float32)


def gradients(layer, params, x):
    return jax.grad(lambda params, x: sum(jnp.sum(out**2) for out in jax.tree.leaves(layer.apply(params, x))), (0, 1))(
        params, x
    )


def on_mesh(shape, layer, lines=None):
    """The gradients of a layer on a mesh, and its program."""
    mesh = shape.make()
    boxed = jax.eval_shape(layer.init, jax.random.key(0), X)
    params = jax.device_put(meshes.unboxed(layer.init(jax.random.key(0), X)), meshes.shardings(boxed, mesh))
    x = jax.device_put(X, meshes.batch_sharding(mesh))
    with meshes.applied(mesh), network_lines(lines or meshes.network_lines_of(mesh)):
        kept = (jax.tree.map(lambda leaf: leaf.sharding, params), x.sharding)
        compiled = jax.jit(functools.partial(gradients, layer), out_shardings=kept).lower(params, x).compile()
    return compiled(params, x), compiled.as_text()


@pytest.mark.parametrize("parts", (1, 3))
@pytest.mark.parametrize(
    ("shape", "lines"),
    [
        (MeshShape(data=1, fsdp=8), None),
        (MeshShape(data=1, fsdp=8), {"fsdp": (2, 4)}),
        (MeshShape(data=1, fsdp=8), {"fsdp": (2, 2, 2)}),
        (MeshShape(data=2, fsdp=2, tensor=2), None),
        (MeshShape(data=8), None),
        (MeshShape(data=1, fsdp=1, tensor=8), None),
    ],
    ids=str,
)
def test_gradients_are_those_of_one_device(shape, lines, parts):
    layer = Linear(24, axes=("embed", "mlp"), parts=parts)
    params = meshes.unboxed(layer.init(jax.random.key(0), X))
    wanted = gradients(layer, params, X)
    found, _ = on_mesh(shape, layer, lines)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, wanted)


def test_a_cut_weight_is_gathered_once_and_its_gradient_scattered_line_by_line():
    # On a CPU the compiler writes a scatter as such; no sum of the whole gradient may be left.
    _, text = on_mesh(MeshShape(data=1, fsdp=8), Linear(24, axes=("embed", "mlp"), use_bias=False), {"fsdp": (2, 4)})
    found = collectives(text)
    kernel = 16 * 24 * 4
    assert [(one.bytes, one.group) for one in found if one.kind == "all-gather"] == [(kernel, 8)]
    assert [(one.bytes, one.group) for one in found if one.kind == "reduce-scatter"] == [(kernel, 2), (kernel // 2, 4)]
    assert not [one for one in found if one.kind == "all-reduce"]


def test_parts_that_are_cut_across_are_scattered_too():
    _, text = on_mesh(MeshShape(data=1, fsdp=4, tensor=2), Linear(24, axes=("embed", "heads"), use_bias=False, parts=3))
    kernel = 16 * 24 * 4 // 2
    found = [(one.kind, one.bytes) for one in collectives(text) if one.group == 4 and one.bytes >= kernel]
    assert sorted(found) == [("all-gather", kernel), ("reduce-scatter", kernel)]


def test_weights_that_are_not_kept_are_gathered_again():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Linear(16, axes=("embed", "mlp"), use_bias=False, name="linear")(jnp.tanh(x)), {}

    class Net(nn.Module):
        remat: str

        @nn.compact
        def __call__(self, x):
            return run_stack([Layer(name=f"blocks_{i}") for i in range(2)], x, scan=False, remat=self.remat)[0]

    gathers, results = {}, {}
    for remat in ("none", "weights"):
        results[remat], text = on_mesh(MeshShape(data=1, fsdp=8), Net(remat))
        gathers[remat] = sum(one.count for one in collectives(text) if one.kind == "all-gather")
    assert gathers == {"none": 2, "weights": 4}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *results.values())
