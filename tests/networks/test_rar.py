import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict, meta

from maskdit.contracts import Cond
from maskdit.draw import Draw
from maskdit.networks.rar import RAR, SIZES
from tests.networks.test_dit import count

V, K = 7, 6
FIELDS = {"vocabulary": V, "grid": (2, 3), "width": 16, "depth": 2, "heads": 2, "hidden": 40}
NET = RAR(**FIELDS, classes=FrozenDict(a=5, b=3), spare_positions=3, spare_steps=2)
COND = Cond(labels={"a": jnp.asarray([0, 4]), "b": jnp.asarray([2, 1])})
IDS = jnp.asarray([[2, 3, 6, 0, 1, 5], [6, 4, 5, 0, 0, 1]])
ORDERS = jnp.asarray([[3, 0, 5, 1, 4, 2], [1, 2, 0, 5, 3, 4]])
T = jnp.zeros(2)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiling is most of it


def start(net, cond=COND):
    return meta.unbox(net.init(jax.random.key(0), IDS, T, cond))["params"]


def shaken(net, cond=COND):
    """Parameters without the zeros that they start from."""
    leaves, tree = jax.tree.flatten(start(net, cond))
    rng = np.random.RandomState(0)
    return tree.unflatten([leaf + 0.3 * jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32) for leaf in leaves])


PARAMS = shaken(NET)


@functools.partial(jit, static_argnames=("net", "taps", "train"))
def call(params, ids=IDS, cond=COND, net=NET, **kw):
    return net.apply({"params": params}, ids, T, cond, **kw)


def close(a, b, tolerance=2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


@pytest.mark.parametrize("orders", [None, ORDERS])
def test_a_code_changes_only_what_is_told_after_it(orders):
    order = np.tile(np.arange(K), (2, 1)) if orders is None else np.asarray(orders)
    before = call(PARAMS, orders=orders).x
    for place in (0, 2, K - 1):
        changed = np.array(IDS)
        for row in range(2):
            changed[row, order[row, place]] = (changed[row, order[row, place]] + 1) % V
        after = call(PARAMS, jnp.asarray(changed), orders=orders).x
        close(after[:, : place + 1], before[:, : place + 1], 1e-6)
        assert (np.abs(after - before)[:, place + 1 :].max(-1) > 1e-3).all()


def test_raster_order_is_the_order_of_places_and_others_tell_other_places():
    raster = jnp.tile(jnp.arange(K), (2, 1))
    close(call(PARAMS, orders=raster), call(PARAMS), 0)
    # the first code is told from the condition alone, but which place it has matters
    first = call(PARAMS, orders=ORDERS).x[:, 0] - call(PARAMS).x[:, 0]
    assert (np.abs(first).max(-1) > 0.1).all()


def test_memory_gives_the_logits_of_whole_sequences():
    whole = call(PARAMS).x
    out = call(PARAMS, IDS[:, :0], cache=NET.init_cache(2))
    found = [out.x]
    for i in range(1, K):
        out = call(PARAMS, IDS[:, i - 1 : i], cache=out.cache, place=jnp.asarray(i - 1))
        found.append(out.x)
    close(jnp.concatenate(found, axis=1), whole)


def test_scan_and_remat_change_nothing_with_dropout_on():
    net = dataclasses.replace(NET, dropout=0.3, attention_dropout=0.2, parent=None)
    other = dataclasses.replace(net, scan=True, remat="dots", parent=None)
    draw = lambda rows=(0, 1): Draw(3).at(jnp.asarray(rows))  # noqa: E731
    weight = jnp.asarray(np.random.RandomState(1).standard_normal((2, K, V)), jnp.float32)

    def slope(net):
        def loss(params):
            out = net.apply({"params": params}, IDS, T, COND, orders=ORDERS, draw=draw(), train=True)
            return (out.x * weight).sum(), out.x

        return jit(jax.grad(loss, has_aux=True))(PARAMS)

    dropped = slope(net)
    close(slope(other), dropped, 1e-4)
    plain = call(PARAMS, orders=ORDERS)
    assert np.abs(dropped[1] - plain.x).max() > 0.1
    close(call(PARAMS, net=net, orders=ORDERS, draw=draw()), plain)
    apart = call(PARAMS, net=net, orders=ORDERS, draw=draw((7, 1)), train=True)
    close(apart.x[1], dropped[1][1])
    assert np.abs(apart.x[0] - dropped[1][0]).max() > 0.1


def test_starts_as_a_product_of_each_token_and_near_the_entropy_of_chance():
    fresh = start(NET)
    logits = call(fresh).x
    other = call(fresh, IDS.at[:, 0].set(3)).x  # the blocks pass nothing on yet
    close(other[:, 2:], logits[:, 2:], 0)
    entropy = -jnp.take_along_axis(jax.nn.log_softmax(logits), IDS[..., None], -1).mean()
    assert abs(float(entropy) / np.log(V) - 1) < 0.05


def test_labels_are_rows_of_the_table_of_codes():
    first = V + 1
    rows = PARAMS["embed"][jnp.asarray([[first, first + 6 + 2], [first + 4, first + 6 + 1]])].sum(1)
    tokens = call(PARAMS, taps=("tokens",)).taps["tokens"]
    close(tokens[:, 1] - PARAMS["positions"][1] - PARAMS["target_positions"][2], rows)
    null = call(PARAMS, cond=NET.null(COND), taps=("tokens",)).taps["tokens"]
    row = PARAMS["embed"][first + 5] + PARAMS["embed"][first + 6 + 3]
    close(null[:, 1] - tokens[:, 1], row - rows)
    with pytest.raises(ValueError, match=r"labels \['a', 'b'\] but was given \['a'\]"):
        call(PARAMS, cond=Cond(labels={"a": COND.labels["a"]}))


def test_network_without_labels_has_a_condition_of_its_own():
    net = RAR(**FIELDS)
    params = shaken(net, Cond())
    assert params["embed"].shape == (V + 1, 16)
    moved = params | {"embed": params["embed"].at[V].add(1.0)}
    assert np.abs(call(moved, net=net, cond=Cond()).x - call(params, net=net, cond=Cond()).x).max() > 0.01


def test_taps():
    out = call(PARAMS, taps=NET.tap_names)
    assert set(out.taps) == set(NET.tap_names)
    assert out.taps["logits"].shape == (2, K + 1, V) and out.taps["blocks_1.attn"].shape == (2, K + 2, 16)
    close(out.taps["logits"][:, :-1], out.x, 0)


def test_bad_calls_and_fields_are_refused():
    for kw, message in (
        ({"keep": jnp.zeros((2, 3), int)}, "leave keep out"),
        ({"taps": ("block",)}, r"no taps \['block'\]"),
        ({"ids": IDS[:, :4]}, r"\[B, 6\]"),
        ({"ids": IDS * 1.0}, "whole numbers"),
        ({"ids": IDS[:, :2], "cache": NET.init_cache(2)}, "no code"),
        ({"ids": IDS[:, :1], "cache": NET.init_cache(2), "taps": ("logits",)}, "no taps"),
    ):
        with pytest.raises(ValueError, match=message):
            call(PARAMS, **kw)
    for fields, message in (({"dropout": 1.0}, "dropout"), ({"spare_steps": 1}, "spare_steps=1")):
        with pytest.raises(ValueError, match=message):
            RAR(**FIELDS, **fields)


def test_multiply_adds_are_those_of_the_program():
    # Counts the products of the traced forward pass, two operations per multiply-add, for a batch of two.
    memory = NET.init_cache(2)
    assert count(traced(IDS)) == 4 * NET.macs()
    assert products(traced(IDS[:, :0], cache=memory)) == 4 * NET.macs(fresh=0)
    assert products(traced(IDS[:, :1], cache=memory, place=2)) == 4 * NET.macs(fresh=1)


def traced(ids, **kw):
    return jax.make_jaxpr(lambda params: NET.apply({"params": params}, ids, T, COND, **kw).x)(PARAMS).jaxpr


def products(jaxpr) -> int:
    """Twice the multiply-adds of all products, those with one column too: a step has one query."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracting, _), _ = eqn.params["dimension_numbers"]
            sizes = [eqn.invars[0].aval.shape[axis] for axis in contracting]
            total += 2 * eqn.outvars[0].aval.size * int(np.prod(sizes))
        total += sum(products(inner.jaxpr) for inner in eqn.params.values() if hasattr(inner, "jaxpr"))
    return total


@pytest.mark.parametrize(("name", "millions"), [("B", 261), ("L", 461), ("XL", 955), ("XXL", 1499)])
def test_parameters_are_the_papers(name, millions):
    cond = Cond(labels={"label": jnp.zeros((1,), int)})

    def parameters(depth):
        net = RAR(1024, (16, 16), classes={"label": 1000}, **{**SIZES[name], "depth": depth})
        shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 256), int), jnp.zeros(1), cond)
        return sum(leaf.size for leaf in jax.tree.leaves(meta.unbox(shapes)))

    one, two = parameters(1), parameters(2)
    assert abs((one + (SIZES[name]["depth"] - 1) * (two - one)) / 1e6 - millions) < 1
