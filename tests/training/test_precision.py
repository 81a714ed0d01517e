from maskdit import config
from maskdit.layers.platform import compiling_for
from maskdit.training.precision import on_this_device


def test_half_precision_is_kept_where_the_target_has_it():
    given = config.load("dit_imagenet256:smoke")
    assert given.task.network.dtype == "bfloat16"
    assert on_this_device(given).task.network.dtype == "float32"
    with compiling_for("tpu"):
        assert on_this_device(given).task.network.dtype == "bfloat16"
    assert given.task.network.dtype == "bfloat16"
