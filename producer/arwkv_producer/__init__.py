"""Runs a teacher once over a corpus and keeps what it said of every token, as shards of the store."""
