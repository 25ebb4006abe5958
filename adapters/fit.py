"""Fitting adapters, a file a task; what they share is in `dinomed.adapters.fitting`."""

from dinomed.adapters.fit_classify import class_weights, fit_classifier
from dinomed.adapters.fit_depth import fit_depth
from dinomed.adapters.fit_segment import fit_segmenter
from dinomed.adapters.fitting import FitResult

__all__ = ["FitResult", "class_weights", "fit_classifier", "fit_depth", "fit_segmenter"]
