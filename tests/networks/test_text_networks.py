"""Meissonic and MaskGen: what conditions them, and how, and the blocks that they share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from maskdit.contracts import Cond, bind, dropped
from maskdit.networks.joint_block import JointBlock
from maskdit.networks.maskgen import MaskGen, score_features, size
from maskdit.networks.meissonic import MICRO, Meissonic
from tests.networks.test_dit import count

RNG = np.random.default_rng(0)
TEXTS = {"text_width": 6, "pooled_width": 10, "text_tokens": 3}
MEISSONIC = Meissonic(
    vocabulary=7, grid=(2, 4), width=16, depth=1, single_depth=2, heads=2, rope=(2, 2, 4), halved=True, **TEXTS
)
MASKGEN = MaskGen(vocabulary=7, grid=(8,), width=16, depth=3, heads=2, score_width=5, **TEXTS)
IDS = jnp.asarray(RNG.integers(0, 8, (2, 8)), jnp.int32)
T = jnp.asarray([0.25, 0.75])


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


COND = Cond(
    text=normal(2, 3, 6), pooled=normal(2, 10), null_text=normal(2, 3, 6), null_pooled=normal(2, 10), scalars={}
)


def made(net, cond=COND):
    """A network bound to parameters without zeros."""
    shapes = meta.unbox(jax.eval_shape(net.init, jax.random.key(0), IDS, T, cond))["params"]
    params = jax.tree.map(lambda leaf: normal(*leaf.shape) / np.sqrt(leaf.shape[0]), shapes)
    return bind(net, params), params


PREDICT = {name: made(net)[0] for name, net in (("meissonic", MEISSONIC), ("maskgen", MASKGEN))}
NETWORKS = {"meissonic": MEISSONIC, "maskgen": MASKGEN}


def differs(a, b):
    return float(np.abs(np.asarray(a) - np.asarray(b)).max()) > 1e-3


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", PREDICT)
def test_dropping_the_text_is_the_empty_text(name):
    predict = PREDICT[name]
    empty = COND.replace(text=COND.null_text, pooled=COND.null_pooled)
    np.testing.assert_array_equal(predict(IDS, T, predict.null(COND)).x, predict(IDS, T, empty).x)
    one = dropped(COND, predict.null(COND), jnp.asarray([True, False]))
    out = predict(IDS, T, one).x
    close(out[0], predict(IDS, T, empty).x[0])
    close(out[1], predict(IDS, T, COND).x[1])
    assert differs(out[0], predict(IDS, T, COND).x[0])
    zeros = predict.null(COND.replace(null_text=None, null_pooled=None))
    assert not np.any(zeros.text) and not np.any(zeros.pooled)


@pytest.mark.parametrize("name", PREDICT)
def test_every_part_of_the_condition_counts_and_rows_keep_apart(name):
    predict, net = PREDICT[name], NETWORKS[name]
    out = predict(IDS, T, COND).x
    assert out.shape == (2, 8, 7) and out.dtype == jnp.float32
    changes = [COND.replace(**{part: getattr(COND, part).at[0].add(1.0)}) for part in ("text", "pooled")]
    for scalar, value in net.scalars.items():
        same = COND.replace(scalars={scalar: jnp.full((2,), value)})
        close(predict(IDS, T, same).x, out)  # a network's own value stands in for a missing one
        changes.append(COND.replace(scalars={scalar: jnp.asarray([value + 1.5, value])}))
    for cond in changes:
        other = predict(IDS, T, cond).x
        assert differs(other[0], out[0])
        close(other[1], out[1])


@pytest.mark.parametrize("name", PREDICT)
def test_text_is_a_set_of_tokens_and_padding_is_read(name):
    """Texts carry no places here: their encoder has told the order."""
    predict = PREDICT[name]
    out = predict(IDS, T, COND).x
    close(predict(IDS, T, COND.replace(text=COND.text[:, ::-1])).x, out)
    padded = COND.replace(text=jnp.pad(COND.text, ((0, 0), (0, 2), (0, 0))), null_text=None)
    assert differs(predict(IDS, T, padded).x, out)


def test_time_and_labels():
    assert differs(PREDICT["meissonic"](IDS, T + 0.1, COND).x, PREDICT["meissonic"](IDS, T, COND).x)
    np.testing.assert_array_equal(PREDICT["maskgen"](IDS, T + 0.1, COND).x, PREDICT["maskgen"](IDS, T, COND).x)
    for net in NETWORKS.values():
        net = dataclasses.replace(net, classes={"kind": 3}, parent=None)
        labelled = COND.replace(labels={"kind": jnp.asarray([0, 2])})
        predict, _ = made(net, labelled)
        assert predict.null(labelled).labels["kind"].tolist() == [3, 3]
        other = labelled.replace(labels={"kind": jnp.asarray([1, 2])})
        a, b = predict(IDS, T, labelled).x, predict(IDS, T, other).x
        assert differs(a[0], b[0])
        close(a[1], b[1])


def test_meissonic_knows_places_by_rotation_alone():
    same = jnp.full((2, 8), 3)
    params = made(MEISSONIC)[1]

    def places(**fields):
        """Logits of equal codes, by place of the halved map: `[B, places, 4, V]`."""
        net = dataclasses.replace(MEISSONIC, **fields, parent=None)
        rows, columns = net.inner_grid
        logits = np.asarray(bind(net, params)(same, T, COND).x).reshape(2, rows, 2, columns, 2, -1)
        return logits.swapaxes(2, 3).reshape(2, rows * columns, 4, -1)

    row = places()
    assert differs(row[:, 0], row[:, 1]) and differs(row[:, :, 0], row[:, :, 1])
    assert differs(places(grid=(4, 2)), row)
    unmoved = places(rope=(4, 4, 0))  # all places of a row are one, and none of the text's is another
    close(unmoved[:, 0], unmoved[:, 1])
    column = places(rope=(4, 4, 0), grid=(4, 2))
    assert differs(column[:, 0], column[:, 1])


def test_meissonic_without_halving_sees_codes_one_by_one():
    net = dataclasses.replace(MEISSONIC, halved=False, grid=(1, 8), parent=None)
    predict, params = made(net)
    assert not {"down", "up"} & set(params) and predict(IDS, T, COND).x.shape == (2, 8, 7)


def test_spare_rows_stand_between_the_codes_and_the_mask():
    net = dataclasses.replace(MEISSONIC, spare=2, parent=None)
    predict, params = made(net)
    other = jax.tree.map(jnp.asarray, params) | {"embedding": params["embedding"].at[7:9].add(9.0)}
    close(bind(net, other)(IDS, T, COND).x, predict(IDS, T, COND).x)
    changed = params | {"embedding": params["embedding"].at[9].add(9.0)}
    masked = jnp.full((2, 8), 7)
    assert differs(bind(net, changed)(masked, T, COND).x, predict(masked, T, COND).x)


def test_maskgen_ties_its_logits_to_the_embeddings():
    predict, params = made(MASKGEN)
    taps = predict(IDS, T, COND, taps=("final",))
    close(taps.x, np.asarray(taps.taps["final"]) @ np.asarray(params["embedding"][:7]).T)
    assert "head" not in params
    untied, own = made(dataclasses.replace(MASKGEN, tied=False, parent=None))
    taps = untied(IDS, T, COND, taps=("final",))
    close(taps.x, taps.taps["final"] @ own["head"]["kernel"] + own["head"]["bias"])


def test_score_features():
    angle = 100 * 0.07 * np.array([1, 1000**-0.5])
    wanted = [*np.sin(angle), *np.cos(angle), 0]
    np.testing.assert_allclose(score_features(jnp.asarray([0.07]), 5)[0], wanted, atol=1e-6)


@pytest.mark.parametrize("name", PREDICT)
def test_scan_and_taps_change_nothing(name):
    net = NETWORKS[name]
    predict, params = made(net)
    names = net.tap_names
    out = predict(IDS, T, COND, taps=names)
    assert set(out.taps) == set(names)
    assert out.taps["tokens"].shape[-1] == out.taps["final"].shape[-1] == 16
    scanned = bind(dataclasses.replace(net, scan=True, remat="full", parent=None), params)
    close(scanned(IDS, T, COND).x, out.x)


@pytest.mark.parametrize("name", [*NETWORKS, "flat", "untied"])
def test_multiply_adds_are_those_of_the_program(name):
    net = {
        **NETWORKS,
        "flat": dataclasses.replace(MEISSONIC, halved=False, parent=None),
        "untied": dataclasses.replace(MASKGEN, tied=False, scalars={}, parent=None),
    }[name]
    shapes = meta.unbox(jax.eval_shape(net.init, jax.random.key(0), IDS, T, COND))["params"]
    program = jax.make_jaxpr(lambda params: bind(net, params)(IDS, T, COND).x)(shapes)
    assert count(program.jaxpr) == 2 * 2 * net.macs()  # a batch of two


def test_last_block_hands_the_text_on_unchanged():
    block = JointBlock(heads=2, text=3, last=True)
    x, c = normal(2, 5, 8), normal(2, 8)
    params = jax.tree.map(lambda leaf: normal(*leaf.shape), meta.unbox(block.init(jax.random.key(0), x, c))["params"])
    out, _ = block.apply({"params": params}, x, c)
    np.testing.assert_array_equal(out[:, :3], x[:, :3])
    assert differs(out[:, 3:], x[:, 3:]) and set(params["text"]) == {"modulation", "qkv"}


@pytest.mark.parametrize(
    ("net", "fields", "message"),
    [
        (MEISSONIC, {"grid": (8,)}, "rows and columns"),
        (MEISSONIC, {"grid": (3, 4)}, "divide by 2"),
        (MEISSONIC, {"rope": (2, 2, 2)}, "rope=.*width=16"),
        (MEISSONIC, {"rope": (4, 4)}, "three"),
        (MEISSONIC, {"scalars": {"aesthetic": 5.0}}, ", ".join(MICRO)),
        (MASKGEN, {"scalars": {"width": 5.0}}, "aesthetic, not for width"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(net, fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(net, **fields, parent=None)


@pytest.mark.parametrize("name", PREDICT)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cond": COND.replace(text=None)}, r"has no text: .*\[B, T, 6\]"),
        ({"cond": Cond()}, "no text and pooled"),
        ({"cond": COND.replace(pooled=COND.pooled[:, :4])}, r"whole embeddings \[B, 10\], not"),
        ({"cond": COND.replace(scalars={"mood": T})}, "mood"),
        ({"x": IDS[:, :4]}, r"shape \[B, 8\]"),
        ({"keep": jnp.asarray([[0], [1]])}, "leave keep out"),
        ({"taps": ("blocks_9",)}, "blocks_9"),
    ],
)
def test_calls_that_do_not_fit_are_refused(name, given, message):
    call = {"x": IDS, "t": T, "cond": COND} | given
    with pytest.raises(ValueError, match=message):
        PREDICT[name](call.pop("x"), call.pop("t"), call.pop("cond"), **call)


def test_sizes():
    assert size("XL") == {"width": 1280, "depth": 20, "heads": 16}
    with pytest.raises(ValueError, match="'H': use one of L, XL"):
        size("H")
