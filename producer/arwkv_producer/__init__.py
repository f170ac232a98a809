"""Runs a teacher once over a corpus and stores its outputs for every token as shards."""
