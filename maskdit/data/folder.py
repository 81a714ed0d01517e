"""A folder of image files."""

import dataclasses
import functools

from etils import epath

from maskdit.data.source import DataError, Record, UnreadableRecord
from maskdit.data.transforms import decode

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_SPLITS = {"train", "val", "valid", "validation", "test"}


@dataclasses.dataclass(frozen=True)
class Folder:
    """Image files, with the sub-folder as class (`path/split/CLASS/NAME.png`, the layout of ImageNet) or unlabelled.

    Class numbers follow the sorted names of the class folders of all splits together (the folders beside this split
    that share a class with it), so that a split without some class numbers the others alike. Files are in the order of
    class folder and name; the list of them is made once and goes along to worker processes.

    Attributes:
      path: the folder, local or `gs://` (which needs the package gcsfs).
      split: a folder in `path`, such as `train`; empty where `path` itself holds the classes or images.

    Raises:
      DataError: at first use, for a folder that is missing, has no image files, or has images beside class folders.
    """

    path: str
    split: str = ""

    def __len__(self) -> int:
        """Number of image files."""
        return len(self._files)

    def __getitem__(self, index: int) -> Record:
        """Image `index`: `image` uint8 `[H, W, 3]`, and its `label`, a number, where there are class folders."""
        number = self._files[index][0]
        try:
            data = self._file(index).read_bytes()
        except OSError as error:
            raise UnreadableRecord(self.describe(index), error.strerror or str(error)) from error
        image = decode(data, self.describe(index))
        return {"image": image, "label": number} if number >= 0 else {"image": image}

    @functools.cached_property
    def vocabulary(self) -> dict[str, tuple[str, ...]]:
        """`{"label": names of the class folders}`, or nothing for a flat folder."""
        if not self._own_classes:
            return {}
        own = set(self._own_classes)
        classes = set(own)
        if self.split:
            for other in _listing(self._folder.parent)[0]:
                theirs = set(_listing(self._folder.parent / other)[0])
                classes |= theirs if theirs & own else set()  # nothing in common: no split of this data set
        return {"label": tuple(sorted(classes))}

    def describe(self, index: int) -> str:
        """The path of the file."""
        return str(self._file(index))

    def _file(self, index: int) -> epath.Path:
        number, name = self._files[index]
        return self._folder / self.vocabulary["label"][number] / name if number >= 0 else self._folder / name

    @property
    def _folder(self) -> epath.Path:
        return epath.Path(self.path) / self.split if self.split else epath.Path(self.path)

    @functools.cached_property
    def _entries(self) -> tuple[list[str], list[str], list[str]]:
        try:
            there = self._folder.is_dir()
        except ImportError as error:  # gs:// without a package that reads it
            raise DataError(f"'{self.path}' cannot be opened: {error}") from error
        if not there:
            if self.split and epath.Path(self.path).is_dir():
                folders = _listing(epath.Path(self.path))[0]
                found = f"its folders are {_some(folders)}" if folders else "it has no folders"
                raise DataError(
                    f"'{self.path}' has no split '{self.split}'; {found}: set split to one, or to '' for none"
                )
            raise DataError(f"there is no folder '{self.path}': check the path (a gs:// path needs credentials)")
        return _listing(self._folder)

    @functools.cached_property
    def _own_classes(self) -> tuple[str, ...]:
        folders, images, _ = self._entries
        if images and any(_listing(self._folder / name)[1] for name in folders):
            raise DataError(
                f"'{self._folder}' has {len(images)} images beside folders of images ({_some(folders)}): move them "
                "into class folders, or set path to a folder of one kind"
            )
        if not images and folders and not self.split and set(folders) <= _SPLITS:
            raise DataError(
                f"the folders of '{self.path}' are splits, not classes: set split to one of {_some(folders)}"
            )
        return () if images else tuple(folders)

    @functools.cached_property
    def _files(self) -> list[tuple[int, str]]:
        """Class number (-1 without classes) and name of each file."""
        _, images, others = self._entries
        if not self._own_classes:
            files = [(-1, name) for name in images]
        else:
            numbers = {name: number for number, name in enumerate(self.vocabulary["label"])}
            files = []
            for name in self._own_classes:
                _, inside, rest = _listing(self._folder / name)
                files += [(numbers[name], image) for image in inside]
                others = others + [f"{name}/{other}" for other in rest]
        if not files:
            raise DataError(self._nothing(others))
        return files

    def _nothing(self, others: list[str]) -> str:
        folders = self._entries[0]
        found = f"{len(others)} other files ({_some(others)})" if others else "no files"
        if folders:
            found += f" in it and its {len(folders)} folders ({_some(folders)})"
        hint = "set path to such a folder"
        if any(_listing(self._folder / name)[0] for name in folders):
            hint = f"the folders hold folders: set split to one of {_some(folders)}"
        return (
            f"'{self._folder}' has no images: found {found}, expected {', '.join(SUFFIXES)} files, in class folders or "
            f"directly; {hint}"
        )


def _listing(folder: epath.Path) -> tuple[list[str], list[str], list[str]]:
    """Sorted names of the folders, the image files and the other files in a folder; hidden ones are left out."""
    folders, images, others = [], [], []
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.name.lower().endswith(SUFFIXES):
            images.append(entry.name)
        elif entry.is_dir():
            folders.append(entry.name)
        else:
            others.append(entry.name)
    return sorted(folders), sorted(images), sorted(others)


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
