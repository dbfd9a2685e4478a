"""What a file says of the moments it holds: format, version, and the :class:`LayerInfo` of every layer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import lnb_kernels
from lnb.moments.record import DTYPES, SOURCES, LayerInfo
from lnb.moments.tensor_file import REMEDY

FORMAT = "lnb-moments"
FORMAT_VERSION = 1
_FIELDS = tuple(field.name for field in dataclasses.fields(LayerInfo))
_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}


def write_metadata(infos: Mapping[str, LayerInfo], absent: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a file with these layers, and reasons for those that are not in it."""
    layers = []
    for info in infos.values():
        entry = {field: getattr(info, field) for field in _FIELDS}
        layers.append(entry | {"dtype": str(info.dtype).removeprefix("torch."), "with_bias": info.with_bias})
    return {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "lnb_version": lnb_kernels.__version__,
        "layers": json.dumps(layers),
        "absent": json.dumps(dict(absent)),
    }


def read_metadata(metadata: Mapping[str, str], where: str) -> tuple[dict[str, LayerInfo], dict[str, str]]:
    """The layers of a file, and reasons for those that are not in it, from what :func:`write_metadata` returned.

    Args:
        metadata: of the file.
        where: begins messages.

    Raises:
        ValueError: they are of another format or version, or damaged.
    """
    if metadata.get("format") != FORMAT or metadata.get("format_version") != str(FORMAT_VERSION):
        found = f"{metadata.get('format')!r} version {metadata.get('format_version')!r}"
        raise ValueError(
            f"{where}: format {found} must be {FORMAT!r} version {FORMAT_VERSION}; it is no file of moments, or one of "
            f"another version of lnb: export them anew"
        )
    try:
        layers = [_info_of(entry) for entry in json.loads(metadata["layers"])]
        absent = {str(name): str(reason) for name, reason in json.loads(metadata["absent"]).items()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{where}: its metadata are not what lnb writes: {error}; {REMEDY}") from error
    return {info.name: info for info in layers}, absent


def _info_of(entry: dict[str, Any]) -> LayerInfo:
    """A layer's info from a file's metadata, every value checked."""
    values = {field: entry[field] for field in _FIELDS}
    for field in ("name", "kind", "parameter"):
        if type(values[field]) is not str:
            raise TypeError(f"{field}={values[field]!r} must be a str")
    if type(values["bias"]) not in (str, type(None)):
        raise TypeError(f"bias={values['bias']!r} must be a str or None")
    for field in ("groups", "blocks", "size", "d_out"):
        if type(values[field]) is not int or values[field] < 1:
            raise ValueError(f"{field}={values[field]!r} must be a whole number of at least 1")
    if values["dtype"] not in _NAMES or values["source"] not in SOURCES:
        raise ValueError(f"dtype={values['dtype']!r}, source={values['source']!r} are not known")
    if type(values["decay"]) not in (int, float, type(None)) or type(values["steps"]) not in (int, type(None)):
        raise TypeError(f"decay={values['decay']!r}, steps={values['steps']!r} must be numbers")
    return LayerInfo(**(values | {"dtype": _NAMES[values["dtype"]]}))
