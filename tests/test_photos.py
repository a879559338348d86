"""Photographs from folders and zips: what is read, in which order, and what is said about what can't be."""

from __future__ import annotations

import json
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastvfx.data import DataError, Photos, load_photos


def picture(seed: int, width: int = 16, height: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = BytesIO()
    image.save(file, kind)
    return file.getvalue()


def write_folder(root: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(root / name)
    return root


def write_zip(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "photos", ["cat/0.png", "cat/1.png", "dog/old/2.png"])


# --- what is read ---------------------------------------------------------------------------------------------------


def test_pixels_of_a_folder(folder: Path) -> None:
    photos = load_photos(folder)
    assert photos.names == ("cat/0.png", "cat/1.png", "dog/old/2.png")
    assert len(photos) == 3 and photos.resolution == 16 and photos.label_dim == 0
    batch = photos.at(np.array([1]))
    expected = torch.from_numpy(np.asarray(picture(1)).copy()).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.equal(batch.images[0], expected) and batch.labels is None


def test_zip_gives_what_its_folder_gives(folder: Path, tmp_path: Path) -> None:
    entries = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")}
    entries |= {"__MACOSX/cat/._0.png": b"no image", ".hidden.png": b"no image", "notes.txt": b"hello"}
    zipped, plain = load_photos(write_zip(tmp_path / "p.zip", entries), labels=True), load_photos(folder, labels=True)
    assert zipped.names == plain.names and zipped.class_names == plain.class_names
    assert isinstance(zipped.images, torch.Tensor) and isinstance(plain.images, torch.Tensor)
    assert torch.equal(zipped.images, plain.images)


def test_classes_are_the_folders(folder: Path) -> None:
    photos = load_photos(folder, labels=True)
    assert photos.class_names == ("cat", "dog") and photos.label_dim == 2
    assert photos.labels is not None and photos.labels.tolist() == [[1, 0], [1, 0], [0, 1]]


def test_classes_below_one_common_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, ["train/a/0.png", "train/b/1.png"])
    assert load_photos(folder, labels=True).class_names == ("a", "b")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([2, 0], [[0, 0, 1], [1, 0, 0]]), ([[0.5, 1], [2, 3]], [[0.5, 1], [2, 3]])],
    ids=["classes", "vectors"],
)
def test_stylegan_dataset_zip(tmp_path: Path, labels: list, expected: list) -> None:
    names = ["00000/img00000000.png", "00000/img00000001.png"]
    content = {"labels": [list(pair) for pair in zip(names, labels, strict=True)]}
    entries = {name: encoded(picture(i)) for i, name in enumerate(names)}
    path = write_zip(tmp_path / "dataset.zip", {**entries, "dataset.json": json.dumps(content).encode()})
    photos = load_photos(path, labels=True)
    assert photos.labels is not None and photos.labels.tolist() == expected
    assert load_photos(path).labels is None


def test_resolution_crops_the_middle_and_resizes(tmp_path: Path) -> None:
    wide = np.zeros((16, 32, 3), dtype=np.uint8)
    wide[:, 8:24] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    photos = load_photos(tmp_path, 8)
    assert isinstance(photos.images, torch.Tensor)
    assert photos.images.shape == (1, 3, 8, 8) and bool((photos.images == 200).all())
    assert photos.n_enlarged == 0 and load_photos(tmp_path, 32).n_enlarged == 1


def test_large_jpeg_is_reduced(tmp_path: Path) -> None:
    x = np.linspace(0, 255, 512).astype(np.uint8)
    Image.fromarray(np.broadcast_to(x[None, :, None], (512, 512, 3)).copy()).save(tmp_path / "ramp.jpg", quality=95)
    images = load_photos(tmp_path, 16).images
    assert isinstance(images, torch.Tensor)
    assert torch.allclose(images[0, 0, 8].float(), torch.arange(16) * 16 + 7.5, atol=3)


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 90, (90, 90, 90)),
        ("P", 0, None),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("LA", (50, 255), (50, 50, 50)),
        ("I;16", 0x4000, (64, 64, 64)),
        ("1", 1, (255, 255, 255)),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
    ],
)
def test_modes_become_rgb(tmp_path: Path, mode: str, value: object, expected: tuple[int, ...] | None) -> None:
    name = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (8, 8), value).save(name)  # type: ignore[arg-type]
    images = load_photos(tmp_path).images
    assert isinstance(images, torch.Tensor) and images.shape == (1, 3, 8, 8)
    if expected is not None:
        assert tuple(images[0, :, 3, 3].tolist()) == expected


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8))
    image.paste((255, 255, 255), (0, 0, 8, 4))  # upper half white
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    image.save(tmp_path / "a.png", exif=exif)
    images = load_photos(tmp_path).images
    assert isinstance(images, torch.Tensor)
    assert int(images[0, 0, 0, 0]) == 0 and int(images[0, 0, 7, 7]) == 255


def test_what_does_not_fit_is_decoded_when_needed(folder: Path) -> None:
    lazy, eager = load_photos(folder, mirror=True, memory=0), load_photos(folder, mirror=True)
    assert not isinstance(lazy.images, torch.Tensor)
    assert torch.equal(lazy.shuffled(0, 6).images, eager.shuffled(0, 6).images)


# --- order ----------------------------------------------------------------------------------------------------------


def test_each_image_once_before_any_again() -> None:
    photos = Photos(torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, 3, 4, 4), tuple("abcde"), 4)
    seen = photos.shuffled(0, 15, seed=1).images[:, 0, 0, 0].add(1).mul(127.5).round().int().tolist()
    assert [sorted(seen[i : i + 5]) for i in (0, 5, 10)] == [[0, 1, 2, 3, 4]] * 3
    assert seen[:5] != seen[5:10] or seen[5:10] != seen[10:]
    again = photos.shuffled(4, 7, seed=1).images[:, 0, 0, 0].add(1).mul(127.5).round().int().tolist()
    assert again == seen[4:11]
    assert not torch.equal(photos.shuffled(0, 15, seed=2).images, photos.shuffled(0, 15, seed=1).images)


def test_mirror_doubles_the_set(folder: Path) -> None:
    photos = load_photos(folder, mirror=True)
    both = photos.at(np.array([1, 4]))
    assert torch.equal(both.images[0].flip(2), both.images[1])
    epoch = photos.shuffled(0, 6).images
    assert len({tuple(x.flatten().tolist()) for x in epoch}) == 6


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 20, 60], ids=["empty", "header", "truncated"])
def test_damaged_image_is_named(folder: Path, size: int) -> None:
    path = folder / "cat/1.png"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"cat/1\.png: the image is damaged"):
        load_photos(folder)
    assert load_photos(folder, skip_broken=True).names == ("cat/0.png", "dog/old/2.png")
    photos = load_photos(folder, skip_broken=True, memory=0, mirror=True)
    assert photos.n_broken == 1 and photos.shuffled(0, 4).images.shape == (4, 3, 16, 16)


def test_image_in_a_zip_that_fails_its_checksum(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "p.zip", {"a.png": encoded(picture(0)), "b.png": encoded(picture(1))})
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 40] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"p\.zip/a\.png: .*(CRC|unpacked)"):
        load_photos(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 hello", b"hello"], ids=["empty", "cut", "text"])
def test_malformed_zip(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.zip"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"p\.zip: damaged, or no zip file"):
        load_photos(path)


def test_truncated_zip(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "p.zip", {"a.png": encoded(picture(0))})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="damaged, or no zip file"):
        load_photos(path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder or zip"):
        load_photos(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no images in it"):
        load_photos(tmp_path)


def test_too_few(folder: Path) -> None:
    with pytest.raises(DataError, match="3 images, expected at least 16"):
        load_photos(folder, at_least=16)
    (folder / "cat/0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 images \(1 more can't be read\), expected at least 3"):
        load_photos(folder, at_least=3, skip_broken=True)


def test_mixed_sizes_want_a_resolution(folder: Path) -> None:
    picture(9, 32, 32).save(folder / "dog/3.png")
    with pytest.raises(DataError, match=r"dog/3\.png: its size is 32x32, that of cat/0\.png 16x16; choose a resol"):
        load_photos(folder)
    assert len(load_photos(folder, 16)) == 4


def test_odd_size_wants_a_resolution(tmp_path: Path) -> None:
    picture(0, 17, 17).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="17x17, not square with a power of two"):
        load_photos(tmp_path)


@pytest.mark.parametrize("resolution", [0, 2, 48, -64])
def test_resolution_is_a_power_of_two(folder: Path, resolution: int) -> None:
    with pytest.raises(ValueError, match=f"power of two from 4, got {resolution}"):
        load_photos(folder, resolution)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "expected"),
        (b"[]", "expected"),
        (b'{"labels": null}', "null"),
        (b'{"labels": [["a.png", 1]]}', r"no label for b\.png and 0 others"),
        (b'{"labels": [["a.png", 1], ["b.png", [1, 2]]]}', "expected"),
        (b'{"labels": [["a.png", -1], ["b.png", 0]]}', "all classes"),
        (b'{"labels": [["a.png", "x"], ["b.png", "y"]]}', "all classes"),
        (b'{"labels": [["a.png", 4000000000], ["b.png", 0]]}', "all classes"),
        (b'{"labels": [["a.png", [NaN]], ["b.png", [0]]]}', "all classes"),
    ],
)
def test_bad_labels(tmp_path: Path, content: bytes, message: str) -> None:
    entries = {"a.png": encoded(picture(0)), "b.png": encoded(picture(1)), "dataset.json": content}
    with pytest.raises(DataError, match=rf"p\.zip/dataset\.json: .*{message}"):
        load_photos(write_zip(tmp_path / "p.zip", entries), labels=True)


def test_no_classes(tmp_path: Path) -> None:
    write_folder(tmp_path, ["a.png", "x/b.png"])
    with pytest.raises(DataError, match="no classes: expected"):
        load_photos(tmp_path, labels=True)


def test_flowers(shared_data: Path) -> None:
    path = shared_data / "flowers64/train.zip"
    if not path.is_file():
        pytest.skip(f"no {path}")
    photos = load_photos(path, labels=True)
    assert len(photos) == 2934 and photos.resolution == 64
    assert photos.class_names == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
