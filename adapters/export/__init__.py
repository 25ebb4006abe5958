"""Backbones and adapters as other tools read them; each folder is written only after it answered as the original."""
