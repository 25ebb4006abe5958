"""What every result says of itself, in one wording: reports, tables, adapters, pages."""

RESEARCH_USE = "for research use only, not for diagnosis"
