"""Data for training: Lightning data modules, and readers for single pictures. Needs the extra ``images``."""

from gritvq.data.image import ImageData, find_images, read_images, to_tensor

__all__ = ["ImageData", "find_images", "read_images", "to_tensor"]
