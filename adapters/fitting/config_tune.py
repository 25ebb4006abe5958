"""Settings of a fit in which the backbone learns too; see `dinomed.adapters.fitting.tune`."""

from typing import Any

from pydantic import Field, model_validator

from dinomed.backbones.lora import LoraConfig
from dinomed.config import Config

RATE_LAST, RATE_LORA = 5e-5, 5e-4
FORMS = "none, last:N (the last N blocks), lora or lora:RANK"


class TuneConfig(Config):
    """What of the backbone learns: nothing, the `last` blocks, or `lora`; as a word: ``last:2``, ``lora:8``."""

    last: int | None = Field(None, ge=1, description="blocks, counted from the last one that the head looks at")
    lora: LoraConfig | None = None
    learning_rate: float | None = Field(None, gt=0, description=f"null: {RATE_LAST:g} (last) or {RATE_LORA:g} (lora)")
    layer_decay: float = Field(0.75, gt=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _word(cls, data: Any) -> Any:
        if data is None:
            return {}
        if not isinstance(data, str):
            return data
        kind, colon, number = data.partition(":")
        if data == "none":
            return {}
        if kind == "last" and number.isdecimal() and int(number):
            return {"last": int(number)}
        if kind == "lora" and (not colon or (number.isdecimal() and int(number))):
            rank = int(number or 8)
            return {"lora": {"rank": rank, "alpha": 2 * rank}}
        raise ValueError(f"{data!r} is none of: {FORMS}")

    @model_validator(mode="after")
    def _one(self) -> "TuneConfig":
        if self.last is not None and self.lora is not None:
            raise ValueError("last and lora: choose one of them")
        return self

    @property
    def active(self) -> bool:
        return self.last is not None or self.lora is not None

    @property
    def word(self) -> str:
        """As it is written in a command."""
        if self.lora is not None:
            return f"lora:{self.lora.rank}"
        return "none" if self.last is None else f"last:{self.last}"
