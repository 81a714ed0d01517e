import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from maskdit.contracts import Cond
from maskdit.layers.gradients import plain_gradients
from maskdit.networks.dit import DiT, size
from maskdit.networks.maskdit import MaskDiT

LABELS = {"a": 5, "b": 3}
FIELDS = {"input_size": 4, "patch": 2, "channels": 3, "width": 16, "depth": 3, "heads": 2, "classes": LABELS}
DECODER = {"decoder_width": 8, "decoder_depth": 2, "decoder_heads": 2}
RNG = np.random.RandomState(0)
X, T = jnp.asarray(RNG.standard_normal((2, 4, 4, 3)), jnp.float32), jnp.asarray([3.0, 700.0])
COND = Cond(labels={"a": jnp.asarray([0, 4]), "b": jnp.asarray([2, 1])})
KEEP = jnp.asarray([[3, 0], [1, 2]])


def make(kind: type, **fields):
    """A network and parameters without the zeros that they start from."""
    net = kind(**FIELDS, **(DECODER if kind is MaskDiT else {}), **fields)
    params = meta.unbox(net.init(jax.random.key(0), X, T, COND))["params"]
    leaves, tree = jax.tree.flatten(params)
    leaves = [leaf + 0.2 * jnp.asarray(RNG.standard_normal(leaf.shape), jnp.float32) for leaf in leaves]
    return net, jax.tree.unflatten(tree, leaves)


NETWORKS = {"dit": make(DiT, learned_variance=True), "maskdit": make(MaskDiT, learned_variance=True)}


def run(net, params, x=X, cond=COND, **kw):
    return net.apply({"params": params}, x, T, cond, **kw)


def close(a, b, tolerance: float = 2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


@pytest.mark.parametrize("name", NETWORKS)
def test_output_is_shaped_like_the_input(name):
    out = run(*NETWORKS[name])
    assert out.x.shape == out.aux["variance"].shape == X.shape
    assert set(out.aux) == {"variance"}
    assert set(run(*NETWORKS[name], keep=KEEP).aux) == {"variance", "mask"}


@pytest.mark.parametrize("name", NETWORKS)
def test_starts_at_zero(name):
    net, params = NETWORKS[name]
    start = meta.unbox(net.init(jax.random.key(1), X, T, COND))["params"]
    assert jax.tree.structure(start) == jax.tree.structure(params)
    np.testing.assert_array_equal(run(net, start).x, 0)


@pytest.mark.parametrize("name", NETWORKS)
def test_one_time_serves_the_whole_batch(name):
    net, params = NETWORKS[name]
    same = net.apply({"params": params}, X, jnp.full((2,), 7.0), COND)
    close(net.apply({"params": params}, X, jnp.asarray(7.0), COND), same)


@pytest.mark.parametrize(("name", "keep"), [("dit", None), ("maskdit", KEEP)], ids=list(NETWORKS))
def test_scan_and_remat_change_nothing(name, keep):
    net, params = NETWORKS[name]

    def loss_and_grad(net):
        @jax.jit
        def run_loss(params):
            out = run(net, params, keep=keep, taps=("blocks_1.attn",))
            return jnp.mean((out.x - X) ** 2) + jnp.mean(out.aux["variance"] ** 2), (out.x, out.taps)

        return jax.value_and_grad(run_loss, has_aux=True)(params)

    close(loss_and_grad(dataclasses.replace(net, scan=True, remat="dots", parent=None)), loss_and_grad(net), 1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_taps(name):
    net, params = NETWORKS[name]
    out = run(net, params, taps=net.tap_names)
    assert set(out.taps) == set(net.tap_names)
    assert {"tokens", "t_emb", "y_emb", "blocks_0.attn", "blocks_0.mlp", "blocks_0", "final"} <= set(out.taps)
    assert out.taps["blocks_2"].shape == (2, 4, 16)
    close(out.x, run(net, params).x)
    with pytest.raises(ValueError, match=r"no taps \['block_0'\].*'blocks_0'.*'final'"):
        run(net, params, taps=("tokens", "block_0"))


@pytest.mark.parametrize("name", NETWORKS)
def test_keeping_all_tokens_is_the_unmasked_network(name):
    net, params = NETWORKS[name]
    everything = run(net, params)
    for keep in (jnp.tile(jnp.arange(4), (2, 1)), jnp.asarray([[2, 0, 3, 1], [1, 3, 2, 0]])):
        out = run(net, params, keep=keep)
        close(out.x, everything.x)
        np.testing.assert_array_equal(out.aux["mask"], 0)


@pytest.mark.parametrize("name", NETWORKS)
def test_removed_patches_do_not_reach_the_output(name):
    net, params = NETWORKS[name]
    out = run(net, params, keep=KEEP, taps=("tokens", "blocks_2"))
    np.testing.assert_array_equal(out.aux["mask"], [[0, 1, 1, 0], [1, 0, 0, 1]])
    changed = X.at[0, :2, 2:].add(9.0)  # token 1 of the first example, which it does not keep
    close(run(net, params, x=changed, keep=KEEP).x, out.x, 0)
    whole = run(net, params, taps=("tokens",)).taps["tokens"]
    close(out.taps["tokens"], jnp.take_along_axis(whole, KEEP[..., None], 1))
    if name == "dit":
        np.testing.assert_array_equal(out.x[0, :2, 2:], 0)
        assert (out.x[0, :2, :2] != 0).all()


def test_mask_token_fills_the_holes():
    net, params = NETWORKS["maskdit"]
    with_token = run(net, params, keep=KEEP, taps=("decoder_in",)).taps["decoder_in"]
    empty = params | {"mask_token": jnp.zeros_like(params["mask_token"])}
    difference = with_token - run(net, empty, keep=KEEP, taps=("decoder_in",)).taps["decoder_in"]
    wanted = jnp.asarray([[0, 1, 1, 0], [1, 0, 0, 1.0]])[..., None] * params["mask_token"]
    close(difference, wanted)

    without = MaskDiT(**FIELDS, **DECODER, learned_variance=True, mask_token=False)
    rest = {key: value for key, value in params.items() if key != "mask_token"}
    close(run(without, rest, keep=KEEP).x, run(net, empty, keep=KEEP).x)


def test_without_decoder_removed_patches_are_zero():
    net, params = make(MaskDiT, use_decoder=False)
    assert not {key for key in params if "decoder" in key or "mask" in key}
    out = run(net, params, keep=KEEP).x
    np.testing.assert_array_equal(out[0, :2, 2:], 0)
    assert (out[0, :2, :2] != 0).all()


def test_null_label_of_maskdit_embeds_as_zero():
    net, params = NETWORKS["maskdit"]
    np.testing.assert_array_equal(run(net, params, cond=net.null(COND), taps=("y_emb",)).taps["y_emb"], 0)


def test_null_label_of_dit_is_the_last_row():
    net, params = NETWORKS["dit"]
    row = params["label_embed"]["a"][5] + params["label_embed"]["b"][3]
    close(run(net, params, cond=net.null(COND), taps=("y_emb",)).taps["y_emb"], jnp.stack([row, row]))
    without = dataclasses.replace(net, label_null=False, parent=None)
    shapes = jax.eval_shape(without.init, jax.random.key(0), X, T, COND)
    assert meta.unbox(shapes)["params"]["label_embed"]["a"].shape == (5, 16)
    with pytest.raises(ValueError, match="label_null=True"):
        without.null(COND)


@pytest.mark.parametrize("kind", (DiT, MaskDiT))
def test_without_labels(kind):
    net = dataclasses.replace(NETWORKS["dit" if kind is DiT else "maskdit"][0], classes={}, parent=None)
    shapes = jax.eval_shape(net.init, jax.random.key(0), X, T, Cond())["params"]
    assert "label_embed" not in shapes and "y_emb" not in net.tap_names
    assert net.null(Cond()).labels == {}


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_mode(name):
    net, params = NETWORKS[name]

    def velocity(x):
        with plain_gradients():
            return run(net, params, x=x, keep=KEEP).x

    out, ahead = jax.jvp(velocity, (X,), (jnp.ones_like(X),))
    step = 1e-2
    close(out, run(net, params, keep=KEEP).x)
    close(ahead, (velocity(X + step) - velocity(X - step)) / (2 * step), 2e-2)


@pytest.mark.parametrize("name", NETWORKS)
def test_sixteen_bits(name):
    net, params = NETWORKS[name]
    half = dataclasses.replace(net, dtype="bfloat16", parent=None)
    out = run(half, params, keep=KEEP, taps=("t_emb", "blocks_0"))
    assert (out.x.dtype, out.taps["t_emb"].dtype, out.taps["blocks_0"].dtype) == (
        jnp.float32,
        jnp.float32,
        jnp.bfloat16,
    )
    full = run(net, params, keep=KEEP).x
    assert jnp.abs(out.x - full).max() < 0.1 * jnp.abs(full).max()


def test_bad_calls_say_what_to_do():
    net, params = NETWORKS["dit"]
    with pytest.raises(ValueError, match=r"labels \['a', 'b'\] but was given \['a'\]"):
        run(net, params, cond=Cond(labels={"a": jnp.asarray([0, 1])}))
    with pytest.raises(ValueError, match=r"\[B, 4, 4, 3\], not \(2, 4, 4, 2\)"):
        run(net, params, x=X[..., :2])
    with pytest.raises(ValueError, match="side 4 does not divide into patches of side 3"):
        _ = dataclasses.replace(net, patch=3, parent=None).layout
    with pytest.raises(ValueError, match=r"no size 'M/2'.*XL"):
        size("M/2")


# Multiply-adds (10^9) of the paper's table 4.
GMACS = {
    "S/8": 0.36, "S/4": 1.41, "S/2": 6.06,
    "B/8": 1.42, "B/4": 5.56, "B/2": 23.01,
    "L/8": 5.01, "L/4": 19.70, "L/2": 80.71,
    "XL/8": 7.39, "XL/4": 29.05, "XL/2": 118.64,
}  # fmt: skip


def imagenet(name: str, **fields) -> DiT:
    return DiT(input_size=32, channels=4, classes={"label": 1000}, learned_variance=True, **size(name), **fields)


def parameters(net: DiT) -> int:
    x, labels = jnp.zeros((1, 32, 32, 4)), {"label": jnp.zeros((1,), jnp.int32)}
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros((1,)), Cond(labels=labels))
    return sum(leaf.size for leaf in jax.tree.leaves(meta.unbox(shapes)))


@pytest.mark.parametrize("name", GMACS)
def test_multiply_adds_are_the_papers(name):
    # Half a unit of the last printed digit, or 0.1 %.
    assert abs(imagenet(name).macs() / 1e9 - GMACS[name]) <= max(1e-3 * GMACS[name], 5e-3)


@pytest.mark.parametrize(("name", "millions"), [("S/2", 33), ("B/2", 130), ("L/2", 458), ("XL/2", 675)])
def test_parameters_are_the_papers(name, millions):
    count = parameters(imagenet(name))
    assert round(count / 1e6) == millions
    if name == "XL/2":  # the published file counts its fixed table of places, 256 * 1152
        assert count + 256 * 1152 == 675_129_632


@pytest.mark.parametrize(
    ("name", "side", "wanted"),
    [
        ("S/2", 32, (13.094, 9.897, 8.412)),
        ("B/2", 32, (30.101, 18.271, 12.583)),
        ("L/2", 32, (87.831, 46.691, 26.725)),
        ("XL/2", 32, (125.774, 65.449, 36.079)),
        ("XL/2", 64, (559.502, 280.152, 153.161)),
    ],
)
def test_multiply_adds_of_maskdit(name, side, wanted):
    net = MaskDiT(input_size=side, channels=4, classes={"label": 1000}, **size(name))
    tokens = net.layout.tokens
    for keep, gmacs in zip((None, tokens // 2, tokens // 4), wanted, strict=True):
        assert abs(net.macs(keep) / 1e9 / gmacs - 1) < 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_multiply_adds_are_those_of_the_program(name):
    # Counts the products of the traced forward pass, two operations per multiply-add.
    net, params = NETWORKS[name]
    for keep in (None, KEEP):
        counted = count(jax.make_jaxpr(lambda p, keep=keep: run(net, p, keep=keep).x)(params).jaxpr)
        assert counted == 2 * 2 * net.macs(None if keep is None else 2)  # a batch of two


def count(jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        # A product with one column is a sum written as a product with ones: no multiply-adds of the network.
        if eqn.primitive.name == "dot_general" and eqn.outvars[0].aval.shape[-1] > 1:
            (contracting, _), _ = eqn.params["dimension_numbers"]
            total += (
                2 * eqn.outvars[0].aval.size * int(np.prod([eqn.invars[0].aval.shape[axis] for axis in contracting]))
            )
        total += sum(count(inner.jaxpr) for inner in eqn.params.values() if hasattr(inner, "jaxpr"))
    return total
