"""One change alone, of every file and flag that can change an answer; then the same command again: who noticed?

A change of the export, of the benchmark's data, of a result's folder is followed by the same `run.py`; one of what a run was begun with by
the same training command, of a run that was stopped after a checkpoint; another flag of training by a run of its own, evaluated, beside
the first one's row. `NOTICED` says by what each is noticed, and a change that nobody notices fails:

    refused     exit code 2, or the task fails (1); nothing is written under the old identity
    identity    another fingerprint: asked anew, in a folder of its own
    data        the same MLLM, asked again: a key of its own
    cell        the table refuses the cell
    again       the result is not believed, and the task runs again
    compared    `compare` ends with 3 and names it
    journal     the answers that no longer belong to their questions are asked again
    no effect   answers are what they were, byte for byte, since it has no say in them

The table stands in docs/identity.md, held against this one.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval_suites.tasks import manifest
from tests import pages
from tests.forked import Commands

pytest.importorskip("lmms_eval")
pytestmark = pytest.mark.slow

SUITE = "three.yaml"
RUN = ("eval_suites.run", "--encoder", "mine", "--suite", SUITE)
TRAIN = (
    "train_mllm.train", "tiny-sft", "--llm", "weights/llama-tiny", "--data", "data/mini/sft/conversations.json",
    "--images", "data/mini/sft/images", "--workers", "0", "--no-cache-features", "--no-standardise",
)  # fmt: skip
PROJECTOR = (*TRAIN, "--encoder", "mine=encoder", "--stage", "projector", "--max-steps", "3", "--out", "runs/projector")
SFT = (
    *TRAIN,
    "--encoder",
    "mine=encoder",
    "--init",
    "runs/projector/export",
    "--max-steps",
    "100",
    "--save-every",
    "50",
    "--out",
    "runs/mine",
)
EXPORT, DATA, RESULTS = Path("runs/mine/export"), Path("data/genlip-eval/mini"), Path("results/three/mine")


# --- the world --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    with Commands(XDG_CACHE_HOME=str(tmp_path_factory.mktemp("cache"))) as run:
        yield run


@pytest.fixture(scope="module")
def world(tmp_path_factory, commands):
    """A folder with an encoder, a language model, conversations, three columns of the mini world, a projector stage and an MLLM, asked."""
    folder = tmp_path_factory.mktemp("world")
    (folder / SUITE).write_text("columns: [mini14/docvqa, mini14/chartqa, mini14/vqav2]\n")
    for seed, name in enumerate(("encoder", "other")):
        save_encoder(folder / name, seed)
    for command in (
        ("small_data.mini.__main__", "--out", "data", "--train", "40", "--eval", "8", "--workers", "1"),
        ("llava_plugin.fetch", "llama-tiny", "--text", "data/mini/text.txt"),
        PROJECTOR,
        SFT,
        RUN,
    ):
        code, said = commands(folder, *command)
        assert code == 0, said
    return folder


def save_encoder(folder: Path, seed: int) -> None:
    import torch

    from genlip import GenLIPConfig, GenLIPImageProcessor, GenLIPVisionModel
    from genlip.recipes import TINY

    torch.manual_seed(seed)
    GenLIPVisionModel(GenLIPConfig(**TINY)).save_pretrained(folder)
    GenLIPImageProcessor(size=64).save_pretrained(folder)


@pytest.fixture
def place(world, tmp_path, monkeypatch):
    """A copy of the world, with its dates, for one change."""
    shutil.copytree(world, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    return tmp_path / "world"


def answers() -> dict[str, list[list[str]]]:
    """The folder of each row -> its answers, task by task, of what is done."""
    found: dict[str, list[list[str]]] = {}
    for file in sorted(RESULTS.rglob("result.json")):
        lines = (file.parent / "samples.jsonl").read_text().splitlines()
        found.setdefault(file.parts[-3], []).append([json.loads(line)["answer"] for line in lines])
    return found


# --- changes ----------------------------------------------------------------------------------------------------------------


def edit(file: str | Path, *path: str, to: object) -> Callable[[], None]:
    """A value in a JSON file is another."""

    def change() -> None:
        content = json.loads(Path(file).read_text())
        *above, last = path
        inside = content
        for name in above:
            inside = inside[name]
        assert inside.get(last) != to
        inside[last] = to
        Path(file).write_text(json.dumps(content))

    return change


def write(file: str | Path, text: str) -> Callable[[], object]:
    return lambda: Path(file).write_text(text)


def replaced(file: str | Path, old: str, new: str) -> Callable[[], None]:
    def change() -> None:
        text = Path(file).read_text()
        assert old in text
        Path(file).write_text(text.replace(old, new, 1))

    return change


def flip(file: str | Path, at: int = -3) -> Callable[[], None]:
    """One bit of a file's bytes, its dates put back."""

    def change() -> None:
        stat, content = os.stat(file), bytearray(Path(file).read_bytes())
        content[at] ^= 1
        Path(file).write_bytes(bytes(content))
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    return change


def rows(task: str, change: Callable[[list[dict]], list[dict]]) -> Callable[[], None]:
    """The rows of a benchmark set are others, as its manifest knows; the file's dates are put back."""

    def changed() -> None:
        (file,) = (DATA / task).rglob("*.parquet")
        stat, table = os.stat(file), pq.read_table(file)
        pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), schema=table.schema), file)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        told = json.loads((DATA / "manifest.json").read_text())
        told["sets"][task]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        told["digest"] = manifest.digest({name: value for name, value in told.items() if name != "digest"})
        (DATA / "manifest.json").write_text(json.dumps(told))

    return changed


def first(**changes: object) -> Callable[[list[dict]], list[dict]]:
    """The first row is another in these columns."""
    return lambda found: [found[0] | changes, *found[1:]]


def other_weights(model: str) -> Callable[[], None]:
    """Weights of the same names and shapes, drawn anew."""

    def change() -> None:
        import torch
        from safetensors import safe_open
        from safetensors.torch import load_file, save_file

        with safe_open(model, "pt") as file:
            metadata = file.metadata()
        torch.manual_seed(9)
        save_file({name: torch.randn_like(tensor) for name, tensor in load_file(model).items()}, model, metadata)

    return change


def weights_and_their_digest() -> None:
    """Another weight, and the digest in provenance.json that they have with it."""
    from llava_plugin import mllm

    loaded = mllm.load(EXPORT)
    loaded.model.model.multi_modal_projector.linear_1.bias.data += 0.5
    shutil.rmtree(EXPORT)
    mllm.save(loaded.model, loaded.tokenizer, EXPORT, loaded.provenance)


def two_words_swapped(folder: Path = EXPORT) -> None:
    """Two of the tokenizer's words have each other's number."""
    content = json.loads((folder / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    words["Ġred"], words["Ġblue"] = words["Ġblue"], words["Ġred"]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def prepared_word() -> None:
    """Another word of the same length in the table that training reads."""
    (file,) = Path("runs/mine/data/conversations").glob("*.arrow")
    content = file.read_bytes()
    assert b"triangle" in content
    file.write_bytes(content.replace(b"triangle", b"rectangl"))


def recipe_and_record_gone() -> None:
    Path("runs/mine/recipe.json").unlink()
    Path("runs/mine/run.json").unlink()


def result_of(task: str) -> Path:
    (folder,) = RESULTS.glob("*")
    return folder / task


def in_samples(task: str, change: Callable[[list[dict]], list[dict]]) -> Callable[[], None]:
    def changed() -> None:
        file = result_of(task) / "samples.jsonl"
        lines = change([json.loads(line) for line in file.read_text().splitlines()])
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    return changed


def in_result(of: str, **changes: object) -> Callable[[], None]:
    def changed() -> None:
        file = result_of(of) / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return changed


def no_answers(changes: Callable[[], object]) -> Callable[[], None]:
    """As if evaluation had stopped before any result: the change meets journals alone."""

    def changed() -> None:
        for file in RESULTS.rglob("result.json"):
            file.unlink()
        changes()

    return changed


def shifted_journal() -> None:
    """The answers of one task's journal stand one question further."""
    for file in RESULTS.rglob("mini_docvqa*/answers-*.jsonl"):
        head, *lines = [json.loads(line) for line in file.read_text().splitlines()]
        ids = [line["doc_id"] for line in lines]
        lines = [line | {"doc_id": doc_id} for line, doc_id in zip(lines, ids[1:] + ids[:1])]
        file.write_text("".join(json.dumps(line) + "\n" for line in (head, *lines)))


def of_another_row() -> None:
    """A task's folder lies where another MLLM's would."""
    (folder,) = RESULTS.glob("*")
    shutil.copytree(folder, RESULTS.parent / "other" / folder.name)


TEMPLATE, CONFIG, WORDS = (EXPORT / name for name in ("chat_template.jinja", "config.json", "tokenizer_config.json"))
SPEC, ENCODER, TEXT, DOCVQA = ("vision_config", "spec"), ("vision_config", "encoder"), "text_config", "mini_docvqa_val"
# File and field -> the change, and what notices it.
EVALUATED = {
    # the export's files
    "model.safetensors: a bit": (flip(EXPORT / "model.safetensors"), "refused"),
    "model.safetensors: a weight, and `weights_digest` with it": (weights_and_their_digest, "identity"),
    "provenance.json: `weights_digest`": (edit(EXPORT / "provenance.json", "weights_digest", to="0" * 64), "refused"),
    "provenance.json: `frozen`": (edit(EXPORT / "provenance.json", "frozen", to=False), "refused"),
    "provenance.json: `tokens`": (edit(EXPORT / "provenance.json", "tokens", to=64), "refused"),
    "config.json: `text_config.rope_parameters.rope_theta`": (edit(CONFIG, TEXT, "rope_parameters", "rope_theta", to=500.0), "identity"),
    "config.json: `text_config.rms_norm_eps`": (edit(CONFIG, TEXT, "rms_norm_eps", to=0.1), "identity"),
    "config.json: `text_config.hidden_act`": (edit(CONFIG, TEXT, "hidden_act", to="gelu"), "identity"),
    "config.json: `text_config.eos_token_id`": (edit(CONFIG, TEXT, "eos_token_id", to=5), "identity"),
    "config.json: `projector_hidden_act`": (edit(CONFIG, "projector_hidden_act", to="relu"), "identity"),
    "config.json: `vision_config.encoder.layer_norm_eps`": (edit(CONFIG, *ENCODER, "layer_norm_eps", to=0.1), "identity"),
    "config.json: `vision_config.encoder.gated_attention`": (edit(CONFIG, *ENCODER, "gated_attention", to=False), "refused"),
    "config.json: `vision_config.encoder.mrope_section`": (edit(CONFIG, *ENCODER, "mrope_section", to=[4, 6, 6]), "identity"),
    "config.json: `vision_config.spec.mean`": (edit(CONFIG, *SPEC, "mean", to=[0.1, 0.1, 0.1]), "identity"),
    "config.json: `vision_config.spec.std`": (edit(CONFIG, *SPEC, "std", to=[0.9, 0.9, 0.9]), "identity"),
    "config.json: `vision_config.spec.resample`": (edit(CONFIG, *SPEC, "resample", to="bicubic"), "identity"),
    "config.json: `dtype`": (edit(CONFIG, "dtype", to="bfloat16"), "refused"),
    "config.json: `native_tokens`": (edit(CONFIG, "native_tokens", to=16), "identity"),
    "tokenizer.json: two words of `model.vocab` swapped": (two_words_swapped, "identity"),
    "tokenizer_config.json: `clean_up_tokenization_spaces`": (edit(WORDS, "clean_up_tokenization_spaces", to=True), "identity"),
    "tokenizer_config.json: `eos_token`": (edit(WORDS, "eos_token", to="<|im_start|>"), "identity"),
    "added_tokens.json: a word": (write(EXPORT / "added_tokens.json", '{"circle": 7}'), "identity"),
    "chat_template.jinja: a line": (replaced(TEMPLATE, "\n", "\nBe brief.\n"), "identity"),
    "chat_template.json: a template beside it": (write(EXPORT / "chat_template.json", '{"chat_template": "x"}'), "identity"),
    "tokenizer_config.json: `chat_template`": (edit(WORDS, "chat_template", to="x"), "identity"),
    "generation_config.json: `repetition_penalty`": (edit(EXPORT / "generation_config.json", "repetition_penalty", to=1.5), "no effect"),
    "generation_config.json: `eos_token_id`": (edit(EXPORT / "generation_config.json", "eos_token_id", to=[9]), "no effect"),
    "generation_config.json: `min_new_tokens`": (edit(EXPORT / "generation_config.json", "min_new_tokens", to=12), "no effect"),
    # the benchmark's data, the files' dates put back
    "*.parquet: a bit": (flip(DATA / "docvqa_val/validation-00000-of-00001.parquet", 4000), "refused"),
    "*.parquet: `answers` of a row": (rows("docvqa_val", first(answers=["wrong"])), "data"),
    "*.parquet: `question` of a row": (rows("docvqa_val", first(question="What colour is it?")), "data"),
    "*.parquet: the order of rows": (rows("docvqa_val", lambda found: found[::-1]), "data"),
    "*.parquet: a row less": (rows("docvqa_val", lambda found: found[1:]), "refused"),
    "*.parquet: a row twice": (rows("docvqa_val", lambda found: [*found, found[0]]), "refused"),
    "*.parquet: `image` of a row": (rows("docvqa_val", lambda found: [found[0] | {"image": found[-1]["image"]}, *found[1:]]), "data"),
    "*.parquet: an `image` that cannot be read": (rows("docvqa_val", first(image={"bytes": b"no picture", "path": None})), "data"),
    "*.parquet: an `image` by its file's name alone": (rows("docvqa_val", first(image={"bytes": None, "path": "0.png"})), "data"),
    "manifest.json: `n`": (edit(DATA / "manifest.json", "sets", "docvqa_val", "n", to=9), "refused"),
    # results
    "result.json: `n`": (in_result(DOCVQA, n=7), "again"),
    "result.json: NaN in `results`": (in_result(DOCVQA, results={"anls,none": float("nan")}), "again"),
    "samples.jsonl: `scores` of a line": (in_samples(DOCVQA, lambda found: [found[0] | {"scores": {"anls": 0.77}}, *found[1:]]), "cell"),
    "samples.jsonl: `answer` of a line": (in_samples(DOCVQA, lambda found: [found[0] | {"answer": "star!"}, *found[1:]]), "cell"),
    "samples.jsonl: a line less": (in_samples(DOCVQA, lambda found: found[1:]), "cell"),
    "samples.jsonl: a line twice": (in_samples(DOCVQA, lambda found: [*found[1:], found[1]]), "cell"),
    "result.json: `task`": (in_result(DOCVQA, task="mini_chartqa"), "again"),
    "result.json: `encoder`": (in_result(DOCVQA, encoder="other"), "again"),
    "the row's folder: under another encoder's name": (of_another_row, "cell"),
    "answers-KEY.jsonl: each `doc_id` one further": (no_answers(shifted_journal), "journal"),
}  # fmt: skip


@pytest.mark.parametrize("change", EVALUATED)
def test_a_change_of_what_is_evaluated(place, commands, change):
    before, asked = answers(), journals()
    make, noticed = EVALUATED[change]
    make()
    code, said = commands(place, *RUN)
    after = answers()
    (row,) = before
    assert "Traceback" not in said, said
    if noticed == "refused":
        assert code in (1, 2) and "error: " in said, said
        assert code == 2 or "failed: " in said, said
        assert after == before, "nothing else is written"
    elif noticed == "identity":
        assert code == 0 and set(after) > {row} and after[row] == before[row], said
    elif noticed == "data":
        assert code in (0, 1, 3) and set(after) == {row} and "2 of 3 tasks are done" in said, said
        assert journals() > asked, "asked again, under a key of its own"
    elif noticed == "cell":
        row = "other" if change.startswith("the row's folder") else "mine"
        assert cells()[row, "docvqa"] == "" and "docvqa: " in said, said
    elif noticed == "again":
        assert code == 0 and "2 of 3 tasks are done" in said and after == before, said
    elif noticed == "journal":
        assert code == 0 and after == before, said
        assert "asked again" in said, said
    else:
        assert noticed == "no effect" and code == 0 and "3 of 3 tasks are done" in said
        shutil.rmtree("results")
        assert commands(place, *RUN)[0] == 0 and answers() == before


def journals() -> set[str]:
    return {str(file) for file in RESULTS.rglob("answers-*.jsonl")}


def cells() -> dict[tuple[str, str], str]:
    """(encoder, column) -> what the table has."""
    import csv

    with open("tables/three.csv") as stream:
        return {(row["encoder"], name): value for row in csv.DictReader(stream) for name, value in row.items() if name}


# --- training ---------------------------------------------------------------------------------------------------------------

LLM, SFT_DATA = Path("weights/llama-tiny"), Path("data/mini/sft")
BEGUN = {  # what changes, and what the refusal has to name
    "encoder/model.safetensors: other weights": (other_weights("encoder/model.safetensors"), "has a projector for the encoder mine"),
    "encoder/model.safetensors: a bit": (flip("encoder/model.safetensors"), "has a projector for the encoder mine"),
    "encoder/config.json: `layer_norm_eps`": (edit("encoder/config.json", "layer_norm_eps", to=0.1), "the encoder's config"),
    "encoder/preprocessor_config.json: `image_mean`": (
        edit("encoder/preprocessor_config.json", "image_mean", to=[0.1, 0.1, 0.1]),
        "preprocessing",
    ),
    "llm/model.safetensors: other weights": (other_weights(str(LLM / "model.safetensors")), "the language model"),
    "llm/config.json: `rms_norm_eps`": (edit(LLM / "config.json", "rms_norm_eps", to=0.1), "the language model's config"),
    "llm/tokenizer.json: two words swapped": (lambda: two_words_swapped(LLM), "the tokenizer"),
    "llm/chat_template.jinja: a line": (replaced(LLM / "chat_template.jinja", "\n", "\nBe brief.\n"), "the chat template"),
    "init/model.safetensors: other weights": (other_weights("runs/projector/export/model.safetensors"), "runs/projector/export"),
    "init/provenance.json: `steps`": (edit("runs/projector/export/provenance.json", "steps", to=3000), "was edited"),
    "conversations.json: an answer": (
        replaced(SFT_DATA / "conversations.json", '"triangle', '"rectangle'),
        "something else (first: conversations.json)",
    ),
    "images/: a picture": (flip(SFT_DATA / "images/000000/mini_0000000.jpg", -20), "have changed"),
    "data/conversations/*.arrow: a word": (prepared_word, "is not what was prepared there"),
    "recipe.json: `lr`": (edit("runs/mine/recipe.json", "lr", to=0.05), "another recipe"),
    "recipe.json: gone, and another `--lr`": (lambda: Path("runs/mine/recipe.json").unlink(), "another recipe.json or run.json"),
    "run.json: `per_step`": (edit("runs/mine/run.json", "per_step", to="1 conversations"), "was edited"),
    "recipe.json: gone with run.json, and another `--lr`": (recipe_and_record_gone, "another recipe.json or run.json"),
    "trainer_state.json: `global_step`": (
        edit("runs/mine/checkpoints/checkpoint-50/trainer_state.json", "global_step", to=99),
        "is not whole",
    ),
}


OTHERWISE = {change: ("--lr", "0.05") for change in BEGUN if "gone" in change}  # the same command would write the same files again


@pytest.fixture
def stopped(world, tmp_path, monkeypatch):
    """The world in its own place, where the run was stopped before its last checkpoint; put back afterwards."""
    shutil.copytree(world, tmp_path / "kept", symlinks=True)
    monkeypatch.chdir(world)
    shutil.rmtree(EXPORT)
    shutil.rmtree("runs/mine/checkpoints/checkpoint-100")
    yield world
    monkeypatch.undo()
    shutil.rmtree(world)
    shutil.copytree(tmp_path / "kept", world, symlinks=True)


@pytest.mark.parametrize("change", BEGUN)
def test_a_change_of_what_a_stopped_run_was_begun_with(stopped, commands, change):
    """The same command is refused, names what differs, and exports nothing; a checkpoint that is none is passed over."""
    make, named = BEGUN[change]
    make()
    code, said = commands(stopped, *SFT, *OTHERWISE.get(change, ()))
    assert named in said and "Traceback" not in said, said
    if named == "is not whole":
        assert code == 0, said
    else:
        assert code == 2 and "error: " in said and not EXPORT.exists(), said


def test_a_stopped_run_goes_on_where_nothing_changed(stopped, commands, tmp_path):
    before = json.loads((tmp_path / "kept" / EXPORT / "provenance.json").read_text())
    code, said = commands(stopped, *SFT)
    assert code == 0, said
    assert json.loads((EXPORT / "provenance.json").read_text())["weights_digest"] == before["weights_digest"]


BETWEEN = {
    "the encoder's config": (edit("encoder/config.json", "layer_norm_eps", to=0.1), "the encoder's config"),
    "the language model's config": (edit(LLM / "config.json", "rms_norm_eps", to=0.1), "the language model's config"),
    "its tokenizer": (lambda: two_words_swapped(LLM), "the tokenizer"),
}


@pytest.mark.parametrize("change", BETWEEN)
def test_a_change_between_two_stages(place, commands, change):
    """Weights that are equal and read otherwise are another model to the projector that was made for them."""
    make, named = BETWEEN[change]
    make()
    code, said = commands(place, *SFT, "--out", "runs/later")
    assert code == 2 and named in said and "train the projector again" in said, said


FLAGS = {
    "lr": ("--lr", "2e-3"),
    "max_steps": ("--max-steps", "4"),
    "batch": ("--batch", "2"),
    "accumulation": ("--accumulation", "2"),
    "warmup": ("--warmup", "0.5"),
    "weight_decay": ("--weight-decay", "0.1"),
    "max_grad_norm": ("--max-grad-norm", "0.01"),
    "turns": ("--turns", "dialogue"),
    "batching": ("--batching", "padded", "--turns", "dialogue"),
    "max_length": ("--max-length", "1000"),
    "lora_rank": ("--lora-rank", "4"),
    "train_encoder": ("--train-encoder",),
    "standardise": ("--cache-features", "--standardise"),
    "data": ("--data", "data/mini/sft/fewer.json"),
    "init": ("--init", ""),
    "init.lr": ("--init", "runs/projector-faster/export"),
    "llm": ("--llm", "weights/other-llm", "--init", "runs/projector-llm/export"),
}
FREE = {
    "save_every": ("--save-every", "2"),
    "workers": ("--workers", "1"),
    "max_bad": ("--max-bad", "0.5"),
    "cache_features": ("--cache-features",),
    "gradient_checkpointing": ("--gradient-checkpointing",),
    "out": ("--out", "runs/elsewhere"),
}


@pytest.fixture(scope="module")
def beside(world, commands):
    """The world with a second encoder's projector stages, and a row of the first encoder after three steps."""
    stage = (*TRAIN, "--encoder", "theirs=other", "--stage", "projector", "--max-steps", "3")
    conversations = json.loads((world / SFT_DATA / "conversations.json").read_text())
    (world / SFT_DATA / "fewer.json").write_text(json.dumps(conversations[:30]))
    shutil.copytree(world / LLM, world / "weights/other-llm")
    other_weights(str(world / "weights/other-llm/model.safetensors"))()
    for command in (
        (*stage, "--out", "runs/projector-other"),
        (*stage, "--lr", "5e-3", "--out", "runs/projector-faster"),
        (*stage, "--llm", "weights/other-llm", "--out", "runs/projector-llm"),
        (*SFT, "--encoder", "short=encoder", "--max-steps", "3", "--out", "runs/short"),
        (*RUN, "--encoder", "short"),
    ):
        code, said = commands(world, *command)
        assert code == 0, said
    return world


def trained_beside(place: Path, commands: Commands, *flags: str) -> tuple[int, str]:
    """What a comparison says of that row and of one of the other encoder, trained with the flags."""
    theirs = ("--encoder", "theirs=other", "--init", "runs/projector-other/export", "--max-steps", "3", "--out", "runs/theirs")
    code, said = commands(place, *TRAIN, *theirs, *flags)
    assert code == 0, said
    code, said = commands(place, *RUN, "--encoder", "theirs")
    assert code == 0, said
    return commands(place, "eval_suites.compare", "short", "theirs", "--suite", SUITE)


@pytest.mark.parametrize("flag", FLAGS)
def test_another_flag_of_training_is_named(beside, place, commands, flag):
    code, said = trained_beside(place, commands, *FLAGS[flag])
    assert code == 3, said


@pytest.mark.parametrize("flag", FREE)
def test_a_flag_that_changes_nothing_that_is_learned_is_not(beside, place, commands, flag):
    code, said = trained_beside(place, commands, *FREE[flag])
    assert code == 0, said


@pytest.mark.parametrize("other", [("--encoder", "theirs=other"), ("--llm", "weights/other-llm")])
def test_a_projector_belongs_to_its_encoder_and_language_model(beside, place, commands, other):
    code, said = commands(place, *SFT, *other, "--out", "runs/theirs")
    assert code == 2 and "runs/projector/export" in said and "Traceback" not in said, said


def test_equal_models_are_equal_wherever_they_lie(place, commands):
    """The same training in another folder, of copies of the encoder, of the language model and of the data; asked two at a time."""
    elsewhere = place / "elsewhere"
    shutil.copytree(place, elsewhere, ignore=lambda *_: ["runs", "results", "tables", "elsewhere"])
    for command in (PROJECTOR, SFT, (*RUN, "--batch-size", "2")):
        code, said = commands(elsewhere, *command)
        assert code == 0, said
    here = answers()
    os.chdir(elsewhere)
    assert answers() == here


def test_the_page_lists_what_was_tried():
    """docs/identity.md: a row per change, with what notices it."""
    page = pages.text_of("docs/identity.md")
    titles = ("The MLLM's export", "The benchmark's data", "Results", "What a run was begun with")
    listed = {f"{file}: {what}": noticed for title in titles for file, what, noticed in pages.tables(pages.section(page, title))[0][1:]}
    begun = {change: "passed over" if named == "is not whole" else "refused" for change, (_, named) in BEGUN.items()}
    assert listed == {change: noticed for change, (_, noticed) in EVALUATED.items()} | begun
