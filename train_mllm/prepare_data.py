"""Conversations of any common form -> one indexed form and a ledger. Torch-free.

    python -m train_mllm.prepare_data mix.yaml --images images/ --out data/sft      # LLaVA-NeXT's mixes
    python -m train_mllm.prepare_data data/onevision-single-image.yaml --out data/sft   # what train_mllm.fetch brought
    python -m train_mllm.prepare_data show data/sft

Reads conversations of every form that genlip/common/conversations.py knows, out of JSON, JSON lines and parquet. Writes
`conversations/*.arrow` (id, images, messages, digest), which all ranks of a training map into memory, and last `ledger.json`: rows there,
sampled, used and left out by reason, for each source and subset, with the first offenders, duplicates and a digest of what training sees.

A folder that is there already is used where it was made of the same: the source's files by their digests, pictures in files of their own by
size, times and inode (kept in `conversations/*.npy`), and by their bytes where one of these moved. Anything else is refused.

Every picture is scanned once (header and end marker, a full decode with --decode); a row with a fault is counted and left out, never
replaced by a neighbour. Pieces of the source are worked on in parallel; a killed run goes on with the pieces that lack. Memory: about
300 MB a process, whatever the source's size.
"""

import gc
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from genlip.common import digests, sources
from genlip.common.command import command, new_parser
from genlip.common.files import LONG, file_aside, read_json, write_json
from genlip.common.flags import bounded
from genlip.common.ledger import Ledger
from genlip.common.locks import locked
from genlip.common.model_folder import load_auto
from genlip.common.processes import finished
from genlip.common.progress import progress, tracked

from . import image_check
from .conversations import changed_pictures, normalise, open_conversations, schema, to_arrow, write_signatures

MIX_TOLERANCE = 0.01  # share by which a mix may give other numbers of rows than it says

# --- one piece --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PieceJob:
    """A piece of the source and where its rows go: FOLDER/NUMBER.arrow, its tally to FOLDER/NUMBER.json when it is done."""

    piece: sources.Piece
    images: str  # empty: beside the file
    decode: bool
    folder: Path
    number: int

    @property
    def arrow(self) -> Path:
        return self.folder / f"{self.number:05}.arrow"

    @property
    def tally(self) -> Path:
        return self.folder / f"{self.number:05}.json"


@contextmanager
def without_gc():
    """Rows are made and dropped by the thousand and hold no cycles: looking for some took a fifth of the scan's own time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@dataclass
class Tally(Ledger):
    """A subset's rows of a piece."""

    pictures: int = 0

    def as_dict(self) -> dict:
        return super().as_dict() | {"pictures": self.pictures}


def work(job: PieceJob) -> dict:
    """Scan a piece, write its rows and its tally {subset: Tally as a dict}; returns the tally."""
    import pyarrow as pa

    subsets: dict[str, Tally] = {}
    seen: list[digests.Signature | None] = []
    with without_gc(), file_aside(job.arrow) as aside, pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, schema()) as writer:
        for chunk in sources.read(job.piece):
            if kept := _scanned(chunk, job, subsets):
                writer.write_batch(to_arrow(kept, chunk.pictures, chunk.turns))
                seen += [picture.seen for row in kept for picture in row["images"] if picture.path is not None]
            del chunk, kept  # before the next is read into the same memory
    if seen:
        write_signatures(job.arrow, seen)
    found = {name: tally.as_dict() for name, tally in subsets.items()}
    write_json(job.tally, found)  # last: a piece with a tally is done
    return found


def _scanned(chunk: sources.Chunk, job: PieceJob, subsets: dict[str, Tally]) -> list[dict]:
    """The chunk's rows that pass, in the one form; all are counted in `subsets`."""
    images, kept = Path(job.images or job.piece.file.parent), []
    for number, raw in zip(chunk.numbers, chunk.rows):
        said = raw.get("data_source") if isinstance(raw, dict) else None
        name = said if said and isinstance(said, str) else job.piece.name
        if (tally := subsets.get(name)) is None:
            tally = subsets[name] = Tally()
        try:
            if said is not None and not isinstance(said, str):
                raise ValueError("malformed data_source")
            row = normalise(raw, images, job.decode)
        except ValueError as e:
            named = raw.get("id") if isinstance(raw, dict) else None
            tally.count(tally.skipped, str(e), str(named) if named not in (None, "") else f"row {number} of {job.piece.file.name}")
            continue
        tally.used += 1
        for note in row["notes"]:
            tally.count(tally.noted, note, row["id"] or f"row {number} of {job.piece.file.name}")
        tally.pictures += len(row["images"])
        kept.append(row)
    return kept


# --- all pieces -------------------------------------------------------------------------------------------------------------


def origin_of(source: str, images: str, seed: int, decode: bool = False, rehash: bool = False) -> dict:
    """What prepared data are made of: where it lies, the digest of each of the source's files, and what is done with it."""
    file = Path(source)
    files = _files_of(file)
    base = file if file.is_dir() else file.parent
    return {
        "source": str(file.resolve()),
        "images": str(Path(images).resolve()) if images else "",
        "bytes": sum(f.stat().st_size for f in files),
        "files": dict(zip((os.path.relpath(f, base) for f in files), digests.of_files(files, rehash))),
        "seed": seed,
        "decode": decode,
    }


def _files_of(source: Path) -> list[Path]:
    return list(dict.fromkeys([f for s in sources.find_sources(source) for f in s.files] + [source] * source.is_file()))


def check_origin(folder: Path, theirs: dict, origin: dict) -> None:
    """ValueError with what differs where FOLDER, made from `theirs`, was not made from `origin`."""
    keys = [key for key in origin if key not in ("files", "bytes") and theirs.get(key) != origin[key]]
    differ = [f"{key} {theirs.get(key)!r} there, {origin[key]!r} asked" for key in keys]
    if "files" in theirs:
        names = sorted(theirs["files"].keys() | origin["files"].keys())
        changed = [name for name in names if theirs["files"].get(name) != origin["files"].get(name)]
    else:  # made before digests were kept
        print(f"note: {folder} knows its source by size alone; remove it to have it prepared again")
        changed = [origin["source"]] * (theirs.get("bytes") != origin["bytes"])
    if changed:
        differ.append(f"{len(changed)} file{'s hold' if len(changed) > 1 else ' holds'} something else (first: {', '.join(changed[:3])})")
    if differ:
        raise ValueError(f"{folder} was made from other data: {'; '.join(differ)}. Bring the data back, or give another --out")


def check_pictures(folder: Path, rehash: bool = False) -> None:
    """ValueError where picture files are not, or not any more, those that FOLDER was made of, or its own tables are not as they were
    written."""
    written = read_json(folder / "ledger.json", f"remove {folder} to have it prepared again", {}, LONG).get("tables")
    if written is not None and written != _tables(folder, rehash):
        raise ValueError(f"{folder}/conversations is not what was prepared there: give another --out, or remove {folder}")
    changed: list[str] = []
    gone: list[str] = []
    for arrow in tracked(sorted((folder / "conversations").glob("*.arrow")), "pictures as they were prepared?"):
        some, absent = changed_pictures(arrow, rehash)
        changed, gone = changed + some, gone + absent
    if changed or gone:
        raise ValueError(
            f"of the pictures that {folder} was made of {len(changed)} have changed and {len(gone)} are gone (first: "
            f"{', '.join((changed + gone)[:3])}). Bring them back, or prepare what is there now under another --out"
        )


def prepare(
    source: str,
    images: str,
    out: str,
    max_bad: float = 0.01,
    decode: bool = False,
    workers: int | None = None,
    seed: int = 0,
    rehash: bool = False,
    accept_mix: bool = False,
) -> dict:
    """Write OUT/conversations/*.arrow and OUT/ledger.json; returns the ledger. A finished OUT of the same source and pictures is left
    alone, a half-done one goes on.

    `workers`: processes (default: one for each core). `seed` draws a mix's `random:N`. `rehash` reads source and pictures whatever is
    known of them. `accept_mix` takes a mix that gives other numbers of rows than it says. Raises ValueError for a source that cannot be
    read, for an OUT of another source or other pictures, for a mix that differs by more than MIX_TOLERANCE, for too little disk, and as
    soon as more than `max_bad` of the rows are known to be unusable (nothing is left to train on then, but pieces without a fault need
    not be scanned again).
    """
    folder, file = Path(out), Path(source)
    mix = sources.find_mix(file)
    if images and not Path(images).is_dir():
        raise ValueError(f"no folder of pictures at {images}: give --images the folder that the conversations' picture paths start from")
    origin = origin_of(source, images, seed, decode, rehash)
    for known in (folder / "ledger.json", folder / "origin.json"):
        if known.is_file():
            fields = {"origin": dict} if known.name == "ledger.json" else {}
            content = read_json(known, f"remove {folder} to have it prepared again", fields, LONG)
            check_origin(folder, content.get("origin", {"files": {}, **content}), origin)
            if known.name == "ledger.json":
                check_pictures(folder, rehash)
                return content

    plan = [(s, *sources.pieces(s, seed)) for s in mix.sources]
    check_mix(file, mix, plan, accept_mix)
    jobs: list[PieceJob] = []
    for _, pieces, _ in plan:
        jobs += [PieceJob(piece, images, decode, folder / "conversations", len(jobs) + i) for i, piece in enumerate(pieces)]
    needed = sum(f.stat().st_size for s in mix.sources for f in s.files if f.suffix == ".parquet")
    free = shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.is_dir())).free
    if needed > free:
        raise ValueError(f"{source} holds {needed / 1e9:.1f} GB and {folder} has room for {free / 1e9:.1f} GB: give --out on a larger disk")
    (folder / "conversations").mkdir(parents=True, exist_ok=True)
    write_json(folder / "origin.json", origin)

    limit = max_bad * (sum(job.piece.taken for job in jobs) or 1)
    tallies = {}
    for job, tally in _worked(jobs, workers, f"prepare {file.name}"):
        tallies[job.number] = tally
        if sum(t["read"] - t["used"] for subsets in tallies.values() for t in subsets.values()) > limit:
            break
    ledger = _ledger(origin, mix, plan, tallies)
    bad = ledger["read"] - ledger["used"] + (ledger["absent"] if mix.obtainable is None else 0)  # else `check_mix` has looked at them
    if ledger["used"] == 0 or bad > limit:
        for job in jobs:  # mended files must be looked at again
            if any(t["skipped"] for t in tallies.get(job.number, {}).values()):
                job.tally.unlink()
        absent = f" and {ledger['absent']} are said to exist but do not" if ledger["absent"] else ""
        raise ValueError(
            f"{ledger['read'] - ledger['used']} of {ledger['read']} conversations of {source} cannot be used{absent}: {ledger['skipped']}; "
            f"first: {ledger['names']}. Mend them, or allow more with --max-bad"
        )
    rows = _digests(folder)
    ledger["tables"] = _tables(folder)
    ledger["duplicates"] = len(rows) - len(set(rows))
    ledger["digest"] = hashlib.sha256(b"".join(rows)).hexdigest()
    if origin_of(source, images, seed, decode)["files"] != origin["files"]:
        raise ValueError(f"{source} was changed while it was read: remove {folder} and give the same command again")
    write_json(folder / "ledger.json", ledger)
    (folder / "origin.json").unlink()
    for job in jobs:
        job.tally.unlink()
    return ledger


def _worked(jobs: list[PieceJob], workers: int | None, title: str) -> Iterator[tuple[PieceJob, dict]]:
    """(job, tally) of every job as it gets done, those of an earlier run first."""
    done = [job for job in jobs if job.tally.is_file() and job.arrow.is_file() and not any(changed_pictures(job.arrow))]
    with progress(title, sum(job.piece.taken for job in jobs), sum(job.piece.taken for job in done)) as advance:
        yield from ((job, read_json(job.tally, most=LONG)) for job in done)
        for job, tally in finished(work, [job for job in jobs if job not in done], workers):
            yield job, tally
            advance(job.piece.taken)


def check_mix(file: Path, mix: sources.Mix, plan: list, accept: bool) -> None:
    """ValueError where the rows that a mix takes differ by more than MIX_TOLERANCE from those that it says can be had."""
    taken = sum(piece.taken for _, pieces, _ in plan for piece in pieces)
    if mix.obtainable is None or abs(taken - mix.obtainable) <= MIX_TOLERANCE * mix.obtainable or accept:
        return
    differ = [(s.name, s.rows, rows) for s, _, rows in plan if s.rows is not None and s.rows != rows]
    differ.sort(key=lambda one: -abs(one[1] - one[2]))
    named = "; ".join(f"{name} holds {rows:,} of {said:,} rows" for name, said, rows in differ[:5])
    raise ValueError(
        f"{file} takes {taken:,} rows here, and says that {mix.obtainable:,} can be had ({named}). "
        "Bring what lacks with python -m train_mllm.fetch, or take it as it is with --accept-mix"
    )


def _ledger(origin: dict, mix: sources.Mix, plan: list, tallies: dict[int, dict]) -> dict:
    """All tallies, by number of the piece, as one: totals, subsets, and the sources with the rows that they were said to hold, hold, and
    that were taken of them, used, and skipped by reason."""
    parts: dict[str, list[dict]] = {}
    for number in sorted(tallies):
        for name, found in tallies[number].items():
            parts.setdefault(name, []).append(found)
    subsets, ledgers = {}, [Ledger.merged(found) for found in parts.values()]
    for (name, found), ledger in zip(parts.items(), ledgers):
        counts = {"read": ledger.read, "used": ledger.used, "pictures": sum(part["pictures"] for part in found)}
        subsets[name] = {**counts, "skipped": dict(ledger.skipped)}
    whole = Ledger.merged(ledger.as_dict() for ledger in ledgers)
    told: list[dict] = []
    first = 0
    for s, pieces, rows in plan:
        mine = [tally for number in range(first, first + len(pieces)) for tally in tallies.get(number, {}).values()]
        first += len(pieces)
        total = Ledger.merged(mine)
        told.append(
            {
                "name": s.name,
                "rule": s.rule,
                "expected": s.rows,
                "rows": rows,
                "taken": sum(piece.taken for piece in pieces),
                "used": total.used,
                "skipped": dict(total.skipped),
                "passed_over": [path.name for path in s.passed_over],
            }
        )
    return {
        "origin": origin,
        **{key: sum(subset[key] for subset in subsets.values()) for key in ("read", "used", "pictures")},
        "absent": sum(max(0, (t["expected"] or 0) - t["rows"]) for t in told),
        "skipped": dict(whole.skipped),
        "noted": dict(whole.noted),
        "names": whole.names,
        "sources": told,
        "subsets": subsets,
        "mix": {"authors": mix.authors, "obtainable": mix.obtainable, "unpublished": list(mix.unpublished)},
    }


def _tables(folder: Path, rehash: bool = False) -> dict[str, str]:
    """The digest of each table of conversations, by name."""
    arrows = sorted((folder / "conversations").glob("*.arrow"))
    return dict(zip((file.name for file in arrows), digests.of_files(arrows, rehash)))


def _digests(folder: Path) -> list[bytes]:
    """Digests of all rows in order: two equal ones are the same turns about the same pictures."""
    return open_conversations(folder)["digest"].to_pylist()


# --- showing ----------------------------------------------------------------------------------------------------------------


def print_sources(ledger: dict) -> None:
    """A line for each source: what is there, what its rule takes, what was used, and what lies beside it unread."""
    for entry in ledger["sources"]:
        expected = f"said to hold {entry['expected']:,}" if entry["expected"] is not None else "number unchecked"
        used = f", {entry['used']:,} used" if "used" in entry else ""  # folders of before do not say it
        print(f"  {entry['name']}: {entry['rows']:,} rows, {expected}; {entry['rule']} takes {entry['taken']:,}{used}")
        if passed_over := entry.get("passed_over"):
            print(f"    no conversations, not read: {', '.join(passed_over)}")
    mix = ledger.get("mix", {})
    if mix.get("obtainable") is not None:
        taken = sum(entry["taken"] for entry in ledger["sources"])
        authors = f"; {mix['authors']:,} with what was never published" if mix["authors"] is not None else ""
        print(f"  {taken:,} rows taken, {mix['obtainable']:,} can be had{authors}: {', '.join(mix['unpublished']) or 'nothing lacks'}")


def show(folder: Path, samples: int, tokenizer: str) -> None:
    """Print the ledger and a few conversations; with a tokenizer's folder, as the model sees them, what it learns in [[ ]]."""
    if not (folder / "ledger.json").is_file():
        raise ValueError(f"{folder} has no ledger.json: give a folder made by train_mllm.prepare_data")
    counts = {"used": int, "read": int, "pictures": int, "duplicates": int, "skipped": dict, "names": dict}
    fields = {"origin": dict, "digest": str, "sources": list, **counts}
    ledger = read_json(folder / "ledger.json", f"prepare {folder} again", fields, LONG)
    print(f"from {ledger['origin']['source']}, digest {ledger['digest'][:8]}")
    print(
        f"{ledger['used']:,} of {ledger['read']:,} conversations, {ledger['pictures']:,} pictures, "
        f"{ledger['duplicates']:,} duplicates (kept)"
    )
    print_sources(ledger)
    for reason, n in ledger["skipped"].items():
        print(f"  left out: {n:,} {reason} ({', '.join(ledger['names'][reason])})")
    for note, n in ledger.get("noted", {}).items():
        print(f"  noted: {n:,} {note} ({', '.join(ledger['names'][note])})")
    table = open_conversations(folder)
    if tokenizer:
        from transformers import AutoTokenizer

        from .data import as_text

        tokenizer = load_auto(AutoTokenizer, tokenizer)
    step = max(1, len(table) // max(samples, 1))
    for row in (table.slice(i, 1).to_pylist()[0] for i in range(0, len(table), step)[:samples]):
        seen = [image_check.check_image(p["bytes"] if p["bytes"] is not None else Path(p["path"]).read_bytes()) for p in row["images"]]
        print(f"\n{row['id'] or '(no id)'}: {', '.join(f'{w} x {h}' for w, h, _ in seen) or 'no picture'}")
        if tokenizer:
            print(as_text(row["messages"], tokenizer))
        else:
            for message in row["messages"]:
                print(f"  {message['role']}: {message['content']}")


@command
def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    showing = argv[:1] == ["show"]
    parser = new_parser(
        prog="python -m train_mllm.prepare_data" + (" show" if showing else ""),
        description="Bring conversations into the one form that training reads, and say what was left out.",
        epilog="examples:\n"
        "  python -m train_mllm.prepare_data conversations.json --images images/ --out data/sft\n"
        "  python -m train_mllm.prepare_data mix.yaml --images images/ --out data/sft --workers 16\n"
        "  python -m train_mllm.prepare_data show data/sft --tokenizer weights/smollm2-135m",
    )
    if showing:
        parser.add_argument("folder", help="a folder made by this command")
        parser.add_argument("--samples", type=bounded(int), default=3, help="conversations to print (default 3)")
        parser.add_argument("--tokenizer", default="", help="folder of a language model: print what it sees, what it learns in [[ ]]")
    else:
        parser.add_argument("source", help="JSON, JSON lines, parquet, a folder of such files, or a YAML mix")
        parser.add_argument("--images", default="", help="folder of the pictures (default: the source's own)")
        parser.add_argument("--out", required=True, help="folder to write")
        parser.add_argument(
            "--max-bad", type=bounded(float, most=1), default=0.01, help="share of unusable rows that is borne (default 0.01)"
        )
        parser.add_argument(
            "--decode", action="store_true", help="decode every picture in full: finds damage in the middle, ten times slower"
        )
        parser.add_argument("--workers", type=bounded(int, 1), help="processes (default: one for each core)")
        parser.add_argument("--seed", type=bounded(int), default=0, help="draws a mix's random:N (default 0)")
        parser.add_argument("--rehash", action="store_true", help="read source and pictures again, whatever is known of them")
        parser.add_argument("--accept-mix", action="store_true", help="take a mix that gives over 1 %% more or fewer rows than it says")
    args = parser.parse_args(argv[1:] if showing else argv)
    if showing:
        show(Path(args.folder), args.samples, args.tokenizer)
        return 0
    with locked(Path(args.out)):
        ledger = prepare(**vars(args))
    skipped = ledger["skipped"] or "none"
    print_sources(ledger)
    print(f"{args.out}: {ledger['used']} of {ledger['read']} conversations, skipped {skipped}, digest {ledger['digest'][:8]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
