"""Write torchvision_pixels.npz: what transformers' own image processors of three families make of one picture.

They need torchvision, whose registry build breaks every import of transformers' image code beside torch's CPU build.
So this runs on its own, with torchvision in a folder of its own:

    pip install --no-deps --target FOLDER torchvision==0.28.0
    python tests/contract/make_torchvision_pixels.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

OUT = Path(__file__).with_name("torchvision_pixels.npz")
SIZES = {
    "Cohere2VisionImages": {"size": {"height": 32, "width": 32}, "max_patches": 4},
    "Llama4Images": {"size": {"height": 32, "width": 32}, "max_patches": 6},
    "Phi4Images": {"size": {"height": 64, "width": 64}, "patch_size": 2, "dynamic_hd": 9},
}
SHAPES = [(40, 64), (90, 40), (20, 25)]


def picture(width: int, height: int) -> Image.Image:
    """Ramps and a fine pattern, so that both tile order and resampling show."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, (x * y) % 128 + 60], -1).astype(np.uint8))


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from transformers import Cohere2VisionImageProcessor, Llama4ImageProcessor, Phi4MultimodalImageProcessor

    theirs = dict(
        zip(SIZES, (Cohere2VisionImageProcessor, Llama4ImageProcessor, Phi4MultimodalImageProcessor), strict=True)
    )
    arrays = {}
    for name, sizes in SIZES.items():
        for shape in SHAPES:
            for key, value in theirs[name](**sizes)([picture(*shape)], return_tensors="pt").items():
                kept = value.float().numpy().astype(np.float16) if value.is_floating_point() else value.numpy()
                arrays[f"{name} {shape[0]}x{shape[1]} {key}"] = kept
    np.savez_compressed(OUT, **arrays)
    print(f"{OUT}: {len(arrays)} arrays, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
