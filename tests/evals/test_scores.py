"""Which scores there are of which network, what they are called, and what is collected for them."""

import numpy as np
import pytest

from maskdit.contracts import ModelError
from maskdit.evals import frechet, inception_score, kernel, manifold
from maskdit.evals.collector import Collected, Wanted
from maskdit.evals.network import find
from maskdit.evals.reference import Reference, ScoreError
from maskdit.evals.scores import SCORES, compute, label, of_reference, wanted
from tests.features import Other, network


def test_only_inceptions_distance_is_called_fid():
    assert [label(name, network()) for name in ("fd", "fid", "sfid", "kd", "kid")] == [
        *("FID", "FID", "SFID", "KID", "KID")
    ]
    emoji = find()
    assert (
        label("fd", emoji) == "FD (emoji-classifier)"
        and label("kd/deviation", emoji) == "KD deviation (emoji-classifier)"
    )
    for name, instead in (
        ("fid", "ask for fd, or give --network inception-fid"),
        ("kid", "ask for kd, or"),
        ("sfid", ""),
    ):
        with pytest.raises(ScoreError, match=f"{name} is a distance by Inception, .* emoji-classifier: {instead}"):
            wanted((name,), emoji)
    with pytest.raises(ModelError, match="is is made from class scores, and other gives none: leave it out"):
        wanted(("fd", "is"), network(Other))


def test_only_what_is_needed_is_collected():
    assert wanted(("fd",), network()) == Wanted()
    assert wanted(("sfid", "is"), network()) == Wanted(spatial=True, logits=True)
    assert wanted(("pr",), network()).rows == "float16" and wanted(("pr", "kid"), network()).rows == "float32"
    assert of_reference(wanted(("is", "pr"), network())) == Wanted(rows="float16", limit=10_000)
    assert wanted((), network(), keep=True) == Wanted(spatial=True, rows="float32")
    assert not wanted((), network(Other), keep=True).spatial


def some(count, seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal((count, 6)) + 0.3 * seed).astype(np.float32)
    logits, spatial = rng.standard_normal((count, 5)), rng.standard_normal((count, 4))
    gaussians = (frechet.gaussian(rows), frechet.gaussian(spatial))
    return Collected(count, *gaussians, logits.astype(np.float32), rows.astype(dtype))


def against(found):
    return Reference(found.pooled, found.spatial, found.rows, {})


def test_each_score_is_of_the_right_sides():
    found, reference = some(40, 1), against(some(30, 0))
    made = compute(tuple(SCORES), found, reference)
    assert made["fd"] == made["fid"] == frechet.frechet_distance(found.pooled, reference.pooled)
    assert made["sfid"] == frechet.frechet_distance(found.spatial, reference.spatial)
    assert made["kid"] == made["kd"] == kernel.kid(found.rows, reference.rows)[0]
    assert (made["pr/precision"], made["pr/recall"]) == manifold.adm(reference.rows, found.rows)
    assert made["prdc/coverage"] == manifold.prdc(reference.rows, found.rows)["coverage"]
    assert made["is"] == inception_score.adm(found.logits)[0]
    assert compute(("is",), found, None) == {name: made[name] for name in made if name.startswith("is")}


def test_a_score_does_not_depend_on_what_else_is_asked_for():
    # with kid the rows are kept in float32, alone in float16
    in_both = [
        compute(("pr", "prdc"), some(60, 1, dtype), against(some(50, 0, dtype))) for dtype in (np.float16, np.float32)
    ]
    assert in_both[0] == in_both[1]


def test_few_images_have_the_scores_that_are_defined_for_them():
    found = some(4, 1)
    assert set(compute(("is", "fd"), found, against(some(9, 0)))) == {"is", "fd"}
    with pytest.raises(ValueError, match="this score is defined from 6 on; take more samples"):
        compute(("prdc",), found, against(some(9, 0)))
