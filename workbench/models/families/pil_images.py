"""PIL image processors for the families whose own, in transformers, needs torchvision.

They do the same steps on the same numbers; only the resampling filter is Pillow's instead of torch's, as in
transformers' other PIL processors. They share the class attributes of the originals, whose defaults are repeated here
because the originals cannot be imported without torchvision.
"""

import math
from typing import Any

import numpy as np
import torch
from einops import rearrange
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.processing_utils import ImagesKwargs

HALF = [0.5, 0.5, 0.5]


def least_scaling_canvas(picture: tuple[int, int], tile: int, most: int) -> tuple[int, int]:
    """(columns, rows) of the grid of tiles that holds a (width, height) picture with the least enlargement.

    If none holds it, the one with the least reduction. Source: transformers' `Cohere2VisionImageProcessor`.
    """
    grids = [(c, r) for c in range(1, most + 1) for r in range(1, most + 1) if c * r <= most]
    grids.sort(key=lambda grid: grid[0] * grid[1])
    scales = [min(columns * tile / picture[0], rows * tile / picture[1]) for columns, rows in grids]
    holding = [scale for scale in scales if scale >= 1]
    return grids[scales.index(min(holding) if holding else max(scales))]


def cut(image: Any, rows: int, columns: int) -> Any:
    """`[channel, height, width]` into tiles `[tile, channel, height, width]`, in reading order."""
    return rearrange(image, "c (r h) (k w) -> (r k) c h w", r=rows, k=columns)


def normalised(image: np.ndarray, options: dict[str, Any], dtype: torch.dtype) -> torch.Tensor:
    """Pixels 0-255 rescaled, less the mean, over the standard deviation, all in one dtype."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).to(dtype) * options["rescale_factor"]
    mean, std = (torch.tensor(options[name], dtype=dtype)[:, None, None] for name in ("image_mean", "image_std"))
    return (pixels - mean) / std


class TileArguments(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """What the processors here take besides the usual."""

    crop_to_patches: bool
    min_patches: int
    max_patches: int
    patch_size: int
    dynamic_hd: int
    resize_to_max_canvas: bool


class Cohere2VisionImages(GotOcr2ImageProcessorPil):
    """Command-A-Vision: tiles of the enlarged picture, then the whole picture as one more tile."""

    valid_kwargs = TileArguments
    size = {"height": 512, "width": 512}
    crop_to_patches = True
    patch_size = 16

    def crop_image_to_patches(
        self,
        image: np.ndarray,
        min_patches: int,
        max_patches: int,
        use_thumbnail: bool = True,
        patch_size: SizeDict | None = None,
        resample: Any = None,
    ) -> list[np.ndarray]:
        assert patch_size is not None
        height, width = patch_size.height, patch_size.width
        columns, rows = least_scaling_canvas((image.shape[-1], image.shape[-2]), height, max_patches)
        enlarged = self.resize(image, SizeDict(height=height * rows, width=width * columns), resample=resample)
        tiles = [*cut(enlarged, rows, columns)]
        return tiles if len(tiles) == 1 else [*tiles, self.resize(image, patch_size, resample=resample)]


class Llama4Images(PilBackend):
    """Llama 4: the picture on the best canvas of tiles, padded right and below; then the whole as one more tile."""

    valid_kwargs = TileArguments
    resample = PILImageResampling.BILINEAR
    image_mean = HALF
    image_std = HALF
    size = {"height": 336, "width": 336}
    do_resize = do_rescale = do_normalize = do_convert_rgb = True
    max_patches = 16
    resize_to_max_canvas = False

    def _preprocess(
        self, images: list[np.ndarray], *, size: SizeDict, return_tensors: Any, **options: Any
    ) -> BatchFeature:
        tiles, ratios = [], []
        for image in images:
            canvas, kept = self.place((image.shape[-1], image.shape[-2]), size.height, options)
            rows, columns = canvas[1] // size.height, canvas[0] // size.width
            resized = self.resize(image, SizeDict(height=kept[1], width=kept[0]), resample=options["resample"])
            (padded,) = self.pad([resized], pad_size=SizeDict(height=canvas[1], width=canvas[0]))
            parts = [*cut(padded, rows, columns)]
            if len(parts) > 1:
                parts.append(self.resize(image, size, resample=options["resample"]))
            tiles += [self._scaled(part, options) for part in parts]
            ratios.append([rows, columns])
        return BatchFeature({"pixel_values": torch.stack(tiles), "aspect_ratios": ratios}, tensor_type=return_tensors)

    def place(
        self, picture: tuple[int, int], tile: int, options: dict[str, Any]
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """(width, height) of the canvas and of the resized picture on it."""
        most = options.get("max_patches", self.max_patches)
        canvases = [
            (c * tile, r * tile) for n in range(most, 0, -1) for r in range(1, n + 1) for c in [n // r] if c * r == n
        ]
        scales = [min(canvas[0] / picture[0], canvas[1] / picture[1]) for canvas in canvases]
        growing = [scale for scale in scales if scale >= 1]
        whole = options.get("resize_to_max_canvas", self.resize_to_max_canvas)
        chosen = (max(growing) if whole else min(growing)) if growing else max(scales)
        fitting = [canvas for canvas, scale in zip(canvases, scales, strict=True) if scale == chosen]
        canvas = min(fitting, key=lambda c: c[0] * c[1])
        # A small picture is enlarged to one tile at most.
        width, height = (
            canvas if whole else (min(max(side, tile), limit) for side, limit in zip(picture, canvas, strict=True))
        )
        across, down = width / picture[0], height / picture[1]
        if across < down:
            return canvas, (max(width, 1), max(min(math.floor(picture[1] * across), height), 1))
        return canvas, (max(min(math.floor(picture[0] * down), width), 1), max(height, 1))

    def _scaled(self, image: np.ndarray, options: dict[str, Any]) -> torch.Tensor:
        return normalised(image, options, torch.bfloat16)  # as the original does


class Phi4Images(PilBackend):
    """Phi-4-multimodal: the picture on a canvas of crops, padded white, then cut up; the whole as the first crop."""

    valid_kwargs = TileArguments
    model_input_names = ["image_pixel_values", "image_sizes", "image_attention_mask"]
    resample = PILImageResampling.BICUBIC
    image_mean = HALF
    image_std = HALF
    size = {"height": 448, "width": 448}
    patch_size = 14
    dynamic_hd = 36
    do_rescale = do_normalize = do_convert_rgb = True

    def _preprocess(
        self, images: list[np.ndarray], *, size: SizeDict, return_tensors: Any, **options: Any
    ) -> BatchFeature:
        side, patches = size.height, size.height // options["patch_size"]
        pictures, masks, counts, sizes = [], [], [], []
        for image in images:
            rows, columns, kept = self.place((image.shape[-1], image.shape[-2]), side, options["dynamic_hd"])
            resized = self.resize(image, SizeDict(height=kept[1], width=kept[0]), resample=PILImageResampling.BILINEAR)
            (canvas,) = self.pad([resized], pad_size=SizeDict(height=rows * side, width=columns * side), fill_value=255)
            mask = torch.ones(rows * patches, columns * patches)
            if blank := (columns * side - kept[0]) // options["patch_size"]:
                mask[:, -blank:] = 0
            if blank := (rows * side - kept[1]) // options["patch_size"]:
                mask[-blank:] = 0
            pixels = normalised(canvas, options, torch.float32)
            whole = torch.nn.functional.interpolate(pixels[None], size=(side, side), mode="bicubic")
            crop_masks = cut(mask[None], rows, columns)[:, 0]
            halved = rearrange(crop_masks[:, 0::2, 0::2], "(r k) h w -> (r h) (k w)", r=rows)
            pictures.append(torch.cat([whole, cut(pixels, rows, columns)]))
            masks.append(torch.cat([torch.ones(1, patches, patches), crop_masks]))
            # The whole picture is 16 x 16 tokens, each row with a separator; one more separates it from the crops.
            counts.append(256 + 1 + int(halved.sum()) + int(halved[:, 0].sum()) + 16)
            sizes.append([rows * side, columns * side])
        most = max(len(picture) for picture in pictures)
        data = {
            "image_pixel_values": torch.stack([_filled(p, most, 0.0) for p in pictures]),
            "image_sizes": torch.tensor(sizes),
            "image_attention_mask": torch.stack([_filled(m, most, 1.0) for m in masks]),
            "num_img_tokens": counts,
        }
        return BatchFeature(data, tensor_type=return_tensors)

    def place(self, picture: tuple[int, int], side: int, most: int) -> tuple[int, int, tuple[int, int]]:
        """(rows, columns) of crops and the (width, height) of the resized picture on them."""
        columns, rows = math.ceil(picture[0] / side), math.ceil(picture[1] / side)
        if columns * rows > most:
            columns, rows = self._closest(picture, side, most)
        across, down = columns * side / picture[0], rows * side / picture[1]
        if across < down:
            return rows, columns, (columns * side, int(picture[1] * across))
        return rows, columns, (int(picture[0] * down), rows * side)

    def _closest(self, picture: tuple[int, int], side: int, most: int) -> tuple[int, int]:
        shape, best, best_difference = picture[0] / picture[1], (1, 1), math.inf
        grids = {(i, j) for n in range(1, most + 1) for i in range(1, n + 1) for j in range(1, n + 1) if i * j <= most}
        for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
            difference = abs(shape - columns / rows)
            larger = difference == best_difference and picture[0] * picture[1] > 0.5 * side * side * columns * rows
            if difference < best_difference or larger:
                best, best_difference = (columns, rows), difference
        return best


def _filled(tensor: torch.Tensor, length: int, value: float) -> torch.Tensor:
    missing = tensor.new_full((length - len(tensor), *tensor.shape[1:]), value)
    return torch.cat([tensor, missing])
