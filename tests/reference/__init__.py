"""A decoder in plain Python, written from docs/format.md and sharing no code with the package.

It is slow and meant to be read beside the document: `container` and `chunk` are its first half,
`message`, `mixture`, `planes`, `flow` and `networks` the sections of those names, `decode` joins
them. It uses integers, lists and the standard library, and `zstandard` for zstd frames.
"""
