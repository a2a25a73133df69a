"""Decodes picture files to uint8 pixels, as a viewer would show them.

Ordinary JPEGs are decoded by simplejpeg if it is installed, which is faster and gives
the same pixels as Pillow. Pillow decodes everything else: EXIF rotation, palettes,
CMYK, 16 bits, and transparency, which is blended with white.
"""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

try:
    import simplejpeg
except ImportError:  # Pillow decodes JPEGs too, a little slower
    simplejpeg = None

# Pillow refuses huge pictures as possible attacks; training pictures may be huge.
Image.MAX_IMAGE_PIXELS = None


class Unreadable(ValueError):
    """The bytes are not a complete picture."""


def has_exif(data: bytes) -> bool:
    """Whether a JPEG has EXIF data, which may ask for a rotation."""
    # A JPEG is a chain of segments: 0xFF, a marker, two bytes of length, the content.
    position = 2  # after the two bytes that mark a JPEG
    while position + 10 < len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xE1 and data[position + 4 : position + 8] == b"Exif":
            return True
        if marker == 0xDA:  # the compressed pixels begin
            return False
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False


def plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """(height, width) if simplejpeg decodes these bytes as Pillow does, else None."""
    if simplejpeg is None or data[:3] != b"\xff\xd8\xff" or has_exif(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    # Pillow shows CMYK and YCCK differently.
    return (height, width) if colours in ("YCbCr", "Gray", "RGB") else None


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Converts a Pillow image of any mode to L or RGB with the same appearance."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):  # 16-bit PNGs may have mode I
        # The mode does not tell the range, but no 8-bit picture exceeds 255.
        pixels = np.asarray(image, np.float64)
        top = 65535.0 if pixels.max(initial=0) > 255 else 255.0
        return Image.fromarray((pixels.clip(0, top) / top * 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def decode_jpeg(
    data: bytes, channels: int, enough: tuple[int, int]
) -> np.ndarray | None:
    """uint8 [H, W, channels] of a plain JPEG, or None if simplejpeg rejects it.

    It rejects flaws that Pillow tolerates, such as stray bytes between two segments.
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

    enough: the height and width that the caller needs; a large JPEG may be decoded at
    1/2 to 1/8 of its size, but not below them (0: at full size). plain: whether
    plain_jpeg accepts the bytes, if already known. Raises Unreadable, with the reason,
    for anything that is not a complete picture.
    """
    if plain_jpeg(data) if plain is None else plain:
        decoded = decode_jpeg(data, channels, enough)
        if decoded is not None:
            return decoded
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            image = to_eight_bits(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise Unreadable("no picture of a known kind") from error
    except Exception as error:  # decoders raise almost any type for bad bytes
        raise Unreadable(str(error) or type(error).__name__) from error
    array = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return array.reshape(*array.shape[:2], channels)  # [H, W, channels]
