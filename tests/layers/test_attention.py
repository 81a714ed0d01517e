import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import NamedSharding, PartitionSpec

from maskdit.layers import attention as module
from maskdit.layers.attention import BACKENDS, SPLASH_FROM, attention, choose
from maskdit.layers.gradients import plain_gradients
from maskdit.layers.platform import compiling_for, platform
from maskdit.training.mesh import MeshShape, applied


def inputs(dtype: str = "float32") -> tuple[jax.Array, ...]:
    rng = np.random.RandomState(0)
    return tuple(jnp.asarray(rng.standard_normal((2, n, 3, 8)), dtype) for n in (4, 5, 5))


@pytest.mark.parametrize("backend", ("auto", *BACKENDS))
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_backends_are_equal(backend, dtype):
    # Where a backend is not there, this holds its fallback.
    q, k, v = inputs(dtype)
    wide = [np.asarray(x, np.float64) for x in (q, k, v)]
    logits = np.einsum("bnhd,bmhd->bhnm", wide[0], wide[1]) / np.sqrt(8)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    wanted = np.einsum("bhnm,bmhd->bnhd", weights / weights.sum(-1, keepdims=True), wide[2])
    out = attention(q, k, v, backend=backend)
    assert out.dtype == q.dtype
    np.testing.assert_allclose(np.asarray(out, np.float64), wanted, atol=1e-6 if dtype == "float32" else 2e-2)


def test_large_logits_stay_finite():
    q, k, v = inputs()
    assert np.isfinite(attention(1e4 * q, k, v)).all()


def test_causal_attention_is_that_of_each_prefix():
    q, k, v = inputs()
    q = jnp.concatenate([q, q[:, :1]], axis=1)  # as many queries as keys
    out = attention(q, k, v, causal=True)
    for i in range(q.shape[1]):
        wanted = attention(q[:, i : i + 1], k[:, : i + 1], v[:, : i + 1])
        np.testing.assert_allclose(out[:, i : i + 1], wanted, atol=1e-6)


def test_dropped_weights_leave_the_others_as_they_were():
    q, k, v = inputs()
    drop = jnp.asarray(np.random.RandomState(1).rand(2, 3, 4, 5) < 0.5, jnp.float32) * 2
    logits = np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(8)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    wanted = np.einsum("bhnm,bmhd->bnhd", weights * drop, v)
    np.testing.assert_allclose(attention(q, k, v, drop=drop), wanted, atol=1e-6)
    with plain_gradients():
        np.testing.assert_allclose(attention(q, k, v, backend="cudnn", drop=drop), wanted, atol=1e-6)
    np.testing.assert_allclose(attention(q, k, v, drop=jnp.ones_like(drop)), attention(q, k, v), atol=1e-6)


@pytest.fixture
def interpreted(monkeypatch):
    """The TPU kernel as plain operations, for any device."""
    make = functools.partial(splash_attention.make_splash_mha_single_device, interpret=True)
    monkeypatch.setattr(splash_attention, "make_splash_mha_single_device", make)


def value_and_gradients(backend, on, *arrays):
    def loss(*arrays):
        with compiling_for(on):
            out = attention(*arrays, backend=backend)
        return (out * jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)).sum(), out

    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*arrays)


@pytest.mark.parametrize("heads", (2, 3))  # 3 do not divide over two devices
def test_tpu_kernel_equals_xla_with_and_without_a_mesh(interpreted, heads):
    rng = np.random.RandomState(0)
    arrays = [jnp.asarray(rng.standard_normal((4, n, heads, 8)), "float32") for n in (128, 256, 256)]
    wanted = jax.jit(functools.partial(value_and_gradients, "xla", "cpu"))(*arrays)
    step = functools.partial(value_and_gradients, "splash", "tpu")
    alone = jax.jit(step)(*arrays)
    devices = MeshShape(data=2, fsdp=2, tensor=2).make()
    with applied(devices):
        cut = jax.device_put(arrays, NamedSharding(devices, PartitionSpec(("data", "fsdp"))))
        spread = jax.jit(lambda *arrays: step(*arrays))(*cut)
    assert spread[0][1].sharding.shard_shape(arrays[0].shape) == (1, 128, 1 if heads == 2 else heads, 8)
    for got in (alone, spread):
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_tpu_kernel_scales_half_precision_queries_in_float32(interpreted):
    rng = np.random.RandomState(0)
    q, k, v = (jnp.asarray(rng.standard_normal((1, 128, 1, 72)), "bfloat16") for _ in range(3))
    with compiling_for("tpu"):
        out = attention(q, k, v, backend="splash")
    assert out.dtype == q.dtype
    np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (out, attention(q, k, v))), atol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_tpu_compiler_takes_the_kernel_on_a_mesh(monkeypatch, dtype):
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    devices = MeshShape(data=1, fsdp=2, tensor=2).make(chips)
    cut = NamedSharding(devices, PartitionSpec(("data", "fsdp"), None, "tensor"))
    array = jax.ShapeDtypeStruct((2, SPLASH_FROM, 2, 72), dtype, sharding=cut)
    gradient = jax.grad(lambda q, k, v: attention(q, k, v).astype("float32").sum(), (0, 1, 2))
    with compiling_for("tpu"), applied(devices):
        program = jax.jit(gradient).lower(array, array, array).compile().as_text()
    assert program.count('custom_call_target="tpu_custom_call"') == 3
    assert "all-gather" not in program and "all-reduce" not in program


LONG = SPLASH_FROM


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        (("auto", "gpu", "bfloat16", 256, 256, 72), "cudnn"),
        (("cudnn", "gpu", "float16", 256, 77, 64), "cudnn"),
        (("xla", "gpu", "bfloat16", 256, 256, 64), "xla"),
        (("auto", "gpu", "float32", 256, 256, 64), "xla"),
        (("auto", "gpu", "bfloat16", 256, 256, 9), "xla"),
        (("auto", "gpu", "bfloat16", 256, 256, 64, True), "xla"),
        (("cudnn", "cpu", "bfloat16", 256, 256, 64), "xla"),
        (("cudnn", "tpu", "bfloat16", LONG, LONG, 64), "xla"),
        (("auto", "cpu", "bfloat16", LONG, LONG, 64), "xla"),
        (("auto", "tpu", "bfloat16", 256, 256, 72), "xla"),
        (("auto", "tpu", "bfloat16", LONG, LONG, 72), "splash"),
        (("auto", "tpu", "float32", LONG, 2 * LONG, 72), "splash"),
        (("auto", "tpu", "bfloat16", LONG, 128, 72), "xla"),
        (("auto", "tpu", "bfloat16", LONG + 8, LONG + 8, 72), "xla"),
        (("auto", "tpu", "float16", LONG, LONG, 72), "xla"),
        (("auto", "tpu", "bfloat16", LONG, LONG, 72, True), "xla"),
        (("splash", "tpu", "bfloat16", 256, 128, 72), "splash"),
        (("splash", "gpu", "bfloat16", LONG, LONG, 72), "xla"),
    ],
)
def test_choice_follows_platform_and_shape(given, chosen):
    assert choose(*given) == chosen


def test_forward_mode_leaves_fused_kernels_alone():
    q = jnp.ones((1, 128, 1, 8))

    def forward(q):
        with compiling_for("tpu"), plain_gradients():
            return attention(q, q, q, backend="splash")

    np.testing.assert_allclose(jax.jvp(forward, (q,), (q,))[1], 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("backend", "on", "tokens", "told"),
    [
        (
            "cudnn",
            "tpu",
            4,
            "xla instead of cudnn (the platform is tpu, not gpu; the dtype is float32, not a 16-bit one)",
        ),
        ("splash", "tpu", 200, "xla instead of splash (200 tokens, not a multiple of 128)"),
        ("auto", "tpu", 256, "xla (256 tokens: splash is used from 1024 on)"),
        ("auto", "cpu", 256, "xla (there is no fused kernel for the platform cpu)"),
    ],
)
def test_the_reason_of_a_fallback_is_logged_once(caplog, backend, on, tokens, told):
    choose.cache_clear()
    module._say.cache_clear()
    q = jnp.ones((1, tokens, 1, 8))
    with caplog.at_level(logging.INFO, module.__name__), compiling_for(on):
        for _ in range(2):
            attention(q, q, q, backend=backend)
    assert [record.message for record in caplog.records] == [f"attention: {told}"]


def test_unknown_backend_names_the_known():
    with pytest.raises(ValueError, match=r"'flash'.*auto.*xla.*cudnn.*splash"):
        attention(*inputs(), backend="flash")


def test_platform_is_overridden_inside_only():
    with compiling_for("tpu"):
        assert platform() == "tpu"
    assert platform() == jax.default_backend()
    with pytest.raises(ValueError, match=r"'cuda'.*'gpu'"), compiling_for("cuda"):
        pass
