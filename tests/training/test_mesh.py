import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from maskdit.training.mesh import LARGE, MeshShape, batch_sharding, local_rows, shardings


def test_one_size_takes_what_is_left():
    assert dict(MeshShape(data=-1, fsdp=4).make().shape) == {"data": 2, "fsdp": 4, "tensor": 1}


@pytest.mark.parametrize("shape", [MeshShape(3), MeshShape(-1, 3), MeshShape(-1, -1), MeshShape(0, 8), MeshShape(2, 2)])
def test_meshes_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="8 devices"):
        shape.make()


def test_names_decide_where_an_axis_lies():
    mesh = MeshShape(data=2, fsdp=2, tensor=2).make()
    box = lambda shape, *names: nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)  # noqa: E731
    tree = {
        "kernel": box((8, 16), "embed", "mlp"),
        "odd": box((7, 16), "embed", "mlp"),
        "twice": box((8, 8), "embed", "embed"),
        "large": jax.ShapeDtypeStruct((3, LARGE), jnp.float32),
        "small": jax.ShapeDtypeStruct((8, 8), jnp.float32),
    }
    specs = {name: sharding.spec for name, sharding in shardings(tree, mesh).items()}
    assert specs == {
        "kernel": P("fsdp", "tensor"),
        "odd": P(None, "tensor"),
        "twice": P("fsdp", None),
        "large": P(None, "fsdp"),
        "small": P(),
    }


def test_rows_are_blocks_and_cover_the_batch():
    mesh = MeshShape(data=2, fsdp=4).make()
    assert local_rows(mesh, 16) == list(range(16))
    placed = jax.device_put(jnp.arange(16), batch_sharding(mesh))
    assert [shard.data.tolist() for shard in placed.addressable_shards][:2] == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="multiple of 8"):
        local_rows(mesh, 12)
