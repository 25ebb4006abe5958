"""Expressions for maps at the size of the image, which MONAI bundles of dense tasks share."""

from collections.abc import Sequence

MONAI_SIZE = "Image.open(image).size[::-1]"
MONAI_MAPS = f"torch.nn.functional.interpolate(output.detach().cpu(), size={MONAI_SIZE}, mode='bilinear')[0]"
"""Python expression for the output at the size of the image, in a MONAI bundle."""


def monai_map_writer(classes: Sequence[str], picture: str, suffix: str) -> tuple[str, str]:
    """Return the expressions of `Task.monai_writer` that save the array of the expression `picture` to a file."""
    return (
        f"$lambda image, output, out: {{'image': image, 'file': (lambda name: (Image.fromarray({picture}).save(name), "
        f"name)[1])(str(pathlib.Path(out, pathlib.Path(image).name + '{suffix}')))}}",
        f"{{'purpose': @purpose, 'classes': {list(classes)!r}, 'images': @predictions}}",
    )
