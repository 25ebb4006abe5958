"""Low-rank adaptation (`dinomed.backbones.lora`) of a trained backbone while it is pretrained further.

The student's own weights stay as they are, but for the mask token; learned are ``B A`` beside chosen linear layers, and
the heads. The teacher stays a plain ViT: it follows the student's *merged* weights ``W + (alpha / rank) B A``. Averages
of A and of B apart would be those of no network (the mean of products is not the product of means), and a plain teacher
is saved, resumed, distilled from and loaded like any other. Its price is one small product for each layer and step.
With several processes each holds all of it, and what is summed between them is small: adapters' and heads' gradients.
"""

from pydantic import Field

from dinomed.backbones.lora import LoraConfig, add_lora, check_lora, has_lora, plain_parameters
from dinomed.config import Config
from dinomed.distributed import world_size
from dinomed.errors import UsageError
from dinomed.pretrain.distributed.parallel import Parallel

__all__ = ["LoraConfig", "TuneConfig", "add_lora", "check_tune", "has_lora", "plain_parameters"]


class TuneConfig(Config):
    """What of the student's backbone learns; by default all of it."""

    lora: LoraConfig | None = Field(None, description="low-rank adaptation of the weights that the run starts from")


def check_tune(config: TuneConfig, feed_forward: str, *, has_start: bool, parallel: Parallel = "replicate") -> None:
    """Raises a `UsageError` if a run so tuned cannot be made here."""
    if config.lora is None:
        return
    check_lora(config.lora, feed_forward)
    if not has_start:
        raise UsageError("tune.lora adapts trained weights, and the run starts from none; name them with --from")
    if parallel == "shard" and world_size() > 1:
        raise UsageError(
            "tune.lora with run.parallel=shard: FSDP2 cannot spread a layer whose adapter alone learns; every process "
            "holds the model whole with run.parallel=replicate"
        )
