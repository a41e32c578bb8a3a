"""Records of what was trained and answered: what a file must say, what is read of older ones, what is refused."""

import json
from dataclasses import fields

import pytest

from genlip.common.schema import KINDS, SCHEMA, EarlierStage, Provenance, Record, Result, RunRecord, json_schema, main, parse, read, write
from tests.json_schema import complaints

EXPORT = Provenance(
    schema=SCHEMA, stage="sft", encoder="a", llm="b", weights_digest="c", earlier=[EarlierStage(schema=2, stage="projector")]
)
RESULT = Result(
    schema=SCHEMA,
    suite="s",
    task="t",
    encoder="a",
    llm="b",
    n=1,
    n_expected=2,
    results={"x,none": 1.0},
    key={"limit": None},
    provenance=EXPORT,
)


def test_a_name_that_would_command_a_terminal_is_refused():
    for name in ("a\x1b[2J", "two\nlines"):
        said = Provenance(schema=2, stage="sft", encoder=name, llm="l", weights_digest="0").as_json()
        with pytest.raises(ValueError, match=r"provenance\.json: encoder is .*, and a name holds no control characters"):
            parse(Provenance, said, "provenance.json", "export the model again")


@pytest.mark.parametrize("record", [EXPORT, RESULT], ids=lambda record: type(record).__name__)
def test_what_is_written_is_read_back_and_every_field_is_needed_but_those_that_came_later(record, tmp_path):
    said = json.loads(json.dumps(record.as_json()))
    file = tmp_path / "x.json"
    file.write_text(json.dumps(said))
    assert read(type(record), file, "mend it") == record
    later = {f.name for f in fields(record) if f.metadata["later"]}
    came = {
        "Provenance": {"view", "encoder_config", "preprocessing", "llm_config", "tokenizer_digest", "chat_template"},
        "Result": {"noted", "samples_digest"},
    }
    assert later == came[type(record).__name__]
    file.write_text(json.dumps({key: value for key, value in said.items() if key not in later}))
    assert read(type(record), file, "mend it") == record  # written before there were such fields
    for name in set(said) - {"schema"} - later:
        file.write_text(json.dumps({key: value for key, value in said.items() if key != name}))
        with pytest.raises(ValueError, match=f"^{file} does not say {name}: mend it$"):
            read(type(record), file, "mend it")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokens": "16"}, 'x: tokens is "16", and takes a whole number or null: mend it'),
        ({"frozen": 1}, "x: frozen is 1, and takes true or false or null: mend it"),
        ({"steps": True}, "x: steps is true, and takes a whole number or null: mend it"),
        ({"recipe": []}, r"x: recipe is \[\], and takes an object: mend it"),
        ({"llm": None}, "x does not say llm: mend it"),
        ({"earlier": [{"schema": 2}]}, "x: earlier, 1 does not say stage, data_digest, steps, protocol, recipe: mend it"),
        ({"colour": "red"}, "x has colour, which schema 2 does not know: mend it"),
        ({"schema": SCHEMA + 1}, "x is of schema 3, and this version reads 1 to 2: update GenLIP-Eval"),
        ({"schema": "2"}, 'x is of schema "2", and this version'),
    ],
)
def test_what_is_wrong_is_one_sentence_with_file_and_field(changes, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        parse(Provenance, EXPORT.as_json() | changes, "x", "mend it")


def test_a_file_without_a_version_is_of_schema_1_and_has_defaults_for_what_it_lacks():
    old = parse(Provenance, {"stage": "sft", "encoder": "a", "llm": "b", "weights_digest": "c", "of_old": 1}, "x", "mend it")
    assert (old.schema, old.projector, old.earlier, old.frozen) == (1, "mlp2x_gelu", [], None)
    with pytest.raises(ValueError, match="x does not say encoder, llm, weights_digest"):
        parse(Provenance, {"stage": "sft"}, "x", "mend it")
    stage = {"stage": "projector", "data_digest": "d", "steps": 3, "recipe": {"lr": 0.1, "workers": 4}}
    (earlier,) = parse(Provenance, EXPORT.as_json() | {"earlier": [stage]}, "x", "mend it").earlier
    assert earlier.schema == 1 and earlier.compared() == {
        "stage": "projector", "data_digest": "d", "steps": 3, "recipe.lr": 0.1,
        "llm_config": None, "tokenizer_digest": None, "chat_template": None,
    }  # fmt: skip


def test_an_edited_file_is_refused(tmp_path):
    """Unless it was written before there were seals."""
    file = tmp_path / "provenance.json"
    write(file, EXPORT)
    assert read(Provenance, file, "mend it") == EXPORT
    content = json.loads(file.read_text())
    for changes in ({"frozen": not EXPORT.frozen}, {"tokens": 999}, {"seal": "0" * 64}, {"schema": 1}):
        file.write_text(json.dumps(content | changes))
        with pytest.raises(ValueError, match="was edited: its seal is not that of its content"):
            read(Provenance, file, "mend it")
    del content["seal"]
    file.write_text(json.dumps(content))
    assert read(Provenance, file, "mend it") == EXPORT


def test_every_field_says_its_kind_and_its_meaning():
    for record in (EarlierStage, Provenance, Result):
        assert all(f.metadata["kind"] in KINDS and f.metadata["said"] for f in fields(record))


def test_a_comparison_reads_compared_fields_and_the_protocol():
    facts = {"protocol": {"lr": 0.1}, "recipe": {"workers": 4}, "seed": 3, "zero": 2, "llm_digest_before": "l"}
    said = parse(Provenance, EXPORT.as_json() | facts, "x", "").compared()
    assert said["recipe.lr"] == 0.1 and said["stage"] == "sft"
    assert not {"recipe.workers", "seed", "zero", "encoder", "weights_digest", "schema", "llm"} & set(said)
    assert EXPORT.compared()["llm"] == "b", "by its name where no digest is known"


def test_a_record_is_read_by_a_fields_name_too():
    assert isinstance(EXPORT, Record) and EXPORT["stage"] == EXPORT.get("stage") == {**EXPORT}["stage"] == "sft"
    assert EXPORT.get("nothing") is None and "nothing" not in EXPORT and len(EXPORT) == len(fields(Provenance))


def test_null_of_schema_1_stands_for_what_is_not_known():
    said = {
        "stage": "sft",
        "encoder": "e",
        "llm": "l",
        "weights_digest": "w",
        "recipe": None,
        "earlier": [{"stage": "projector", "recipe": None}],
    }
    record = parse(Provenance, said, "p.json", "mend")
    assert record.schema == 1 and record.recipe == {} and record.earlier[0].recipe == {}


# --- JSON Schema ------------------------------------------------------------------------------------------------------------

RUN = RunRecord(
    schema=SCHEMA, stage="sft", data="d", data_digest="c", per_step="4 conversations", dtype="float32", processes=1, accumulation=1, zero=0,
    kernels="k", versions={}, git_commit=None,
)  # fmt: skip


@pytest.mark.parametrize("record", [EXPORT, RESULT, RUN], ids=lambda record: type(record).__name__)
def test_what_is_written_is_as_its_json_schema_says(record):
    said, schema = json.loads(json.dumps(record.as_json())), json_schema(type(record))
    assert complaints(said, schema) == []
    for name in said:
        assert complaints({key: value for key, value in said.items() if key != name}, schema) == [f" lacks {name}"]
        assert complaints(said | {name: ["x"] if not isinstance(said[name], list) else "x"}, schema), name
    assert complaints(said | {"colour": "red"}, schema) == [" has colour"]
    (schema_field,) = [f for f in fields(record) if f.name == "schema"]
    assert schema["properties"]["schema"]["description"] == schema_field.metadata["said"]


@pytest.mark.parametrize(("name", "kind"), [("run", RunRecord), ("provenance", Provenance), ("result", Result)])
def test_the_command_prints_the_schema_of_a_file(name, kind, capsys):
    assert main([name]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("$schema") == "https://json-schema.org/draft/2020-12/schema" and printed == json_schema(kind)
