"""Many runs in one Parquet file: a row a run, metric series as lists of numbers, everything compressed."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from lnb.reading import parse_json
from lnb_bench.study.series import Columns
from lnb_bench.training import TrainingError

_TEXTS = ("cell", "environment")  # tables, as JSON
_PLAIN = ("labels", "metric", "higher_is_better", "failure", "wall", "peak_bytes")
_MOST_BYTES = 1 << 30  # unpacked: what the project writes is far smaller


def to_parquet(rows: Iterable[dict[str, Any]]) -> bytes:
    """The file of these outcomes; ``records`` of each are columns as of :func:`lnb_bench.study.series.to_columns`.

    Raises:
        TrainingError: pyarrow is not installed.
    """
    arrow, parquet = _pyarrow()
    one = arrow.struct([("split", arrow.string()), ("name", arrow.string()), ("values", arrow.list_(arrow.float64()))])
    schema = arrow.schema(
        [
            ("cell", arrow.string()),
            ("labels", arrow.list_(arrow.string())),
            ("metric", arrow.string()),
            ("higher_is_better", arrow.bool_()),
            ("failure", arrow.string()),
            ("wall", arrow.float64()),
            ("peak_bytes", arrow.int64()),
            ("environment", arrow.string()),
            ("records", arrow.list_(one)),
        ]
    )
    lines = []
    for row in rows:
        series = [
            {"split": split, "name": name, "values": [float(value) for value in values]}
            for split, table in row["records"].items()
            for name, values in table.items()
        ]
        texts = {name: json.dumps(row[name], allow_nan=False) for name in _TEXTS}
        lines.append({**{name: row.get(name) for name in _PLAIN}, **texts, "records": series})
    buffer = io.BytesIO()
    table = arrow.Table.from_pylist(lines, schema=schema)
    parquet.write_table(table, buffer, compression="zstd", compression_level=19, write_page_checksum=True)
    return buffer.getvalue()


def from_parquet(content: bytes) -> Iterator[dict[str, Any]]:
    """The outcomes of a file, ``records`` as columns; types are left to the reader of each.

    Raises:
        TrainingError: pyarrow is not installed.
        ValueError: the content is no such file.
    """
    arrow, parquet = _pyarrow()
    try:
        file = parquet.ParquetFile(arrow.BufferReader(content), page_checksum_verification=True)
        size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        if not 0 <= size <= _MOST_BYTES:
            raise ValueError(f"it says that it holds {size} bytes")
        lines = file.read().to_pylist()
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
    for line in lines:
        for name in (*_TEXTS, "records"):
            if not isinstance(line.get(name), list if name == "records" else str):
                raise ValueError(f"it has no column {name!r}")
        tables = {name: parse_json(line[name], finite=True) for name in _TEXTS}
        yield {**line, **tables, "records": _columns(line["records"])}


def _columns(series: list[Any]) -> Columns:
    columns: Columns = {}
    try:
        for one in series:
            split, name, values = one["split"], one["name"], one["values"]
            columns.setdefault(split, {})[name] = [int(v) for v in values] if name == "step" else list(values)
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise ValueError("its records are not series of numbers") from error
    return columns


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise TrainingError(
            "results are kept as Parquet, which needs the package pyarrow: pip install pyarrow"
        ) from error
    return pyarrow, parquet
