"""The notice of research use in all reports, tables, adapters and pages."""

RESEARCH_USE = "for research use only, not for diagnosis"
