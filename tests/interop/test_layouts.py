"""Files of every layout: told apart by their names, read, and written again."""

import json

import jax
import numpy as np
import pytest

from maskdit.interop import layouts
from maskdit.interop.rules import LayoutError, TableError
from maskdit.interop.state_file import State
from maskdit.networks.dit import DiT
from maskdit.networks.maskdit import MaskDiT
from maskdit.tokenizers.pixels import Pixels
from maskdit.tokenizers.vae import VAE

SIZES = {"input_size": 4, "patch": 2, "channels": 3, "width": 8, "depth": 2, "heads": 2, "classes": {"group": 5}}
NETWORKS = {
    "dit": DiT(**SIZES, learned_variance=True),
    "maskdit": MaskDiT(**SIZES, decoder_width=4, decoder_depth=1, decoder_heads=1),
    "vae": VAE(channels=(32, 32), layers_per_block=1, latent_channels=2),
    "attentive": VAE(channels=(32, 64), layers_per_block=1, latent_channels=2, attention_levels=(1,)),
    "small": VAE(channels=(4, 6), groups=2, layers_per_block=1, latent_channels=2, quant_conv=False),
}
FILES = [
    ("dit", "reference"),
    ("dit", "diffusers"),
    ("maskdit", "reference"),
    ("vae", "reference"),
    ("vae", "diffusers"),
    ("attentive", "reference"),
    ("small", "diffusers"),
]


@pytest.fixture(scope="module")
def params():
    """Random parameters of each network."""
    made = {}
    for name, network in NETWORKS.items():
        shapes = layouts.parameter_shapes(network)
        rng = np.random.default_rng(0)
        made[name] = jax.tree.map(lambda leaf, rng=rng: rng.standard_normal(leaf.shape, np.float32), shapes)
    return made


def state(tensors):
    return State(tensors=dict(tensors), path="weights.pt")


@pytest.mark.parametrize(("name", "layout"), FILES)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_a_file_comes_back_whatever_wraps_it(params, name, layout, prefix):
    network = NETWORKS[name]
    written = layouts.write(network, params[name], layout)
    file = state({prefix + key: tensor for key, tensor in written.items()})
    assert layouts.fit(network, params[name], file).name == layout
    again, found = layouts.read(network, params[name], file)
    assert found == layout
    jax.tree.map(np.testing.assert_array_equal, again, params[name])
    back = layouts.write(network, again, layout)
    assert back.keys() == written.keys()
    for key, tensor in written.items():
        np.testing.assert_array_equal(back[key], tensor, err_msg=key)


def test_the_autoencoder_of_a_larger_model_is_found(params):
    network, others = NETWORKS["vae"], {"model.diffusion_model.out.weight": np.zeros(2), "betas": np.zeros(3)}
    inside = {f"first_stage_model.{k}": v for k, v in layouts.write(network, params["vae"]).items()}
    again, _ = layouts.read(network, params["vae"], state(others | inside))
    jax.tree.map(np.testing.assert_array_equal, again, params["vae"])


def test_what_only_training_needs_is_passed_over(params):
    names = ("loss.logvar", "model_ema.decay", "foundation_model.model.norm.weight", "linear_proj.weight")
    more = layouts.write(NETWORKS["attentive"], params["attentive"]) | dict.fromkeys(names, np.zeros(1))
    again, _ = layouts.read(NETWORKS["attentive"], params["attentive"], state(more))
    jax.tree.map(np.testing.assert_array_equal, again, params["attentive"])


def test_model_is_a_part_of_the_names_of_maskdit_and_a_wrapper_of_dit(params):
    file = layouts.write(NETWORKS["maskdit"], params["maskdit"])
    assert all(name.startswith("model.") for name in file)
    wrapped = {f"model.{name}": tensor for name, tensor in layouts.write(NETWORKS["dit"], params["dit"]).items()}
    again, _ = layouts.read(NETWORKS["dit"], params["dit"], state(wrapped))
    jax.tree.map(np.testing.assert_array_equal, again, params["dit"])


@pytest.mark.parametrize("prefix", ["module.first_stage_model.", "first_stage_model.module.", "module.", "model."])
def test_wrappers_stand_around_a_larger_model_or_inside(params, prefix):
    network = NETWORKS["vae"]
    wrapped = {f"{prefix}{name}": tensor for name, tensor in layouts.write(network, params["vae"]).items()}
    if "first_stage" in prefix:
        wrapped[prefix.partition("first")[0] + "model.diffusion_model.out.weight"] = np.zeros(2)
    again, _ = layouts.read(network, params["vae"], state(wrapped))
    jax.tree.map(np.testing.assert_array_equal, again, params["vae"])


def test_names_outside_the_wrapper_of_the_others_are_told(params):
    network, written = NETWORKS["dit"], layouts.write(NETWORKS["dit"], params["dit"])
    wrapped = {f"module.{name}": tensor for name, tensor in written.items()}
    others = {"epoch": np.zeros(1), "blocks.0.mlp.fc1.bias": written["blocks.0.mlp.fc1.bias"]}
    with pytest.raises(TableError) as fault:
        layouts.read(network, params["dit"], state(others | wrapped))
    assert {line.partition(":")[0] for line in fault.value.faults["unmatched"]} == {
        "epoch",
        "blocks.0.mlp.fc1.bias (beside module.blocks.0.mlp.fc1.bias)",
    }
    assert list(fault.value.faults) == ["unmatched"]


@pytest.mark.parametrize(("name", "place"), [("dit", "task.network"), ("vae", "tokenizer")])
def test_a_file_that_does_not_fit_ends_with_advice(params, name, place):
    network, layout = NETWORKS[name], "diffusers"
    file = dict(list(layouts.write(network, params[name], layout).items())[1:])
    with pytest.raises(TableError, match=r"weights\.pt does not fit this .* \(layout diffusers\)") as fault:
        layouts.read(network, params[name], state(file))
    last = str(fault.value).splitlines()[-1]
    assert last.startswith("give the file that belongs to this network") and f"--config.{place}.FIELD=VALUE" in last


@pytest.mark.parametrize(
    ("name", "changed", "says"),
    [
        ("dit", {}, ""),
        ("dit", {"_class_name": "Transformer2DModel", "norm_eps": 1e-5, "out_channels": None}, ""),
        ("dit", {"sample_size": 64}, "sample_size: 64 in the file, 4 in this network"),
        ("dit", {"num_attention_heads": 4, "attention_head_dim": 2}, "num_attention_heads: 4 in the file, 2 in this"),
        ("small", {"sample_size": 512, "shift_factor": 0.0, "latents_mean": None}, ""),
        ("small", {"scaling_factor": 0.13025}, "scaling_factor: 0.13025 in the file, 0.18215 in this network"),
        ("small", {"shift_factor": 0.1}, "shift_factor: 0.1 in the file, null in this network"),
        ("small", {"norm_num_groups": 1, "act_fn": "gelu"}, 'act_fn: "gelu" in the file'),
    ],
)
def test_the_configuration_beside_a_file_must_describe_the_network(params, tmp_path, name, changed, says):
    network = NETWORKS[name]
    config = layouts.named(network, "diffusers").config(network) | changed
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = State(layouts.write(network, params[name], "diffusers"), str(tmp_path / "weights.bin"))
    if not says:
        layouts.read(network, params[name], file)
        return
    with pytest.raises(LayoutError, match="describes another") as fault:
        layouts.read(network, params[name], file)
    assert says in str(fault.value) and "FIELD=VALUE" in str(fault.value)


def test_a_configuration_binds_the_layouts_that_have_one_and_must_be_sound(params, tmp_path):
    (tmp_path / "config.json").write_text("[")
    network = NETWORKS["dit"]
    layouts.read(network, params["dit"], State(layouts.write(network, params["dit"]), str(tmp_path / "m.pt")))
    file = State(layouts.write(network, params["dit"], "diffusers"), str(tmp_path / "m.bin"))
    with pytest.raises(LayoutError, match=r"config\.json, which describes .* cannot be read"):
        layouts.read(network, params["dit"], file)


def test_a_config_lies_beside_the_layouts_of_diffusers_only():
    for name, layout in FILES:
        chosen = layouts.named(NETWORKS[name], layout)
        assert (chosen.config is None) == (layout == "reference")
    transformer = layouts.named(NETWORKS["dit"], "diffusers").config(NETWORKS["dit"])
    facts = {"_class_name": "DiTTransformer2DModel", "attention_head_dim": 4, "num_attention_heads": 2}
    facts |= {"in_channels": 3, "out_channels": 6, "num_layers": 2, "sample_size": 4, "num_embeds_ada_norm": 5}
    assert facts.items() <= transformer.items()
    autoencoder = layouts.named(NETWORKS["small"], "diffusers").config(NETWORKS["small"])
    facts = {"_class_name": "AutoencoderKL", "block_out_channels": [4, 6], "norm_num_groups": 2}
    assert (facts | {"use_quant_conv": False, "shift_factor": None}).items() <= autoencoder.items()


def test_a_file_of_another_network_is_refused_with_both_names(params):
    message = (
        r"weights\.pt: none of its 1 tensors \(conv\.weight, \.\.\.\) has a name of DiT in the layout reference or"
    )
    with pytest.raises(ValueError, match=message):
        layouts.read(NETWORKS["dit"], params["dit"], state({"conv.weight": np.zeros(2)}))
    other = state(layouts.write(NETWORKS["maskdit"], params["maskdit"]))
    with pytest.raises(TableError, match="decoder_blocks"):
        layouts.read(NETWORKS["dit"], params["dit"], other)


@pytest.mark.parametrize(
    ("network", "layout", "message"),
    [
        (NETWORKS["maskdit"], "diffusers", "MaskDiT has no layout 'diffusers': there is reference"),
        (NETWORKS["vae"], "flax", "VAE has no layout 'flax': there is reference and diffusers"),
        (Pixels(), "reference", "Pixels has no published layout: weights of DiT, .* go in"),
        (NETWORKS["attentive"], "diffusers", "attention in its levels"),
        (NETWORKS["small"], "reference", "quant_conv=False"),
    ],
)
def test_a_layout_that_does_not_exist_is_refused(network, layout, message):
    with pytest.raises(ValueError, match=message):
        layouts.write(network, {}, layout)


def test_a_network_without_any_published_counterpart_is_refused():
    network = VAE(channels=(4, 6), groups=2, attention_levels=(0,))
    with pytest.raises(ValueError, match=r"groups in its norms.*; .*attention in its levels"):
        layouts.fit(network, {}, state({"conv.weight": np.zeros(2)}))
