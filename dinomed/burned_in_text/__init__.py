"""Burned-in text: its detection and masking."""
