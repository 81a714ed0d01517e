# ruff: noqa: E501, the text of a program
import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from maskdit.performance.hlo import Collective, collectives, cycles
from maskdit.training.mesh import MeshShape

# What a TPU's compiler writes, cut down: a gather that starts in one fusion and goes on in two others under the same
# channel, a gather of another channel that does not, a scatter in a fusion around a sum, a loop whose bound stands in its
# condition, a loop with a known count, and a start that gives its operand beside its result.
PROGRAM = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%fusion.start (p: bf16[72,64]) -> (bf16[72,64], bf16[1152,64], /*index=2*/s32[2]) {
  %p = bf16[72,64]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %gather.1 = bf16[1152,64]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, replica_groups=mesh['axis_0'=16] {'axis_0'}, dimensions={0}, metadata={op_name="jit(step)/blocks_0/fc1"}
  ROOT %call = (bf16[72,64]{1,0}, bf16[1152,64]{1,0}, s32[2]{0}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%fusion.product (p: bf16[72,64], x: bf16[16,1152]) -> bf16[16,64] {
  %p.1 = bf16[72,64]{1,0} parameter(0)
  %x = bf16[16,1152]{1,0} parameter(1)
  %gather.2 = bf16[1152,64]{1,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=7, replica_groups=mesh['axis_0'=16] {'axis_0'}, dimensions={0}
  ROOT %dot = bf16[16,64]{1,0} convolution(%x, %gather.2), dim_labels=bf_io->bf
}

%all-reduce-scatter.3 (g: f32[160,64]) -> f32[10,64] {
  %g = f32[160,64]{1,0} parameter(0)
  %sum.1 = f32[160,64]{1,0} all-reduce(%g), channel_id=8, replica_groups=mesh['a'=2,'b'=16], device_ids=([2,2,8]T(1,0,2)) {'b'}, to_apply=%add
  %id = u32[] partition-id()
  ROOT %slice = f32[10,64]{1,0} dynamic-slice(%sum.1, %id), dynamic_slice_sizes={10,64}
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[], f32[8]{0}) parameter(0)
  %x.1 = f32[8]{0} get-tuple-element(%state), index=1
  %moved = f32[8]{0} collective-permute(%x.1), channel_id=9, source_target_pairs={{0,1},{1,0}}
  %grown = f32[8]{0} fusion(%moved), kind=kLoop, calls=%add, backend_config={"estimated_cycles":"10"}
  ROOT %next = (s32[], f32[8]{0}) tuple(%x.1, %grown)
}

%condition (state.1: (s32[], f32[8])) -> pred[] {
  %state.1 = (s32[], f32[8]{0}) parameter(0)
  %bound = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%state.1, %bound), direction=LT
}

ENTRY %main (w: bf16[72,64], x.2: bf16[16,1152]) -> bf16[16,64] {
  %w = bf16[72,64]{1,0} parameter(0)
  %x.2 = bf16[16,1152]{1,0} parameter(1)
  %started = (bf16[72,64]{1,0}, bf16[1152,64]{1,0}, s32[2]{0}) fusion(%w), kind=kCustom, calls=%fusion.start
  %first = bf16[16,64]{1,0} fusion(%w, %x.2), kind=kOutput, calls=%fusion.product, backend_config={"window_config":{"estimated_cycles":"1000"}}
  %again = bf16[16,64]{1,0} fusion(%w, %x.2), kind=kOutput, calls=%fusion.product, backend_config={"window_config":{"estimated_cycles":"500"}}
  %scattered = f32[10,64]{1,0} fusion(%first), kind=kCustom, calls=%all-reduce-scatter.3
  %loop = (s32[], f32[8]{0}) while(%first), condition=%condition, body=%body
  %twice = (s32[], f32[8]{0}) while(%loop), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"2"}}
  %begun = (f32[4,8]{1,0}, f32[16,8]{1,0}) all-gather-start(f32[4,8]{1,0} %twice), channel_id=11, replica_groups={{0,1,2,3}}, dimensions={0}
  %ended = f32[16,8]{1,0} all-gather-done(%begun)
  %moves = bf16[64,16]{1,0} copy(%again), backend_config={"estimated_cycles":"7"}
  ROOT %out = bf16[16,64]{1,0} transpose(%moves)
}
"""


def test_collectives_of_a_program_are_counted_once_and_in_loops_as_often_as_they_run():
    found = {(one.kind, one.bytes, one.count, one.group, one.asynchronous) for one in collectives(PROGRAM)}
    assert found == {
        ("all-gather", 1152 * 64 * 2, 1, 16, True),
        ("reduce-scatter", 160 * 64 * 4, 1, 16, False),
        ("collective-permute", 8 * 4, 5, 0, False),
        ("collective-permute", 8 * 4, 2, 0, False),
        ("all-gather", 16 * 8 * 4, 1, 4, True),
    }


def test_cycles_follow_loops_and_what_has_none_is_named():
    found = cycles(PROGRAM)
    assert found.by_class == {"products": 1500, "element-wise": 70, "copies": 7}
    assert found.total == 1577
    assert found.missing["synchronous collective-permute"] == 7
    assert found.missing["synchronous reduce-scatter"] == 1
    assert found.missing["start or end of an asynchronous collective"] == 1


@pytest.mark.parametrize(
    ("kind", "sent"),
    [("all-gather", 75.0), ("reduce-scatter", 75.0), ("all-reduce", 150.0), ("collective-permute", 100)],
)
def test_bytes_on_the_wire_of_a_ring(kind, sent):
    assert Collective(kind, 50, 2, 4, "", False).wire == sent


def test_a_scanned_stack_gathers_its_weights_in_every_turn():
    mesh = MeshShape(data=1, fsdp=8).make()
    whole, cut = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), (None, "fsdp")))

    @functools.partial(jax.jit, out_shardings=whole)
    def run(weights, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ jax.lax.with_sharding_constraint(w, whole)), None), x, weights)[
            0
        ]

    weights = jax.ShapeDtypeStruct((6, 32, 32), jnp.float32, sharding=cut)
    text = run.lower(weights, jnp.ones((4, 32))).compile().as_text()
    gathers = [one for one in collectives(text) if one.kind == "all-gather"]
    assert sum(one.total for one in gathers) == 6 * 32 * 32 * 4
    assert cycles(text).total == 0
