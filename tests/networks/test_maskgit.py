"""The bidirectional transformers of masked tokens: `MaskGIT` and `UViTBert`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from maskdit.contracts import Cond, example_cond, example_input
from maskdit.draw import Draw
from maskdit.networks.maskgit import SIZES, MaskGIT
from maskdit.networks.uvit_bert import UViTBert, UViTBlock
from tests.networks.test_dit import count

LABELS = {"a": 5, "b": 3}
FIELDS = {"vocabulary": 7, "grid": (2, 3), "width": 16, "heads": 2, "hidden": 24, "classes": LABELS, "dropout": 0.3}
RNG = np.random.RandomState(0)
IDS = jnp.asarray([[7, 0, 3, 7, 6, 1], [2, 7, 7, 7, 5, 0]])
COND = Cond(labels={"a": jnp.asarray([0, 4]), "b": jnp.asarray([2, 1])})
KEEP = jnp.asarray([[3, 0], [1, 5]])
T = jnp.full((2,), 0.5)


def make(net):
    """A network and parameters with some noise."""
    params = meta.unbox(net.init(jax.random.key(0), IDS, T, COND))["params"]
    leaves, tree = jax.tree.flatten(params)
    leaves = [leaf + 0.2 * jnp.asarray(RNG.standard_normal(leaf.shape), jnp.float32) for leaf in leaves]
    return net, jax.tree.unflatten(tree, leaves)


NETWORKS = {
    "maskgit": make(MaskGIT(**FIELDS, depth=3, attention_dropout=0.2)),
    "uvit": make(UViTBert(**FIELDS, depth=4)),
}


def run(net, params, ids=IDS, cond=COND, **kw):
    return net.apply({"params": params}, ids, T, cond, **kw)


def close(a, b, tolerance: float = 2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


@pytest.mark.parametrize("name", NETWORKS)
def test_tokens_are_a_set_whose_places_the_table_tells(name):
    net, params = NETWORKS[name]
    out = run(net, params).x
    assert out.shape == (2, 6, 7) and out.dtype == jnp.float32
    order = np.asarray([4, 2, 0, 5, 1, 3])
    places = params["embed"]["positions"]
    moved = params | {"embed": params["embed"] | {"positions": places[np.concatenate([[0], 1 + order])]}}
    close(run(net, moved, ids=IDS[:, order]).x, out[:, order])
    assert jnp.abs(run(net, params, ids=IDS[:, order]).x - out[:, order]).max() > 1e-2


@pytest.mark.parametrize("name", NETWORKS)
def test_every_token_sees_every_other(name):
    net, params = NETWORKS[name]
    out = run(net, params).x
    for place in (0, 5):
        changed = run(net, params, ids=IDS.at[0, place].set(4)).x
        assert (jnp.abs(changed - out)[0].max(-1) > 1e-6).all()
        close(changed[1], out[1])


def test_labels_stand_behind_the_codes_and_the_mask():
    net, params = NETWORKS["uvit"]
    table, places = params["embed"]["tokens"], params["embed"]["positions"]
    assert table.shape == (7 + 1 + 6 + 4, 16)
    for cond, rows in ((COND, ([8 + 0, 14 + 2], [8 + 4, 14 + 1])), (net.null(COND), ([8 + 5, 14 + 3],) * 2)):
        tokens = run(net, params, cond=cond, taps=("tokens",)).taps["tokens"]
        close(tokens[:, 0], places[0] + jnp.stack([table[jnp.asarray(row)].sum(0) for row in rows]))
        close(tokens[:, 1:], places[1:] + table[IDS])


@pytest.mark.parametrize("name", NETWORKS)
def test_without_labels_there_is_no_token_for_them(name):
    net = NETWORKS[name][0].clone(classes={})
    shapes = meta.unbox(jax.eval_shape(net.init, jax.random.key(0), IDS, T, Cond()))["params"]
    assert shapes["embed"]["positions"].shape == (6, 16) and shapes["embed"]["tokens"].shape == (8, 16)
    variables = {"params": jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)}
    out = net.apply(variables, IDS, T, Cond(), taps=("tokens",))
    assert out.x.shape == (2, 6, 7) and out.taps["tokens"].shape == (2, 6, 16)


@pytest.mark.parametrize("name", NETWORKS)
def test_taps(name):
    net, params = NETWORKS[name]
    out = run(net, params, taps=net.tap_names)
    assert set(out.taps) == set(net.tap_names)
    assert {value.shape for value in out.taps.values()} == {(2, 7, 16)}
    last = out.taps["norm" if name == "uvit" else "blocks_2"]
    close(last[:, 1:] @ params["head"]["kernel"] + params["head"]["bias"], out.x)
    close(out.x, run(net, params).x)
    with pytest.raises(ValueError, match=r"no taps \['block_0'\].*'tokens'"):
        run(net, params, taps=("tokens", "block_0"))


def test_skips_join_the_first_block_with_the_last():
    net, params = NETWORKS["uvit"]
    taps = ("in_blocks_0", "in_blocks_1", "mid_block", "out_blocks_0")
    values = run(net, params, taps=taps).taps

    def without(block, skip, own):
        """The output of a block whose skip product is replaced by what it should give."""
        part = params[block]["skip"]
        given = jnp.concatenate([values[own], values[skip]], -1) @ part["kernel"] + part["bias"]
        inner = {key: value for key, value in params[block].items() if key != "skip"}
        return UViTBlock(2, 24).apply({"params": inner}, given)[0]

    close(without("out_blocks_0", "in_blocks_1", "mid_block"), values["out_blocks_0"])
    last = without("out_blocks_1", "in_blocks_0", "out_blocks_0")
    close(last, run(net, params, taps=("out_blocks_1",)).taps["out_blocks_1"])


@pytest.mark.parametrize("name", NETWORKS)
def test_only_kept_tokens_are_processed(name):
    net, params = NETWORKS[name]
    everything = run(net, params).x
    order = jnp.asarray([[5, 2, 0, 3, 1, 4], [1, 3, 2, 0, 5, 4]])
    close(run(net, params, keep=order).x, everything)
    out = run(net, params, keep=KEEP)
    np.testing.assert_array_equal(out.aux["mask"], [[0, 1, 1, 0, 1, 1], [1, 0, 1, 1, 1, 0]])
    np.testing.assert_array_equal(out.x[out.aux["mask"] == 1], 0)
    assert (out.x[out.aux["mask"] == 0] != 0).all()
    close(run(net, params, ids=IDS.at[0, 1].set(5), keep=KEEP).x, out.x, 0)  # a token that is left out


@pytest.mark.parametrize("name", NETWORKS)
def test_ways_of_running_are_equal_with_dropout_too(name):
    net, params = NETWORKS[name]

    def loss_and_grad(net):
        def loss(params):
            return jnp.mean(run(net, params, draw=Draw(5).at(jnp.arange(2)), train=True).x ** 2)

        return jax.jit(jax.value_and_grad(loss))(params)

    fields = {"remat": "full"} | ({"scan": True} if name == "maskgit" else {})
    close(loss_and_grad(net.clone(**fields)), loss_and_grad(net), 1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_is_of_training_and_of_each_row(name):
    net, params = NETWORKS[name]
    plain = run(net, params).x
    close(run(net, params, draw=Draw(1)).x, plain, 0)

    def trained(rows):
        cond = jax.tree.map(lambda labels: labels[rows], COND)
        out = net.apply({"params": params}, IDS[rows], T[rows], cond, draw=Draw(1).at(jnp.arange(2)[rows]), train=True)
        return out.x

    whole = trained(slice(0, 2))
    assert jnp.abs(whole - plain).max() > 1e-2
    close(jnp.concatenate([trained(slice(0, 1)), trained(slice(1, 2))]), whole)
    still = net.clone(dropout=0.0, **({"attention_dropout": 0.0} if name == "maskgit" else {}))
    close(run(still, params, draw=Draw(1), train=True).x, plain, 0)


def test_attention_weights_are_dropped_by_their_own_share():
    net, params = NETWORKS["maskgit"]
    only = net.clone(dropout=0.0)
    one, other = (run(only, params, draw=Draw(seed), train=True).x for seed in (1, 2))
    assert jnp.abs(one - run(net, params).x).max() > 1e-2 and jnp.abs(one - other).max() > 1e-2


@pytest.mark.parametrize("name", NETWORKS)
def test_sixteen_bits(name):
    net, params = NETWORKS[name]
    out = run(net.clone(dtype="bfloat16"), params, taps=("tokens",))
    assert (out.x.dtype, out.taps["tokens"].dtype) == (jnp.float32, jnp.bfloat16)
    full = run(net, params).x
    assert jnp.abs(out.x - full).max() < 0.1 * jnp.abs(full).max()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("classes", [LABELS, {}], ids=["labels", "none"])
def test_multiply_adds_are_those_of_the_program(name, classes):
    net = NETWORKS[name][0].clone(classes=classes)
    cond = example_cond(net, 2)
    shapes = jax.eval_shape(net.init, jax.random.key(0), IDS, T, cond)
    for keep in (None, KEEP):
        traced = jax.make_jaxpr(lambda p, net=net, cond=cond, keep=keep: net.apply(p, IDS, T, cond, keep=keep).x)
        assert count(traced(meta.unbox(shapes)).jaxpr) == 2 * 2 * net.macs(None if keep is None else 2)


def test_bad_calls_say_what_to_do():
    net, params = NETWORKS["maskgit"]
    with pytest.raises(ValueError, match=r"labels \['a', 'b'\] but was given \['a'\]"):
        run(net, params, cond=Cond(labels={"a": jnp.asarray([0, 1])}))
    with pytest.raises(ValueError, match=r"\[B, 6\], not \(2, 5\)"):
        run(net, params, ids=IDS[:, :5])
    with pytest.raises(ValueError, match="whole numbers up to 7, not float32"):
        run(net, params, ids=IDS.astype(jnp.float32))
    with pytest.raises(ValueError, match="depth=3"):
        dataclasses.replace(NETWORKS["uvit"][0], depth=3, parent=None)
    for field, networks in (("dropout", NETWORKS), ("attention_dropout", ("maskgit",))):
        for name in networks:
            with pytest.raises(ValueError, match=f"{field} is the share"):
                NETWORKS[name][0].clone(**{field: 1.0})


@pytest.mark.parametrize("tokens", (32, 64))
def test_parameters_of_a_bert_are_the_papers(tokens):
    net = MaskGIT(vocabulary=4096, grid=(tokens,), classes={"label": 1000}, **SIZES["titok"])
    shapes = jax.eval_shape(net.init, jax.random.key(0), example_input(net.layout), jnp.ones(1), example_cond(net))
    assert round(sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6) == 177
