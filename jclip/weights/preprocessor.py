"""Reads the preprocessing of images from open_clip's preprocess_cfg and Hugging Face's preprocessor_config.json."""

from __future__ import annotations

from ..errors import ClipError

RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, as Hugging Face writes them
PIXEL_SCALE = 1 / 255


def open_clip_preprocessing(config: dict) -> dict:
    """Return the preprocessing by the names of PreprocessConfig.

    As in open_clip, the size is that of the model, and random interpolation is for training.
    """
    stated = {key: value for key, value in config.items() if key != "size"}
    if stated.get("interpolation") == "random":
        del stated["interpolation"]
    if stated.get("mode", "RGB") != "RGB":
        raise ClipError(f"says mode {str(stated['mode'])[:40]}; jclip computes RGB images")
    return stated


def hugging_face_preprocessing(config: dict, resolution: int, is_own: bool) -> dict | None:
    """Return the same from Hugging Face's config.

    Parameters
    ----------
    config : dict
    resolution : int, of the weights, in pixels
    is_own : bool
        Whether the config is known to be that of the weights. If not, one with another crop is ignored.

    Returns
    -------
    dict, or None for a config of other weights

    Raises
    ------
    ClipError
        If it does what `jclip.preprocess` does not; the message lacks the file's name.
    """
    size, mode = _size(config.get("size", resolution))
    is_cropped = config.get("do_center_crop", True)
    crop = _size(config.get("crop_size", resolution))[0] if is_cropped else size
    if crop != resolution and not is_own:
        return None
    problem = _problem(config, size, mode, crop, resolution, is_cropped)
    if problem:
        raise ClipError(f"says {problem}, which jclip does not compute")
    is_normalised = config.get("do_normalize", True)
    return {
        "mean": config.get("image_mean") if is_normalised else 0.0,
        "std": config.get("image_std") if is_normalised else 1.0,
        "interpolation": RESAMPLE[config.get("resample", 3)],
        "resize_mode": mode,
        "size": None if size == resolution else size,
    }


def _size(value) -> tuple[int | None, str]:
    """Return the pixels of a size and its resize_mode; None if it is no square and no short side."""
    if isinstance(value, int):
        return value, "shortest"
    sides = value if isinstance(value, dict) else {}
    if isinstance(sides.get("shortest_edge"), int) and not sides.get("longest_edge"):
        return sides["shortest_edge"], "shortest"
    is_square = isinstance(sides.get("height"), int) and sides["height"] == sides.get("width")
    return (sides["height"] if is_square else None), "squash"


def _problem(config: dict, size, mode: str, crop, resolution: int, is_cropped: bool) -> str | None:
    """Return the setting that is not computed, or None."""
    resample, factor = config.get("resample", 3), config.get("rescale_factor", PIXEL_SCALE)
    if size is None or size < resolution or not config.get("do_resize", True):
        return f"size {str(config.get('size'))[:60]}, do_resize {config.get('do_resize', True)}"
    if crop != resolution or (not is_cropped and mode == "shortest"):
        return f"crop_size {str(config.get('crop_size'))[:60]}, do_center_crop {is_cropped}, for {resolution} px"
    if not isinstance(resample, int) or resample not in RESAMPLE:
        return f"resample {str(resample)[:40]}"
    is_scaled = isinstance(factor, (int, float)) and abs(factor / PIXEL_SCALE - 1) < 1e-6
    if not config.get("do_rescale", True) or not is_scaled:
        return f"rescale_factor {str(factor)[:40]}, do_rescale {config.get('do_rescale', True)}"
    return None
