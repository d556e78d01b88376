"""A video or a photo as a query."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from vopcore.index.encode import WindowEncoder
from vopcore.tuned_model import ModelSettings
from vopcore.video import VideoError

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
PHOTO_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MAX_PHOTO_PIXELS = 10**8


def encode_example(folder: Path, file: Path) -> Tensor:
    """The unit vector, float32 [D], of a file by the model in `folder`. A photo is a video of one frame.

    Raises ValueError naming the file where it can be read as neither.
    """
    encoder = WindowEncoder(folder)
    return encoder.example(read_example(encoder, file))


def read_example(encoder: WindowEncoder, file: Path) -> np.ndarray:
    """The frames of a video or the one of a photo, uint8 [F, S, S, 3], as the model wants them."""
    settings = encoder.settings
    if not file.exists():
        raise ValueError(f"{file}: no such file")
    if not file.is_file():
        raise ValueError(f"{file}: not a file; an example is a video or a photo")
    if file.suffix.lower() in PHOTO_SUFFIXES:
        return read_photo(file, settings)[None]
    try:
        decoded = settings.decode(file, settings.frames)
    except VideoError as error:
        raise ValueError(f"{file}: {error}") from None
    return decoded.pixels


def read_photo(file: Path, settings: ModelSettings) -> np.ndarray:
    """uint8 [S, S, 3]: resized as a video's frames are."""
    try:
        with Image.open(file, formats=PHOTO_FORMATS) as photo:
            if photo.width * photo.height > MAX_PHOTO_PIXELS:
                raise ValueError(f"{file}: {photo.width} x {photo.height} pixels are too many for an example")
            upright = ImageOps.exif_transpose(photo).convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file}: not a readable photo: {' '.join(str(error).split())}") from None

    shape = (settings.size, settings.size)
    kernel = Image.Resampling[settings.interpolation.upper()]
    if settings.resize == "squash":
        return np.asarray(upright.resize(shape, kernel))
    return np.asarray(ImageOps.fit(upright, shape, kernel))
