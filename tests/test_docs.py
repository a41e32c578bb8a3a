"""The pages: every link leads somewhere, every command would be understood, every field that is written is described."""

import argparse
import ast
import contextlib
import dataclasses
import importlib
import io
import json
import re
import shlex
import subprocess
import sys
from urllib.parse import urlparse

import pytest

from genlip.common import schema
from tests import pages
from tests.pages import PAGES, ROOT

FILES = pages.text_of("docs/files.md")
TRAIN_SCRIPTS = {"pretrain_projector.sh": "projector"}
HOW = ("frozen", "unfrozen", "unfrozen_anyres")
TRAIN_SCRIPTS |= {f"sft_qwen{size}_{how}.sh": f"sft-qwen{size}-{how.replace('_', '-')}" for size in ("1.5b", "7b") for how in HOW}
# Programs of others, whose flags are theirs to check.
OTHERS = {"hf", "git", "pip", "source", "export", "lmms-eval", "echo", ".venv/bin/python"}


def ids(path) -> str:
    return str(path.relative_to(ROOT))


# --- links and form ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_to_files_and_headings_that_exist(page):
    text = page.read_text()
    for link in pages.links(text):
        where = urlparse(link)
        if where.scheme:
            assert where.scheme == "https" and "." in where.netloc, link
            continue
        target = (page.parent / where.path).resolve() if where.path else page
        assert target.exists() and target.is_relative_to(ROOT), link
        if where.fragment:
            assert where.fragment in pages.anchors(target.read_text()), link


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_pages_are_written_as_they_should_be(page):
    text = page.read_text()
    # A command is one line, however long, and so is the row of a table.
    long = [line for line in text.splitlines() if len(line) > (160 if line.startswith("|") else 140) and not line.startswith("    ")]
    assert not long
    assert not re.search(r"\b(GB|tokens|pixels|bytes|processes) an? (GPU|step|picture|side|rank|sample|device)\b", text)


def test_every_page_is_in_the_site_and_the_readme_leads_to_the_guides():
    index, readme = pages.text_of("docs/index.md"), set(pages.links(pages.text_of("README.md")))
    listed = {line for _, block in re.findall(r"^```\{(toctree)\}\n(.*?)^```$", index, re.M | re.S) for line in block.split()}
    names = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    assert names <= listed and {f"docs/{name}.md" for name in names} <= readme


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("myst_parser", reason="the site's generator is not installed: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-E", "-q", "-d", tmp_path / "trees", "docs", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / "site" / f"{page.stem}.html").is_file() for page in (ROOT / "docs").glob("*.md"))


# --- commands ---------------------------------------------------------------------------------------------------------------


class Parsed(Exception):
    """Raised in place of what a command does, once its parser has taken the command line."""

    def __init__(self, parser: argparse.ArgumentParser):
        self.parser = parser


def parsed(module: str, argv: list[str]) -> argparse.ArgumentParser:
    """The parser of `python -m MODULE`, which has accepted `argv`; ValueError with its complaint where it has not."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        original(self, args, namespace)
        raise Parsed(self)

    if not exists(f"python -m {module}"):
        raise ValueError(f"there is no module {module}")
    package = (ROOT / module.replace(".", "/")).is_dir()
    main = importlib.import_module(f"{module}.__main__" if package else module).main
    said = io.StringIO()
    argparse.ArgumentParser.parse_args = parse_args
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            main(argv)
    except Parsed as reached:
        return reached.parser
    except SystemExit:
        raise ValueError(said.getvalue().strip().splitlines()[-1]) from None
    finally:
        argparse.ArgumentParser.parse_args = original
    raise ValueError(f"{module} has parsed nothing")


def understand(line: str) -> None:
    """Hold one command line against what is there; ValueError where it would not be understood. Nothing is run."""
    words = shlex.split(line)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    if words[0] == "torchrun":
        words = ["python", *words[words.index("-m") :]]
    if words[:2] == ["python", "eval_suites/run.py"]:
        words = ["python", "-m", "eval_suites.run", *words[2:]]
    if words[:2] == ["python", "-m"]:
        parsed(words[2], words[3:])
    elif words[0] == "bash":
        script, environment = ROOT / words[1], re.findall(r"(?<!\S)([A-Z_]+)=", line.partition("bash ")[0])
        if not script.is_file():
            raise ValueError(f"there is no script {words[1]}")
        read = "".join(file.read_text() for file in script.parent.glob("*.sh"))
        for name in environment:
            if f"${{{name}:" not in read:
                raise ValueError(f"no script in {words[1].rpartition('/')[0]} reads {name}")
        if script.parent.name == "train_mllm":
            parsed("train_mllm.train", [TRAIN_SCRIPTS[script.name], *words[2:]])
    elif words[0] == "make":
        targets = re.search(r"^\.PHONY: (.*)$", pages.text_of("Makefile"), re.M)[1].split()
        if words[1] not in targets:
            raise ValueError(f"make has no {words[1]}")
    elif words[0] not in OTHERS:
        raise ValueError(f"{words[0]} is neither ours nor among {sorted(OTHERS)}")


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_command_on_a_page_would_be_understood(page):
    for line in pages.commands(page.read_text()):
        for part in line.split(" && "):
            try:
                understand(part)
            except ValueError as error:
                pytest.fail(f"{page.name}: {part}\n{error}")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("python -m genlip.trian tiny-s1", "there is no module genlip.trian"),
        ("python -m genlip.train tiny-s1 --lr fast", "invalid float value"),
        ("python -m genlip.train tiny-s1 --leaning-rate 1", "unrecognized arguments"),
        ("python -m llava_plugin.llava_next undress", "invalid choice"),
        ("ENCODR=x bash train_mllm/sft_qwen1.5b_frozen.sh", "reads ENCODR"),
        ("bash train_mllm/sft_qwen1.5b_frozen.sh --lora-rnk 3", "unrecognized arguments"),
        ("bash demo.sh", "there is no script demo.sh"),
        ("make domo", "make has no domo"),
        ("curl https://example.org", "curl is neither ours"),
    ],
)
def test_a_command_that_would_not_be_understood_is_found(line, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        understand(line)


def test_modules_named_in_running_text_exist():
    for page in PAGES:
        text = page.read_text()
        if page.name == "CHANGELOG.md":
            text = re.sub(r"^\| `.*?` \|", "|", text, flags=re.M)  # the old names
        for module in re.findall(r"`python -m ([\w.]+)", text):
            assert exists(f"python -m {module}"), f"{page.name}: {module}"


def test_what_moved_is_gone_from_where_it_was_and_stands_where_it_is_said():
    moved = next(rows for rows in pages.tables(pages.text_of("CHANGELOG.md")) if rows[0][0].strip("| ") == "before")[1:]
    assert len(moved) >= 12
    for before, now in moved:
        assert not exists(before.strip("| `")) and exists(now.strip("| `")), (before, now)


def exists(command: str) -> bool:
    """Whether the script or module of a command is there, as a file: an editable installation remembers packages that are gone."""
    words = command.split()
    if words[0] == "bash":
        return (ROOT / words[1]).is_file()
    module = ROOT / words[2].replace(".", "/")
    return module.with_suffix(".py").is_file() or (module / "__init__.py").is_file()


# --- fields -----------------------------------------------------------------------------------------------------------------


def written(file: str, anchor: str) -> set[str]:
    """Keys of the object that `file` builds and that has the key `anchor`: of the literal, and of everything that the same function
    adds to the variable that holds it. AssertionError where no such object is found."""
    found = set()
    for scope in ast.walk(ast.parse(pages.text_of(file))):
        if isinstance(scope, ast.FunctionDef):
            literals: dict[str, set[str]] = {}
            for node in ast.walk(scope):
                if isinstance(node, ast.Assign | ast.AugAssign):
                    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                    if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
                        literals.setdefault(ast.unparse(target.value), set()).add(target.slice.value)
                        continue
                    if isinstance(target, ast.Tuple):  # `record["x"], said = ...`
                        first = target.elts[0]
                        if isinstance(first, ast.Subscript) and isinstance(first.slice, ast.Constant):
                            literals.setdefault(ast.unparse(first.value), set()).add(first.slice.value)
                        continue
                    parts = node.value if isinstance(node.value, ast.Dict | ast.BinOp) else None
                    if parts is not None:
                        literals.setdefault(ast.unparse(target), set()).update(_own_keys(parts))
                elif isinstance(node, ast.Return) and isinstance(node.value, ast.Dict):
                    literals.setdefault("return", set()).update(_own_keys(node.value))
            found |= next((keys for keys in literals.values() if anchor in keys), set())
    assert found, f"{file} builds nothing with {anchor!r}"
    return found


def _own_keys(node) -> set[str]:
    """Constant keys of a dictionary, or of those joined by `|`, not of what is nested in them."""
    if isinstance(node, ast.BinOp):
        return _own_keys(node.left) | _own_keys(node.right)
    if not isinstance(node, ast.Dict):
        return set()
    return {key.value for key in node.keys if isinstance(key, ast.Constant)}


def described(title: str, table: int = 0) -> set[str]:
    return set(pages.fields(FILES, title, table))


@pytest.mark.parametrize(
    ("module", "title"), [("genlip.recipes", "recipe.json of pretraining"), ("train_mllm.recipes", "recipe.json of fine-tuning")]
)
def test_every_field_of_a_recipe_is_described_with_its_default(module, title):
    recipe = dataclasses.fields(importlib.import_module(module).Recipe)
    (rows,) = [rows for rows in pages.tables(pages.section(FILES, title)) if rows[0][0].strip("| ") == "field"]
    told = {row[0].strip("| `"): row[1].strip("`") for row in rows[1:]}
    defaults = {f.name: "" if f.default is dataclasses.MISSING else json.dumps(f.default) for f in recipe}
    assert told == defaults


def test_every_field_of_a_recipes_model_is_described():
    from genlip.recipes import MODEL_FIELDS

    assert described("model of a recipe") == set(MODEL_FIELDS)


@pytest.mark.parametrize(
    ("title", "table", "sources"),
    [
        ("metrics.jsonl of pretraining", 0, [("genlip/train.py", "grad_norm")]),
        ("provenance.json of pretraining", 0, [("genlip/checkpoint.py", "weights_digest")]),
        ("ledger.json of pretraining", 0, [("genlip/common/ledger.py", "skipped")]),
        ("ledger.json of fine-tuning", 1, [("train_mllm/train.py", "supervised")]),
        ("metrics.jsonl of fine-tuning", 0, [("train_mllm/trainer.py", "tokens_per_second")]),
        ("result.json", 1, [("eval_suites/runner/preflight.py", "lmms_eval")]),
        ("samples.jsonl", 0, [("eval_suites/runner/worker.py", "filtered")]),
    ],
)
def test_every_field_that_is_written_is_described(title, table, sources):
    assert described(title, table) == set().union(*(written(*source) for source in sources))


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("provenance.json of fine-tuning", schema.Provenance),
        ("earlier of a provenance", schema.EarlierStage),
        ("result.json", schema.Result),
        ("run.json", schema.RunRecord),
    ],
)
def test_every_field_of_a_record_is_described_as_the_schema_has_it(title, kind):
    table = next(rows for rows in pages.tables(pages.section(FILES, title)) if "kind" in rows[0])
    told = [tuple(cell.strip("| `") for cell in row[:2]) for row in table[1:]]
    assert told == [(f.name, f.metadata["kind"]) for f in dataclasses.fields(kind)]
    assert [row[2].strip("| ") for row in table[1:]] == [f.metadata["said"] for f in dataclasses.fields(kind)]


def test_every_field_of_a_prepared_ledger_is_described(tmp_path):
    from train_mllm.prepare_data import prepare

    turns = [{"from": "human", "value": "Which year?"}, {"from": "gpt", "value": "2014"}]
    (tmp_path / "c.json").write_text(json.dumps([{"id": "a", "conversations": turns}]))
    ledger = prepare(str(tmp_path / "c.json"), "", str(tmp_path / "out"), workers=1)
    assert described("ledger.json of fine-tuning") == {*ledger, "tokens", "in_training"}
    told = pages.section(FILES, "ledger.json of fine-tuning")
    for key in ("origin", "sources", "subsets", "mix"):
        nested = ledger[key][0] if key == "sources" else ledger[key]["c"] if key == "subsets" else ledger[key]
        (line,) = re.findall(rf"^\| `{key}` \|(.*)$", told, re.M)
        assert set(re.findall(r"`(\w+)`", line)) == set(nested), key


def test_every_field_of_a_journal_and_of_a_checkpoints_state_is_described(tmp_path):
    from eval_suites.runner.journal import Answer, Journal

    journal = Journal(tmp_path, {"weights": "x"})
    journal.add((16, ("\n",)), {0: Answer("yes", "a?", "p", "t")})
    journal.close()
    key, answer = (json.loads(line) for line in journal.path.read_text().splitlines())
    assert key == {"weights": "x"} and described("answers-*.jsonl") == set(answer)
    assert described("checkpoints of pretraining") == {"step", "run", "files"} | written("genlip/train.py", "streams")
    assert described("captions.jsonl") == {"step", "name", "said", "true"}


def test_every_part_of_a_fingerprint_is_described(tmp_path):
    from genlip.common.fingerprint import OF_THE_ENCODER, of_export

    (tmp_path / "config.json").write_text("{}")
    told = pages.fields(FILES, "result.json", 2)
    assert set(told) == set(of_export(tmp_path, "w").parts) and set(told[:4]) == set(OF_THE_ENCODER)


def test_the_headers_of_the_tables_are_described():
    from eval_suites import suites
    from eval_suites.report import tables

    named = {name for suite in suites.SUITES.values() for name in tables.header(suite)}
    columns = {column.name for suite in suites.SUITES.values() for column in suite.columns}
    assert described("suite.csv") == named - columns | {"<column>"}
    assert pages.fields(FILES, "suite_cells.csv") == list(tables.CELLS_HEADER)


def test_every_field_of_a_noise_file_is_described(tmp_path):
    from eval_suites.score import seeds

    seeds.write_noise(seeds.NoiseFile("easyvqa", "mine", 3, {}, {}), tmp_path / "noise.json")
    assert described("noise file") == set(json.loads((tmp_path / "noise.json").read_text()))


def test_every_suite_and_every_family_is_on_its_page():
    from eval_suites import suites
    from llava_plugin.encoders.families import FAMILIES

    suite_table = pages.tables(pages.section(pages.text_of("docs/own-benchmark.md"), "A selection of columns"))[0]
    assert {name for row in suite_table[1:] for name in re.findall(r"`(\w+)`", row[0])} == set(suites.SUITES)
    family_table = pages.tables(pages.section(pages.text_of("docs/own-encoder.md"), "How a folder is read"))[0]
    told = {row[0].strip("| `"): (row[1].endswith("norm"), row[2][0]) for row in family_table[1:]}
    assert told == {name: (family.feature == "norm", str(family.prefix_tokens)) for name, family in FAMILIES.items()}


def test_every_shim_is_on_its_page():
    from llava_plugin.llava_next import SHIMS

    table = pages.tables(pages.section(pages.text_of("docs/llava-next.md"), "Shims"))[0]
    assert [row[0].strip("| ") for row in table[1:]] == [shim.name for shim in SHIMS]


READER = "genlip/common/conversations.py"
PREPARED = (READER, "genlip/common/picture_files.py", "genlip/image_decoding.py", "train_mllm/image_check.py", "train_mllm/prepare_data.py")


@pytest.mark.parametrize(
    ("title", "files"),
    [
        ("What is counted", ("genlip/shards.py", "genlip/data.py", "genlip/image_decoding.py", READER)),
        ("What is counted for conversations", PREPARED),
    ],
)
def test_every_reason_for_leaving_a_sample_out_is_described(title, files):
    rows = pages.tables(pages.section(pages.text_of("docs/own-data.md"), title))[0][1:]
    told = {name for row in rows for name in re.findall(r"`([^`]+)`", row[0])}
    elsewhere = {"the shards hold no sample"} | ({"malformed row"} if title == "What is counted" else set())
    assert told == {reason for file in files for reason in reasons(file)} - elsewhere


def reasons(file: str) -> set[str]:
    """The texts of the ValueErrors under which samples are counted: those that name nothing of the sample but the marker."""
    found = set()
    for node in ast.walk(ast.parse(pages.text_of(file))):
        if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) == "ValueError"):
            continue
        (said,) = node.exc.args
        for text in [said.body, said.orelse] if isinstance(said, ast.IfExp) else [said]:
            parts = text.values if isinstance(text, ast.JoinedStr) else [text]
            if all(isinstance(part, ast.Constant) or ast.unparse(part.value) == "IMAGE" for part in parts):
                found.add("".join(part.value if isinstance(part, ast.Constant) else "<image>" for part in parts))
    return found
