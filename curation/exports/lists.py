"""A list file of an export that is being written."""

from __future__ import annotations

from curation.shards import Dataset


class List:
    """Lines, one below the other; in a .json they are the items of one list."""

    def __init__(self, out: Dataset, path: str) -> None:
        self.file = out.replacing(path)
        self.is_array = path.endswith(".json")
        self.is_empty = True

    def __enter__(self) -> List:
        self.sink = self.file.__enter__()
        self.sink.write(b"[\n" if self.is_array else b"")
        return self

    def __exit__(self, error_type: type | None, *rest: object) -> None:
        self.sink.write(b"\n]\n" if self.is_array else b"")
        self.file.__exit__(error_type, *rest)

    def add(self, lines: list[str]) -> None:
        """Write the next lines."""
        for line in lines:
            before = ",\n" if self.is_array and not self.is_empty else ""
            self.sink.write(f"{before}{line}{'' if self.is_array else chr(10)}".encode())
            self.is_empty = False
