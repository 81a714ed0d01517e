"""Published files of TiTok's generators: variants, both ways, and every tensor at full size."""

import jax
import numpy as np
import pytest

from maskdit.config import build
from maskdit.interop import layouts, published, titok_generator
from maskdit.interop.rules import LayoutError, TableError, export_params, import_params
from tests.interop.test_titok import golden, parameters


def bert_file(*, width, hidden, depth, codes, classes, tokens):
    """Names and shapes of a published file."""
    shapes = {"model.lm_head.weight": (codes, width), "model.lm_head.bias": (codes,)}
    tables = {"word": codes + classes + 2, "position": tokens + 1, "token_type": 2}
    shapes |= {f"model.embeddings.{name}_embeddings.weight": (rows, width) for name, rows in tables.items()}
    norms, products = ["model.embeddings.LayerNorm"], {}
    for i in range(depth):
        layer = f"model.encoder.layer.{i}"
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            products[f"{layer}.attention.{name}"] = (width, width)
        products[f"{layer}.intermediate.dense"] = (hidden, width)
        products[f"{layer}.output.dense"] = (width, hidden)
    return shapes | with_biases(norms, products, width)


def uvit_file(*, width, hidden, depth, codes, classes, tokens):
    shapes = {"pos_embed": (1, tokens + 1, width), "embeddings.weight": (codes + classes + 2, width)}
    norms, products = ["norm"], {"lm_head": (codes, width)}
    half = range(depth // 2)
    for block in (*(f"in_blocks.{i}" for i in half), "mid_block", *(f"out_blocks.{i}" for i in half)):
        norms += [f"{block}.norm1", f"{block}.norm2"]
        shapes[f"{block}.attn.qkv.weight"] = (3 * width, width)
        products[f"{block}.attn.proj"] = (width, width)
        products[f"{block}.mlp.fc1"] = (hidden, width)
        products[f"{block}.mlp.fc2"] = (width, hidden)
        if block.startswith("out"):
            products[f"{block}.skip_linear"] = (width, 2 * width)
    return shapes | with_biases(norms, products, width)


def with_biases(norms, products, width):
    shapes = {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}
    for name, shape in products.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


BERT = {"width": 768, "hidden": 3072, "depth": 24, "codes": 4096, "classes": 1000}
UVIT = {"width": 1024, "hidden": 4096, "depth": 20, "codes": 4096, "classes": 1000}
FULL = {
    "titok-l-32-generator": (bert_file, BERT | {"tokens": 32}),
    "titok-b-64-generator": (bert_file, BERT | {"tokens": 64}),
    "titok-s-128-generator": (uvit_file, UVIT | {"tokens": 128}),
}


@pytest.mark.parametrize("name", FULL)
def test_every_tensor_of_the_published_file_is_covered(name):
    file, sizes = FULL[name]
    assert {key: tensor.shape for key, tensor in layouts.write(*parameters(name)).items()} == file(**sizes)


def test_the_rules_of_these_files_give_the_golden_cases():
    small = {"width": 48, "codes": 40, "classes": 10, "tokens": 12}
    assert bert_file(hidden=160, depth=2, **small) == golden("titok-imagebert")[1]
    assert uvit_file(hidden=144, depth=4, **small) == golden("titok-uvit")[1]


def test_the_generators_are_the_ones_that_are_published():
    entries = [
        name for name, entry in published.ALIASES.items() if entry.from_reference is titok_generator.from_reference
    ]
    assert entries == list(FULL)


def changed(name, **model):
    config = golden(name)[0]
    return {**config, "generator": {**config["generator"], **model}}


VARIANTS = [
    golden("titok-imagebert")[0],
    changed("titok-imagebert", dropout=0.0, attn_drop=0.3, num_hidden_layers=12),
    golden("titok-imagebert")[0] | {"label": "class", "grid": (3, 4)},
    golden("titok-uvit")[0],
    changed("titok-uvit", num_hidden_layers=5, hidden_size=40, num_attention_heads=5, intermediate_size=112),
    changed("titok-uvit", num_hidden_layers=24),
]


@pytest.mark.parametrize("config", VARIANTS)
def test_a_network_tells_its_published_arguments_and_its_tensors_return(config):
    network = build(titok_generator.from_reference(config))
    again = titok_generator.to_reference(network)
    assert build(titok_generator.from_reference(again)) == network
    shapes, rng = layouts.parameter_shapes(network), np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    state = export_params(titok_generator.table(again), params)
    back = import_params(titok_generator.table(config), state, shapes)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_the_first_versions_sizes_stand_where_a_configuration_has_none():
    model = {"image_seq_len": 32, "condition_num_classes": 1000, "dropout": 0.1, "attn_drop": 0.1}
    entry = published.ALIASES["titok-l-32-generator"]
    assert titok_generator.from_reference({"codebook_size": 4096, "generator": model}) == entry.spec()


def test_queries_keys_and_values_stand_side_by_side_and_numbers_of_places_are_passed_over():
    config = golden("titok-imagebert")[0]
    shapes = layouts.parameter_shapes(build(titok_generator.from_reference(config)))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    state = export_params(titok_generator.table(config), zeros)
    name = "model.encoder.layer.1.attention.self.key.weight"
    state[name] = np.random.default_rng(0).standard_normal(state[name].shape, np.float32)
    state["model.embeddings.position_ids"] = np.arange(13)[None]
    params = import_params(titok_generator.table(config), state, shapes)
    np.testing.assert_array_equal(params["blocks_1"]["attn"]["qkv"]["kernel"][:, 1], state[name].T)
    assert not params["blocks_1"]["attn"]["qkv"]["kernel"][:, ::2].any()
    with pytest.raises(TableError, match=r"model\.pooler\.dense\.weight"):
        more = state | {"model.pooler.dense.weight": np.zeros((48, 48), np.float32)}
        import_params(titok_generator.table(config), more, shapes)


def test_other_architectures_are_refused():
    with pytest.raises(LayoutError, match="model_type='DiT'"):
        titok_generator.from_reference(changed("titok-uvit", model_type="DiT"))
    network = build(titok_generator.from_reference(golden("titok-uvit")[0]))
    with pytest.raises(LayoutError, match=r"UViTBert has 2 labels \(a, b\)"):
        titok_generator.to_reference(network.clone(classes={"a": 2, "b": 3}))
    with pytest.raises(LayoutError, match="0 labels"):
        layouts.write(network.clone(classes={}), {})
