"""What a run, a training stage's export and a task's result say of themselves: records with a version, for all who write or read them.

    provenance = read(Provenance, Path("runs/sft/export/provenance.json"), "export the model again")
    python -m genlip.common.schema run          # the JSON Schema of a file, made from its record; also provenance, result

Every field has a kind, which says what a comparison of two rows makes of it:
    compared     has to be equal, or the two differ in more than the encoder
    derived      follows from other fields, or is what the encoder brings
    environment  may differ without changing what is learned or answered, and is said where it does
    seed         noise: what several runs differ in
    name         a label or a place

Of a run's record, what is `compared` has to be equal for the run to go on.

A file without `schema` is of schema 1: it is read, what it lacks has its field's default, and it is never ranked with one of schema 2.
"""

import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from .command import command, new_parser
from .files import WORDS, read_json, sha256_json, write_json

SCHEMA = 2
KINDS = ("compared", "derived", "environment", "seed", "name")

# Of schema 1, whose recipes do not say which of their fields are harmless: what an encoder brings, names, how a run was watched.
_NOT_COMPARED_IN_1 = {"encoder", "encoder_key", "arch", "untrained", "resolution", "interpolation", "parameters", "weights_digest"}
_NOT_COMPARED_IN_1 |= {"encoder_digest", "encoder_digest_before", "llm_digest", "git_commit", "out", "init", "data", "images", "workers"}
_NOT_COMPARED_IN_1 |= {"cache_features", "report", "save_every", "seed", "schema", "protocol", "earlier", "recipe"}


def fact(kind: str, said: str, later: bool = False, **default: Any) -> Any:
    """A field of a record: its kind, what it means, and `default` or `default_factory` where a file of schema 1 may lack it; of schema 2
    too, where the field came `later` than that schema."""
    assert kind in KINDS
    return field(metadata={"kind": kind, "said": said, "later": later}, **default)


class Record(Mapping[str, Any]):
    """A frozen dataclass that is read by attribute, or by a field's name as its file is."""

    def __getitem__(self, name: str) -> Any:
        if name not in self.__dataclass_fields__:  # type: ignore[attr-defined]
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dataclass_fields__)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.__dataclass_fields__)  # type: ignore[attr-defined]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload, no-any-return]


class Stage(Record):
    """What a comparison reads of a training stage."""

    schema: int
    recipe: dict[str, Any]
    protocol: dict[str, Any]

    def compared(self) -> dict[str, Any]:
        """The facts that have to be equal for two MLLMs to differ in the encoder alone; those of the recipe as `recipe.NAME`."""
        if self.schema == 1:
            flat = {**self, **{f"recipe.{name}": value for name, value in self.recipe.items()}}
            return {name: value for name, value in flat.items() if name.removeprefix("recipe.") not in _NOT_COMPARED_IN_1}
        own = {f.name: self[f.name] for f in fields(self) if f.metadata["kind"] == "compared"}  # type: ignore[arg-type]
        return own | {f"recipe.{name}": value for name, value in self.protocol.items()}


_PROTOCOL = "what of the recipe decides what is learned, as it took effect, with `per_step`; compared, name by name"


@dataclass(frozen=True, kw_only=True)
class EarlierStage(Stage):
    """A stage that another one started from."""

    schema: int = fact("derived", "version of the stage's export", default=1)
    stage: str = fact("compared", "`projector` or `sft`")
    data_digest: str | None = fact("compared", "digest of its data", default=None)
    steps: int | None = fact("compared", "optimizer steps", default=None)
    llm_config: str | None = fact("compared", "digest of the language model's config", True, default=None)
    tokenizer_digest: str | None = fact("compared", "digest of the tokenizer", True, default=None)
    chat_template: str | None = fact("compared", "digest of its chat template", True, default=None)
    protocol: dict[str, Any] = fact("derived", _PROTOCOL, default_factory=dict)
    recipe: dict[str, Any] = fact("derived", "its recipe, with all its fields", default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Provenance(Stage):
    """provenance.json of an export: one stage of fine-tuning, and those before it."""

    schema: int = fact("derived", "version of this file's fields, 2; a file without it is of schema 1", default=1)
    stage: str = fact("compared", "`projector` or `sft`")
    encoder: str = fact("name", "the encoder's label")
    encoder_key: str | None = fact("name", "its key in the table; null for a folder of one's own", default=None)
    arch: str | None = fact("derived", "its family", default=None)
    llm: str = fact("name", "the last part of the language model's name")
    frozen: bool | None = fact("compared", "whether the encoder was frozen, in this stage and all before it; null: not known", default=None)
    note: str | None = fact("derived", "what sets the run apart from the paper's setting or the native backend, or null", default=None)
    resolution: int | None = fact("derived", "pixels per side", default=None)
    tokens: int | None = fact("compared", "visual tokens per picture", default=None)
    untrained: bool = fact("derived", "whether the encoder has random weights from its seed", default=False)
    projector: str = fact("compared", "kind of projector", default="mlp2x_gelu")
    native_tokens: int | None = fact(
        "compared", "most tokens of a picture at its own aspect ratio; null: every picture is a square", default=None
    )
    view: str = fact(
        "compared",
        "what the encoder sees of a picture: `square`, `crop`, `native_N`, or anyres with its grids, tiles across x down",
        True,
        default="square",
    )
    interpolation: str | None = fact("derived", "what was done to the encoder's positions to fit the grid, or null", default=None)
    encoder_digest_before: str | None = fact("derived", "digest of the encoder before training", default=None)
    encoder_digest: str | None = fact("derived", "digest of the encoder in the export; equal to the one before if frozen", default=None)
    earlier: list[EarlierStage] = fact(
        "derived", "the stages before, the oldest first; compared, each by its own fields", default_factory=list
    )
    llm_digest_before: str | None = fact("compared", "digest of the language model before the first of the stages", default=None)
    llm_digest: str | None = fact("derived", "digest of the language model in the export", default=None)
    encoder_config: str | None = fact("derived", "digest of the encoder's config", True, default=None)
    preprocessing: str | None = fact("derived", "digest of how pictures became pixels", True, default=None)
    llm_config: str | None = fact("derived", "digest of the language model's config", True, default=None)
    tokenizer_digest: str | None = fact("derived", "digest of the tokenizer", True, default=None)
    chat_template: str | None = fact("derived", "digest of its chat template", True, default=None)
    data_digest: str | None = fact("compared", "the ledger's `digest`", default=None)
    parameters: dict[str, Any] = fact(
        "derived", "of `encoder`, `projector` and `llm`: how many are `trained`, and `all`", default_factory=dict
    )
    steps: int | None = fact("compared", "optimizer steps", default=None)
    processes: int | None = fact("environment", "processes that trained", default=None)
    accumulation: int | None = fact("environment", "micro-steps per step", default=None)
    zero: int | None = fact("environment", "DeepSpeed's ZeRO stage, 0 for none", default=None)
    protocol: dict[str, Any] = fact("derived", _PROTOCOL, default_factory=dict)
    seed: int | None = fact("seed", "the recipe's", default=None)
    recipe: dict[str, Any] = fact("derived", "the recipe, with all its fields", default_factory=dict)
    versions: dict[str, Any] = fact("environment", "of torch, transformers, accelerate and this project", default_factory=dict)
    git_commit: str | None = fact("environment", "of this project, with `-dirty` where files differ; null outside a clone", default=None)
    weights_digest: str = fact("derived", "digest of all weights; `mllm.load` refuses an export whose weights have another")

    def compared(self) -> dict[str, Any]:
        unknown = self.schema > 1 and self.llm_digest_before is None
        return super().compared() | ({"llm": self.llm} if unknown else {})

    def as_earlier(self) -> EarlierStage:
        """What a later stage keeps of this one."""
        return EarlierStage(**{f.name: self[f.name] for f in fields(EarlierStage)})


@dataclass(frozen=True, kw_only=True)
class Result(Record):
    """result.json of a task."""

    schema: int = fact("derived", "version of this file's fields, 2; a file without it is of schema 1", default=1)
    suite: str = fact("name", "name of the suite")
    task: str = fact("compared", "name of the task")
    encoder: str = fact("name", "the encoder's label")
    llm: str = fact("name", "name of the language model")
    n: int = fact("derived", "samples scored")
    n_expected: int = fact("compared", "samples that the suite, or the data's manifest, declares")
    left_out: dict[str, Any] = fact("compared", "doc id -> why, of questions that cannot be asked", default_factory=dict)
    noted: dict[str, Any] = fact(
        "derived", "note -> questions that it was made of, such as those about a `picture of mode I;16`", True, default_factory=dict
    )
    empty: int | None = fact("derived", "answers that are empty", default=None)
    cleaned: int | None = fact(
        "derived", "captions from which line separators were taken before CIDEr's tokenizer reads them", default=None
    )
    results: dict[str, Any] = fact("derived", "lmms-eval's numbers, by its own keys")
    generation: dict[str, Any] = fact("derived", "lmms-eval's settings of generation", default_factory=dict)
    key: dict[str, Any] = fact("compared", "what the answers depend on, see below")
    fingerprint: dict[str, Any] = fact("compared", "part -> digest or word, of the MLLM that answered, see below", default_factory=dict)
    environment: dict[str, Any] = fact("environment", "`torch`, `transformers`, `device`, `batch_size`", default_factory=dict)
    provenance: Provenance = fact("derived", "[the MLLM's provenance.json](#provenancejson-of-fine-tuning)")
    seconds: float | None = fact("environment", "how long the task took, this time", default=None)
    samples_digest: str | None = fact("derived", "sha256 of samples.jsonl", True, default=None)

    @property
    def weights_digest(self) -> str:
        return self.provenance.weights_digest

    @property
    def digest(self) -> str:
        """Of the MLLM: its fingerprint's, in schema 1 its weights'."""
        return str(self.key.get("model") or self.key["weights"])


@dataclass(frozen=True, kw_only=True)
class RunRecord(Record):
    """run.json of a run folder: what the run was resolved to before step 0. Digests are of what was loaded; null: the run has no such."""

    schema: int = fact("derived", "version of this file's fields, 2")
    stage: str = fact("derived", "`pretrain`, `projector` or `sft`")
    encoder: str | None = fact("name", "the encoder's label", default=None)
    encoder_source: str | None = fact("name", "folder or hub id of its weights; null: they are made from a seed", default=None)
    encoder_digest: str | None = fact("compared", "digest of its weights", default=None)
    encoder_config: str | None = fact("compared", "digest of its config", default=None)
    preprocessing: str | None = fact("compared", "digest of how pictures become pixels, and of where features are taken", default=None)
    llm: str | None = fact("name", "the last part of the language model's name", default=None)
    llm_source: str | None = fact("name", "its folder or hub id", default=None)
    llm_digest: str | None = fact("compared", "digest of its weights, after `init` where that brings others", default=None)
    head_digest: str | None = fact("compared", "digest of its output layer", default=None)
    llm_config: str | None = fact("compared", "digest of its config", default=None)
    tokenizer_source: str | None = fact("name", "folder or hub id of the tokenizer", default=None)
    tokenizer_digest: str | None = fact("compared", "digest of the tokenizer", default=None)
    chat_template: str | None = fact("compared", "digest of its chat template", default=None)
    projector: str | None = fact("derived", "kind of projector", default=None)
    init: str | None = fact("name", "the export of an earlier stage that the run starts from, or null", default=None)
    init_digest: str | None = fact("compared", "digest of that export's weights", default=None)
    projector_made_for: str | None = fact("derived", "digest of the encoder that its projector was made for", default=None)
    data: str = fact("name", "the recipe's")
    data_digest: str = fact("compared", "digest of the data, as in the export's provenance")
    per_step: str = fact("derived", "what a step learns from, all processes together")
    dtype: str = fact("compared", "of the weights as they are loaded")
    processes: int = fact("environment", "processes that train")
    accumulation: int = fact("environment", "micro-steps per step; times `processes` it stays what it is at the start")
    zero: int = fact("environment", "DeepSpeed's ZeRO stage, 0 for none; recorded, and stays what it was at the start")
    kernels: str = fact("environment", "what attention and layers are computed with")
    versions: dict[str, Any] = fact("environment", "of torch, transformers, accelerate and this project")
    git_commit: str | None = fact("environment", "of this project, with `-dirty` where files differ; null outside a clone")
    source_files: dict[str, Any] = fact(
        "derived", "of `encoder`, `llm` and `init`, where they are folders: file -> digest of its bytes", True, default_factory=dict
    )


# --- reading ----------------------------------------------------------------------------------------------------------------

R = TypeVar("R", bound=Record)


def write(path: Path, record: Record) -> None:
    """The record as a file, with `seal`, the digest of all its fields."""
    content = json.loads(json.dumps(record.as_json()))
    write_json(path, content | {"seal": sha256_json(content)})


def read(kind: type[R], path: Path, mend: str) -> R:
    """The record in a file. ValueError, one sentence with file and field, where it lacks one, has one of another type, is newer, or was
    edited since it was written."""
    return parse(kind, read_json(path, mend), str(path), mend)


def parse(kind: type[R], content: object, where: str, mend: str) -> R:
    """The record that `content` is, of whatever schema it says; `where` names it in errors, `mend` ends them."""
    if not isinstance(content, dict):
        raise ValueError(f"{where} is no {kind.__name__}, which is an object: {mend}")
    content = dict(content)
    if (seal := content.pop("seal", None)) is not None and seal != sha256_json(content):
        raise ValueError(f"{where} was edited: its seal is not that of its content. Bring the file back, or {mend}")
    schema = content.get("schema", 1)
    if not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
        raise ValueError(f"{where} is of schema {json.dumps(schema)}, and this version reads 1 to {SCHEMA}: update GenLIP-Eval")
    known, hints = fields(kind), get_type_hints(kind)  # type: ignore[arg-type]
    bare = {f.name for f in known if f.default is MISSING and f.default_factory is MISSING}
    needed = [f.name for f in known if f.name in bare or (schema > 1 and not f.metadata["later"])]
    if missing := [name for name in needed if name not in content or (content[name] is None and hints[name] is str)]:
        raise ValueError(f"{where} does not say {', '.join(missing)}: {mend}")
    if schema == 1:  # in which null stood for what was not known
        content = {name: value for name, value in content.items() if value is not None or name in needed}
    for f in known:
        if f.metadata["kind"] == "name" and not str(content.get(f.name) or "").isprintable():
            raise ValueError(f"{where}: {f.name} is {json.dumps(content[f.name])}, and a name holds no control characters: {mend}")
    names = {f.name for f in known}
    if schema > 1 and (strange := sorted(content.keys() - names)):
        raise ValueError(f"{where} has {', '.join(strange)}, which schema {schema} does not know: {mend}")
    values = {name: _value(value, hints[name], f"{where}: {name}", mend) for name, value in content.items() if name in names}
    return kind(**values)


def _value(value: Any, hint: Any, where: str, mend: str) -> Any:
    if isinstance(hint, type) and issubclass(hint, Record):
        return parse(hint, value, where, mend)
    inner = get_args(hint)[0] if get_origin(hint) is list else None
    if inner and isinstance(value, list) and issubclass(inner, Record):
        return [parse(inner, each, f"{where}, {i}", mend) for i, each in enumerate(value, 1)]
    allowed = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = tuple(get_origin(each) or each for each in allowed)
    if float in kinds:
        kinds += (int,)
    if (isinstance(value, bool) and bool not in kinds) or not isinstance(value, kinds):
        wanted = " or ".join("null" if each is type(None) else WORDS[get_origin(each) or each] for each in allowed)
        raise ValueError(f"{where} is {json.dumps(value)[:60]}, and takes {wanted}: {mend}")
    return value


# --- as JSON Schema -----------------------------------------------------------------------------------------------------------

FILES: dict[str, type[Record]] = {"run": RunRecord, "provenance": Provenance, "result": Result}
_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", list: "array", type(None): "null"}


def json_schema(kind: type[Record]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the files that hold such a record, as this version writes them."""
    hints = get_type_hints(kind)
    properties = {
        f.name: {"description": f.metadata["said"], "x-kind": f.metadata["kind"], **_schema_of(hints[f.name])}
        for f in fields(kind)  # type: ignore[arg-type]
    }
    sealed = {**properties, "seal": {"description": "digest of all other fields of the file", "type": "string"}}
    return {"title": kind.__name__, "type": "object", "properties": sealed, "required": [*properties], "additionalProperties": False}


def _schema_of(hint: Any) -> dict[str, Any]:
    if isinstance(hint, type) and issubclass(hint, Record):
        return json_schema(hint)
    if get_origin(hint) is list:
        return {"type": "array", "items": _schema_of(get_args(hint)[0])}
    allowed = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    names = [_TYPES[get_origin(each) or each] for each in allowed]
    return {"type": names if len(names) > 1 else names[0]}


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m genlip.common.schema",
        description="The JSON Schema of a file that runs and evaluations write: run.json, provenance.json of fine-tuning, result.json.",
        epilog="example:\n  python -m genlip.common.schema provenance > provenance.schema.json",
    )
    parser.add_argument("file", choices=FILES, help="which file")
    args = parser.parse_args(argv)
    print(json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **json_schema(FILES[args.file])}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
