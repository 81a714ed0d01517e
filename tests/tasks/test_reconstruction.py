import numpy as np
import pytest

from maskdit.tasks.reconstruction import Reconstruction

IMAGES = np.zeros((2, 2, 2, 1), np.float32)
OTHERS = np.stack([np.full((2, 2, 1), 0.5), np.asarray([[[1.0], [0.0]], [[0.0], [-2.0]]])]).astype(np.float32)


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        ({}, [0.25, 1.25]),
        ({"l1": 1.0, "l2": 0.0}, [0.5, 0.75]),
        ({"l1": 2.0, "l2": 3.0}, [1.75, 5.25]),
        ({"unit_range": True}, [0.0625, 0.3125]),
        ({"l1": 1.0, "l2": 0.0, "unit_range": True}, [0.25, 0.375]),
        ({"logvar": float(np.log(4))}, [0.0625, 0.3125]),
    ],
)
def test_errors_are_means_of_each_example(fields, values):
    np.testing.assert_allclose(Reconstruction(**fields).value(IMAGES, OTHERS), values, rtol=1e-6)


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match="l1 must be 0 or more"):
        Reconstruction(l1=-1.0)
