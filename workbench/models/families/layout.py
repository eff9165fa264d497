"""How a picture's tokens lie over the picture: grids of patches, tile by tile, with separators between them.

Coordinates are relative to the picture as given: (0, 0) is its top left corner, (1, 1) its bottom right. A region that
reaches past 1 is padding the family adds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Tile:
    """A grid of image tokens in reading order.

    Attributes:
        rows: Of patches.
        columns: Of patches.
        region: (left, top, right, bottom) of the picture it covers.
        row_breaks: True when each row ends with a separator that is itself an image token.
    """

    rows: int
    columns: int
    region: tuple[float, float, float, float] = WHOLE
    row_breaks: bool = False


# A separator between tiles that is itself an image token: it covers no part of the picture.
SEPARATOR = Tile(0, 1, row_breaks=True)


def patch_boxes(tiles: Sequence[Tile]) -> Float[Tensor, "image_token 4"]:
    """(left, top, right, bottom) of each image token in the picture; NaN for separators."""
    boxes: list[tuple[float, ...]] = []
    nowhere = (float("nan"),) * 4
    for tile in tiles:
        if tile.rows == 0:
            boxes.append(nowhere)
            continue
        left, top, right, bottom = tile.region
        width, height = (right - left) / tile.columns, (bottom - top) / tile.rows
        for row in range(tile.rows):
            for column in range(tile.columns):
                x, y = left + column * width, top + row * height
                boxes.append((x, y, x + width, y + height))
            if tile.row_breaks:
                boxes.append(nowhere)
    return torch.tensor(boxes, dtype=torch.float32).view(-1, 4)


def one_square(encoded: Any, model: Any, picture: Any) -> list[Tile] | None:
    """One square of patches over what the image tower sees of the picture; None when the count is no square."""
    count = int(encoded.image_positions.sum())
    side = round(count**0.5)
    return [Tile(side, side, seen_region(model, picture))] if side * side == count else None


def seen_region(model: Any, picture: Any) -> tuple[float, float, float, float]:
    """The part of the picture left by an image processor that crops the centre (CLIP's); else the whole."""
    images: Any = getattr(model.processor, "image_processor", None)
    if not getattr(images, "do_center_crop", False) or "shortest_edge" not in (getattr(images, "size", None) or {}):
        return WHOLE
    scale = images.size["shortest_edge"] / min(picture.size)
    width, height = (
        kept / (side * scale)
        for kept, side in zip((images.crop_size["width"], images.crop_size["height"]), picture.size, strict=True)
    )
    return (0.5 - width / 2, 0.5 - height / 2, 0.5 + width / 2, 0.5 + height / 2)


def tiles_of(rows: int, columns: int, side: int, region: tuple[float, float, float, float] = WHOLE) -> list[Tile]:
    """`rows` x `columns` equal tiles in reading order, each of `side` x `side` patches."""
    left, top, right, bottom = region
    width, height = (right - left) / columns, (bottom - top) / rows
    return [
        Tile(side, side, (left + c * width, top + r * height, left + (c + 1) * width, top + (r + 1) * height))
        for r in range(rows)
        for c in range(columns)
    ]


def tiles_and_whole(columns: int, rows: int, side: int) -> list[Tile]:
    """Tiles of the picture in reading order, then the whole picture as one more tile, unless there is but one."""
    tiles = tiles_of(rows, columns, side)
    return tiles if len(tiles) == 1 else [*tiles, Tile(side, side)]


def optimal_tiles(model: Any, picture: Any) -> tuple[int, int]:
    """(columns, rows) of the tiles into which GOT-OCR2's image processor cuts a picture."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    images = model.processor.image_processor
    tile = (images.size["height"], images.size["width"])
    return get_optimal_tiled_canvas((picture.height, picture.width), tile, images.min_patches, images.max_patches)
