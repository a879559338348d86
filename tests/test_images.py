"""Images, films and the files they go to; packages that are missing."""

from __future__ import annotations

import errno
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from fastvfx._extras import require
from fastvfx.data import (
    DataError,
    atomic_path,
    atomic_write,
    over_background,
    parse_color,
    read_image,
    write_image,
    write_video,
)

# --- images and films -----------------------------------------------------------------------------------------------


def png16(path: Path, pixels: np.ndarray) -> None:
    """A 16-bit PNG, as Pillow can't write it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    h, w, c = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", w, h, 16, {1: 0, 3: 2, 4: 6}[c], 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_kept(tmp_path: Path, channels: int) -> None:
    pixels = (np.arange(5 * 7 * channels, dtype=np.uint16) * 401).reshape(5, 7, channels)
    png16(tmp_path / "x.png", pixels)
    found = read_image(tmp_path / "x.png")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[..., :channels], torch.from_numpy(pixels.astype(np.float32)) / 65535)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_round_trip(tmp_path: Path, channels: int) -> None:
    pixels = torch.randint(256, (5, 7, channels), dtype=torch.uint8)
    write_image(tmp_path / "x.png", pixels)
    found = read_image(tmp_path / "x.png")
    assert torch.equal(found, pixels.expand(5, 7, 3) if channels == 1 else pixels)
    write_image(tmp_path / "y.png", pixels.float() / 255)
    assert torch.equal(read_image(tmp_path / "y.png"), found)


def test_floats_are_clamped(tmp_path: Path) -> None:
    write_image(tmp_path / "x.png", torch.tensor([[-1.0, 0.5, 2.0, math.nan, math.inf]]))
    assert read_image(tmp_path / "x.png")[0, :, 0].tolist() == [0, 128, 255, 0, 255]


def test_exr_is_linear_and_unclipped(shared_data: Path) -> None:
    image = read_image(shared_data / "hdri_cc0" / "park.exr")
    assert image.shape == (256, 512, 3)
    assert float(image.max()) > 10
    assert float(image[40, :, 2].mean()) > 1.5 * float(image[40, :, 0].mean())  # A blue sky above
    assert float(image[200, :, 1].mean()) > 1.5 * float(image[200, :, 2].mean())  # and grass below.


def test_wrong_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected an image of shape .* got \(3, 4, 5\)"):
        write_image(tmp_path / "x.png", torch.zeros(3, 4, 5))
    with pytest.raises(TypeError, match=r"expected uint8 or floating point, got torch\.int64"):
        write_image(tmp_path / "x.png", torch.zeros(3, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"unknown image format '\.xyz'"):
        write_image(tmp_path / "x.xyz", torch.zeros(3, 4))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match=r"x\.png: no such image"):
        read_image(tmp_path / "x.png")


def test_colors() -> None:
    assert parse_color("gray").tolist() == [0.5, 0.5, 0.5]
    assert parse_color((0.25, 0.5, 1)).tolist() == [0.25, 0.5, 1.0]
    rgba = torch.tensor([[1.0, 0.0, 0.0, 0.25]])
    torch.testing.assert_close(over_background(rgba, torch.tensor([0.0, 1.0, 1.0])), torch.tensor([[0.25, 0.75, 0.75]]))


def test_films_have_even_sizes(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    frames = (torch.full((33, 47, 3), i / 10) for i in range(10))
    assert write_video(tmp_path / "x.mp4", frames, fps=24) == 10
    with av.open(str(tmp_path / "x.mp4")) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.average_rate) == (48, 34, 24)
        decoded = [f.to_ndarray(format="rgb24") for f in film.decode(video=0)]
    assert len(decoded) == 10
    for i, f in enumerate(decoded):
        assert abs(float(f.mean()) - 25.5 * i) < 3


def test_wrong_films_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at least one frame, got none"):
        write_video(tmp_path / "x.mp4", [])
    with pytest.raises(ValueError, match=r"expected frames of shape \(8, 8, 3\), got \(8, 10, 3\) at frame 1"):
        write_video(tmp_path / "x.mp4", [torch.zeros(8, 8, 3), torch.zeros(8, 10, 3)])
    assert list(tmp_path.iterdir()) == []


# --- atomic files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path, "w") as file:
        file.write("half of the n")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("old", [True, False], ids=["old", "none"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    path = tmp_path / "checkpoint.bin"
    if old:
        path.write_bytes(b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"the disk is full, .*checkpoint\.bin was not written") as caught:  # noqa: SIM117
        with atomic_write(path) as file:
            file.write(b"new")
    assert caught.value.errno == errno.ENOSPC
    assert ("the old file is kept" in str(caught.value)) == old
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([b"old"] if old else [])


def test_atomic_files_replace_and_make_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    for text in ("first", "zweite Fassung, größer"):
        with atomic_write(path, "w") as file:
            file.write(text)
        assert path.read_text(encoding="utf-8") == text
    with atomic_path(path) as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("third")
        assert path.read_text(encoding="utf-8") == "zweite Fassung, größer"
    assert path.read_text() == "third"
    with pytest.raises(ValueError, match="expected mode 'wb' or 'w', got 'a'"), atomic_write(path, "a"):
        pass


@pytest.mark.skipif(os.name != "posix", reason="links and modes of POSIX")
def test_links_and_modes_are_kept(tmp_path: Path) -> None:
    path, link = tmp_path / "real", tmp_path / "link"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    with atomic_write(link, "w") as file:
        file.write("new")
    assert link.is_symlink()
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640


# --- extras ---------------------------------------------------------------------------------------------------------


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"^fastvfx needs pillow for writing images: pip install 'fastvfx\[data\]'$"):
        write_image(tmp_path / "x.png", torch.zeros(3, 4))
    with pytest.raises(ImportError, match=r"^fastvfx needs no_such_thing for a test: pip install 'fastvfx\[x\]'$"):
        require("no_such_thing", extra="x", purpose="a test")


def test_a_broken_package_says_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken_thing.py").write_text("import its_own_dependency")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match="importing it failed: No module named 'its_own_dependency'"):
        require("broken_thing", extra="x", purpose="a test")
