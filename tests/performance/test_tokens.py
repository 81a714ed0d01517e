"""`maskdit bench tokens`: a pair at tiny size, and what is counted."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from maskdit import bench
from maskdit import config as configs
from maskdit.cli import main
from maskdit.contracts import Plan, example_cond, example_input
from maskdit.networks.dit import DiT
from maskdit.networks.enat import ENAT
from maskdit.networks.maskgit import MaskGIT
from maskdit.networks.rar import RAR
from maskdit.performance import costs, tokens
from maskdit.performance.subject import BenchError
from maskdit.performance.timing import Spread
from maskdit.processes.ddpm import DDPM
from maskdit.processes.masked import Masked
from maskdit.samplers.ancestral import Ancestral
from maskdit.samplers.guidance import ClassifierFree
from maskdit.samplers.tokens import Confidence
from maskdit.tasks.generator import Generator
from maskdit.tokenizers.pixels import Pixels
from maskdit.tokenizers.quantize.vq import VQ
from maskdit.tokenizers.titok import TiTok
from maskdit.tokenizers.vae import VAE
from maskdit.training.mesh import unboxed

SIZE = {"width": 32, "depth": 2, "heads": 2, "classes": {"label": 3}}
WIDE = {"vocabulary": 128, "grid": (4, 4), "width": 256, "depth": 2, "heads": 4, "classes": {"label": 10}}


def tiny():
    """A pair with decoders that runs in a second."""
    parts = (16, 1, 2)
    titok = TiTok(
        quantize=VQ(codes=16, channels=4), size=16, patch=8, tokens=4, channels=4, encoder=parts, decoder=parts
    )
    dit = DiT(input_size=8, channels=4, patch=2, **SIZE)
    maskgit = MaskGIT(vocabulary=16, grid=(4,), hidden=64, **SIZE)
    vae = VAE(channels=(16, 16), groups=8, layers_per_block=1)
    guided = ClassifierFree(3.0)
    return tokens.Case(
        tokens.System("slow", dit, DDPM(), Ancestral(6), guided, vae),
        tokens.System(
            "fast", maskgit, Masked(), Confidence(2), ClassifierFree(3.0, schedule="linear"), titok, repeats=2
        ),
        batch=2,
    )


def test_a_pair_is_measured_and_the_others_are_counted(tmp_path, capsys):
    file = tmp_path / "rows.json"
    case = tiny()
    rows = bench.tokens(2, str(file), case)
    alone, decoded, flops = rows[:3]
    assert alone.unit == decoded.unit == "CPU-s" and min(alone.costs) > 0
    assert all(one >= two for one, two in zip(decoded.costs, alone.costs, strict=True))
    assert flops.costs == (2 * 12 * case.diffusion.network.macs(), 2 * 3 * case.masked.network.macs())
    told = capsys.readouterr().out
    assert "slow, decoded" in told and "of the rate of float32 matrix products" in told
    assert [row["ratio"]["median"] for row in json.loads(file.read_text())["tokens"]] == [
        row.ratio.median for row in rows
    ]


def test_counts_at_the_papers_sizes():
    alone, decoded, without, enat, cached = tokens.counted()
    assert alone.costs == pytest.approx((118.6e12, 172e9), rel=0.01)
    assert decoded.ratio.median == pytest.approx(218, rel=0.02)  # of the published modules, by PyTorch's counter
    assert 1 < without.ratio.median < enat.ratio.median
    assert cached.ratio.median >= cached.must == tokens.CACHED


def test_a_ratio_or_share_that_is_missed_is_told():
    rows = tuple(tokens.Row("a", "b", "CPU-s", (r, 1.0), Spread(r, r - 1, r + 1), 45.0) for r in (45.0, 44.9))
    shown = tokens.table(rows, tokens.Found(rows, 0.59, Spread(9e10, 8e10, 1e11))).splitlines()
    assert "45x (44 to 46) " in shown[1] and shown[1].endswith(">= 45x pass") and shown[2].endswith(">= 45x MISS")
    assert "59% of the rate" in shown[3] and ">= 60% MISS" in shown[3]


def test_what_it_cannot_do_is_refused(capsys):
    with pytest.raises(BenchError, match="rounds must be 1 or more"):
        bench.tokens(0)
    assert main(["bench", "tokens", "--scratch", "x"]) == 1
    assert "bench tokens takes no --scratch" in capsys.readouterr().err


def xla(network, ids, memory=False, **kw):
    """FLOPs of a forward pass of one example, as XLA counts them."""
    cond = example_cond(network)

    def init():
        return unboxed(network.init(jax.random.key(0), example_input(network.layout), jnp.ones((1,)), cond))

    kw |= {"cache": network.init_cache(1)} if memory else {}
    call = jax.jit(lambda v, x: network.apply(v, x, jnp.ones((1,)), cond, **kw).x)
    return costs.lowered_flops(call.lower(jax.eval_shape(init), jax.ShapeDtypeStruct((1, ids), jnp.int32)))


@pytest.mark.parametrize("fresh", [None, 0, 1])
def test_the_formula_of_an_autoregressive_network_is_what_xla_counts(fresh):
    network = RAR(**WIDE, hidden=1024)
    kw = {} if fresh is None else {"memory": True, "place": 0}
    found = xla(network, 16 if fresh is None else fresh, **kw)
    assert found == pytest.approx(2 * network.macs(fresh=fresh), rel=0.08)


def test_the_formula_of_a_masked_network_is_what_xla_counts():
    network = MaskGIT(**WIDE, hidden=1024)
    assert xla(network, 16) == pytest.approx(2 * network.macs(), rel=0.08)


def test_a_training_step_counts_the_pass_that_makes_features():
    network = ENAT(**WIDE)
    task = Generator(network, Masked(), Pixels())
    assert costs.training_macs(task, Plan(masked=12)) == network.macs(masked=12)
    step = 3 * network.macs(masked=12, fresh=3) + network.macs(masked=15)
    assert costs.training_macs(task, Plan(masked=12, hidden=3)) * 3 == pytest.approx(step)
    assert costs.plan_name(Plan(masked=12, hidden=3)) == "12 tokens masked, 3 hidden again"


def test_a_decoder_under_a_loop_is_counted_whole():
    run = configs.build(configs.load("maskgit_imagenet256:smoke"))
    deep = dataclasses.replace(run.task, tokenizer=run.task.tokenizer.clone(decoder=(16, 3, 2)))
    looped = dataclasses.replace(deep, tokenizer=deep.tokenizer.clone(scan=True))
    assert costs.decode_flops(looped) == costs.decode_flops(deep) > 1.5 * costs.decode_flops(run.task)
