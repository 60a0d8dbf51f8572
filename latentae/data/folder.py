"""Folders of images and of other data files: finds the files and divides them into splits."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from latentae.data.arrays import ARRAY_SUFFIXES, ValueRange
from latentae.data.decode import IMAGE_SUFFIXES, Pixels, decode_image
from latentae.data.names import count_by_suffix, stem_of, suffix_of

_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}
# These count if a name has none of the words above: `dev_test` is a test split.
_FALLBACK_WORDS = {
    "dev": "validation",
    "holdout": "validation",
    "heldout": "validation",
    "eval": "test",
    "evaluation": "test",
}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")  # also those of TrainImages and testB

# The output of our own commands: file -> files or folders of which at least one lies beside it.
_OUTPUT_FILES = {
    "config.yaml": ("checkpoints", "samples", "metrics.jsonl"),
    "results.json": ("report.html", "probe.html"),
    "inspect.json": ("inspect.html",),
}


class FolderSource:
    """The image files below `folder`, sorted by their paths, which are their names.

    Suffixes are recognised in upper and lower case. Files and folders whose names begin with a dot are
    skipped, links are followed. The outputs of our own commands are left out: see `is_output`. So is an array
    (.npy) with the name of a picture: it describes the picture and is not an image of its own.

    Args:
        folder: names are relative to it.
        value_range, max_pixels: see `decode_image`.
        parts: the folders and files below `folder` to take, relative to it; files are taken whatever their
            suffix is. None: the whole folder.

    Attributes:
        left_out: suffix -> how many files with it are not among the images.
        outputs: the folders with the output of our own commands that were left out, relative to `folder`.

    Raises ValueError if the folder does not exist or holds no image.
    """

    def __init__(
        self,
        folder: str | Path,
        value_range: ValueRange | None = None,
        *,
        parts: Sequence[str] | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.value_range = value_range
        self.max_pixels = max_pixels
        self.parts = parts
        self.outputs: list[str] = []
        self.left_out: Counter[str] = Counter()
        self._names = sorted(self._find_images())
        if not self._names:
            found = ", ".join(f"{n} of {suffix}" for suffix, n in self.left_out.most_common(5))
            raise ValueError(
                f"no image in the folder {self.folder}: sought {', '.join(IMAGE_SUFFIXES)} at any depth, "
                f"found {found or 'no file at all'}"
            )

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def load(self, index: int, channels: int, minimum_side: int | None = None) -> Pixels:
        name = self._names[index]
        return decode_image(
            self.folder / name,
            channels,
            minimum_side,
            name=name,
            value_range=self.value_range,
            max_pixels=self.max_pixels,
        )

    def describe(self) -> str:
        """Says where the images are, how many there are of each suffix, and what was left out."""
        where = os.path.abspath(self.folder)  # noqa: PTH100 (resolve() would follow links)
        if self.parts is not None and any((self.folder / part).is_dir() for part in self.parts):
            where += f" ({', '.join(self.parts)})"
        text = f"{where}: {count_by_suffix(Counter(map(suffix_of, self._names)))}"
        if self.left_out:
            text += f"; left out {count_by_suffix(self.left_out)}"
        if self.outputs:
            shown = ", ".join(self.outputs[:3]) + (", ..." if len(self.outputs) > 3 else "")
            text += f"; left out {len(self.outputs)} folder(s) with the output of latentae: {shown}"
        return text

    def _find_images(self) -> list[str]:
        images: list[str] = []
        for part in [""] if self.parts is None else self.parts:
            if part and not (self.folder / part).is_dir():
                images.append(part)
                continue
            prefix = f"{part}/" if part else ""
            outputs: list[str] = []
            found: list[str] = []
            for name in walk_files(self.folder / part, outputs=outputs):
                if name.lower().endswith(IMAGE_SUFFIXES):
                    found.append(prefix + name)
                else:
                    self.left_out[suffix_of(name)] += 1
            self.outputs += [prefix + name for name in outputs]
            images += self._without_features(found)
        return images

    def _without_features(self, names: list[str]) -> list[str]:
        """Removes the arrays with the name of a picture from the images."""
        arrays = {name for name in names if name.lower().endswith(ARRAY_SUFFIXES)}
        if not arrays:
            return names
        pictures = {stem_of(name) for name in names if name not in arrays}
        features = {name for name in arrays if stem_of(name) in pictures}
        self.left_out.update(map(suffix_of, features))
        return [name for name in names if name not in features]


def open_images(
    paths: Sequence[Path], value_range: ValueRange | None = None, max_pixels: int | None = None
) -> FolderSource:
    """Opens folders of images, and image files, as one source; names are relative to their common folder."""
    if len(paths) == 1 and paths[0].is_dir():
        return FolderSource(paths[0], value_range, max_pixels=max_pixels)
    common = Path(os.path.commonpath([path.parent for path in paths]))
    parts = [path.relative_to(common).as_posix() for path in paths]
    return FolderSource(common, value_range, parts=parts, max_pixels=max_pixels)


def walk_files(
    folder: Path, suffixes: tuple[str, ...] = ("",), outputs: list[str] | None = None
) -> Iterator[str]:
    """Yields the visible files below `folder` with one of the suffixes, as relative paths with slashes.

    Folders with the output of our own commands are skipped, and added to `outputs`.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    seen: set[str] = set()
    for parent, subfolders, files in os.walk(folder, followlinks=True, onerror=_raise_unreadable):
        real = os.path.realpath(parent)
        relative = Path(parent).relative_to(folder).as_posix()
        is_ours = relative != "." and is_output(Path(parent))
        if is_ours and outputs is not None:
            outputs.append(relative)
        if is_ours or real in seen:  # seen: a link back to a folder above
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        prefix = "" if relative == "." else relative + "/"
        for name in files:
            if not name.startswith(".") and name.lower().endswith(suffixes):
                yield prefix + name


def is_output(folder: Path) -> bool:
    """Whether a folder holds a training run, a report, a probe or an inspection of ours."""
    for name, others in _OUTPUT_FILES.items():
        file = folder / name
        if file.is_file() and any((folder / other).exists() for other in others):
            # Many programs write a config.yaml.
            return name != "config.yaml" or b"\noutput_dir:" in b"\n" + file.read_bytes()
    return False


def has_files(folder: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether there is a visible file with one of the suffixes at any depth of `folder`."""
    return next(walk_files(folder, suffixes), None) is not None


def split_word(name: str) -> str | None:
    """Returns the split that a name means (`val`, `valid` and `validation` mean the same), or None."""
    return (_SPLIT_WORDS | _FALLBACK_WORDS).get(name.lower())


def split_files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    """Returns split -> the files below `folder` with one of the suffixes that belong to it, sorted.

    The split is a word in the name of the file, as in `data/validation-00000-of-00002.parquet`, else in the
    name of its innermost folder that has such a word; without any it is `train`.
    """
    splits: dict[str, list[Path]] = {}
    for name in sorted(walk_files(folder, suffixes)):
        splits.setdefault(split_of_file(name), []).append(folder / name)
    return splits


def split_of_file(name: str) -> str:
    """Returns the split of a file from the words of its path: see `split_files`."""
    for part in reversed(Path(name).with_suffix("").parts):
        word = word_in(part)
        if word is not None:
            return str(split_word(word))
    return "train"


def word_in(name: str) -> str | None:
    """Returns the word in a name that states the split, such as `val` in `val2017` and `test` in `testB`."""
    words = [word.lower() for word in _WORD.findall(name)]
    for known in (_SPLIT_WORDS, _FALLBACK_WORDS):
        for word in words:
            if word in known:
                return str(word)
    return None


def split_subfolders(subfolders: Sequence[Path]) -> dict[str, Path]:
    """Returns split -> subfolder if the visible subfolders of a folder divide its images; else empty.

    They do if each has a word for a split in its name, or if the names of one for train and one for another
    split differ in that word only, like `train2017` and `val2017`: among folders of classes, one class may be
    called "train". Folders without images do not count.

    Raises ValueError if two of the subfolders are the same split.
    """
    words = {path: word for path in subfolders if (word := word_in(path.name)) is not None}
    by_split: dict[str, list[Path]] = {}
    for path, word in words.items():
        by_split.setdefault(str(split_word(word)), []).append(path)
    if not words or (len(by_split) == 1 and len(words) > 1):  # such as train2014 beside train2017
        return {}
    others = (path for path in subfolders if path not in words)
    if not _has_train_and_another(words) and not all(_holds_no_images(path) for path in others):
        return {}
    for split, paths in sorted(by_split.items(), key=lambda item: item[0] != "train"):
        paths[:] = [path for path in paths if len(paths) == 1 or not _holds_no_images(path)] or paths[:1]
        if len(paths) > 1:
            raise ValueError(
                f"{paths[0]} and {paths[1]} are both the split {split!r}: rename one of them, or give as the "
                f"name of the data one folder, such as {paths[0]}, or a pattern of the images in several: "
                f"'{paths[0].parent}/{{{paths[0].name},{paths[1].name}}}/**/*.jpg'"
            )
    return {split: paths[0] for split, paths in by_split.items()}


def _holds_no_images(folder: Path) -> bool:
    """Whether a folder holds files of which none is an image."""
    return has_files(folder, ("",)) and not has_files(folder, IMAGE_SUFFIXES)


def _has_train_and_another(words: Mapping[Path, str]) -> bool:
    """Whether the names of a folder for train and one for another split differ in that word only."""
    alike: dict[str, set[str | None]] = {}
    for path, word in words.items():
        alike.setdefault(path.name.lower().replace(word, "", 1), set()).add(split_word(word))
    return any("train" in splits and len(splits) > 1 for splits in alike.values())


@dataclass(frozen=True)
class Division:
    """The division of a folder of images into splits.

    Attributes:
        folders: split -> its folders.
        unused: folders with images that belong to no split.
        undivided: folders named after a split that do not divide the images: all of these are for training.
    """

    folders: dict[str, list[Path]]
    unused: list[Path] = field(default_factory=list)
    undivided: list[Path] = field(default_factory=list)


def divide_folder(folder: Path) -> Division:
    """Divides the images below `folder` into splits; all are `train` if no names of folders divide them.

    The folder itself may be divided (see `split_subfolders`), or folders in it, as by `images/train2017` and
    `images/val2017`. Raises ValueError as `split_subfolders` does.
    """
    division = Division({})
    if not _divide(folder, division, set()):
        return Division({"train": [folder]}, undivided=division.undivided)
    # Folders of labels may be divided like the images, but hold none.
    filled = {
        split: [path for path in paths if has_files(path, IMAGE_SUFFIXES)]
        for split, paths in division.folders.items()
    }
    folders = {split: paths for split, paths in filled.items() if paths}
    return Division(folders or division.folders, division.unused)


def _divide(folder: Path, division: Division, seen: set[str]) -> bool:
    """Adds the splits of `folder`, or of folders in it, to `division`; returns whether there are any."""
    real = os.path.realpath(folder)
    if real in seen:  # a link back to a folder above
        return False
    seen.add(real)
    subfolders = visible_subfolders(folder)
    splits = split_subfolders(subfolders)
    if splits:
        for split, path in splits.items():
            division.folders.setdefault(split, []).append(path)
        others = (path for path in subfolders if path not in splits.values())
        division.unused.extend(path for path in others if has_files(path, IMAGE_SUFFIXES))
        return True
    division.undivided.extend(path for path in subfolders if word_in(path.name) is not None)
    undivided = [path for path in subfolders if not _divide(path, division, seen)]
    if len(undivided) == len(subfolders):
        return False
    # Folders beside a divided one are for training, like files without a word for a split.
    division.folders.setdefault("train", []).extend(undivided)
    return True


def visible_subfolders(folder: Path) -> list[Path]:
    """Returns the visible subfolders of a folder, sorted, without our own outputs."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        _raise_unreadable(error)
    paths = [folder / name for name in names]
    return [path for path in paths if not is_output(path)]


def _raise_unreadable(error: OSError) -> NoReturn:
    raise ValueError(f"the folder {error.filename} cannot be read: {error.strerror}") from error
