"""Geometry of a volume: its grid in the patient, its slices along an axis, and the alignment of two grids.

Convention: a voxel (i, j, k) of an array ``values[i, j, k]`` has its centre at ``affine @ (i, j, k, 1)``, in mm, in
RAS+ coordinates (x to the right, y to the front, z to the head of the patient), as in NIfTI. DICOM has LPS+
coordinates; `lps_to_ras` converts them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np

from dinomed.errors import DinomedError

Axis = Literal["axial", "coronal", "sagittal"]
AXES: tuple[Axis, ...] = ("axial", "coronal", "sagittal")
_PICTURES: dict[str, tuple[tuple[int, int], ...]] = {
    "axial": ((2, 1), (1, -1), (0, -1)),
    "coronal": ((1, -1), (2, -1), (0, -1)),
    "sagittal": ((0, -1), (2, -1), (1, -1)),
}
"""The directions in which slice number, row and column of a picture grow: (axis of RAS, sign). So pictures are those of
a radiological viewer: the front (axial) or the head is at the top, the right of the patient (or the front) at the left.
"""
MISALIGNED_VOXELS = 0.05
"""Largest distance of the corners of two aligned grids, in voxels. Programs round positions to 0.001 mm or 32 bits,
which is less; a shift by half a voxel, the usual error of a conversion, is ten times more."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxels of a volume in the patient.

    Attributes:
        shape: numbers of voxels along the three axes of the array.
        affine: (4, 4) float64, from voxel indices to mm in RAS+ coordinates.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        steps = self.affine[:3, :3]
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all():
            raise DinomedError("its affine has values that are not finite")
        lengths = np.linalg.norm(steps, axis=0)
        if not (lengths > 0).all() or abs(np.linalg.det(steps / lengths)) < 1e-3:
            raise DinomedError("its affine is singular: two of its axes are parallel, or a spacing is 0")

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along each axis of the array, in mm."""
        first, second, third = (float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))
        return first, second, third

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in ml, also of a sheared grid (a tilted gantry)."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000

    @property
    def is_sheared(self) -> bool:
        """Whether the axes of the array are not at right angles."""
        directions = self.affine[:3, :3] / np.array(self.spacing_mm)
        return bool(np.abs(directions.T @ directions - np.eye(3)).max() > 1e-3)

    def picture_axes(self, axis: Axis) -> list[tuple[int, bool]]:
        """Return the axis of the array for slice number, row and column of a picture, and whether it is reversed.

        Each axis of the array belongs to the direction of the patient to which it is nearest, so that the slices of
        an oblique volume are its own.
        """
        cosines = self.affine[:3, :3] / np.array(self.spacing_mm)
        nearest = max(permutations(range(3)), key=lambda order: sum(abs(cosines[i, order[i]]) for i in range(3)))
        return [(nearest[ras], bool(cosines[ras, nearest[ras]] * sign < 0)) for ras, sign in _PICTURES[axis]]

    def picture_spacing_mm(self, axis: Axis) -> tuple[float, float, float]:
        """Return the distance of neighbouring slices, rows and columns of the pictures, in mm."""
        slices, rows, columns = (self.spacing_mm[index] for index, _ in self.picture_axes(axis))
        return slices, rows, columns

    def pixel_mm2(self, axis: Axis) -> float:
        """Return the area of a pixel of the pictures in mm², also of a sheared grid, where it is a parallelogram."""
        rows, columns = (self.affine[:3, index] for index, _ in self.picture_axes(axis)[1:])
        return float(np.linalg.norm(np.cross(rows, columns)))


def slices_of(values: np.ndarray, grid: Grid, axis: Axis) -> np.ndarray:
    """Return the slices of a volume along an axis, (slices, rows, columns), as a view: writing into it writes `values`.

    Args:
        values: array of the shape of `grid`.
        grid: its geometry.
        axis: ``axial``, ``coronal`` or ``sagittal``; the axis of the array that is nearest to it.
    """
    assert values.shape == grid.shape, (values.shape, grid.shape)
    axes = grid.picture_axes(axis)
    view = values.transpose([index for index, _ in axes])
    return view[tuple(slice(None, None, -1) if reverse else slice(None) for _, reverse in axes)]


def lps_to_ras(affine: np.ndarray) -> np.ndarray:
    """Return an affine to RAS+ coordinates, of one to LPS+ coordinates, or the reverse."""
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def corner_voxels(shape: Sequence[int]) -> np.ndarray:
    """Return the voxels at the eight corners of a grid with a 1 for affines, float64 (8, 4)."""
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)], np.float64)
    corners[:, :3] *= np.array(shape) - 1
    return corners


def voxel_places(grid: Grid, shape: Sequence[int], affine: np.ndarray) -> np.ndarray | None:
    """Return where the voxels of another grid lie in `grid`, if its voxels are voxels of `grid`.

    Args:
        shape: shape of the other grid.
        affine: its affine, to RAS+ coordinates.

    Returns:
        (3, 4) int64: a voxel v of the other grid is voxel ``places @ (v, 1)`` of `grid`. None if a corner differs from
        a voxel by more than `MISALIGNED_VOXELS`.
    """
    exact = (np.linalg.inv(grid.affine) @ affine)[:3]
    places = np.rint(exact)
    is_reordering = (np.abs(places[:, :3]).sum(axis=0) == 1).all() and (np.abs(places[:, :3]).sum(axis=1) == 1).all()
    if not is_reordering or np.abs((exact - places) @ corner_voxels(shape).T).max() > MISALIGNED_VOXELS:
        return None
    return places.astype(np.int64)
