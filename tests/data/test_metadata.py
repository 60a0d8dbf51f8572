import json

import datasets
import pytest

from latentae.data import FolderSource
from latentae.data.metadata import metadata_captions, unread_columns
from tests.data.pictures import write_png

ROWS = [("1.png", "a cat, on a  mat"), ("in/2.png", 'a "dog"\nasleep')]


def folder(root, *names):
    for name in names or ("1.png", "in/2.png"):
        write_png(root / name, 5)
    return FolderSource(root)


def csv_file(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8-sig")


def write(path, rows=ROWS):
    table = [{"file_name": name, "source": "web", "text": text} for name, text in rows]
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(table).to_parquet(str(path))
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in table))
    else:
        quoted = [(name, text.replace('"', '""')) for name, text in rows]
        csv_file(path, "file_name,source,text\n" + "".join(f'{name},web,"{text}"\n' for name, text in quoted))


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_each_image_has_the_caption_of_its_row(name, tmp_path):
    source = folder(tmp_path)
    write(tmp_path / name, list(reversed(ROWS)))
    assert metadata_captions(source, "text") == ["a cat, on a mat", 'a "dog" asleep']
    assert metadata_captions(source, "source") == ["web", "web"]
    assert unread_columns(source) == (
        f"{tmp_path / name}: the column(s) source, text are not carried along; --caption-column NAME takes "
        "one of them as captions"
    )


def test_values_that_are_not_text(tmp_path):
    source = folder(tmp_path, *(f"{number}.png" for number in range(5)))
    cells = ["null", "[]", '["one", "two"]', "7", '""']
    rows = [f'{{"file_name": "{number}.png", "text": {cell}}}' for number, cell in enumerate(cells)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    assert metadata_captions(source, "text") == ["", "", "one", "7", ""]


def test_the_innermost_file_counts(tmp_path):
    source = folder(tmp_path, "1.png", "in/2.png", "in/deep/3.png")
    csv_file(tmp_path / "metadata.csv", "file_name,text\n1.png,one\nin/2.png,two\nin/deep/3.png,three\n")
    csv_file(tmp_path / "in/metadata.csv", "file_name,text\n./2.png,second\n")
    assert metadata_captions(source, "text") == ["one", "second", "three"]
    assert unread_columns(source).startswith(
        f"{tmp_path / 'metadata.csv'} and 1 more: the column(s) text are"
    )


def test_of_a_split_it_may_lie_above(tmp_path):
    write_png(tmp_path / "val/1.png", 5)
    source = folder(tmp_path / "train", "1.png")
    csv_file(tmp_path / "metadata.csv", "file_name,text\ntrain/1.png,one\nval/1.png,other\n")
    assert metadata_captions(source, "text") == ["one"]
    assert metadata_captions(FolderSource(tmp_path / "val"), "text") == ["other"]


def test_a_relative_folder(tmp_path, monkeypatch):
    folder(tmp_path)
    write(tmp_path / "metadata.csv")
    monkeypatch.chdir(tmp_path)
    assert metadata_captions(FolderSource("."), "source") == ["web", "web"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "file_name,text\n1.png,one\n",
            r"2\.png has no row in .*metadata\.csv \(1 of 2 images .* add the rows",
        ),
        ("file_name,text\n", r"1\.png has no row in .*\(2 of 2 images"),
        (
            "file_name,text\n1.png,one\n3.png,\n",
            r"csv: row 2 names '3\.png', which does not exist .*correct the",
        ),
        (
            "file,text\n1.png,one\n",
            r"row 1 has nothing in the column 'file_name' \(columns: file, text\); it",
        ),
        ("file_name,text\n,one\n", "row 1 has nothing in the column 'file_name'"),
        ("file_name,txt\n1.png,one\n", r"caption_column 'text' is not there; columns: file_name, txt"),
        ("file_name,text\n1.png,one\n./1.png,two\n", r"row 2 is the second one of '\./1\.png'; keep one row"),
        ("file_name,text\n1.png,a cat, asleep\n", "line 2 .* 2 fields of the header; put text with"),
        ("file_name,text\n1.png\n", "line 2 .* 2 fields of the header"),
        ('file_name,text\n1.png,"a cat\n', r"metadata\.csv cannot be read: unexpected end of data"),
    ],
)
def test_a_csv_with_a_mistake(text, says, tmp_path):
    source = folder(tmp_path)
    csv_file(tmp_path / "metadata.csv", text)
    with pytest.raises(ValueError, match=says):
        metadata_captions(source, "text")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("metadata.jsonl", b'{"file_name": "1.png"}\n{', r"jsonl cannot be read: line 2 is not JSON \("),
        ("metadata.jsonl", b"[1]", 'line 1 is not an object such as {"file_name"'),
        ("metadata.csv", b"file_name,text\n1.png,\xff\n", "cannot be read: 'utf-8' codec"),
        ("metadata.parquet", b"no table", r"cannot read .*metadata\.parquet"),
    ],
)
def test_a_file_that_cannot_be_read(name, content, says, tmp_path):
    source = folder(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        metadata_captions(source, "text")
    assert unread_columns(source).startswith("no metadata are carried along: ")


def test_two_files_in_one_folder(tmp_path):
    source = folder(tmp_path)
    write(tmp_path / "metadata.csv")
    write(tmp_path / "metadata.jsonl")
    with pytest.raises(ValueError, match=r"has metadata\.csv and metadata\.jsonl; keep one of them"):
        metadata_captions(source, "text")
    assert "keep one of them" in unread_columns(source)


def test_without_any(tmp_path):
    source = folder(tmp_path)
    assert unread_columns(source) is None
    with pytest.raises(
        ValueError, match=r"has none of metadata\.csv, .* with the columns file_name and text"
    ):
        metadata_captions(source, "text")
    csv_file(tmp_path / "metadata.csv", "file_name\n1.png\n")
    assert unread_columns(source) is None


def test_a_folder_with_a_word_for_a_split_has_its_captions_above(tmp_path):
    write_png(tmp_path / "val2017/a.png", 1)
    (tmp_path / "metadata.csv").write_text("file_name,text\nval2017/a.png,one\n")
    assert metadata_captions(FolderSource(tmp_path / "val2017"), "text") == ["one"]
