"""Writing of DICOM segmentations (SEG) by highdicom: for a single-frame DICOM image, a series, or an enhanced image.

A segmentation holds the elements that the standard requires: references to the image and its study, series and frame of
reference (UIDs), its geometry, the segments, and the program. Identifiers of the patient and the study are copied only
on request. Otherwise Patient ID and Patient's Name are a placeholder, which is the same for all images of a study and
is computed from the Study Instance UID without a key (the UID is in the file in any case), so that the studies of two
patients are not merged in an archive; all other elements of the two modules are empty. With a secret key the
placeholder is the pseudonym of the Patient ID, the same as that of `dinomed scan --id-key`.
"""

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.errors import DinomedError, UsageError
from dinomed.images.decode import UnreadableImage, quiet_pillow
from dinomed.images.dicom.codecs import INSTALL
from dinomed.images.dicom.elements import FUNCTIONAL_GROUPS, is_segmentation, read_header, reading_dicom
from dinomed.images.dicom.patient import PATIENT, identifier_of
from dinomed.io.files import replacing
from dinomed.io.pseudonyms import pseudonym
from dinomed.notice import RESEARCH_USE
from dinomed.packages import installed_version

_REFERENCES = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_GEOMETRY = (
    "Rows", "Columns", "Modality", "FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "LossyImageCompressionRatio",
)  # fmt: skip
_DEFINED_TERMS = {
    "LossyImageCompression": {"00", "01"},
    "LossyImageCompressionMethod": {
        "ISO_10918_1", "ISO_14495_1", "ISO_15444_1", "ISO_15444_15", "ISO_18181_1", "ISO_13818_2", "ISO_14496_10",
        "ISO_23008_2",
    },
}  # fmt: skip
"""Elements that are copied if they have only values of the standard (PS3.3, C.7.6.1.1.5), and no free text."""
_IDENTIFIERS = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
"""Elements of the modules Patient and General Study that the standard requires, empty if unknown (type 2)."""
_ABNORMAL = {"lesion": "Lesion", "nodule": "Nodule", "mass": "Mass", "tumor": "Neoplasm", "tumour": "Neoplasm",
             "neoplasm": "Neoplasm", "cyst": "Cyst", "ulcer": "Ulcer", "hemorrhage": "Hemorrhage"}  # fmt: skip
"""Names of classes with a code of SNOMED CT: all are morphologically abnormal structures."""
_SCHEME = "99DINOMED"
_SERIES_NUMBER = 900
_MAX_NAME = 64  # characters of a value LO


@dataclass(frozen=True)
class SegmentationSettings:
    """What is equal for all segmentations of a prediction.

    Attributes:
        names: class of each segment.
        model: hash of the weights that computed the masks.
        keep_ids: copy the identifiers of the patient and the study.
        key: secret key; Patient ID is then the pseudonym of that of the image, or of its study if it has none.
            A caller that knows the patient by another image of the study sets it in the result of `read_source`.
    """

    names: tuple[str, ...]
    model: str
    keep_ids: bool = False
    key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class FramePlace:
    """The place of a frame of an enhanced multi-frame image, as of `dinomed.volumes.series.DicomFrame`."""

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]


def check_highdicom() -> None:
    """Raise a `UsageError` if highdicom is not installed."""
    if installed_version("highdicom") is None:
        raise UsageError(f"DICOM segmentations need the package highdicom; {INSTALL}")


def read_source(path: str | Path, *, several_frames: bool = False) -> Any:
    """Read the elements of an image without its pixels, for `build_segmentation`.

    Args:
        path: the file.
        several_frames: read an image of several frames too.

    Raises:
        DinomedError: the file is damaged, lacks a UID that a segmentation must reference, is itself a segmentation, or
            has several frames that are not allowed. The message is a reason without the path.
    """
    tags = [*_REFERENCES, *_GEOMETRY, *_DEFINED_TERMS, *_IDENTIFIERS, "NumberOfFrames", *FUNCTIONAL_GROUPS]
    try:
        with reading_dicom(path) as file:
            source = read_header(file, tags)
            frames = int(source.get("NumberOfFrames") or 1)
            missing = [name for name in _REFERENCES if not source.get(name)]
            functional_groups = [source.get(name) for name in FUNCTIONAL_GROUPS]
    except UnreadableImage as error:
        raise DinomedError(error.reason) from None
    if missing:
        raise DinomedError(f"DICOM without {missing[0]}, which a DICOM segmentation must reference")
    if is_segmentation(source):
        raise DinomedError("a DICOM segmentation, not an image")
    if not several_frames and frames > 1:
        raise DinomedError("a DICOM of several frames among other images; predict such files in a separate call")
    if not several_frames and any(functional_groups):
        raise DinomedError("an enhanced DICOM of one frame, for which no DICOM segmentation is written")
    return source


def build_segmentation(source: Any, masks: np.ndarray, settings: SegmentationSettings, instance: int) -> Any:
    """Return the segmentation object of an image, with one frame for each segment, also for an empty one.

    Args:
        source: result of `read_source`.
        masks: uint8 (segments, H, W) of 0 and 1, of the size of the image.
        settings: names of the segments, model and identifiers.
        instance: number of the image in its prediction, from 1.

    Raises:
        DinomedError: the elements of the image do not fit a segmentation. The message is a reason without the path.
    """
    return _build([source], masks[:, None], settings, instance)


def build_volume_segmentation(
    sources: Sequence[Any], masks: np.ndarray, settings: SegmentationSettings, instance: int
) -> Any:
    """Return the segmentation object of a series, with a frame for each slice and segment, also for an empty one.

    Args:
        sources: result of `read_source` for each slice, in the order of the slices.
        masks: uint8 (segments, slices, H, W) of 0 and 1.
        settings: names of the segments, model and identifiers.
        instance: number of the series in its prediction, from 1.

    Raises:
        DinomedError: the elements of the slices do not fit a segmentation. The message is a reason without the path.
    """
    return _build(sources, masks, settings, instance)


def build_frames_segmentation(
    source: Any, places: Sequence[FramePlace], masks: np.ndarray, settings: SegmentationSettings, instance: int
) -> Any:
    """Return the segmentation object of an enhanced multi-frame image, with a frame for each frame and segment.

    Args:
        source: result of `read_source` with `several_frames`.
        places: of each frame, in the order of the file; orientation and spacing are those of all.
        masks: uint8 (segments, frames, H, W) of 0 and 1, in the order of the file.
        settings: names of the segments, model and identifiers.
        instance: number of the image in its prediction, from 1.

    Raises:
        DinomedError: the elements of the image do not fit a segmentation. The message is a reason without the path.
    """
    return _build([source], masks, settings, instance, places)


def build_first_frame(source: Any, masks: np.ndarray, settings: SegmentationSettings, instance: int) -> Any:
    """Return the segmentation object of the first frame of an image whose frames have no places, for a cine.

    Args and errors are those of `build_segmentation`. Pixel Spacing is that of `spacing_of`, or else 1.
    """
    return _build([source], masks[:, None], settings, instance, is_cine=True)


def spacing_of(source: Any) -> Any:
    """Return Pixel Spacing of an image, or of all of its frames; None if it states none."""
    for shared in (source.get(FUNCTIONAL_GROUPS[0]) or [])[:1]:
        for part in (shared.get("PixelMeasuresSequence") or [])[:1]:
            return part.get("PixelSpacing") or None
    return source.get("PixelSpacing") or None


def _build(
    sources: Sequence[Any],
    masks: np.ndarray,
    settings: SegmentationSettings,
    instance: int,
    places: Sequence[FramePlace] = (),
    is_cine: bool = False,
) -> Any:
    from highdicom.seg import Segmentation
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    source = sources[0]
    series = uuid.uuid5(uuid.NAMESPACE_OID, f"{source.SeriesInstanceUID} {settings.model}")
    version = installed_version("dinomed") or "unknown"
    try:
        with quiet_pillow:
            if any(masks.shape[2:] != (int(one.Rows), int(one.Columns)) for one in sources):
                raise DinomedError("the mask has another size than its DICOM")
            described = [_described(source, settings) for source in sources]
            if places:
                _describe_frames(described[0], source, places)
            if is_cine:
                _describe_cine(described[0], source)
            segmentation = Segmentation(
                described,
                np.moveaxis(masks, 0, -1),
                "BINARY",
                [_segment(number, name, settings.model, version) for number, name in enumerate(settings.names, 1)],
                series_instance_uid=f"2.25.{series.int}",
                series_number=_SERIES_NUMBER,
                sop_instance_uid=generate_uid(prefix=None),
                instance_number=instance,
                manufacturer="dinomed",
                manufacturer_model_name="dinomed predict",
                software_versions=version,
                device_serial_number=settings.model[:16],
                content_label="SEGMENTATION",
                content_description=RESEARCH_USE[:_MAX_NAME],
                series_description="Segmentation by dinomed",
                transfer_syntax_uid=ExplicitVRLittleEndian,
                omit_empty_frames=False,
                specific_character_set="ISO_IR 192",
            )
    except DinomedError:
        raise
    except Exception as error:  # highdicom raises many types; the error text may contain values of elements
        kind = type(error).__name__
        raise DinomedError(f"the elements of the DICOM do not fit a DICOM segmentation ({kind})") from None
    if not settings.keep_ids:
        segmentation.PatientIdentityRemoved = "YES"
        segmentation.DeidentificationMethod = "Identifiers of the input not copied; UIDs retained"
    return segmentation


def write_segmentation(path: str | Path, segmentation: Any) -> None:
    """Write the result of `build_segmentation` atomically."""
    with replacing(path) as temporary, quiet_pillow:
        segmentation.save_as(temporary, enforce_file_format=True)


def _described(source: Any, settings: SegmentationSettings) -> Any:
    """Return the elements of an image that its segmentation takes over."""
    from pydicom.dataset import Dataset

    # highdicom copies whatever is here, so that only the named elements are
    described = Dataset()
    described.file_meta = source.file_meta
    for name in (*_REFERENCES, *_GEOMETRY):
        if name in source:
            described[name] = source[name]
    described.PositionReferenceIndicator = ""  # free text, which the standard requires and which may be empty
    for name, terms in _DEFINED_TERMS.items():
        value = source.get(name) or []
        values = [value] if isinstance(value, str) else list(value)
        if values and terms.issuperset(values):
            described[name] = source[name]
    for name in _IDENTIFIERS:
        value = source.get(name) if settings.keep_ids else None
        setattr(described, name, "" if value is None else str(value))
    if settings.key is not None:
        patient = identifier_of(source, PATIENT) or str(source.StudyInstanceUID)  # as `patient_groups`
        described.PatientID = described.PatientName = pseudonym(patient, settings.key)
    elif not settings.keep_ids:
        digest = hashlib.sha256(str(source.StudyInstanceUID).encode()).hexdigest()
        described.PatientID = described.PatientName = f"anonymous-{digest[:12]}"
    return described


def _describe_frames(described: Any, source: Any, places: Sequence[FramePlace]) -> None:
    """Add functional groups that hold the geometry of the frames of `source`, and nothing else."""
    from pydicom.dataset import Dataset
    from pydicom.valuerep import format_number_as_ds

    def item_of(**elements: Any) -> Any:
        item = Dataset()
        for name, value in elements.items():
            setattr(item, name, value)
        return item

    def numbers(values: Sequence[float]) -> list[str]:
        return [format_number_as_ds(float(value)) for value in values]

    first, shared = places[0], (source.get(FUNCTIONAL_GROUPS[0]) or [{}])[0]
    measures = item_of(PixelSpacing=numbers(first.spacing))
    for part in (shared.get("PixelMeasuresSequence") or [])[:1]:
        for name in ("SliceThickness", "SpacingBetweenSlices"):
            if part.get(name) is not None:
                measures[name] = part[name]
    plane = item_of(ImageOrientationPatient=numbers(first.orientation))
    groups = [
        item_of(PlanePositionSequence=[item_of(ImagePositionPatient=numbers(place.position))]) for place in places
    ]
    described.NumberOfFrames = len(places)
    described.SharedFunctionalGroupsSequence = [
        item_of(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[plane])
    ]
    described.PerFrameFunctionalGroupsSequence = groups


def _describe_cine(described: Any, source: Any) -> None:
    """Let the image have a single frame without a place; highdicom needs a spacing, which is 1 if none is known."""
    from pydicom.dataset import Dataset

    for name in ("FrameOfReferenceUID", "PositionReferenceIndicator", "ImagePositionPatient"):
        described.pop(name, None)
    described.NumberOfFrames, measures, shared = 1, Dataset(), Dataset()
    measures.PixelSpacing = spacing_of(source) or [1, 1]
    shared.PixelMeasuresSequence = [measures]
    described.SharedFunctionalGroupsSequence = [shared]


def _segment(number: int, name: str, model: str, version: str) -> Any:
    """Return the description of a segment; a class that is not in `_ABNORMAL` gets a code of our own."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    label = "".join(character if character.isprintable() and character != "\\" else " " for character in name)
    label = label.strip()[:_MAX_NAME] or f"class {number}"
    known = _ABNORMAL.get(name.lower())
    if known:
        category, kind = codes.SCT.MorphologicallyAbnormalStructure, getattr(codes.SCT, known)
    else:
        category = codes.SCT.Tissue
        kind = Code(hashlib.sha256(name.encode()).hexdigest()[:16], _SCHEME, label)
    algorithm = AlgorithmIdentificationSequence(
        "dinomed", codes.DCM.ArtificialIntelligence, version, parameters={"model": model}
    )
    return SegmentDescription(number, label, category, kind, "AUTOMATIC", algorithm_identification=algorithm)
