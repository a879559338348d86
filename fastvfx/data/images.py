"""Reading and writing images and films; files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from .._extras import require
from .errors import DataError

__all__ = [
    "IMAGE_SUFFIXES",
    "atomic_path",
    "atomic_write",
    "over_background",
    "read_image",
    "write_image",
    "write_video",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".exr", ".webp", ".tif", ".tiff", ".bmp")

PathLike = str | os.PathLike[str]
Color = str | Sequence[float] | Tensor

_COLORS = {"black": (0.0, 0.0, 0.0), "white": (1.0, 1.0, 1.0), "gray": (0.5, 0.5, 0.5)}


# --- files ----------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """A temporary path beside ``path``; what is written there takes the place of ``path`` when the block ends.

    For writers that want a file name. The content is flushed to the disk before the rename, so at any moment, after a
    crash or a power cut too, ``path`` holds either the whole old or the whole new content. Where the block raises
    (Ctrl-C is one way), the temporary file goes away and ``path`` stays as it was. Folders are made as needed.

    Raises:
        OSError: as the writer raised it; for a full disk (ENOSPC, EDQUOT) with a message that says so and names the
            file.
    """
    # A link stays a link: what it points to is replaced.
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.stem}.{uuid.uuid4().hex[:8]}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            kept = "; the old file is kept" if target.exists() else ""
            raise OSError(error.errno, f"fastvfx: the disk is full, {target} was not written{kept}") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: PathLike, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open ``path`` for writing so that it is replaced as a whole, or not at all. See `atomic_path`.

    Args:
        path: the file to write.
        mode: ``"wb"`` or ``"w"`` (UTF-8).
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"fastvfx.data.atomic_write: expected mode 'wb' or 'w', got {mode!r}")
    with atomic_path(path) as temporary, open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
        yield file


def _sync_folder(folder: Path) -> None:
    # The rename itself reaches the disk with the folder. Windows can't open folders, and needs it not.
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError:
            pass  # Some network file systems refuse to sync a folder; the file itself is safe.
        finally:
            os.close(handle)


# --- images ---------------------------------------------------------------------------------------------------------


@contextmanager
def naming_damage(where: object) -> Iterator[None]:
    """Makes what Pillow raises on a damaged file a :class:`DataError` that names it."""
    pil = require("PIL.Image", extra="data", purpose="reading images")
    try:
        yield
    except DataError:
        raise
    except pil.DecompressionBombError as error:
        raise DataError(f"{where}: the image is too large to be read safely: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        raise DataError(f"{where}: the image is damaged or not an image: {error}") from error


def read_image(path: PathLike) -> Tensor:
    """Read an image as (H, W, C), C = 3 (RGB) or 4 (RGBA, straight alpha).

    8-bit files give uint8. 16-bit PNG and TIFF (scaled to [0, 1]) and EXR (linear, as stored) give float32. Grey and
    palette images become RGB or RGBA. The orientation tag of photographs is not applied: structure-from-motion
    programs work with the pixels as stored, so poses and intrinsics belong to those.

    Raises:
        DataError: no such file, not an image, truncated, or non-finite values (EXR); the message names the file.
        ImportError: pillow (or av, for EXR and 16 bits) is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such image")
    if path.suffix.lower() == ".exr":
        return _read_deep(path)
    pil = require("PIL.Image", extra="data", purpose="reading images")
    with naming_damage(path), pil.open(path) as image:
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            return _from_gray(np.asarray(image), path)
        # Pillow cuts 16-bit colour down to 8 bits.
        if path.suffix.lower() == ".png" and _png_depth(path) == 16:
            return _read_deep(path)
        alpha = image.getbands()[-1] in ("A", "a") or "transparency" in image.info
        pixels = np.array(image.convert("RGBA" if alpha else "RGB"))
    return torch.from_numpy(pixels)


def _png_depth(path: Path) -> int:
    with open(path, "rb") as file:
        header = file.read(25)
    return header[24] if len(header) == 25 and header[:8] == b"\x89PNG\r\n\x1a\n" else 8


def _from_gray(pixels: np.ndarray, path: Path) -> Tensor:
    if pixels.dtype.kind in "iu":
        values = pixels.astype(np.float32) / 65535.0
    else:
        values = pixels.astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError(f"{path}: the image holds NaN or infinite values")
    return torch.from_numpy(np.repeat(values[..., None], 3, axis=-1))


def _read_deep(path: Path) -> Tensor:
    """EXR and 16-bit PNG through FFmpeg: float32, EXR as stored, integers scaled to [0, 1]."""
    av = require("av", extra="data", purpose=f"reading {path.suffix} images of more than 8 bits")
    try:
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
            if path.suffix.lower() == ".exr":
                pixels = _float_planes(frame)
            else:
                alpha = any(c.is_alpha for c in frame.format.components)
                pixels = frame.to_ndarray(format="rgba64le" if alpha else "rgb48le").astype(np.float32) / 65535.0
    except (av.FFmpegError, StopIteration, IndexError, ValueError) as error:
        raise DataError(f"{path}: the image is damaged or not an image: {error}") from error
    if not np.isfinite(pixels).all():
        raise DataError(f"{path}: the image holds NaN or infinite values")
    return torch.from_numpy(pixels)


def _float_planes(frame: Any) -> np.ndarray:
    """(H, W, 3 or 4) float32 of a decoded EXR. FFmpeg's own conversion would clip to [0, 1]."""
    match = re.fullmatch(r"(gbrp|gbrap|gray)f(16|32)le", frame.format.name)
    if match is None:
        raise ValueError(f"pixels of kind {frame.format.name} are not supported")
    bits = int(match[2])
    planes = []
    for plane in frame.planes:
        rows = np.frombuffer(plane, dtype=f"<f{bits // 8}").reshape(-1, plane.line_size * 8 // bits)
        planes.append(rows[: frame.height, : frame.width].astype(np.float32))
    order = {"gbrp": (2, 0, 1), "gbrap": (2, 0, 1, 3), "gray": (0, 0, 0)}[match[1]]
    pixels = np.stack([planes[i] for i in order], axis=-1)
    if pixels.shape[-1] == 4:  # EXR stores colour multiplied by alpha.
        pixels[..., :3] /= np.where(pixels[..., 3:] > 0, pixels[..., 3:], 1)
    return pixels


def _to_uint8(image: Tensor | np.ndarray, where: str) -> np.ndarray:
    """(H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or floats in [0, 1], as uint8 without a channel axis of one."""
    x = torch.as_tensor(image).detach()
    if x.ndim == 3 and x.shape[-1] == 1:
        x = x[..., 0]
    if not (x.ndim == 2 or (x.ndim == 3 and x.shape[-1] in (3, 4))) or x.numel() == 0:
        raise ValueError(
            f"{where}: expected an image of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {tuple(x.shape)}"
        )
    if x.is_floating_point():
        x = torch.nan_to_num(x.float(), nan=0.0, posinf=1.0, neginf=0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
    elif x.dtype != torch.uint8:
        raise TypeError(f"{where}: expected uint8 or floating point, got {x.dtype}")
    return np.ascontiguousarray(x.cpu().numpy())


def write_image(path: PathLike, image: Tensor | np.ndarray, *, quality: int = 95) -> None:
    """Write an image, whole or not at all. The suffix of ``path`` chooses the format (.png, .jpg, .webp, ...).

    Args:
        path: the file.
        image: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); uint8, or floating point in [0, 1] (clamped; NaN is written
            as 0).
        quality: of JPEG and WebP, 1 to 100.
    """
    pil = require("PIL.Image", extra="data", purpose="writing images")
    pixels = _to_uint8(image, "fastvfx.data.write_image")
    kind = pil.registered_extensions().get(Path(path).suffix.lower())
    if kind is None:
        raise ValueError(f"fastvfx.data.write_image: unknown image format {Path(path).suffix!r} in {path}")
    with atomic_write(path) as file:
        pil.fromarray(pixels).save(file, format=kind, **({"quality": quality} if kind in ("JPEG", "WEBP") else {}))


def write_video(path: PathLike, frames: Iterable[Tensor | np.ndarray], *, fps: float = 30.0, crf: int = 18) -> int:
    """Write an H.264 MP4 (yuv420p, so that every player shows it), whole or not at all.

    Args:
        path: the file.
        frames: images (H, W, 3), uint8 or floating point in [0, 1], all of one size; taken one at a time. H.264 wants
            even sizes: an odd last row or column is doubled.
        fps: frames per second.
        crf: constant rate factor, 0 (lossless) to 51; 18 is hardly told from the original.

    Returns:
        The number of frames written.

    Raises:
        ValueError: no frames, or a frame whose shape differs.
    """
    av = require("av", extra="data", purpose="writing films")
    where = "fastvfx.data.write_video"
    count, shape = 0, None
    with atomic_path(path) as temporary:
        container = stream = None
        try:
            for frame in frames:
                pixels = _to_uint8(frame, where)
                if pixels.ndim == 2:
                    pixels = np.repeat(pixels[..., None], 3, axis=-1)
                if pixels.shape[-1] != 3 or (shape is not None and pixels.shape != shape):
                    expected = "(H, W, 3)" if shape is None else str(shape)
                    raise ValueError(
                        f"{where}: expected frames of shape {expected}, got {pixels.shape} at frame {count}"
                    )
                shape = pixels.shape
                pixels = np.pad(pixels, ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0)), mode="edge")
                if container is None:
                    container = av.open(str(temporary), mode="w", format="mp4", options={"movflags": "+faststart"})
                    stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
                    stream.height, stream.width = pixels.shape[:2]
                    stream.pix_fmt = "yuv420p"
                    stream.options = {"crf": str(crf), "preset": "medium"}
                assert stream is not None
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
                count += 1
            if container is None or stream is None:
                raise ValueError(f"{where}: expected at least one frame, got none")
            container.mux(stream.encode(None))
        finally:
            if container is not None:
                container.close()
    return count


# --- backgrounds ----------------------------------------------------------------------------------------------------


def parse_color(color: Color) -> Tensor:
    """``"black"``, ``"white"``, ``"gray"`` or three numbers in [0, 1] as a float32 tensor (3,)."""
    if isinstance(color, str):
        if color not in _COLORS:
            raise ValueError(
                f"fastvfx.data: unknown colour {color!r}, expected one of {sorted(_COLORS)} or three numbers"
            )
        return torch.tensor(_COLORS[color])
    value = torch.as_tensor(color, dtype=torch.float32).detach().cpu()
    if value.shape != (3,) or not bool(((value >= 0) & (value <= 1)).all()):
        raise ValueError(f"fastvfx.data: expected a colour of three numbers in [0, 1], got {value.tolist()}")
    return value


def over_background(image: Tensor, background: Tensor) -> Tensor:
    """Straight-alpha ``image`` over ``background``: ``rgb * a + background * (1 - a)``.

    Args:
        image: (..., 4), floating point in [0, 1]; (..., 3) comes back as it is.
        background: (3,) or (..., 3).

    Returns:
        (..., 3).
    """
    if image.shape[-1] == 3:
        return image
    rgb, alpha = image[..., :3], image[..., 3:]
    return rgb * alpha + background.to(image) * (1 - alpha)
