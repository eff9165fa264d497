"""Pictures, one door: whatever they come from, what leaves here is upright RGB, and nothing else is let in.

A picture that is stored somewhere is a `Picture`: a PIL image whose size is known from its header and whose pixels are
decoded when they are first needed, kept for whoever asks next, and let go again. One that a function makes is `Made`.
Thirty thousand of them cost names.
"""

import hashlib
import io
import logging
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from workbench.errors import PromptError

log = logging.getLogger(__name__)

# Formats that Pillow decodes by itself. Others (EPS, for one) start programs or exist to hold more than one picture.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
# Far above what any vision tower reads, far below what fills a memory: a small file that unpacks to more is an attack.
MAX_PIXELS = 50_000_000
MAX_BYTES = 200_000_000
RECENT_BYTES = 64_000_000  # of decoded pixels that are kept for the next who asks
ORIENTATION = 0x0112  # the EXIF field; 5 to 8 turn by a quarter
TRANSPARENT = "has transparency and is laid on white"
ANIMATED = "holds several frames, of which the first is used"


class Recent:
    """What was made last, up to a number of bytes.

    Args:
        budget: How many bytes are kept; what was used longest ago makes room.
        size: How many bytes one thing takes.
    """

    def __init__(self, budget: int, size: Callable[[Any], int]) -> None:
        self.budget, self.size = budget, size
        self._kept: OrderedDict[object, Any] = OrderedDict()
        self._bytes, self._lock = 0, Lock()

    def get(self, key: object, make: Callable[[], Any]) -> Any:
        """What is kept under `key`, made where nothing is."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            if key not in self._kept:  # another thread may have been faster
                self._bytes += self.size(made)
            self._kept[key] = made
            while len(self._kept) > 1 and self._bytes > self.budget:
                self._bytes -= self.size(self._kept.popitem(last=False)[1])
        return made


RECENT = Recent(RECENT_BYTES, lambda pixels: 4 * pixels.size[0] * pixels.size[1])


class Deferred(Image.Image):
    """A picture in RGB whose pixels are made when they are asked for, kept a while, and made again.

    Whoever writes into one gets pixels of its own, and the picture no longer stands for what it was made from.
    """

    def __init__(self) -> None:
        super().__init__()
        self._key, self._digest = object(), ""
        self._mode, self._readonly = "RGB", 1

    @property
    def im(self) -> Any:
        """Pillow's pixels."""
        return RECENT.get(self._key, self._pixels) if self._im is None else self._im

    @im.setter
    def im(self, im: Any) -> None:
        self._im = im

    def load(self) -> Any:
        """Access to the pixels, made if they are not."""
        return self.im.pixel_access(self.readonly)

    def close(self) -> None:
        """Nothing is open."""

    def digest(self) -> str:
        """SHA-256 that tells the picture from others, 16 hex digits; of the pixels, once someone has written into
        them.
        """
        if self._im is not None:
            return _pixel_hash(self)
        self._digest = self._digest or self._told_apart()
        return self._digest

    def _pixels(self) -> Any:
        raise NotImplementedError

    def _told_apart(self) -> str:
        return _pixel_hash(self)

    def __reduce__(self) -> Any:
        return Image.frombytes, ("RGB", self.size, self.tobytes())


class Made(Deferred):
    """A picture that a function makes, such as a drawn text.

    Args:
        make: Makes it, the same one every time, in RGB.
        size: Its width and height.
    """

    def __init__(self, make: Callable[[], Image.Image], size: tuple[int, int]) -> None:
        super().__init__()
        self._make, self._size = make, size

    def _pixels(self) -> Any:
        return self._make().im


class Picture(Deferred):
    """A stored picture, upright, decoded when its pixels are asked for.

    Args:
        stream: Opens what is stored, from its first byte.
        name: What messages call it.
    """

    def __init__(self, stream: Callable[[], BinaryIO], name: str) -> None:
        super().__init__()
        self.name, self._stream = name, stream
        with _opened(stream, name) as picture:
            turned = _orientation(picture) >= 5
            self._size = picture.size[::-1] if turned else picture.size
            self.notes = tuple(_notes(picture))
            whole = picture.format is not None and _ends_whole(stream, picture.format)
        if not whole:
            self._pixels()  # shows whether the rest is there

    def digest(self) -> str:
        """SHA-256 of what is stored, 16 hex digits; of the pixels, once someone has written into them."""
        try:
            return super().digest()
        except OSError:
            # Gone since it was found. Whoever needs its pixels says so, of the prompt it belongs to.
            return hashlib.sha256(f"gone: {self.name}".encode()).hexdigest()[:16]

    def _told_apart(self) -> str:
        with self._stream() as stream:
            return hashlib.sha256(stream.read()).hexdigest()[:16]

    def _pixels(self) -> Any:
        with _opened(self._stream, self.name) as picture:
            pixels = _upright_rgb(picture).im
        self._size = (
            pixels.size
        )  # a record of orientation may stand behind the pixels, where headers are not looked for
        return pixels

    def __reduce__(self) -> Any:
        # In another process the file may not be there: what is stored travels, and pixels of one's own.
        if self._im is not None:
            return super().__reduce__()
        with self._stream() as stream:
            return picture_of_bytes, (stream.read(), self.name)


def open_picture(path: str | Path) -> Picture:
    """The picture in a file.

    Raises:
        PromptError: There is none, or it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise PromptError(f"image '{path}' {'is a folder, not a picture' if path.is_dir() else 'does not exist'}")
    return Picture(stream_of(path), str(path))


def stream_of(path: Path) -> Callable[[], BinaryIO]:
    """What opens a file for reading its bytes."""
    return lambda: path.open("rb")


def picture_of_bytes(content: bytes, name: str) -> Picture:
    """The picture in some bytes, such as a cell of a table."""
    return Picture(partial(io.BytesIO, content), name)


def as_rgb(image: Image.Image) -> Image.Image:
    """A picture that someone holds, as upright RGB; the same object where it is that already.

    Raises:
        PromptError: It is broken, of no size, too large, or of a format that is not read.
    """
    if isinstance(image, Deferred):
        return image
    name = getattr(image, "filename", "") or f"{image.width} x {image.height}, {image.mode}"
    if image.format not in (None, "MPO", *FORMATS):
        raise PromptError(f"image '{name}' is {image.format}; formats that are read: {', '.join(FORMATS)}.")
    with _said(name):
        _check_size(image)
        notes = _notes(image)
        rgb = _upright_rgb(image)
    for note in notes:
        _say_once(f"A picture given as image= {note}.")
    return rgb


def image_hash(image: Image.Image | None) -> str:
    """SHA-256 of a picture, 16 hex digits; empty for no image.

    Of the stored bytes for a stored picture, so that nothing is decoded to know it; of mode, size and pixels for any
    other.
    """
    if image is None:
        return ""
    return image.digest() if isinstance(image, Deferred) else _pixel_hash(image)


def is_flat(image: Image.Image) -> bool:
    """Whether a picture is of one colour all over, and so shows nothing; not where its pixels cannot be read."""
    try:
        return all(low == high for low, high in np.array(image.getextrema()).reshape(-1, 2))
    except PromptError:
        return False  # what is wrong with it is said of the prompt it belongs to


def log_notes(what: str, pictures: Iterable[Image.Image | None]) -> None:
    """Say once for a whole set what was done to its pictures, with the first as the example."""
    different = {id(p): p for p in pictures if isinstance(p, Picture)}.values()
    notes = Counter(note for picture in different for note in picture.notes)
    for note, count in notes.items():
        first = next(picture.name for picture in different if note in picture.notes)
        log.info("%s: %d of %d pictures: each %s; the first is %r", what, count, len(different), note, first)


def _pixel_hash(image: Image.Image) -> str:
    digest = hashlib.sha256(f"{image.mode} {image.size}".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()[:16]


@cache
def _say_once(sentence: str) -> None:
    log.info(sentence)


@contextmanager
def _opened(stream: Callable[[], BinaryIO], name: str) -> Iterator[Image.Image]:
    with _said(name), stream() as opened:
        size = opened.seek(0, io.SEEK_END)
        if size > MAX_BYTES:
            raise Image.DecompressionBombError(f"{size} bytes")
        opened.seek(0)
        with Image.open(opened, formats=FORMATS) as picture:
            _check_size(picture)
            yield picture


@contextmanager
def _said(name: str) -> Iterator[None]:
    """Whatever Pillow raises, as an error of ours that names the picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except PromptError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        most = f"{MAX_PIXELS // 1_000_000} million pixels and {MAX_BYTES // 1_000_000} MB"
        raise PromptError(f"image {name!r} is too large ({error}); at most {most} are read") from error
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more on damaged files.
        raise PromptError(
            f"image {name!r} cannot be read ({type(error).__name__}: {error}); formats that can: {', '.join(FORMATS)}"
        ) from error


def _check_size(picture: Image.Image) -> None:
    if not (picture.width and picture.height):
        raise ValueError(f"{picture.width} x {picture.height} pixels show nothing")
    if picture.width * picture.height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{picture.width} x {picture.height} pixels")


def _orientation(picture: Image.Image) -> int:
    """As EXIF records it, where the header holds the record: Pillow would decode a PNG to look behind the pixels."""
    if picture.format == "PNG" and "exif" not in picture.info:
        return 1
    return picture.getexif().get(ORIENTATION, 1)


def _notes(picture: Image.Image) -> Iterator[str]:
    if picture.has_transparency_data:
        yield TRANSPARENT
    if getattr(picture, "n_frames", 1) > 1:
        yield ANIMATED


def _upright_rgb(picture: Image.Image) -> Image.Image:
    picture.load()
    if picture.getexif().get(ORIENTATION, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I", "F"):
        raise ValueError(f"nobody knows what range its 32-bit {picture.mode} pixels have; save it with 8 or 16 bits")
    if picture.mode.startswith("I;16"):
        deep = np.asarray(picture)
        clear = picture.info.get("transparency")
        picture = Image.fromarray((deep >> 8).astype(np.uint8))
        if clear is not None:
            picture.putalpha(Image.fromarray(np.where(deep == clear, 0, 255).astype(np.uint8)))
    if picture.has_transparency_data:
        # A palette with an alpha channel becomes colours first: straight to RGB, Pillow warns.
        seen = picture.convert("LA").convert("RGBA") if picture.mode == "La" else picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _ends_whole(stream: Callable[[], BinaryIO], kind: str) -> bool:
    """Whether a file surely goes on to its end, seen from its last bytes; False where only decoding it can tell."""
    marks = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}
    with stream() as opened:
        size = opened.seek(0, io.SEEK_END)
        if kind == "WEBP":
            opened.seek(4)
            return int.from_bytes(opened.read(4), "little") + 8 <= size
        opened.seek(max(0, size - 32))
        return marks.get(kind, b"\0no mark") in opened.read(32)
