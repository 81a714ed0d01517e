"""The records of a source as loaders give them: images of one size, labels, and texts beside them."""

import dataclasses
from typing import Any

from maskdit.data.embeddings import Texts, all_arrays
from maskdit.data.source import Source, check_record
from maskdit.data.transforms import centre_crop, resize

FITS = {"crop": centre_crop, "resize": resize}
"""Ways for an image to become a square."""


@dataclasses.dataclass(frozen=True)
class Images:
    """A source's records as a loader gives them: square images, labels, and texts where there are any.

    Attributes:
      source, size, fit: see `Loader`.
      text: of its records, or None.
    """

    source: Source
    size: int
    fit: str
    text: Texts | None = None

    def __len__(self) -> int:
        """Number of records."""
        count = len(self.source)
        if self.text is not None:
            self.text.check(count)
        return count

    def read(self, index: int, mirrored: bool) -> dict[str, Any]:
        """Record `index`, mirrored where asked for: `image`, the arrays of its text, and a class number for each label.

        Raises:
          UnreadableRecord: where it cannot be read.
          DataError: where the source breaks its contract.
        """
        record = self.source[index]
        check_record(self.source, index, record)
        image = FITS[self.fit](record["image"], self.size)
        text = {} if self.text is None else self.text.read(index) | self.text.null
        labels = {name: record[name] for name in self.vocabulary}
        return {"image": image[:, ::-1] if mirrored else image, **text, **labels}

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of what `read` gives, by name."""
        text = {} if self.text is None else all_arrays(self.text.arrays, self.text.null)
        labels = dict.fromkeys(self.vocabulary, ((), "int32"))
        return {"image": ((self.size, self.size, 3), "uint8"), **text, **labels}

    @property
    def vocabulary(self) -> dict[str, tuple[str, ...]]:
        """Label name -> class names."""
        return self.source.vocabulary
