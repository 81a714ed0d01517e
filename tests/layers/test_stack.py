import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from maskdit.layers.linear import Linear
from maskdit.layers.stack import REMAT, run_stack

Array = jax.Array


class Layer(nn.Module):
    hidden: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, c: Array) -> tuple[Array, dict[str, Array]]:
        inner = nn.tanh(Linear(self.hidden, dtype=self.dtype, name="up")(x + c[:, None].astype(x.dtype)))
        return x + Linear(x.shape[-1], dtype=self.dtype, name="down")(inner), {"inner": inner}


class Net(nn.Module):
    scan: bool = False
    remat: str = "none"
    dtype: str = "float32"
    taps: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, x: Array, c: Array) -> tuple[Array, dict[str, Array]]:
        hidden = (4, 4, 4, 6, 6, 4)  # three segments: two of equal neighbours, one alone
        blocks = [Layer(h, self.dtype, name=f"blocks_{i}") for i, h in enumerate(hidden)]
        how = {"scan": self.scan, "remat": self.remat, "dtype": self.dtype, "taps": frozenset(self.taps)}
        return run_stack(blocks, x.astype(self.dtype), c, **how)


RNG = np.random.RandomState(0)
X, C = (jnp.asarray(RNG.standard_normal(shape), jnp.float32) for shape in ((2, 3, 5), (2, 5)))
PARAMS = meta.unbox(Net().init(jax.random.key(0), X, C))


def value_and_grad(net: Net):
    return jax.jit(jax.value_and_grad(lambda p, x: jnp.sum(net.apply(p, x, C)[0].astype(jnp.float32) ** 2), (0, 1)))(
        PARAMS, X
    )


@pytest.mark.parametrize("remat", REMAT)
@pytest.mark.parametrize("scan", (False, True))
def test_ways_of_running_are_equal(scan, remat):
    wanted = value_and_grad(Net())
    got = value_and_grad(Net(scan=scan, remat=remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, wanted)


def test_one_checkpoint_for_both():
    scanned = meta.unbox(Net(scan=True, remat="full").init(jax.random.key(0), X, C))
    jax.tree.map(np.testing.assert_array_equal, scanned, PARAMS)
    assert set(PARAMS["params"]) == {f"blocks_{i}" for i in range(6)}


def test_sixteen_bit_scan_equals_unrolled():
    (out, gradient), (wanted, wanted_gradient) = (value_and_grad(Net(scan=s, dtype="bfloat16")) for s in (True, False))
    np.testing.assert_allclose(out, wanted, rtol=2e-2)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-2, atol=0.3), gradient, wanted_gradient)


class Shifted(nn.Module):
    scan: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(self, x: Array, each: Array) -> Array:
        blocks = [Layer(4, name=f"blocks_{i}") for i in range(4)]
        return run_stack(
            blocks, x, scan=self.scan, remat=self.remat, taps={"blocks_1.inner"}, each=each[:, None, None] * C
        )[0]


@pytest.mark.parametrize(("scan", "remat"), [(False, "none"), (False, "full"), (True, "none"), (True, "full")])
def test_each_block_gets_its_entry(scan, remat):
    each = jnp.arange(4.0)
    params = meta.unbox(Shifted().init(jax.random.key(1), X, each))
    wanted = X
    for i in range(4):
        wanted, _ = Layer(4).apply({"params": params["params"][f"blocks_{i}"]}, wanted, each[i] * C)
    np.testing.assert_allclose(Shifted(scan, remat).apply(params, X, each), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("remat", ("none", "full"))
def test_taps_cut_a_scan_and_change_nothing(remat):
    taps = ("blocks_1", "blocks_1.inner", "blocks_4", "blocks_5.inner")
    wanted = Net(taps=taps).apply(PARAMS, X, C)
    assert set(wanted[1]) == set(taps)
    got = Net(scan=True, remat=remat, taps=taps).apply(PARAMS, X, C)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, wanted)


def test_a_scan_compiles_equal_blocks_once():
    text = str(jax.make_jaxpr(lambda p: Net(scan=True).apply(p, X, C)[0])(PARAMS))
    assert text.count("tanh") == 3  # two scans and one block alone
    assert text.count("scan[") == 2


def test_remat_keeps_less():
    def kept(remat: str) -> int:
        net = Net(remat=remat)
        out = jax.eval_shape(lambda p: jax.vjp(lambda p: net.apply(p, X, C)[0], p)[1], PARAMS)
        return sum(leaf.size for leaf in jax.tree.leaves(out))

    assert kept("full") < kept("dots") < kept("none")


def test_unknown_policy_names_the_known():
    with pytest.raises(ValueError, match=r"'some'.*none.*full.*dots"):
        Net(remat="some").apply(PARAMS, X, C)
