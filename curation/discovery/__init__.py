"""Queries -> videos that sites offer, before any media is fetched."""
