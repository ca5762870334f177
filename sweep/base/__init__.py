"""The foundation that every other package imports: records, settings, wording, and atomic file writes."""
