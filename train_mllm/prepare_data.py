"""Conversations of any common form -> one indexed file and a ledger. Torch-free.

    python -m train_mllm.prepare_data conversations.json --images images/ --out data/sft

Reads LLaVA JSON (`conversations`: from/value, `image`), OpenAI-messages JSON (`messages`: role/content, pictures as parts) and
parquet in LLaVA-OneVision's columns (id, image, conversations). Writes `conversations.arrow` (id, images, messages), which
training maps into memory, and `ledger.json`: rows read, used, skipped by reason with the first offenders, and the digest.
Every picture is decoded once here; a bad one is counted and left out, never replaced by a neighbour.
"""

import argparse
import hashlib
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

IMAGE = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
NAMED = 10
ROWS_A_CHUNK = 1000


def read_rows(source: Path) -> Iterator[dict]:
    """Raw rows of a JSON list, JSON lines, or parquet file(s). Raises ValueError for what is none of them."""
    if source.suffix == ".json":
        rows = json.loads(source.read_text())
        if not isinstance(rows, list):
            raise ValueError(f"{source} is not a JSON list of conversations")
        yield from rows
    elif source.suffix == ".jsonl":
        with source.open() as lines:
            yield from map(json.loads, lines)
    elif source.suffix == ".parquet" or (source.is_dir() and any(source.glob("*.parquet"))):
        import pyarrow.parquet as pq

        for file in [source] if source.is_file() else sorted(source.glob("*.parquet")):
            parquet = pq.ParquetFile(file)
            if "conversations" not in parquet.schema_arrow.names:
                raise ValueError(f"{file} has no column 'conversations' (it has {', '.join(parquet.schema_arrow.names)})")
            for chunk in parquet.iter_batches(batch_size=ROWS_A_CHUNK):
                yield from chunk.to_pylist()
    else:
        raise ValueError(f"no conversations at {source}: give a .json, .jsonl or .parquet file, or a folder of parquet files")


def normalise(row: dict, images: Path) -> dict:
    """One row in the one form: {"id", "images": [{"path", "bytes"}], "messages": [{"role", "content"}]}, pictures decoded once.

    Raises ValueError with the reason under which the row is counted.
    """
    pictures = row.get("images") or row.get("image") or []
    pictures = list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]
    messages = []
    for turn in row.get("conversations") or row.get("messages") or []:
        role = ROLES.get(turn.get("from", turn.get("role")))
        content = turn.get("value", turn.get("content"))
        if isinstance(content, list):  # OpenAI's parts: pictures stand where they are shown
            text = ""
            for part in content:
                if part["type"] == "text":
                    text += part["text"]
                else:
                    url = part.get("image_url") or part.get("image")
                    pictures.append(url["url"] if isinstance(url, dict) else url)
                    text += IMAGE + "\n"
            content = text
        if role is None or not isinstance(content, str):
            raise ValueError("malformed turn")
        messages.append({"role": role, "content": content.strip() if role == "assistant" else content})
    roles = [m["role"] for m in messages if m["role"] != "system"]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError("turns do not alternate user, assistant")
    if not all(m["content"] for m in messages if m["role"] == "assistant"):
        raise ValueError("empty answer")
    if sum(m["content"].count(IMAGE) for m in messages) != len(pictures):
        raise ValueError(f"{IMAGE} markers and pictures do not match")
    return {"id": str(row.get("id", "")), "images": [check_picture(p, images) for p in pictures], "messages": messages}


def check_picture(picture, images: Path) -> dict:
    """A picture as {"path", "bytes"}: bytes from parquet, or a path that exists; decoded here. Raises ValueError with the reason."""
    from PIL import Image

    data = picture.get("bytes") if isinstance(picture, dict) else None
    path = None
    if data is None:
        name = picture.get("path") if isinstance(picture, dict) else picture
        if not isinstance(name, str):
            raise ValueError("malformed picture")
        path = images / name
        if not path.is_file():
            path = images / Path(name).name  # exports of other tools carry their own folders in front of the file name
        if not path.is_file():
            raise ValueError("missing picture")
    try:
        with Image.open(io.BytesIO(data) if data is not None else path) as image:
            image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as e:
        raise ValueError("undecodable picture") from e
    return {"path": str(path.resolve()) if path else None, "bytes": data}


def prepare(source: str, images: str, out: str, max_bad: float = 0.01) -> dict:
    """Write OUT/conversations.arrow and OUT/ledger.json; returns the ledger. A finished OUT of the same source is left alone.

    Raises ValueError for a source that cannot be read, for an OUT of another source, and where more than `max_bad` of the rows
    are unusable (the ledger is printed, nothing is written).
    """
    import pyarrow as pa
    from rich.progress import Progress

    folder, file = Path(out), Path(source)
    if not file.exists():
        raise ValueError(f"no conversations at {source}: give --data a .json or .parquet file, or a folder made by train_mllm.prepare_data")
    origin = {"source": str(file.resolve()), "images": str(Path(images).resolve()) if images else "", "bytes": _size(file)}
    if (folder / "ledger.json").is_file():
        ledger = json.loads((folder / "ledger.json").read_text())
        if ledger["origin"] != origin:
            raise ValueError(f"{folder} was made from {ledger['origin']}, not from {origin}: give another --out or remove it")
        return ledger
    picture = pa.struct([("path", pa.string()), ("bytes", pa.binary())])
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema([("id", pa.string()), ("images", pa.list_(picture)), ("messages", pa.list_(message))])
    read, used, skipped, names, sha = 0, 0, Counter(), {}, hashlib.sha256()
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "conversations.arrow.part"
    with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, schema) as writer, Progress(disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task(f"prepare {file.name}", total=None)
        chunk = []
        for row in read_rows(file):
            read += 1
            try:
                chunk.append(normalise(row, Path(images or file.parent)))
            except ValueError as e:
                skipped[str(e)] += 1
                if len(names.setdefault(str(e), [])) < NAMED:
                    names[str(e)].append(str(row.get("id", f"row {read - 1}")))
                continue
            used += 1
            sha.update(_row_digest(chunk[-1]))
            if len(chunk) == ROWS_A_CHUNK:
                writer.write_table(pa.Table.from_pylist(chunk, schema))
                chunk = []
                progress.update(bar, completed=read)
        if chunk:
            writer.write_table(pa.Table.from_pylist(chunk, schema))
    ledger = {"origin": origin, "read": read, "used": used, "skipped": dict(skipped), "names": names, "digest": sha.hexdigest()}
    if used == 0 or read - used > max_bad * read:
        part.unlink()
        raise ValueError(
            f"{read - used} of {read} conversations of {source} cannot be used: {dict(skipped)}; first: {names}. "
            "Mend them, or allow more with --max-bad"
        )
    part.replace(folder / "conversations.arrow")
    (folder / "ledger.json").write_text(json.dumps(ledger, indent=1) + "\n")
    return ledger


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else sum(f.stat().st_size for f in file.glob("*.parquet"))


def _row_digest(row: dict) -> bytes:
    """Digest of what training sees: the turns and each picture's bytes."""
    sha = hashlib.sha256(json.dumps([row["id"], row["messages"]]).encode())
    for picture in row["images"]:
        sha.update(picture["bytes"] if picture["bytes"] is not None else Path(picture["path"]).read_bytes())
    return sha.digest()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m train_mllm.prepare_data",
        description="Bring conversations into the one form that training reads, and say what was left out.",
        epilog="example:\n  python -m train_mllm.prepare_data conversations.json --images images/ --out data/sft",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="LLaVA or OpenAI JSON, JSON lines, parquet, or a folder of parquet files")
    parser.add_argument("--images", default="", help="folder of the pictures (default: the source's own)")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--max-bad", type=float, default=0.01, help="share of unusable rows that is borne (default 0.01)")
    args = parser.parse_args(argv)
    try:
        ledger = prepare(args.source, args.images, args.out, args.max_bad)
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    skipped = ledger["skipped"] or "none"
    print(f"{args.out}: {ledger['used']} of {ledger['read']} conversations, skipped {skipped}, digest {ledger['digest'][:8]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
