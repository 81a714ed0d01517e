"""What is known of weights that their authors published."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from maskdit import config as configs
from maskdit.interop.registry import Package


@dataclasses.dataclass(frozen=True)
class Published:
    """Weights that their authors published.

    Attributes:
      name: the name that commands take.
      about: what it is, in a few words.
      paper: arXiv number.
      file: name of the authors' file.
      source: the URL that it is fetched from; None where there is no fixed address.
      licence: of the weights, as far as known.
      reference: arguments of the authors' code at full size.
      from_reference: turns these into the spec of ours.
      resolution: side in pixels of the images that it was trained on.
      part: what it is where it is no generator: `tokenizer` or `encoder`.
      package: the package that it lies in, where it is fetched from a package index or registry.
      also: other sources of the same weights.
      prefer: patterns of the file in a Hugging Face repository that is given without a path, the best first.
      where: how to get the file where there is no source.
      generator: the config of a generator, `NAME:variant`; empty for a tokenizer.
      overrides: entries of that config that are different here: path -> value.
      tokenizer: the name here of a generator's tokenizer.
      note: what else one should know.
    """

    name: str
    about: str
    paper: str
    file: str
    source: str | None
    licence: str
    reference: Mapping[str, Any]
    from_reference: Callable[[Mapping[str, Any]], ConfigDict]
    resolution: int
    part: str = "tokenizer"
    package: Package | None = None
    also: tuple[str, ...] = ()
    prefer: tuple[str, ...] = ()
    where: str = ""
    generator: str = ""
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: str = ""
    note: str = ""

    def spec(self) -> ConfigDict:
        """The spec of the network or tokenizer that the published arguments describe."""
        return self.from_reference(self.reference)

    def config(self) -> ConfigDict:
        """The config that the weights go with: that of a run for a generator, else `tokenizer` or `encoder` alone."""
        if self.generator:
            return configs.load(self.generator, self.overrides)
        return ConfigDict({self.part: self.spec()})
