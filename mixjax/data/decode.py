"""Bytes of a picture file to uint8 pixels, the way a viewer would show them.

JPEGs take the fast road (simplejpeg, where installed: the same bytes as Pillow).
Everything else goes through Pillow: EXIF rotation, palettes, CMYK, 16 bits, and
transparency, which is laid over white.
"""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

try:
    import simplejpeg
except ImportError:  # Pillow decodes them too, a little slower
    simplejpeg = None

Image.MAX_IMAGE_PIXELS = None  # the user's own pictures may be large


class Unreadable(ValueError):
    """The bytes are not a whole picture."""


def has_exif(data: bytes) -> bool:
    """Whether a JPEG carries EXIF data (and so, perhaps, a rotation)."""
    at = 2
    while at + 10 < len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xE1 and data[at + 4 : at + 8] == b"Exif":
            return True
        if data[at + 1] == 0xDA:  # pixels begin
            return False
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """(height, width) if the fast road may take these bytes, else None."""
    if simplejpeg is None or data[:3] != b"\xff\xd8\xff" or has_exif(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (height, width) if colours in ("YCbCr", "Gray", "RGB") else None


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Pillow image of any mode -> mode L or RGB, without losing what is visible."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):  # 16-bit PNGs may come as I; floats as they are
        pixels = np.asarray(image, np.float64)
        top = 65535.0 if pixels.max(initial=0) > 255 else 255.0
        return Image.fromarray((pixels.clip(0, top) / top * 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def fast(data: bytes, channels: int, enough: tuple[int, int]) -> np.ndarray | None:
    """What the fast road makes of a plain JPEG; None where it gives up.

    It refuses what Pillow forgives, such as odd bytes between two segments.
    """
    try:
        return simplejpeg.decode_jpeg(
            data,
            colorspace="GRAY" if channels == 1 else "RGB",
            min_height=enough[0],
            min_width=enough[1],
        )
    except ValueError:
        return None


def pixels(
    data: bytes,
    channels: int,
    enough: tuple[int, int] = (0, 0),
    plain: bool | None = None,
) -> np.ndarray:
    """Decodes to uint8 [H, W, channels], channels 1 (grey) or 3 (RGB).

    enough: a height and width that still do; a large JPEG may then come back scaled
    down by 2 to 8 but not below them (0: full size). plain: whether plain_jpeg takes
    the bytes, if that is known. Raises Unreadable, with the reason, for anything that
    is not a whole picture.
    """
    if plain_jpeg(data) if plain is None else plain:
        pixels_or_none = fast(data, channels, enough)
        if pixels_or_none is not None:
            return pixels_or_none
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            image = to_eight_bits(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise Unreadable("no picture of a known kind") from error
    except Exception as error:  # decoders raise nearly everything on bad bytes
        raise Unreadable(str(error) or type(error).__name__) from error
    array = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return array.reshape(*array.shape[:2], channels)  # [H, W, channels]
