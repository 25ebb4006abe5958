"""Low-rank adaptation (`dinomed.backbones.lora`) of a trained backbone during further pretraining.

The student's own weights stay fixed, except for the mask token; ``B A`` beside chosen linear layers and the heads
learn. The teacher stays a plain ViT: it is a moving average of the student's *merged* weights
``W + (alpha / rank) B A``. Separate averages of A and B would not be the weights of any network (the mean of products
is not the product of means), and a plain teacher is saved, resumed, distilled from and loaded like any other. The cost
is one small matrix product for each layer and step. With several processes each holds the whole model; only the
gradients of adapters and heads are summed.
"""

from dinomed.backbones.lora import LoraConfig, add_lora, check_lora, has_lora, plain_parameters
from dinomed.distributed import world_size
from dinomed.errors import UsageError
from dinomed.pretrain.distributed.parallel import Parallel
from dinomed.pretrain.model.config import StudentTuneConfig

__all__ = ["LoraConfig", "StudentTuneConfig", "add_lora", "check_student_tuning", "has_lora", "plain_parameters"]


def check_student_tuning(
    config: StudentTuneConfig, feed_forward: str, *, has_weights: bool, parallel: Parallel = "replicate"
) -> None:
    """Raise a `UsageError` if the backbone cannot be adapted.

    Args:
        feed_forward: type of the backbone's feed-forward layers, ``mlp`` or ``swiglu``.
        has_weights: whether the run has initial weights.
    """
    if config.lora is None:
        return
    check_lora(config.lora, feed_forward)
    if not has_weights:
        raise UsageError("tune.lora adapts trained weights, and the run has no initial weights; name them with `start`")
    if parallel == "shard" and world_size() > 1:
        raise UsageError(
            "tune.lora cannot be used with run.parallel=shard, because FSDP2 cannot shard a layer of which only the "
            "adapter learns; use run.parallel=replicate"
        )
