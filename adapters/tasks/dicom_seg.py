"""DICOM segmentations (SEG) of the predictions of a segmenter, beside its masks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.datasets.manifest import Manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.features.finite import UnusableRowsError
from dinomed.images.dicom.elements import is_dicom
from dinomed.images.dicom.patient import known_patients, read_patients
from dinomed.images.dicom.write_segmentation import (
    SegmentationSettings,
    build_segmentation,
    check_highdicom,
    read_source,
    write_segmentation,
)
from dinomed.io.files import file_names

SUFFIX = ".seg.dcm"


class DicomSegmentations:
    """The DICOM segmentations of a prediction, one for each image, with a segment for each class.

    Args:
        manifest: the images.
        schema: the classes, a `dinomed.adapters.tasks.segment.mask_schema.MaskSchema`.
        model: hash of the weights of the segmenter.
        keep_ids: copy the identifiers of the patient and the study.
        key: secret key of the pseudonym of the patient, which is the group of `dinomed scan`; None for a placeholder.

    Raises:
        UsageError: an image is not DICOM, or highdicom is not installed.
    """

    def __init__(self, manifest: Manifest, schema: Any, model: str, keep_ids: bool, key: bytes | None = None) -> None:
        check_highdicom()
        names = manifest.column("image")
        self.paths, self.schema = [manifest.path(row) for row in range(len(names))], schema
        others = [name for name, path in zip(names, self.paths, strict=True) if not is_dicom(path)]
        if others:
            raise UsageError(
                f"`dicom_seg=True` needs DICOM images, and {len(others)} of {len(names)} are not (the first: "
                f"{others[0]}); predict them in a separate call without it"
            )
        self.patients = None if key is None else known_patients(*read_patients(self.paths))
        self.files = file_names(names, SUFFIX)
        self.settings = SegmentationSettings(tuple(schema.names[k] for k in schema.reported), model, keep_ids, key)

    def read_sources(self, indices: Sequence[int]) -> list[Any]:
        """Read the elements of the images at some places of the manifest.

        Raises:
            UnusableRowsError: an image cannot have a segmentation; the error names its row.
        """
        sources = []
        for row, index in enumerate(indices):
            with _failing_row(row):
                source = read_source(self.paths[index])
                if self.patients is not None:  # that of another image of the study, if this one has none
                    source.PatientID = self.patients[index]
                sources.append(source)
        return sources

    def build(self, sources: Sequence[Any], indices: Sequence[int], decided: Sequence[np.ndarray]) -> list[Any]:
        """Return the segmentations of images of which `decided` are the decisions, uint8 (planes, H, W).

        Raises:
            UnusableRowsError: as in `read_sources`.
        """
        segmentations = []
        for row, index in enumerate(indices):
            planes = self.schema.planes(decided[row])
            masks = np.stack([planes[k] for k in self.schema.reported]).astype(np.uint8)
            with _failing_row(row):
                segmentations.append(build_segmentation(sources[row], masks, self.settings, index + 1))
        return segmentations

    def write(self, out: Path, index: int, segmentation: Any) -> str:
        """Write a segmentation, and return its path relative to `out`."""
        write_segmentation(out / self.files[index], segmentation)
        return self.files[index]


@contextmanager
def _failing_row(row: int) -> Iterator[None]:
    """Turn the reason of an image into an `UnusableRowsError`, so that the others of its batch are written."""
    try:
        yield
    except DinomedError as error:
        raise UnusableRowsError([row], str(error)) from None
