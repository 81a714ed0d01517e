"""TiTok with the bottleneck of a KL autoencoder."""

import numpy as np

from maskdit.contracts import Cond, Latents
from maskdit.interop import titok as interop
from maskdit.tokenizers.posterior import LOGVAR_RANGE

INPUTS = ("image", "noise")
LEFT_OUT: dict[str, str] = {}


def run(case):
    return run_with(case, Cond(), file="safetensors")


def run_with(case, cond, file):
    images = case.images("image") * 2 - 1
    titok, params = case.model(interop, images, cond, file=file)
    draw = case.draw(posterior=np.swapaxes(case.arrays["noise"][:, :, 0], 1, 2))

    @case.jit
    def forward(params, images, cond):
        def call(method, *inputs, **options):
            return titok.apply({"params": params}, *inputs, method=method, **options)

        latents = call("encode", images, cond, draw=draw)
        mode = call("posterior", latents.aux["moments"])
        tokens = latents.aux["moments"].reshape(-1, 1, 2 * titok.channels)
        kl = call("posterior", tokens).aux["kl"].reshape(-1, titok.tokens)  # the published one does not sum tokens
        decoded = [call("decode", Latents(values=one.values), cond) for one in (latents, mode)]
        return latents, mode, kl, decoded

    latents, mode, kl, (decoded_sample, decoded_mode) = forward(params, images, cond)
    np.testing.assert_allclose(latents.aux["kl"], kl.sum(axis=1), rtol=1e-5)
    mean, logvar = np.split(np.asarray(latents.aux["moments"]), 2, axis=-1)
    return {
        "z": stored(latents.aux["moments"]),
        "mean": stored(mean),
        "logvar": stored(np.clip(logvar, *LOGVAR_RANGE)),
        "sample": stored(latents.values),
        "kl": kl,
        "mode": stored(mode.values),
        "decoded_sample": case.stored(decoded_sample + 1) / 2,
        "decoded_mode": case.stored(decoded_mode + 1) / 2,
    }


def stored(z):
    """Tokens `[B, K, c]` as `[B, c, 1, K]`."""
    return np.swapaxes(np.asarray(z), 1, 2)[:, :, None]
