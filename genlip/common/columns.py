"""Columns of a parquet file as rows for the reader of conversations, told by column where Python row by row takes ten times as long.

A picture's bytes stay where parquet's reader has put them; plain turns are checked in Arrow and keep their places in its array.
"""

import itertools
from typing import Any

from .conversations import IMAGE, ROLES, Turns
from .picture_files import ImageRef


def message_type() -> Any:
    """The Arrow type of a turn."""
    import pyarrow as pa

    return pa.struct([("role", pa.string()), ("content", pa.string())])


def of_batch(batch: Any) -> tuple[list[dict], Any, Any]:
    """(rows, their array of pictures, their array of turns) of a record batch."""
    values: dict[str, Any] = {name: batch.column(name) for name in batch.schema.names}
    found = said = None
    for name in ("image", "images"):
        if name in values and found is None:
            values[name], found = _pictures(values[name])
    for name in ("conversations", "messages"):
        if name in values and said is None:
            values[name], said = _turns(values[name])
    lists = [_python(column) for column in values.values()]
    return [dict(zip(values, row)) for row in zip(*lists)], found, said


def _python(column: Any) -> Any:
    """A column as Python's objects. Lists of turns are taken apart first: one by one Arrow makes them ten times slower."""
    import pyarrow as pa

    if isinstance(column, list):
        return column
    if pa.types.is_string(column.type):  # a tenth of to_pylist's time
        return column.to_numpy(zero_copy_only=False).tolist()
    if not (pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type)) or column.null_count:
        return column.to_pylist()
    flat = column.flatten()
    if flat.null_count:
        return column.to_pylist()
    names = [field.name for field in column.type.value_type]
    turns = [dict(zip(names, turn)) for turn in zip(*(_python(values) for values in flat.flatten()))]
    return _apart(turns, column)


def _apart(flat: list, column: Any) -> list[list]:
    """The flat values of a list column as one list for each row."""
    ends = itertools.accumulate(column.value_lengths().to_numpy().tolist(), initial=0)
    return [flat[start:end] for start, end in itertools.pairwise(ends)]


def _turns(column: Any) -> tuple[list, Any]:
    """(a column of turns, as Turns where they are plain and as Python's objects elsewhere; the array that the Turns' places mean)"""
    import pyarrow as pa

    turns: list[Any]
    turns, said = plain_turns(column)
    odd = [i for i, some in enumerate(turns) if some is None]
    for i, some in zip(odd, _python(column.take(pa.array(odd, pa.int64())))):
        turns[i] = some
    return turns, said


def _pictures(column: Any) -> tuple[Any, Any]:
    """(a picture column's rows as ImageRef, None or a list of them; the array of all their bytes, which stay where parquet's reader has
    put them). Pictures are bytes, or a struct of `bytes` and `path`; a column of another kind is handed back as it is, with None."""
    import pyarrow as pa
    import pyarrow.compute as pc

    listed = pa.types.is_list(column.type) and not column.null_count
    flat = column.flatten() if listed else column
    fields = [field.name for field in flat.type] if pa.types.is_struct(flat.type) else []
    data = pc.struct_field(flat, "bytes") if "bytes" in fields else flat
    if not pa.types.is_binary(data.type):
        return column, None
    paths = _python(pc.struct_field(flat, "path")) if "path" in fields else [None] * len(flat)
    present = data.is_valid().to_numpy(zero_copy_only=False).tolist()
    _, ends, body = data.buffers()
    ends = memoryview(ends).cast("B").cast("i")[data.offset : data.offset + len(data) + 1].tolist() if len(data) else [0]
    body = memoryview(body or b"").cast("B")  # Arrow's own is of signed bytes
    shown = []
    for i, (there, path, (start, end)) in enumerate(zip(present, paths, itertools.pairwise(ends))):
        shown.append(ImageRef(path, body[start:end], i) if there else ImageRef(path, None) if path is not None else None)
    return _apart(shown, column) if listed else shown, data


def plain_turns(column: Any) -> tuple[list[Turns | None], Any]:
    """(Turns of each row that needs no closer look, None for the others; the array of all turns, which the Turns' places mean).

    Plain are the turns of user, assistant, user, assistant and so on, of which every answer says something and shows no picture: the
    simplest of what `read_row` passes, told by column in a tenth of its time. No row is refused here: one that is not plain, be it for
    a fault or for a system prompt, is `read_row`'s to judge. A column that is no list of turns with text has no plain rows.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    names = kind.value_type.names if pa.types.is_list(kind) and pa.types.is_struct(kind.value_type) else []
    role, content = ("from" if "from" in names else "role"), ("value" if "value" in names else "content")
    if not all(name in names and pa.types.is_string(kind.value_type.field(name).type) for name in (role, content)):
        return [None] * len(column), None
    flat = column.flatten()
    role, content = pc.struct_field(flat, role), pc.struct_field(flat, content)
    user, answer = (pc.is_in(role, pa.array([name for name in ROLES if ROLES[name] == one])) for one in ("user", "assistant"))
    content = pc.if_else(answer, pc.utf8_trim_whitespace(content), content)  # trims what str.strip does
    length, markers = (pc.fill_null(count, 0) for count in (pc.utf8_length(content), pc.count_substring(content, IMAGE)))
    role = pc.if_else(user, "user", "assistant")
    said = pc.binary_join_element_wise(role, pc.cast(length, pa.string()), content, " ")

    lengths = pc.fill_null(column.value_lengths(), 0).to_numpy()
    ends = np.cumsum(lengths)
    starts = ends - lengths
    place = np.arange(len(flat)) - np.repeat(starts, lengths)
    user, answer, length, markers = (some.to_numpy(zero_copy_only=False) for some in (user, answer, length, markers))
    plain = np.where(place % 2, answer & (length > 0) & (markers == 0), user) & content.is_valid().to_numpy(zero_copy_only=False)
    counted, passed = (np.concatenate([[0], np.cumsum(some)]) for some in (markers, plain))
    good = (passed[ends] - passed[starts] == lengths) & (lengths > 0) & (lengths % 2 == 0)

    _, bounds, body = said.buffers()
    bounds, body = np.frombuffer(bounds, np.int32)[said.offset :], memoryview(body or b"").cast("B")
    numbers = (some.tolist() for some in (good, bounds[starts], bounds[ends], counted[ends] - counted[starts], starts, ends))
    found = [Turns(body[a:b], n, range(start, end)) if ok else None for ok, a, b, n, start, end in zip(*numbers)]
    return found, pa.StructArray.from_arrays([role, content], fields=list(message_type()))
