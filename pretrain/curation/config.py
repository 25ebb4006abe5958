"""The settings of `dinomed curate`; what they mean at length is in docs/curation.md."""

from typing import Literal

from pydantic import Field, field_validator

from dinomed.config import Config
from dinomed.pretrain.curation.deduplication.components import RULE
from dinomed.pretrain.curation.deduplication.exclusion import NEIGHBORS
from dinomed.pretrain.curation.deduplication.hashes import BITS
from dinomed.pretrain.curation.deduplication.keypoints import MIN_MATCHES
from dinomed.pretrain.curation.descriptors.descriptor import DescriptorConfig
from dinomed.pretrain.curation.filters.quality import QualityConfig
from dinomed.pretrain.curation.search.ivf import EXACT_UP_TO
from dinomed.pretrain.curation.selection.retrieval import SAMPLE_FROM


class RulesConfig(Config):
    """Column -> patterns (``*``, ``?``, ``[a-z]``; of whole values, capitals count); `image` is the path."""

    allow: dict[str, tuple[str, ...]] = Field(
        {}, description="every column named here has to match one of its patterns"
    )
    deny: dict[str, tuple[str, ...]] = Field({}, description="no column named here may match any of its patterns")


class FacesConfig(Config):
    """Frontal faces, by the cascade that comes with scikit-image."""

    action: Literal["off", "drop", "blur"] = "off"
    min_share: float = Field(0.08, gt=0, le=1, description="side of a face in shares of the short side, at least")
    min_neighbors: int = Field(8, ge=1, description="overlapping windows that have to agree; fewer: more false alarms")


class DuplicatesConfig(Config):
    """Copies within the pile, and of excluded images in it. Thresholds: None is the one for the descriptor's source
    (`THRESHOLDS` of the pipeline)."""

    threshold: float | None = Field(None, ge=-1, le=1, description="cosine above which two images are copies")
    exclude_threshold: float | None = Field(None, ge=-1, le=1, description="the same, towards excluded images")
    check_from: float | None = Field(
        None, ge=-1, le=1, description="cosine above which a pair is a copy too if points of both align; null: none"
    )
    min_matches: int = Field(MIN_MATCHES, ge=4, description="points that have to align")
    k: int = Field(NEIGHBORS, ge=1, description="neighbours of each image that are looked at")
    hash_radius: int | None = Field(16, ge=0, lt=BITS[-1], description="of 256 bits of the perceptual hash; null: off")
    pca_radius: int | None = Field(2, ge=0, lt=BITS[0], description="of 64 bits of the PCA hash; null: off")
    hashes_up_to: int = Field(200_000, ge=1, description="images; beyond, only equal hashes are found")
    rule: tuple[str, ...] = Field(RULE, description="who stays of several copies; trusted images always do")

    @field_validator("rule")
    @classmethod
    def _known(cls, rule: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in rule if name.removeprefix("-") not in {key.removeprefix("-") for key in RULE}]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is none of {', '.join(RULE)}")
        return rule


class SearchConfig(Config):
    """Exact up to so many vectors, then by an inverted file whose recall is measured."""

    exact_up_to: int = Field(EXACT_UP_TO, ge=1, description="vectors")
    recall: float = Field(0.95, gt=0, le=1, description="share of the true neighbours that is to be found beyond")
    products_each: int = Field(20_000_000_000, ge=1, description="pairs that one part of the search looks at")


class QuerySetConfig(Config):
    """How a trusted set asks for images of the pool."""

    mode: Literal["auto", "sample", "cluster"] = "auto"
    k: int = Field(4, ge=1, description="sample: nearest images of each trusted one (the paper: 4; 32 for ImageNet-1k)")
    threshold: float | None = Field(
        None, ge=-1, le=1, description="sample: only what is more similar (the paper: none)"
    )
    min_queries: int = Field(3, ge=0, description="cluster: more than so many trusted images have to lie in it")
    per_cluster: int = Field(10_000, ge=1, description="cluster: images of each, at most")
    limit: int | None = Field(1_000_000, ge=1, description="images that the set may bring in")


class RetrievalConfig(QuerySetConfig):
    """For all trusted sets; `sets` overrides it for one, by the name of its file without suffix."""

    mode: Literal["auto", "sample", "cluster", "all"] = Field("auto", description="all: keep whatever is clean")  # type: ignore[assignment]
    sets: dict[str, dict[str, str | int | float | None]] = Field({}, description="name -> what differs for that set")
    sample_from: int = Field(SAMPLE_FROM, ge=0, description="auto: sets of more images are sampled from")
    clusters: int | None = Field(None, ge=1, description="null: one for each 30 images of the pool, at most 100,000")
    iterations: int = Field(20, ge=1)
    min_similarity: float | None = Field(
        None, ge=-1, le=1, description="images less like any trusted one are dropped: non-medical, unsafe"
    )


class BalanceConfig(Config):
    """Hierarchical k-means and balanced sampling, where there is no trusted set."""

    images: int | None = Field(None, ge=1, description="to keep; null: `share` of the clean ones")
    share: float = Field(0.5, gt=0, le=1)
    levels: tuple[int, ...] | None = Field(
        None, description="clusters of each level, falling; null: by the pool's size"
    )
    resamplings: int = Field(10, ge=0)


class CurationConfig(Config):
    """`dinomed curate --config` reads this from YAML."""

    rules: RulesConfig = RulesConfig()
    quality: QualityConfig = QualityConfig()
    faces: FacesConfig = FacesConfig()
    descriptor: DescriptorConfig = DescriptorConfig()
    duplicates: DuplicatesConfig = DuplicatesConfig()
    search: SearchConfig = SearchConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    balance: BalanceConfig = BalanceConfig()
    hold_out: bool = Field(True, description="val and test images of trusted sets are excluded like those of --exclude")
    memory_gib: float = Field(4.0, gt=0, description="for what is held beside mapped files")
    shard_size: int = Field(512, ge=1, description="images between two savings")
    seed: int = Field(0, ge=0)
