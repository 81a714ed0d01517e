import dataclasses
import importlib.resources
import json
import types

import jax
import numpy as np
import pytest

import maskdit
from maskdit import config as configs
from maskdit.data.emoji import Emoji
from maskdit.draw import Draw
from maskdit.evals import labels
from maskdit.evaluate import EvaluationError, evaluate
from maskdit.networks.model import GeneratorModel


@pytest.fixture(scope="module")
def classifier():
    return labels.shipped_classifier()


@dataclasses.dataclass
class Honest:
    """Draws real pictures of the labels asked for, out of those it was given."""

    classes: dict
    vocabulary: dict
    seen: list = dataclasses.field(default_factory=list)

    @property
    def task(self):
        return types.SimpleNamespace(network=types.SimpleNamespace(classes=self.classes))

    def sample(self, asked, count, seed, batch):
        source, rng = Emoji("val", tuple(self.classes)), np.random.default_rng(seed)
        records = [source[i] for i in range(len(source))]
        images = []
        for k in range(count):
            wanted = {name: self.vocabulary[name].index(asked[name][k]) for name in self.classes}
            fitting = [r["image"] for r in records if all(r[name] == w for name, w in wanted.items())]
            images.append(fitting[rng.integers(len(fitting))])
        self.seen.append(asked)
        return np.stack(images)


@pytest.fixture
def honest():
    source = Emoji("val")
    return Honest({"style": 4, "group": 8}, source.vocabulary)


@pytest.fixture(scope="module")
def generator():
    """The generator of the smoke config, not trained."""
    config = configs.load("maskdit_emoji:smoke")
    task = configs.build(config.task)
    source = Emoji("train")
    variables = {
        "params": jax.jit(lambda: task.init(Draw(0), {})[0])(),
        "frozen": task.freeze(Draw(0), lambda: [np.stack([source[i]["image"] for i in range(0, 5000, 500)])]),
    }
    from flax.core import meta

    return GeneratorModel(task, meta.unbox(variables), source.vocabulary, configs.build(config.sampler), config=config)


def test_the_shipped_classifier_is_small_and_knows_emoji(classifier):
    file = importlib.resources.files("maskdit.encoders").joinpath("emoji_classifier.npz")
    assert len(file.read_bytes()) <= 2_000_000
    assert classifier.vocabulary == Emoji("val").vocabulary
    images = np.stack([Emoji("val")[i]["image"] for i in range(4)])
    assert classifier.features(images).shape[1] <= 64
    accuracy = labels.held_out_accuracy(classifier, limit=128)
    assert accuracy["style"] > 0.75 and accuracy["group"] > 0.55


def test_real_pictures_obey_as_often_as_the_classifier_is_right(classifier, honest):
    shares = labels.obeyed(honest, classifier, num=128, seed=1)
    (asked,) = honest.seen
    assert all(asked["group"].count(name) == 16 for name in honest.vocabulary["group"])
    accuracy = labels.held_out_accuracy(classifier)
    assert shares["style"] > accuracy["style"] - 0.06
    assert (
        abs(shares["group"] - accuracy["group"]) < 0.15
    )  # groups are asked for equally often, and are not in the split


def test_class_names_count_and_not_their_order():
    known = {"style": ("flat", "round"), "group": ("food", "faces", "tools")}

    class Marked(Honest):
        """Writes the class asked for into a pixel, as a number of `known`; every other image shows the next style."""

        def sample(self, asked, count, **kw):
            images = np.zeros((count, 1, 1, 3), np.uint8)
            for k, name in enumerate(known):
                images[:, 0, 0, k] = [known[name].index(label) for label in asked[name]]
            images[::2, 0, 0, 0] = (images[::2, 0, 0, 0] + 1) % 2
            return images

    class Reader:
        vocabulary = known

        def classify(self, images):
            return {name: images[:, 0, 0, k] for k, name in enumerate(known)}

    reversed_order = {name: classes[::-1] for name, classes in known.items()}
    model = Marked({"group": 3, "style": 2}, reversed_order)
    assert labels.obeyed(model, Reader(), num=12) == {"group": 1.0, "style": 0.5}


def test_models_that_cannot_be_judged(classifier, honest):
    with pytest.raises(labels.LabelsError, match="ClassifierModel, which draws no images"):
        labels.obeyed(classifier, classifier)
    with pytest.raises(labels.LabelsError, match=r"group and style.*has no labels"):
        labels.obeyed(Honest({}, {}), classifier)
    with pytest.raises(labels.LabelsError, match="has the labels group"):
        labels.obeyed(Honest({"group": 2}, {"group": ("cats", "dogs")}), classifier)
    with pytest.raises(labels.LabelsError, match="1 or more; got 0"):
        labels.obeyed(honest, classifier, num=0)


def test_figures_are_printed_and_kept(generator, tmp_path, capsys):
    path = tmp_path / "model.npz"
    maskdit.save(generator, str(path))
    made = evaluate(str(path), metrics=("labels",), num=4, seeds=(0, 5), steps=1, guidance=1.0)
    kept = json.loads((tmp_path / "model.evaluation" / "metrics.json").read_text())
    assert kept == json.loads(json.dumps(made))
    assert (kept["num"], kept["seeds"], kept["steps"], kept["guidance"], kept["sampler"]) == (4, [0, 5], 1, 1, "Heun")
    group = kept["metrics"]["labels/group"]
    assert group["mean"] == np.mean(group["values"]) and group["chance"] == 1 / 8 and 0.5 < group["classifier"] < 1
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["4", "images", "seed", "0", "seed", "5", "mean", "chance", "classifier"]
    row = next(row for row in rows if row.startswith("labels/group"))
    assert f"{100 * group['mean']:.1f} %" in row and "12.5 %" in row


def test_questions_that_cannot_be_answered():
    with pytest.raises(EvaluationError, match=r"metrics are labels, bits, fd, fid, .*; got fidd"):
        evaluate("nowhere", metrics=("labels", "fidd"))
    with pytest.raises(EvaluationError, match="num=0"):
        evaluate("nowhere", num=0)
