"""Captions as hashed words, a stand-in for a text encoder.

Each word is a fixed random vector, drawn from a hash of its letters. A network can learn what the words that it has
seen mean, and no more: no word is near to another. It is there to try text generators on data with captions, such as
the embedded ones, without an encoder's weights and without a file; for real use embed texts with a language model.
"""

import dataclasses
import functools
import hashlib
import re
from typing import Any, Protocol, cast

import numpy as np

from maskdit.data.embeddings import POOLED, TEXT, Arrays
from maskdit.data.source import DataError, Source


class Captioned(Source, Protocol):
    """A source that has a caption for each record."""

    def caption(self, index: int, /) -> str:
        """A sentence that tells what record `index` shows."""
        ...


@dataclasses.dataclass(frozen=True)
class HashedWords:
    """Embeds captions: the vectors of their first words, and the mean of these as the embedding of the whole.

    The empty text is all zeros, as are the places after a caption's last word.

    Attributes:
      tokens: words of a caption, at most; more are cut off.
      width: numbers of a word's vector, of mean 0 and variance 1.

    Raises:
      DataError: for a number below 1.
    """

    tokens: int = 16
    width: int = 16

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.width < 1:
            raise DataError(f"hashed words take 1 or more tokens and width; got {self.tokens} and {self.width}")

    def embed(self, caption: str) -> dict[str, np.ndarray]:
        """A caption as `text` `[tokens, width]` and `pooled` `[width]`, float32."""
        words = re.findall(r"\w+", caption.lower())[: self.tokens]
        text = np.zeros((self.tokens, self.width), np.float32)
        for place, word in enumerate(words):
            text[place] = _vector(word, self.width)
        return {TEXT: text, POOLED: text.sum(axis=0) / max(len(words), 1)}

    def of(self, source: Source) -> "HashedCaptions":
        """The captions of a source.

        Raises:
          DataError: for a source without captions.
        """
        if not hasattr(source, "caption"):
            raise DataError(
                f"hashed words are those of captions, and {type(source).__name__} has none: set data.text to a file of "
                "text embeddings"
            )
        return HashedCaptions(self, cast(Captioned, source))


@dataclasses.dataclass(frozen=True)
class HashedCaptions:
    """The embedded captions of a source; see `maskdit.data.embeddings.Texts`."""

    words: HashedWords
    source: Captioned

    @property
    def arrays(self) -> Arrays:
        """See `Texts`."""
        return {TEXT: ((self.words.tokens, self.words.width), "float32"), POOLED: ((self.words.width,), "float32")}

    @property
    def null(self) -> dict[str, np.ndarray]:
        """See `Texts`; zeros stand in for an empty text anyway."""
        return {}

    @property
    def description(self) -> dict[str, Any]:
        """The settings."""
        return {"hashed_words": dataclasses.asdict(self.words)}

    def read(self, index: int) -> dict[str, np.ndarray]:
        """See `Texts`."""
        return self.words.embed(self.source.caption(index))

    def check(self, records: int) -> None:
        """Every record has a caption."""


@functools.lru_cache(65536)
def _vector(word: str, width: int) -> np.ndarray:
    """Uniform in sqrt(3) [-1, 1], so that the variance is 1: 16 bits of the hash for each number `[width]`."""
    drawn = np.frombuffer(hashlib.shake_256(word.encode()).digest(2 * width), "<u2")
    return ((drawn.astype(np.float32) + 0.5) / 2**15 - 1) * np.float32(np.sqrt(3))
