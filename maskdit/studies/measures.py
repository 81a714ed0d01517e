"""What studies measure: of tokenizers, and of generators on their tokens."""

import dataclasses
from typing import Any

from maskdit.evals.likelihood import bits_per_token
from maskdit.evals.reconstruction import Distance, Swaps, codes_used, reconstruction
from maskdit.model import load
from maskdit.studies.description import Measured
from maskdit.training.run import Run


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Figures of `maskdit.evals.reconstruction` on a run's held-out images.

    Attributes:
      lpips: name of the network for LPIPS, loaded from the cache or fetched; None to leave LPIPS out.
      examples: held-out images; None for all.
      train_examples: images of the training split for `train_usage` of the codes; None for all, 0 for none.
      swaps: what is done to codes, one after the other; their figures are called `psnr@ALPHAxDELTA` and so on.
      seed: of the swaps.
    """

    lpips: str | None = None
    examples: int | None = None
    train_examples: int | None = None
    swaps: tuple[Swaps, ...] = ()
    seed: int = 0

    def __call__(self, model: Any, run: Run) -> Measured:
        """Figures of a tokenizer."""
        distance, missing = self._distance()
        metrics = reconstruction(model, run.held_out, examples=self.examples, distance=distance)
        if model.latent.vocabulary is not None and self.train_examples != 0:
            metrics["train_usage"] = codes_used(model, run.data, examples=self.train_examples).usage
        for swaps in self.swaps:
            found = reconstruction(model, run.held_out, examples=self.examples, swaps=swaps, seed=self.seed)
            metrics |= {f"{name}@{swaps}": found[name] for name in ("psnr", "ssim", "l1")}
        return Measured(metrics, missing)

    def _distance(self) -> tuple[Distance | None, dict[str, str]]:
        if self.lpips is None:
            return None, {}
        try:
            return load(self.lpips).distance, {}
        except (ValueError, OSError):
            return None, {"lpips": f"maskdit fetch {self.lpips}"}


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """`maskdit.evals.likelihood.bits_per_token` of a generator on its held-out images.

    Figures of generators on codes of different tokenizers say how predictable those codes are; what the tokenizers lose
    has to stand beside.

    Attributes:
      examples: held-out images, at most.
      seed: of what the process draws.
    """

    examples: int = 4096
    seed: int = 0

    def __call__(self, model: Any, run: Run) -> Measured:
        """Figures of a generator of token ids, which knows its held-out images itself."""
        del run
        return Measured({"bits_per_token": bits_per_token(model, self.examples, (self.seed,)).means[0]})
