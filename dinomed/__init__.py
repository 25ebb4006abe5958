"""dinomed: self-supervised ViT backbones and light heads for medical images.

The public API is the functions in `__all__`. A function does the same as the command that its docstring names.
Functions are imported when they are first used, so that ``import dinomed`` is fast and does not import torch.

For research use only, not for diagnosis.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dinomed.apps.api.backbones import extract_features as extract_features
    from dinomed.apps.api.backbones import load_backbone as load_backbone
    from dinomed.apps.api.backbones import probe as probe
    from dinomed.apps.api.configs import compare_configs as compare_configs
    from dinomed.apps.api.configs import config_schema as config_schema
    from dinomed.apps.api.configs import resolve_config as resolve_config
    from dinomed.apps.api.curation import curate as curate
    from dinomed.apps.api.data.audit import audit as audit
    from dinomed.apps.api.data.datasets import open_dataset as open_dataset
    from dinomed.apps.api.data.datasets import scan as scan
    from dinomed.apps.api.data.frames import frames as frames
    from dinomed.apps.api.data.slices import slices as slices
    from dinomed.apps.api.demo import demo as demo
    from dinomed.apps.api.doctor import doctor as doctor
    from dinomed.apps.api.export import export as export
    from dinomed.apps.api.heads import evaluate as evaluate
    from dinomed.apps.api.heads import load_adapter as load_adapter
    from dinomed.apps.api.heads import predict as predict
    from dinomed.apps.api.heads import train as train
    from dinomed.apps.api.models import list_models as list_models
    from dinomed.apps.api.pretraining import distill as distill
    from dinomed.apps.api.pretraining import plan_pretraining as plan_pretraining
    from dinomed.apps.api.pretraining import pretrain as pretrain
    from dinomed.apps.api.retrieval import build_index as build_index
    from dinomed.apps.api.retrieval import evaluate_index as evaluate_index
    from dinomed.apps.api.retrieval import load_index as load_index
    from dinomed.apps.api.retrieval import search as search
    from dinomed.apps.api.show.maps import show_map as show_map
    from dinomed.apps.api.show.patches import show_attention as show_attention
    from dinomed.apps.api.show.patches import show_pca as show_pca
    from dinomed.apps.api.show.relations import show_match as show_match
    from dinomed.apps.api.show.relations import show_similarity as show_similarity
    from dinomed.apps.api.training_plan import plan_training as plan_training
    from dinomed.apps.quickstart.run import quickstart as quickstart

__version__ = "0.1.0"

_MODULES = {
    "scan": "api.data.datasets",
    "open_dataset": "api.data.datasets",
    "frames": "api.data.frames",
    "slices": "api.data.slices",
    "curate": "api.curation",
    "audit": "api.data.audit",
    "load_backbone": "api.backbones",
    "list_models": "api.models",
    "extract_features": "api.backbones",
    "probe": "api.backbones",
    "pretrain": "api.pretraining",
    "distill": "api.pretraining",
    "plan_pretraining": "api.pretraining",
    "train": "api.heads",
    "plan_training": "api.training_plan",
    "load_adapter": "api.heads",
    "evaluate": "api.heads",
    "predict": "api.heads",
    "export": "api.export",
    "build_index": "api.retrieval",
    "load_index": "api.retrieval",
    "search": "api.retrieval",
    "evaluate_index": "api.retrieval",
    "show_pca": "api.show.patches",
    "show_attention": "api.show.patches",
    "show_match": "api.show.relations",
    "show_map": "api.show.maps",
    "show_similarity": "api.show.relations",
    "demo": "api.demo",
    "doctor": "api.doctor",
    "config_schema": "api.configs",
    "resolve_config": "api.configs",
    "compare_configs": "api.configs",
    "quickstart": "quickstart.run",
}
"""Public function -> module of `dinomed.apps` that defines it."""

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'dinomed' has no attribute {name!r}")
    from dinomed.arguments import checked

    return checked(getattr(import_module(f"dinomed.apps.{_MODULES[name]}"), name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class CallablePackage(ModuleType):
    """A package that is called like the public function of its name.

    The function `pretrain` and the package `dinomed.pretrain` share a name; the package sets this class on itself, so
    that ``dinomed.pretrain(...)`` works before and after the package is imported.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return __getattr__(self.__name__.rpartition(".")[2])(*args, **kwargs)
