"""Curation of image collections and DINOv2 pretraining. Called as a function, it is `dinomed.pretrain` of the API."""

import sys

from dinomed import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
