"""Whether an image holds what it should: python cluster/check_image.py cpu|cuda. Run at the end of its build."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import torch

from flashray.prior import load_prior
from flashray.severity import load_severity_encoder


def main(device: str) -> None:
    if device not in ("cpu", "cuda"):
        sys.exit(f"DEVICE is {device!r}; give cpu or cuda")
    if device == "cuda" and torch.version.cuda is None:
        sys.exit(f"torch {torch.__version__} is a build for CPUs; name an index with CUDA builds in TORCH_INDEX")
    if find_spec("torchvision"):
        sys.exit("torchvision is installed, and flashray does without")
    if not find_spec("aiohttp_cors"):
        sys.exit("Ray's dashboard is missing, and with it job submission; install the extra [cluster]")
    load_prior("bundled")
    load_severity_encoder("bundled:gaussian_blur")
    print(f"torch {torch.__version__}, bundled models in place")


if __name__ == "__main__":
    main(*sys.argv[1:])
