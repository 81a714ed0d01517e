"""The classes of ImageNet (Deng et al. 2009; the 1000 of ILSVRC 2012) by name."""

import functools
import importlib.resources

CLASSES = 1000


@functools.cache
def class_names() -> tuple[str, ...]:
    """English names, all different, in the order of the class numbers that published models use."""
    text = importlib.resources.files("maskdit.data.embedded").joinpath("imagenet_classes.txt").read_text("utf-8")
    return tuple(text.splitlines())
