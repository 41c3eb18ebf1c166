"""Clips of a dataset as the files that other people's trainers load (docs/exports.md)."""
