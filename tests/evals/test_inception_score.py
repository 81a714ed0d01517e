"""Closed forms of the Inception score, and where tools split samples differently."""

import numpy as np
import pytest

from maskdit.evals import inception_score

CLASSES = 5


def sure(classes, certainty=1e4):
    """Logits that are certain of one class each."""
    return certainty * np.eye(CLASSES, dtype=np.float32)[np.asarray(classes)]


@pytest.mark.parametrize("rule", inception_score.RULES.values())
def test_indifferent_logits_score_one(rule):
    mean, deviation = rule(np.full((40, CLASSES), 3.0, np.float32))
    assert mean == pytest.approx(1, abs=1e-6)
    assert deviation == pytest.approx(0, abs=1e-6) or np.isnan(deviation)


@pytest.mark.parametrize("rule", [rule for rule in inception_score.RULES.values() if rule is not inception_score.adm])
def test_certain_and_even_logits_score_the_number_of_classes(rule):
    logits = sure(np.arange(40) % CLASSES)
    assert rule(logits, 1)[0] == pytest.approx(CLASSES, rel=1e-6)
    assert inception_score.adm(logits)[0] == pytest.approx(CLASSES, rel=1e-5)
    assert rule(sure(np.zeros(40, int)), 2)[0] == pytest.approx(1)  # classes that nobody sees add nothing


def test_splits_of_each_tool():
    """Logits whose splits, in file order, hold 1, 2 or 3 classes: the scores are the numbers of classes."""
    classes = [0, 0, 0, 1, 2, 1, 2, 0, 1, 2, 3]
    mean, deviation = inception_score.torch_fidelity(sure(classes[:10]), 2, shuffle=False)  # 5 and 5
    first, second = (np.exp(entropy(part)) for part in (classes[:5], classes[5:10]))
    assert mean == pytest.approx((first + second) / 2) and deviation == pytest.approx(abs(first - second) / 2)
    mean, _ = inception_score.adm(sure(classes), 3)  # 3, 3, 3 and 2
    parts = [classes[i : i + 3] for i in range(0, 11, 3)]
    assert mean == pytest.approx(np.mean([np.exp(entropy(part)) for part in parts]), rel=1e-5)


def test_shuffled_tools_share_an_order_and_differ_in_splits():
    classes = np.arange(11) % CLASSES
    shuffled = classes[inception_score.order(11, 7)]
    expected = {
        "torch-fidelity": ([shuffled[:2], shuffled[2:5], shuffled[5:8], shuffled[8:]], 0),
        "dgm-eval": ([shuffled[i : i + 2] for i in (0, 2, 4, 6)], 0),
        "torchmetrics": ([shuffled[i : i + 3] for i in (0, 3, 6, 9)], 1),
    }
    for name, (parts, ddof) in expected.items():
        scores = [np.exp(entropy(part)) for part in parts]
        found = inception_score.RULES[name](sure(classes), 4, seed=7)
        np.testing.assert_allclose(found, [np.mean(scores), np.std(scores, ddof=ddof)], rtol=1e-6, err_msg=name)


def test_torchmetrics_may_make_fewer_splits():
    """Of 6 rows in 4 splits it makes 3 of 2; of one split no sample deviation is defined."""
    classes = np.arange(6) % 3
    shuffled = classes[inception_score.order(6)]
    scores = [np.exp(entropy(shuffled[i : i + 2])) for i in (0, 2, 4)]
    np.testing.assert_allclose(
        inception_score.torchmetrics(sure(classes), 4), [np.mean(scores), np.std(scores, ddof=1)], rtol=1e-6, atol=1e-9
    )
    assert np.isnan(inception_score.torchmetrics(sure(classes), 1)[1])


def test_adding_to_all_logits_of_a_sample_changes_nothing():
    logits = np.random.default_rng(0).normal(size=(30, CLASSES))
    shifted = logits + 50 * np.arange(30)[:, None]
    np.testing.assert_allclose(inception_score.torch_fidelity(shifted), inception_score.torch_fidelity(logits))


def entropy(classes):
    shares = np.unique(classes, return_counts=True)[1] / len(classes)
    return -np.sum(shares * np.log(shares))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: inception_score.torch_fidelity(x), "logits have 8 rows: this score is defined from 10 on"),
        (lambda x: inception_score.dgm_eval(x, 0), "1 split or more, got 0"),
        (lambda x: inception_score.adm(x, 0), "a split has 1 row or more, got 0"),
        (lambda x: inception_score.adm(x * np.inf), "8 of 8 rows of the logits hold numbers that are not finite"),
    ],
)
def test_faults_are_sentences(call, message):
    with pytest.raises(ValueError, match=message):
        call(1.0 + np.zeros((8, CLASSES)))
