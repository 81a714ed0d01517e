"""TensorFlow Datasets, read without TensorFlow."""

import dataclasses
import functools
from typing import Any

from maskdit.data.source import DataError, Record, UnreadableRecord, fields_only
from maskdit.data.transforms import decode


@dataclasses.dataclass(frozen=True)
class TFDS:
    """A data set prepared by TensorFlow Datasets as ArrayRecord files.

    Prepare one with `tfds build NAME --file_format=array_record`, or in Python with
    `tfds.builder(NAME, file_format="array_record").download_and_prepare()`. TensorFlow itself is needed only by those
    data sets whose preparation uses it.

    Attributes:
      name: `NAME`, `NAME/CONFIG` or with a version, `NAME:1.0.0`.
      split: `train`, or a part such as `train[:90%]`.
      data_dir: the folder that holds the prepared data sets; None for `~/tensorflow_datasets`.
      image: the feature that holds the image.
      labels: the features that are labels, each a ClassLabel; none for unconditional training.

    Raises:
      DataError: at first use, for a data set that is not there or not as ArrayRecord, an unknown split or feature.
    """

    name: str
    split: str
    data_dir: str | None = None
    image: str = "image"
    labels: tuple[str, ...] = ("label",)

    __getstate__ = fields_only

    def __len__(self) -> int:
        """Number of examples in the split."""
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        """Example `index`: `image` uint8 `[H, W, 3]` and a class number for each label."""
        records = self._records  # outside of try: its errors concern all examples
        try:
            example = records[index]
        except (OSError, ValueError, RuntimeError) as error:  # a damaged file, or bytes that are no example
            raise UnreadableRecord(self.describe(index), str(error).split("\n")[0]) from error
        image = decode(example[self.image], self.describe(index))
        return {"image": image, **{name: int(example[name]) for name in self.labels}}

    @functools.cached_property
    def vocabulary(self) -> dict[str, tuple[str, ...]]:
        """Label name -> class names."""
        features = self._builder.info.features
        return {
            name: tuple(features[name].names or map(str, range(features[name].num_classes))) for name in self.labels
        }

    def describe(self, index: int) -> str:
        """Data set, split and number."""
        return f"TFDS {self.name} {self.split}, example {index}"

    @functools.cached_property
    def _builder(self) -> Any:
        import tensorflow_datasets as tfds

        try:
            builder = tfds.builder(self.name, data_dir=self.data_dir)
        except (ValueError, AssertionError, ImportError) as error:
            where = self.data_dir or "~/tensorflow_datasets"
            raise DataError(
                f"TFDS has no data set '{self.name}', and none is prepared in '{where}' "
                f"({type(error).__name__}): check name and data_dir"
            ) from error
        if not builder.info.splits:
            raise DataError(f"'{self.name}' is not prepared in '{builder.data_dir}': {_prepare(self)}")
        return builder

    @functools.cached_property
    def _records(self) -> Any:
        import tensorflow_datasets as tfds

        info = self._builder.info
        self._check_features(info.features, tfds.features)
        if self.split.split("[")[0] not in info.splits and "+" not in self.split:
            raise DataError(f"'{self.name}' has no split '{self.split}'; it has {', '.join(info.splits)}")
        try:
            return self._builder.as_data_source(self.split, decoders={self.image: tfds.decode.SkipDecoding()})
        except NotImplementedError as error:
            raise DataError(
                f"'{self.name}' is prepared as {info.file_format.value} in '{self._builder.data_dir}', which has no "
                f"random access: {_prepare(self)}, with another data_dir"
            ) from error
        except ValueError as error:
            raise DataError(f"'{self.name}' cannot give split '{self.split}': {str(error).splitlines()[0]}") from error

    def _check_features(self, features: Any, kinds: Any) -> None:
        for name, kind in ((self.image, kinds.Image), *((label, kinds.ClassLabel) for label in self.labels)):
            there = [key for key, value in features.items() if isinstance(value, kind)]
            if name not in there:
                field = "image" if kind is kinds.Image else "labels"
                raise DataError(
                    f"'{self.name}' has no {kind.__name__} feature '{name}'; it has {', '.join(there) or 'none'}: "
                    f"set {field}" + ("" if there or field == "image" else " to () for unconditional training")
                )


def _prepare(source: TFDS) -> str:
    where = f" --data_dir={source.data_dir}" if source.data_dir else ""
    return f"run 'tfds build {source.name} --file_format=array_record{where}'"
