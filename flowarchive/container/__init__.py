"""The bytes of an archive: records, checksums, the index, and the two ways to read them.

    prologue | HEAD | [MODEL] | CHUNK ... | [MODEL] | INDEX | END

`Writer` appends records to a file or a pipe. `Reader` opens a file from its end and reads any
chunk alone; `Reader.stream` reads the same bytes in order from a pipe. All three keep a `Ledger`,
the one account of what the records add up to. The layout is docs/format.md.

This package knows nothing of frames, tensors or models, and of a chunk only how many frames it has.
"""

from flowarchive.container.ledger import Index, IndexEntry
from flowarchive.container.reader import Reader
from flowarchive.container.records import (
    CHUNK,
    END,
    HEAD,
    INDEX,
    MAGIC,
    MODEL,
    VERSION,
    Record,
    parse_head,
    parse_model,
)
from flowarchive.container.writer import Writer, model_size
from flowarchive.files import atomic_output

__all__ = [
    "CHUNK",
    "END",
    "HEAD",
    "INDEX",
    "MAGIC",
    "MODEL",
    "VERSION",
    "Index",
    "IndexEntry",
    "Reader",
    "Record",
    "Writer",
    "atomic_output",
    "model_size",
    "parse_head",
    "parse_model",
]
