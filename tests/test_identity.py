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


def two_words_swapped() -> None:
    """Two of the tokenizer's words have each other's number."""
    content = json.loads((EXPORT / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    words["Ġred"], words["Ġblue"] = words["Ġblue"], words["Ġred"]
    (EXPORT / "tokenizer.json").write_text(json.dumps(content))


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


TEMPLATE, SPEC = EXPORT / "chat_template.jinja", ("vision_config", "spec")
EVALUATED = {
    # the export's files
    "a bit of the weights": (flip(EXPORT / "model.safetensors"), "refused"),
    "a weight, and its digest with it": (weights_and_their_digest, "identity"),
    "the digest in provenance.json": (edit(EXPORT / "provenance.json", "weights_digest", to="0" * 64), "refused"),
    "the language model's rope base": (edit(EXPORT / "config.json", "text_config", "rope_parameters", "rope_theta", to=500.0), "identity"),
    "its epsilon": (edit(EXPORT / "config.json", "text_config", "rms_norm_eps", to=0.1), "identity"),
    "its activation": (edit(EXPORT / "config.json", "text_config", "hidden_act", to="gelu"), "identity"),
    "its end of text": (edit(EXPORT / "config.json", "text_config", "eos_token_id", to=5), "identity"),
    "the projector's activation": (edit(EXPORT / "config.json", "projector_hidden_act", to="relu"), "identity"),
    "the encoder's epsilon": (edit(EXPORT / "config.json", "vision_config", "encoder", "layer_norm_eps", to=0.1), "identity"),
    "the encoder's gate": (edit(EXPORT / "config.json", "vision_config", "encoder", "gated_attention", to=False), "refused"),
    "rotary sections": (edit(EXPORT / "config.json", "vision_config", "encoder", "mrope_section", to=[4, 6, 6]), "identity"),
    "the mean of pixels": (edit(EXPORT / "config.json", *SPEC, "mean", to=[0.1, 0.1, 0.1]), "identity"),
    "their deviation": (edit(EXPORT / "config.json", *SPEC, "std", to=[0.9, 0.9, 0.9]), "identity"),
    "how pictures are resized": (edit(EXPORT / "config.json", *SPEC, "resample", to="bicubic"), "identity"),
    "the dtype": (edit(EXPORT / "config.json", "dtype", to="bfloat16"), "refused"),
    "pictures at their own aspect ratio": (edit(EXPORT / "config.json", "native_tokens", to=16), "identity"),
    "the tokenizer": (two_words_swapped, "identity"),
    "its settings": (edit(EXPORT / "tokenizer_config.json", "clean_up_tokenization_spaces", to=True), "identity"),
    "its end of text by name": (edit(EXPORT / "tokenizer_config.json", "eos_token", to="<|im_start|>"), "identity"),
    "a word that is added": (write(EXPORT / "added_tokens.json", '{"circle": 7}'), "identity"),
    "the chat template": (replaced(TEMPLATE, "\n", "\nBe brief.\n"), "identity"),
    "another template beside it": (write(EXPORT / "chat_template.json", '{"chat_template": "x"}'), "identity"),
    "one in the tokenizer's settings": (edit(EXPORT / "tokenizer_config.json", "chat_template", to="x"), "identity"),
    "a penalty in generation_config.json": (edit(EXPORT / "generation_config.json", "repetition_penalty", to=1.5), "no effect"),
    "its end of turn": (edit(EXPORT / "generation_config.json", "eos_token_id", to=[9]), "no effect"),
    "its least number of tokens": (edit(EXPORT / "generation_config.json", "min_new_tokens", to=12), "no effect"),
    # the benchmark's data, the files' dates put back
    "a bit of the data": (flip(DATA / "docvqa_val/validation-00000-of-00001.parquet", 4000), "refused"),
    "a label": (rows("docvqa_val", first(answers=["wrong"])), "data"),
    "a question": (rows("docvqa_val", first(question="What colour is it?")), "data"),
    "the order of rows": (rows("docvqa_val", lambda found: found[::-1]), "data"),
    "a row less": (rows("docvqa_val", lambda found: found[1:]), "refused"),
    "a row twice": (rows("docvqa_val", lambda found: [*found, found[0]]), "refused"),
    "a picture": (rows("docvqa_val", lambda found: [found[0] | {"image": found[-1]["image"]}, *found[1:]]), "data"),
    "a picture that cannot be read": (rows("docvqa_val", first(image={"bytes": b"no picture", "path": None})), "data"),
    "how many there should be": (edit(DATA / "manifest.json", "sets", "docvqa_val", "n", to=9), "refused"),
    # results
    "n of a result": (in_result("mini_docvqa_val", n=7), "cell"),
    "a score that is no number": (in_result("mini_docvqa_val", results={"anls,none": float("nan")}), "cell"),
    "a sample's score": (in_samples("mini_docvqa_val", lambda found: [found[0] | {"scores": {"anls": 0.77}}, *found[1:]]), "cell"),
    "a sample less": (in_samples("mini_docvqa_val", lambda found: found[1:]), "cell"),
    "a sample twice": (in_samples("mini_docvqa_val", lambda found: [*found[1:], found[1]]), "cell"),
    "a result of another task": (in_result("mini_docvqa_val", task="mini_chartqa"), "again"),
    "a result of another encoder": (in_result("mini_docvqa_val", encoder="other"), "again"),
    "a result under another's name": (of_another_row, "cell"),
    "answers one question further": (no_answers(shifted_journal), "journal"),
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
        row = "other" if change == "a result under another's name" else "mine"
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
BEGUN = {
    "the encoder's weights": other_weights("encoder/model.safetensors"),
    "a bit of them": flip("encoder/model.safetensors"),
    "the encoder's config": edit("encoder/config.json", "layer_norm_eps", to=0.1),
    "how it sees pictures": edit("encoder/preprocessor_config.json", "image_mean", to=[0.1, 0.1, 0.1]),
    "the language model's weights": other_weights(str(LLM / "model.safetensors")),
    "its config": edit(LLM / "config.json", "rms_norm_eps", to=0.1),
    "its tokenizer": replaced(LLM / "tokenizer.json", '"Ġpicture"', '"Ġpikture"'),
    "its chat template": replaced(LLM / "chat_template.jinja", "\n", "\nBe brief.\n"),
    "the projector stage's weights": other_weights("runs/projector/export/model.safetensors"),
    "an answer in the conversations": replaced(SFT_DATA / "conversations.json", '"triangle', '"rectangle'),
    "a picture of them": flip(SFT_DATA / "images/000000/mini_0000000.jpg", -20),
}


@pytest.mark.parametrize("change", BEGUN)
def test_a_change_of_what_a_stopped_run_was_begun_with(place, commands, change):
    """Stopped before its last checkpoint: the same command is refused, names what differs, and exports nothing."""
    shutil.rmtree(EXPORT)
    shutil.rmtree("runs/mine/checkpoints/checkpoint-100")
    BEGUN[change]()
    code, said = commands(place, *SFT)
    assert code == 2 and "error: " in said and "Traceback" not in said, said
    assert not EXPORT.exists(), said


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
    ((_, *listed),) = pages.tables(pages.section(pages.text_of("docs/identity.md"), "Tried, one by one"))
    tried = {change: noticed for change, (_, noticed) in EVALUATED.items()} | dict.fromkeys(BEGUN, "refused")
    assert {change: noticed for change, noticed in listed} == tried
