"""Files of captions: three formats, and what is said of broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastvfx.data import DataError, load_captions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Videos that are there; nobody looks into them."""
    for name in ("a.mp4", "b.mp4", "deep/c.mkv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def told(path: Path) -> list[tuple]:
    return [(e.name, e.text, e.start, e.end, e.label) for e in load_captions(path).entries]


EXPECTED = [
    ("b.mp4", "onions fry", 0.0, None, None),
    ("a.mp4", "a knife", 0.0, 2.5, "cut"),
    ("a.mp4", "an onion", 2.5, 6.0, None),
]


def test_json_of_names(folder: Path) -> None:
    parts = [
        {"caption": "an  onion\n", "start": 2.5, "end": 6},
        {"caption": "a knife", "end": 2.5, "label": "cut"},
    ]
    (folder / "captions.json").write_text(json.dumps({"b.mp4": "onions fry", "a.mp4": parts}))
    assert told(folder) == EXPECTED  # sorted by time, white space made even
    captions = load_captions(folder / "captions.json")
    assert captions.videos == {"b.mp4": folder / "b.mp4", "a.mp4": folder / "a.mp4"}
    assert captions.labels == ("cut",) and len(captions) == 3 and captions.entries[1].where.endswith("'a.mp4'[1]")


def test_json_list_lines_and_csv(folder: Path) -> None:
    entries = [
        {"video": "b.mp4", "caption": "onions fry"},
        {"video": "a.mp4", "caption": "a knife", "start": 0, "end": 2.5, "label": "cut"},
        {"video": "a.mp4", "caption": "an onion", "start": 2.5, "end": 6},
    ]
    (folder / "list.json").write_text(json.dumps(entries))
    (folder / "lines.jsonl").write_text("\n\n".join(json.dumps(e) for e in entries) + "\n")
    (folder / "table.csv").write_text(
        "\ufeffvideo,start,end,label,caption\nb.mp4,,,,onions fry\na.mp4,0,2.5,cut,a knife\n\na.mp4,2.5,6,,an onion\n"
    )
    for name in ("list.json", "lines.jsonl", "table.csv"):
        assert told(folder / name) == EXPECTED, name


def test_commas_quotes_and_folders(folder: Path) -> None:
    (folder / "captions.csv").write_text('video,caption\ndeep\\c.mkv,"cut, then ""fry"""\n')
    (entry,) = load_captions(folder).entries
    assert entry.video == folder / "deep/c.mkv" and entry.text == 'cut, then "fry"'


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.jsonl", '{"video": "a.mp4", "caption": "x"}\n{"video": "a.mp4",\n', r"line 2: invalid or truncated JSON"),
        ("a.jsonl", '\n{"video": "a.mp4"}', r"line 2: no caption for a.mp4"),
        ("a.jsonl", '{"caption": "x"}', r"line 1: no video"),
        ("a.jsonl", '"x"', r"line 1: expected an object with video, caption, start, end, label, got str"),
        ("a.jsonl", '{"video": "lost.mp4", "caption": "x"}', r"line 1: no such video: .*lost.mp4"),
        ("a.csv", "video,caption\na.mp4,x\na.mp4,y,z\n", r"line 3: expected 2 columns, got 3"),
        ("a.csv", "video,caption\na.mp4,x\na.mp4\n", r"line 3: expected 2 columns, got 1"),
        ("a.csv", 'video,caption\na.mp4,"x\n', r"line 2: not CSV"),
        ("a.csv", "clip,text\na.mp4,x\n", r"line 1: expected a head line .* caption and video missing"),
        ("a.csv", "video,caption,start\na.mp4,x,soon\n", r"line 2: expected start in seconds, .* got 'soon'"),
        ("a.csv", "video,caption,start\na.mp4,x,nan\n", r"line 2: expected start in seconds, .* got 'nan'"),
        ("a.csv", "video,caption,start,end\na.mp4,x,3,2\n", r"line 2: expected an end after the start 3, got 2"),
        ("a.csv", "", r"no captions in it"),
        ("a.json", '{"a.mp4": "x"', r"line 1: invalid or truncated JSON"),
        ("a.json", '{"a.mp4": ""}', r"entry 'a.mp4': no caption for a.mp4"),
        ("a.json", '{"a.mp4": 3}', r"entry 'a.mp4': expected an object"),
        ("a.json", "3", r"expected an object or a list, got int"),
        ("a.json", "{}", r"no captions in it"),
        ("a.txt", "x", r"expected captions in a .json, .jsonl or .csv file"),
    ],
)
def test_broken(folder: Path, name: str, text: str, expected: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name}: {expected}"):
        load_captions(folder / name)


def test_all_broken_lines_are_named_up_to_three(folder: Path) -> None:
    (folder / "a.csv").write_text("video,caption\n" + "".join(f"lost{i}.mp4,x\n" for i in range(5)) + "a.mp4,y\n")
    with pytest.raises(DataError) as error:
        load_captions(folder / "a.csv")
    assert all(f"line {i}: no such video" in str(error.value) for i in (2, 3, 4))
    assert "line 5" not in str(error.value) and str(error.value).endswith("and 2 more")


def test_broken_lines_can_be_left_out(folder: Path) -> None:
    (folder / "a.jsonl").write_text('{"video": "a.mp4", "caption": "x"}\n{\n{"video": "b.mp4", "caption": "y"}\n')
    captions = load_captions(folder / "a.jsonl", skip_broken=True)
    assert [e.text for e in captions.entries] == ["x", "y"]
    assert len(captions.broken) == 1 and captions.broken[0].startswith("line 2: ")
    (folder / "b.jsonl").write_text("{\n")
    with pytest.raises(DataError, match=r"b.jsonl: no captions, all 1 entries are broken"):
        load_captions(folder / "b.jsonl", skip_broken=True)


def test_not_there(folder: Path) -> None:
    with pytest.raises(DataError, match=r"expected captions.json, captions.jsonl or captions.csv in this folder"):
        load_captions(folder)
    with pytest.raises(DataError, match="no such file or folder"):
        load_captions(folder / "x.json")
    (folder / "x.json").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="not a text file"):
        load_captions(folder / "x.json")


def test_real_captions(shared_data: Path) -> None:
    captions = load_captions(shared_data / "video")
    assert (
        len(captions) == 25
        and "signs the word bird" in {e.name: e.text for e in captions.entries}["asl_gestures/bird.mkv"]
    )
