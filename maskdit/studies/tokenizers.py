"""Three ways to code an image at equal budget: a KL grid, a grid of codes, and a short sequence of codes."""

from maskdit.studies.description import Column, Study, Trial
from maskdit.studies.measures import Reconstruction

STUDY = Study(
    name="tokenizers",
    about=(
        "KL-f8, VQ-f8 and TiTok-32 on the embedded emoji at 64 x 64, each trained on the same 12,800 images (400 steps "
        "of 32) with the same losses; measured on the 520 held-out pictures, of emoji that training never shows."
    ),
    trials=(
        Trial("KL-f8", "vae_emoji"),
        Trial("VQ-f8", "vqgan_emoji"),
        Trial("TiTok-32", "titok_emoji"),
    ),
    measure=Reconstruction(lpips="lpips-alexnet"),
    shared={
        "steps": 400,
        "batch": 32,
        "ema": (0.95,),  # slower ones would still hold some of the first steps
        "checkpoints.every": 100,
        "log.tensorboard": False,
    },
    columns=(
        Column("PSNR", "psnr"),
        Column("SSIM", "ssim", 3),
        Column("LPIPS", "lpips", 3),
        Column("codes used, held-out %", "usage", 1, 100),
        Column("codes used, train %", "train_usage", 1, 100),
        Column("tokens", "tokens", 0),
        Column("floats", "floats", 0),
        Column("bits", "bits", 0),
        Column("KL, bits", "kl_bits", 0),
        Column("parameters, M", "parameters", 2, 1e-6),
        Column("seconds", "seconds", 0),
    ),
    notes=(
        "PSNR (psnr_floored) and SSIM (ssim_torchmetrics) are of uint8 images, meaned over images; LPIPS has AlexNet's "
        "trunk.",
        "Bits of an image: tokens x log2(codes), or 32 for each float of a continuous latent; KL is the divergence of "
        "its posterior, a bound of what a drawn latent tells; reconstructions are of its mean.",
        "Seconds are those of training steps, without compilation.",
    ),
)
