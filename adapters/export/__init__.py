"""Export of backbones and adapters to the formats of other tools."""
