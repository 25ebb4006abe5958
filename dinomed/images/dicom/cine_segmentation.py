"""DICOM segmentations (SEG) of images whose frames have no places in the patient, such as ultrasound cines and videos.

highdicom builds such objects of one frame only. The other frames are added to its result: each names the frame of the
image to which it belongs, and has neither a position nor a frame of reference.
"""

from copy import deepcopy
from typing import Any

import numpy as np

from dinomed.images.dicom.write_segmentation import SegmentationSettings, build_first_frame, spacing_of

_STACK = "1"


def build_cine_segmentation(source: Any, masks: np.ndarray, settings: SegmentationSettings, instance: int) -> Any:
    """Return the segmentation object, with a frame for each segment and frame of the image, also for an empty one.

    The first dimension is the segment, the second one the number of the frame in the image.

    Args:
        source: result of `read_source` with `several_frames`.
        masks: uint8 (segments, frames, H, W) of 0 and 1, in the order of the file.
        settings: names of the segments, model and identifiers.
        instance: number of the image in its prediction, from 1.

    Raises:
        DinomedError: the elements of the image do not fit a segmentation. The message is a reason without the path.
    """
    segmentation = build_first_frame(source, masks[:, 0], settings, instance)
    if spacing_of(source) is None:
        del segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence  # a stand-in
    groups = []
    for segment, first in enumerate(segmentation.PerFrameFunctionalGroupsSequence, 1):
        for frame in range(1, masks.shape[1] + 1):
            group = deepcopy(first)
            group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = frame
            content = group.FrameContentSequence[0]
            content.StackID, content.InStackPositionNumber = _STACK, frame
            content.DimensionIndexValues = [segment, frame]
            groups.append(group)
    segmentation.PerFrameFunctionalGroupsSequence, segmentation.NumberOfFrames = groups, len(groups)
    (segments,) = segmentation.DimensionIndexSequence
    segmentation.DimensionIndexSequence = [segments, _frame_dimension(segments.DimensionOrganizationUID)]
    bits = np.packbits(masks.reshape(-1), bitorder="little").tobytes()
    segmentation.PixelData = bits + bytes(len(bits) % 2)
    return segmentation


def _frame_dimension(organization: str) -> Any:
    """Return the dimension that is the number of the frame of the image."""
    from pydicom.dataset import Dataset
    from pydicom.tag import Tag

    dimension = Dataset()
    dimension.DimensionOrganizationUID = organization
    dimension.DimensionIndexPointer = Tag("InStackPositionNumber")
    dimension.FunctionalGroupPointer = Tag("FrameContentSequence")
    dimension.DimensionDescriptionLabel = "Frame of the image"
    return dimension
