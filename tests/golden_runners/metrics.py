"""Scores from features, by the rules of pytorch-fid, torch-fidelity, ADM's evaluator, prdc and dgm-eval."""

import re

import numpy as np

from maskdit.evals import frechet, inception_score, kernel, manifold, mind
from maskdit.evals.frechet import frechet_distance, gaussian
from maskdit.interop.rules import LayoutError

INPUTS = ("features_real", "features_fake", "logits", "spatial_real_nchw", "spatial_fake_nchw", "mind_directions")
LEFT_OUT: dict[str, str] = {}


def run(case):
    real, fake = case.arrays["features_real"], case.arrays["features_fake"]
    return (
        _frechet(real, fake, case.config)
        | _kernel(real, fake, case.config)
        | _inception_score(case)
        | _manifold(real, fake, case)
        | _spatial(case)
        | _mind(real, fake, case.arrays["mind_directions"])
    )


def _frechet(real, fake, config):
    ours, theirs = gaussian(real), gaussian(fake)
    singles = [gaussian(part, "float32") for part in (real, fake)]
    few = [gaussian(part[: config["rank_deficient_first_n"]]) for part in (real, fake)]
    return {
        "mu_real": ours.mean,
        "sigma_real_diag": np.diagonal(ours.cov),
        "sigma_real_row0": ours.cov[0],
        "frechet_distance": frechet_distance(ours, theirs),
        "frechet_adm_float32_means": frechet_distance(*singles),
        "frechet_torch_fidelity": frechet.torch_fidelity(*singles),
        "frechet_rank_deficient_sqrtm": frechet_distance(*few),
        "frechet_rank_deficient_eig": frechet.torch_fidelity(*few),
    }


def _kernel(real, fake, config):
    settings = {"subsets": config["kid_subsets"], "size": config["kid_subset_size"], "seed": config["rng_seed"]}
    function = _kernel_function(config)
    draws = kernel.RULES["torch-fidelity"].draws(len(fake), len(real), **settings)
    mean, deviation = kernel.kid(fake, real, kernel=function, **settings)
    count = min(len(real), len(fake))
    return {
        "kid_index_fake": draws.fake,
        "kid_index_real": draws.real,
        "kid_per_subset": kernel.per_subset(fake, real, draws, kernel=function),
        "kid_mean": mean,
        "kid_std": deviation,
        "kid_first_n_float64": kernel.mmd(fake[:count], real[:count], function, block=64),
    }


def _kernel_function(config):
    if config["kid_kernel"] == "rbf":
        return kernel.Rbf(config.get("kid_kernel_rbf_sigma", 10.0))
    if config["kid_kernel"] != "poly":
        raise LayoutError(f"there is no kernel '{config['kid_kernel']}'")
    names = ("kid_kernel_poly_degree", "kid_kernel_poly_gamma", "kid_kernel_poly_coef0")
    return kernel.Polynomial(*(config[name] for name in names))


def _stated(case, pattern):
    """The numbers that names of arrays state."""
    return sorted({int(found[1]) for name in case.arrays if (found := re.fullmatch(pattern, name))})


def _inception_score(case):
    logits, splits, seed = case.arrays["logits"], case.config["is_splits"], case.config["rng_seed"]
    sizes = _stated(case, r"is_adm_split_size_(\d+)")
    return {f"is_adm_split_size_{size}": inception_score.adm(logits, size)[0] for size in sizes} | {
        "is_permutation": inception_score.order(len(logits), seed),
        "is_shuffled": inception_score.torch_fidelity(logits, splits, seed=seed),
        "is_unshuffled": inception_score.torch_fidelity(logits, splits, shuffle=False),
        "is_one_split": inception_score.torch_fidelity(logits, 1, seed=seed)[0],
        "is_adm_default": inception_score.adm(logits)[0],
        "is_dgm_eval": inception_score.dgm_eval(logits, splits, seed=seed),
    }


def _manifold(real, fake, case):
    k = case.config["precision_recall_nhood_size"]
    precise, half = (manifold.balls(real, fake, k, precision=name) for name in ("float32", "float16"))
    values = {
        "adm_radii_real_fp32": precise.radii_real,
        "adm_radii_real_fp16": half.radii_real,
        "fake_in_real_manifold": precise.in_real > 0,
        "real_in_fake_manifold": precise.in_fake > 0,
        "fake_in_real_manifold_fp16": half.in_real > 0,
        "torch_fidelity_prc": manifold.torch_fidelity(real, fake, k, precision="float64"),
    }
    values["adm_precision_fp32"], values["adm_recall_fp32"] = manifold.precision_recall(real, fake, k)
    values["adm_precision_fp16"], values["adm_recall_fp16"] = manifold.adm(real, fake, k)
    others = {f"prdc_k{nearest}": nearest for nearest in _stated(case, r"prdc_k(\d+)_\w+")}
    for prefix, nearest in ({"prdc": case.config["prdc_nearest_k"]} | others).items():
        scores = manifold.prdc(real, fake, nearest, precision="float64")
        values |= {f"{prefix}_{name}": score for name, score in scores.items()}
    return values


def _spatial(case):
    channels = case.config["spatial_first_channels"]
    maps = (case.images(f"spatial_{name}_nchw")[..., :channels] for name in ("real", "fake"))
    real, fake = (part.reshape(len(part), -1) for part in maps)
    distance = frechet_distance(gaussian(real, "float32"), gaussian(fake, "float32"))
    return {"spatial_real_vector_0": real[0], "sfid": distance}


def _mind(real, fake, directions):
    count = min(len(real), len(fake))
    return {"mind": mind.mind_along(real[:count], fake[:count], directions)}
