"""The scores of a set of images, by name, and what each of them needs."""

import dataclasses
from collections.abc import Callable, Sequence

from maskdit.contracts import ModelError
from maskdit.evals import frechet, inception_score, kernel, manifold, mind
from maskdit.evals.collector import Collected, Wanted
from maskdit.evals.network import INCEPTION, FeatureNetwork
from maskdit.evals.reference import ROWS, Reference, ScoreError

Values = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Score:
    """A kind of score.

    Attributes:
      compute: from what was collected, and the reference, to figures by name, `NAME` or `NAME/PART`.
      inception: whether the name is of Inception's alone.
      reference: whether it compares with a reference.
      spatial, logits, rows: what is collected for it, see `Wanted`.
    """

    compute: Callable[[Collected, Reference], Values]
    inception: bool = False
    reference: bool = True
    spatial: bool = False
    logits: bool = False
    rows: str | None = None


def _distance(name: str) -> Callable[[Collected, Reference], Values]:
    def compute(found: Collected, reference: Reference) -> Values:
        return {name: frechet.frechet_distance(found.pooled, reference.pooled)}

    return compute


def _spatial(found: Collected, reference: Reference) -> Values:
    assert found.spatial is not None and reference.spatial is not None
    return {"sfid": frechet.frechet_distance(found.spatial, reference.spatial)}


def _kernel(name: str) -> Callable[[Collected, Reference], Values]:
    def compute(found: Collected, reference: Reference) -> Values:
        assert found.rows is not None and reference.rows is not None
        mean, deviation = kernel.kid(found.rows, reference.rows)
        return {name: mean, f"{name}/deviation": deviation}

    return compute


def _inception_score(found: Collected, _: Reference) -> Values:
    assert found.logits is not None
    scores = {"is": inception_score.adm(found.logits)[0]}
    if len(found.logits) < inception_score.SPLITS:
        return scores  # of fewer images than splits the other tool's is not defined
    mean, deviation = inception_score.torch_fidelity(found.logits)
    return {**scores, "is/torch-fidelity": mean, "is/torch-fidelity/deviation": deviation}


def _precision_recall(found: Collected, reference: Reference) -> Values:
    assert found.rows is not None and reference.rows is not None
    precision, recall = manifold.adm(reference.rows, found.rows)
    return {"pr/precision": precision, "pr/recall": recall}


def _prdc(found: Collected, reference: Reference) -> Values:
    assert found.rows is not None and reference.rows is not None
    return {f"prdc/{name}": value for name, value in manifold.prdc(reference.rows, found.rows).items()}


def _mind(found: Collected, reference: Reference) -> Values:
    assert found.rows is not None and reference.rows is not None
    return {"mind": mind.mind(reference.rows, found.rows)}


SCORES: dict[str, Score] = {
    "fd": Score(_distance("fd")),
    "fid": Score(_distance("fid"), inception=True),
    "sfid": Score(_spatial, inception=True, spatial=True),
    "is": Score(_inception_score, reference=False, logits=True),
    "kd": Score(_kernel("kd"), rows="float32"),
    "kid": Score(_kernel("kid"), inception=True, rows="float32"),
    "pr": Score(_precision_recall, rows="float16"),
    "prdc": Score(_prdc, rows="float32"),
    "mind": Score(_mind, rows="float32"),
}
"""Name -> score. `fid`, `sfid` and `kid` are names of distances by Inception; `fd` and `kd` are of any network."""

_SUBSETS = "torch-fidelity's subsets of 1,000, smaller sets whole"
ABOUT = {
    "fd": "Fréchet distance, of features of {network}",
    "fid": "Fréchet distance, of Inception's pooled features",
    "sfid": "Fréchet distance, of Inception's activities at places",
    "is": "Inception score, over {classes}: ADM's rule (chunks of 5,000 in order); torch-fidelity: shuffled, 10 splits",
    "kd": f"unbiased squared distance by a cubic kernel, of features of {{network}}: {_SUBSETS}",
    "kid": f"unbiased squared distance by a cubic kernel, of Inception's features: {_SUBSETS}",
    "pr": "improved precision and recall, 3 neighbours, ADM's rule (float16); they move with both sets' sizes",
    "prdc": "precision, recall, density and coverage, 5 neighbours, the prdc package's rule",
    "mind": "Monge Inception distance, torch-fidelity's rule",
}
"""What the table says below the figures."""


HIGHER = (
    "is",
    "is/torch-fidelity",
    "pr/precision",
    "pr/recall",
    "prdc/precision",
    "prdc/recall",
    "prdc/density",
    "prdc/coverage",
)
"""Figures that are better the higher they are; of the others less is better."""


def label(name: str, network: FeatureNetwork) -> str:
    """What a table calls a figure: a distance carries its network's name, and only Inception's is called FID."""
    if network.is_inception:
        name = {"fd": "fid", "kd": "kid"}.get(name, name)
    kind, *parts = name.split("/")
    shown = " ".join((kind.upper(), *parts))
    return shown if network.name == INCEPTION else f"{shown} ({network.name})"


def wanted(names: Sequence[str], network: FeatureNetwork, keep: bool = False) -> Wanted:
    """What has to be collected of a set of images.

    Args:
      names: of `SCORES`.
      network: the feature network.
      keep: whether features of single images are wanted in any case, for statistics that are written to a file.

    Raises:
      ScoreError: for a score that is another network's.
      ModelError: for a score that needs what the network does not say.
    """
    for name in names:
        if SCORES[name].inception and not network.is_inception:
            other = {"fid": "fd", "kid": "kd"}.get(name)
            raise ScoreError(
                f"{name} is a distance by Inception, and the network here is {network.name}: "
                + (f"ask for {other}, or " if other else "")
                + "give --network inception-fid (maskdit import inception-fid FILE brings its weights in)"
            )
        if SCORES[name].logits and network.widths.logits is None:
            raise ModelError(f"{name} is made from class scores, and {network.name} gives none: leave it out")
    rows = {SCORES[name].rows for name in names} - {None} | ({"float32"} if keep else set())
    return Wanted(
        spatial=any(SCORES[name].spatial for name in names) or (keep and network.widths.spatial is not None),
        logits=any(SCORES[name].logits for name in names),
        rows="float32" if "float32" in rows else "float16" if rows else None,
    )


def of_reference(want: Wanted) -> Wanted:
    """What has to be collected of the reference, when the samples need `want`."""
    return dataclasses.replace(want, logits=False, limit=ROWS)


def compute(names: Sequence[str], found: Collected, reference: Reference | None) -> Values:
    """All figures, by name.

    Args:
      names: of `SCORES`.
      found: what was collected of the samples.
      reference: of the scores that compare; None where none does.
    """
    nothing = Reference(found.pooled, None, None, {})
    figures: Values = {}
    for name in names:
        try:
            figures |= SCORES[name].compute(found, reference or nothing)
        except ValueError as error:
            raise ScoreError(f"{name} of {found.count} images: {error}") from error
    return figures
