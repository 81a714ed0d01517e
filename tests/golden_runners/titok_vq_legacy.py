"""The first TiTok: logits of MaskGIT-VQGAN codes, whose expectation its decoder turns into an image."""

import numpy as np

from maskdit.contracts import Latents
from maskdit.interop import titok as interop
from maskdit.tasks.proxy import proxy_cross_entropy
from tests.golden_runners.titok_vq import COUNTERS

INPUTS = ("image", "tokens", "stage1_target_codes")
LEFT_OUT: dict[str, str] = {}


def run(case):
    images = case.images("image") * 2 - 1
    titok, params = case.model(interop, images, file="torch", counters=COUNTERS)

    @case.jit
    def forward(params, images, ids, targets):
        def call(method, *inputs):
            return titok.apply({"params": params}, *inputs, method=method)

        latents = call("encode", images)
        logits = call("logits", latents)
        entropy = proxy_cross_entropy(logits, targets).mean()
        tuned = titok.pixel is not None  # else the published decoder ends with the logits
        decoded = [call("decode" if tuned else "logits", given) for given in (latents, Latents(ids=ids))]
        code = call("expected_code", logits) if tuned else None
        return call("features", images), latents, logits, code, decoded, entropy

    given = (case.arrays["tokens"], case.arrays["stage1_target_codes"])
    z, latents, logits, code, (reconstruction, decoded), entropy = forward(params, images, *given)
    commitment, codebook = (latents.losses[name].mean() for name in ("commitment", "codebook"))
    # images lie in [0, 1] there, logits anywhere
    reconstruction, decoded = ((x + 1) / 2 if code is not None else x for x in (reconstruction, decoded))
    values = {} if code is None else {"expected_code": case.stored(code)}
    return values | {
        "z": np.swapaxes(z, 1, 2)[:, :, None],
        "min_encoding_indices": np.asarray(latents.ids)[:, None],
        "z_quantized": np.swapaxes(latents.values, 1, 2)[:, :, None],
        "quantizer_loss": commitment + codebook,
        "commitment_loss": commitment,
        "codebook_loss": codebook,
        "logits": case.stored(logits),
        "reconstruction": case.stored(reconstruction),
        "decoded_tokens": case.stored(decoded),
        "stage1_reconstruction_loss": entropy,
        "stage1_total_loss": entropy + case.config["losses"]["quantizer_weight"] * (commitment + codebook),
    }
