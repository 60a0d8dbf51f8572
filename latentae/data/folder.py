"""Images and tables in local folders: what is there, and which part of it is which split."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from latentae.data.arrays import ARRAY_SUFFIXES
from latentae.data.decode import IMAGE_SUFFIXES, decode_image
from latentae.data.image_source import Pixels
from latentae.data.levels import ValueRange
from latentae.data.suffixes import count_by_suffix, stem_of, suffix_of

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
# These count where a name has none of the words above, as in `dev_test`.
_FALLBACK_WORDS = {
    "dev": "validation",
    "holdout": "validation",
    "heldout": "validation",
    "eval": "test",
    "evaluation": "test",
}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")  # also those of TrainImages and testB

# File -> the files or folders of which one lies beside it in a folder that one of our commands has written.
_OUTPUT_FILES = {
    "config.yaml": ("checkpoints", "samples", "metrics.jsonl"),
    "results.json": ("report.html", "probe.html"),
    "inspect.json": ("inspect.html",),
}


class FolderSource:
    """The image files below `folder`, sorted by their paths, which are their names.

    Suffixes count in any case; files and folders whose name begins with a dot do not; links are
    followed. The outputs of our own commands are left out: see `is_output`. So is an array (.npy) called
    like a picture, which is about it and no image of its own.

    Args:
        folder: where names begin.
        value_range, max_pixels: see `decode_image`.
        parts: the folders and files below `folder` to take, relative to it, of which files are taken as they
            are; None: all of it.

    Attributes:
        left_out: suffix -> how many files of it are not among the images.
        outputs: the folders of our own commands' output that were left out, relative to `folder`.

    Raises ValueError if the folder is not there or holds no image.
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
            minimum_side=minimum_side,
            name=name,
            value_range=self.value_range,
            max_pixels=self.max_pixels,
        )

    def describe(self) -> str:
        """Where the images are, how many of each suffix, and what was left out; for people."""
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
        """The images without the arrays that are called like a picture."""
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
    """The images in some folders, and image files, as one source; names begin where their paths part."""
    if len(paths) == 1 and paths[0].is_dir():
        return FolderSource(paths[0], value_range, max_pixels=max_pixels)
    common = Path(os.path.commonpath([path.parent for path in paths]))
    parts = [path.relative_to(common).as_posix() for path in paths]
    return FolderSource(common, value_range, parts=parts, max_pixels=max_pixels)


def walk_files(
    folder: Path, suffixes: tuple[str, ...] = ("",), outputs: list[str] | None = None
) -> Iterator[str]:
    """Visible files below `folder` that end in one of the suffixes, as relative paths with slashes.

    Folders in it that hold the output of our own commands are passed over, and added to `outputs`.
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
    """Whether a folder is that of a training run, a report, a probe or an inspection."""
    for name, others in _OUTPUT_FILES.items():
        file = folder / name
        if file.is_file() and any((folder / other).exists() for other in others):
            # Many programs write a config.yaml.
            return name != "config.yaml" or b"\noutput_dir:" in b"\n" + file.read_bytes()
    return False


def has_files(folder: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether there is a visible file with one of the suffixes at any depth of `folder`."""
    return next(walk_files(folder, suffixes), None) is not None


def describe_files(files: Sequence[Path]) -> str:
    """Files for people: the only one, or how many, the first and the last."""
    if len(files) == 1:
        return str(files[0])
    return f"{len(files)} files, {files[0]} to {files[-1].name}"


def split_word(name: str) -> str | None:
    """The split that a whole name stands for (`val`, `valid` and `validation` are one), or None."""
    return (_SPLIT_WORDS | _FALLBACK_WORDS).get(name.lower())


def split_files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    """Split -> the files below `folder` with one of the suffixes that belong to it, sorted.

    A file's split is a word of its name, else of its folders' from the inside out, as in
    `data/validation-00000-of-00002.parquet`; without any it is train's.
    """
    splits: dict[str, list[Path]] = {}
    for name in sorted(walk_files(folder, suffixes)):
        splits.setdefault(split_of_file(name), []).append(folder / name)
    return splits


def split_of_file(name: str) -> str:
    """The split of a file, from the words of its path: see `split_files`."""
    for part in reversed(Path(name).with_suffix("").parts):
        word = word_in(part)
        if word is not None:
            return str(split_word(word))
    return "train"


def word_in(name: str) -> str | None:
    """The word of a name that says its split, such as the first in `val2017` and in `testB`, or None."""
    words = [word.lower() for word in _WORD.findall(name)]
    for known in (_SPLIT_WORDS, _FALLBACK_WORDS):
        for word in words:
            if word in known:
                return str(word)
    return None


def split_subfolders(folder: Path) -> dict[str, Path]:
    """Split -> subfolder, where `folder` is divided into splits; else empty.

    It is where every visible subfolder has a word for a split in its name, or where one for train and one for
    another split are otherwise called alike, as `train2017` and `val2017` are: a folder of classes may well
    have one class called "train". Files beside them do not count, nor do folders of other files than images.

    Raises ValueError if two of the subfolders stand for the same split.
    """
    return _splits_among(_visible_subfolders(folder))


def _splits_among(subfolders: Sequence[Path]) -> dict[str, Path]:
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
    """Whether a folder holds files, but none of them is an image."""
    return has_files(folder, ("",)) and not has_files(folder, IMAGE_SUFFIXES)


def _has_train_and_another(words: Mapping[Path, str]) -> bool:
    """Whether a folder for train and one for another split are called alike but for that word."""
    alike: dict[str, set[str | None]] = {}
    for path, word in words.items():
        alike.setdefault(path.name.lower().replace(word, "", 1), set()).add(split_word(word))
    return any("train" in splits and len(splits) > 1 for splits in alike.values())


@dataclass(frozen=True)
class Division:
    """How a folder of images is divided into splits.

    Attributes:
        folders: split -> its folders.
        unused: folders with images that belong to no split.
        undivided: folders that are called after a split, but divide nothing: all their images are train's.
    """

    folders: dict[str, list[Path]]
    unused: list[Path] = field(default_factory=list)
    undivided: list[Path] = field(default_factory=list)


def divide_folder(folder: Path) -> Division:
    """How the images below `folder` are divided into splits; all of them are train's where nothing says so.

    The division is that of the folder itself (see `split_subfolders`) or of folders in it, such as
    `images/train2017` and `images/val2017`. Raises ValueError as `split_subfolders` does.
    """
    division = Division({})
    if not _divide(folder, division, set()):
        return Division({"train": [folder]}, undivided=division.undivided)
    # Folders of labels may be divided like those of the images, and are no part of these.
    filled = {
        split: [path for path in paths if has_files(path, IMAGE_SUFFIXES)]
        for split, paths in division.folders.items()
    }
    folders = {split: paths for split, paths in filled.items() if paths}
    return Division(folders or division.folders, division.unused)


def _divide(folder: Path, division: Division, seen: set[str]) -> bool:
    """Adds to `division` how `folder`, or folders in it, are divided; whether any is."""
    real = os.path.realpath(folder)
    if real in seen:  # a link back to a folder above
        return False
    seen.add(real)
    subfolders = _visible_subfolders(folder)
    splits = _splits_among(subfolders)
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
    # What lies beside a folder that is divided is train's, like a file without a word for a split.
    division.folders.setdefault("train", []).extend(undivided)
    return True


def _visible_subfolders(folder: Path) -> list[Path]:
    """The folders in a folder whose names do not begin with a dot, sorted, without our own outputs."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        _raise_unreadable(error)
    paths = [folder / name for name in names]
    return [path for path in paths if not is_output(path)]


def _raise_unreadable(error: OSError) -> NoReturn:
    raise ValueError(f"the folder {error.filename} cannot be read: {error.strerror}") from error
