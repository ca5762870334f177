"""The ground that every room stands on: records, settings, wording, and files written whole."""
