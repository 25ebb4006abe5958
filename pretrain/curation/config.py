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

    rules: RulesConfig = RulesConfig()
    quality: QualityConfig = QualityConfig()
    faces: FacesConfig = FacesConfig()
    descriptor: DescriptorConfig = DescriptorConfig()
    duplicates: DuplicatesConfig = DuplicatesConfig()
    search: SearchConfig = SearchConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    balance: BalanceConfig = BalanceConfig()
    hold_out: bool = Field(True, description="exclude the val and test images of query sets, like those of `exclude`")
    memory_gib: float = Field(4.0, gt=0, description="memory for data that is not memory-mapped")
    shard_size: int = Field(512, ge=1, description="images per cached shard")
    seed: int = Field(0, ge=0)
