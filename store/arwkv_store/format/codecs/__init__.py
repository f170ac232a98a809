"""Codecs: how one sample's column becomes one binary cell. Each is documented byte by byte in docs/format.md."""
