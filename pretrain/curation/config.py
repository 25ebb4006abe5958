"""Settings of `dinomed curate`, assembled from the settings of its stages; docs/curation.md explains them."""

from pydantic import Field

from dinomed.config import Config
from dinomed.pretrain.curation.deduplication.config import DuplicatesConfig
from dinomed.pretrain.curation.descriptors.config import DescriptorConfig
from dinomed.pretrain.curation.filters.config import FacesConfig, QualityConfig, RulesConfig
from dinomed.pretrain.curation.search.config import SearchConfig
from dinomed.pretrain.curation.selection.config import BalanceConfig, RetrievalConfig


class CurationConfig(Config):
    """All settings; `dinomed curate --config` reads them from YAML."""

    rules: RulesConfig = Field(RulesConfig(), description="allow and deny lists")
    quality: QualityConfig = Field(QualityConfig(), description="filters of image quality")
    faces: FacesConfig = Field(FacesConfig(), description="detection of faces")
    descriptor: DescriptorConfig = Field(DescriptorConfig(), description="descriptor by which images are compared")
    duplicates: DuplicatesConfig = Field(
        DuplicatesConfig(), description="near-duplicates in the pool and of excluded images"
    )
    search: SearchConfig = Field(SearchConfig(), description="search of similar images")
    retrieval: RetrievalConfig = Field(
        RetrievalConfig(), description="images of the pool that are similar to query sets"
    )
    balance: BalanceConfig = Field(BalanceConfig(), description="balanced sampling of a pool without query sets")
    hold_out: bool = Field(True, description="exclude the val and test images of query sets, like those of `exclude`")
    memory_gib: float = Field(4.0, gt=0, description="memory for data that is not memory-mapped")
    shard_size: int = Field(512, ge=1, description="images per cached shard")
    seed: int = Field(0, ge=0, description="seed of the random numbers")
