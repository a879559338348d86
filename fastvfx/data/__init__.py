"""Captures, photographs and captioned videos on disk, cameras, images and films."""

from .bounds import SceneBounds, scene_bounds, visual_hull
from .cameras import Cameras, distort, undistort
from .captions import Caption, Captions, load_captions
from .clips import Clip, VideoInfo, in_background, probe_video, read_clip, stream_clips
from .dataset import PosedImages, RayBatch
from .errors import DataError
from .images import atomic_path, atomic_write, over_background, parse_color, read_image, write_image, write_video
from .paths import axes_center, camera_path, interpolate_poses, look_at, orbit_path
from .photos import PhotoBatch, Photos, load_photos
from .transforms import load_transforms

__all__ = [
    "Cameras",
    "Caption",
    "Captions",
    "Clip",
    "DataError",
    "PhotoBatch",
    "Photos",
    "PosedImages",
    "RayBatch",
    "SceneBounds",
    "VideoInfo",
    "atomic_path",
    "atomic_write",
    "axes_center",
    "camera_path",
    "distort",
    "in_background",
    "interpolate_poses",
    "load_captions",
    "load_photos",
    "load_transforms",
    "look_at",
    "orbit_path",
    "over_background",
    "parse_color",
    "probe_video",
    "read_clip",
    "read_image",
    "scene_bounds",
    "stream_clips",
    "undistort",
    "visual_hull",
    "write_image",
    "write_video",
]
