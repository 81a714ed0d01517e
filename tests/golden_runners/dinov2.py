"""DINOv2: class, register and patch tokens at three image sizes, and the resized positions."""

from maskdit.interop import dinov2 as interop

INPUTS = ("images", "images_nonsquare", "images_native")
LEFT_OUT: dict[str, str] = {}


def run(case):
    images, nonsquare, native = (case.images(name) for name in INPUTS)
    network, params = case.model(interop, images, file="torch")

    def seen(params, images, nonsquare, native):
        def apply(*inputs, method=None):
            return network.apply({"params": params}, *inputs, method=method)

        layers = (-2, -1)[-network.depth :]  # there may be one block alone
        *before, last = apply(images, layers, method="tokens")
        other = apply(nonsquare, method="tokens")[0]
        grids = {
            "interpolated": [side // network.patch for side in images.shape[1:3]],
            "nonsquare": [side // network.patch for side in nonsquare.shape[1:3]],
        }
        values = {f"pos_embed_{name}": apply(*grid, method="places")[None] for name, grid in grids.items()}
        if before:
            values["second_to_last_layer_patches"] = before[0].patches
        return values | {
            "cls_token": last.summary,
            "patch_tokens": last.patches,
            "register_tokens_out": last.registers,
            "block0": apply(images, (0,), method="stream")[0],
            "cls_token_nonsquare": other.summary,
            "patch_tokens_nonsquare": other.patches,
            "cls_token_native": apply(native).pooled,
        }

    values = case.jit(seen)(params, images, nonsquare, native)
    if not network.registers:
        del values["register_tokens_out"]
    return values
