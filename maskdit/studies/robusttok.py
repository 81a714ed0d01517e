"""Training under swapped codes (RobustTok, Qiu et al. 2025, arXiv 2503.08354) against training without."""

from maskdit.config import spec
from maskdit.evals.reconstruction import Swaps
from maskdit.studies.description import Column, Study, Trial
from maskdit.studies.fvq import SMALL
from maskdit.studies.measures import Reconstruction
from maskdit.tasks.perturbation import RANDOM, LatentPerturbation

SWAPS = (Swaps(0.25, 10), Swaps(0.5, 50), Swaps(1.0, 100))

STUDY = Study(
    name="robusttok",
    about=(
        "RobustTok's latent perturbation (alpha 1, beta 0.1, delta 100, annealed to a half as published) against none, "
        "in a VQ-f8 of 32 channels and 1,024 codes on the embedded emoji: 300 steps of 16 images, L1 + L2."
    ),
    trials=(
        Trial("none", "vqgan_emoji"),
        Trial("perturbed", "vqgan_emoji", {"task.perturbation": spec(LatentPerturbation, rows=RANDOM)}),
    ),
    seeds=(0, 1, 2),
    shared=SMALL,
    measure=Reconstruction(train_examples=0, swaps=SWAPS),
    columns=(
        Column("PSNR", "psnr"),
        *(Column(f"PSNR, swaps {swaps.alpha:g} of {swaps.delta}", f"psnr@{swaps}") for swaps in SWAPS),
        Column("L1", "l1", 4),
        *(Column(f"L1, swaps {swaps.alpha:g} of {swaps.delta}", f"l1@{swaps}", 4) for swaps in SWAPS),
        Column("codes used, held-out %", "usage", 1, 100),
        Column("seconds", "seconds", 0),
    ),
    notes=(
        "Measured on the 520 held-out pictures. Swaps 0.5 of 50: each position draws one of its 50 nearest codes with "
        "probability 0.5. PSNR is psnr_floored; L1 is of images in [-1, 1].",
    ),
)
