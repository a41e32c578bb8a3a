"""The loop: it learns, a stop does not change it, ranks do not change it, and what goes wrong is said."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from genlip import modeling_genlip, speak
from genlip import train as train_module
from genlip.common.schema import RunRecord, json_schema
from genlip.train import learning_rate, main, train
from tests.json_schema import complaints

ROOT = Path(__file__).parents[2]


def metrics(run) -> list[dict]:
    return [json.loads(line) | {"tokens_per_second": 0} for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def same(a, b) -> bool:
    a, b = (load_file(Path(run) / "export/model.safetensors") for run in (a, b))
    return a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)


def flags(recipe) -> list[str]:
    """The command line of a recipe made of tiny-s1."""
    model = [f"{k}={json.dumps(v)}" for k, v in recipe.model.items() if k != "vocab_size"]
    given = ("data", "tokenizer", "out", "resolution", "row_tokens", "rows", "max_steps", "warmup", "save_every", "workers", "look_ahead")
    given += ("parallel", "lr")
    pairs = [word for name in given for word in (f"--{name.replace('_', '-')}", str(getattr(recipe, name)))]
    return ["tiny-s1", *pairs, "--model", *model, *(["--gradient-checkpointing"] if recipe.gradient_checkpointing else [])]


def environment() -> dict:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def test_learns_and_speaks(recipe, capsys):
    export = train(replace(recipe, max_steps=120, save_every=60, lr=3e-3))
    lines = metrics(export.parent)
    assert len(lines) == 120 and lines[-1]["loss"] < 0.1 * lines[0]["loss"]
    assert speak.main([str(export), recipe.data + "/train-0.tar"]) == 0
    assert "4 of 4 captions word for word" in capsys.readouterr().out
    provenance = json.loads((export / "provenance.json").read_text())
    assert complaints(json.loads((export.parent / "run.json").read_text()), json_schema(RunRecord)) == []
    assert len(provenance["weights_digest"]) == 64 and provenance["recipe"]["max_steps"] == 120
    assert main(["tiny-s1", "--data", recipe.data, "--tokenizer", recipe.tokenizer, "--out", str(export.parent)]) == 2  # another recipe
    assert "--max-steps 120 there, --max-steps 2200 asked" in capsys.readouterr().err


def test_killed_at_any_step_and_resumed_it_is_bit_equal(recipe, tmp_path):
    recipe = replace(recipe, max_steps=40, save_every=7, workers=1)
    undisturbed, command = (
        [sys.executable, "-m", "genlip.train", *flags(replace(recipe, out=str(tmp_path / name)))] for name in ("a", "b")
    )
    subprocess.run(undisturbed, env=environment(), stdout=subprocess.DEVNULL, check=True)  # as many threads as the other: bits depend on it
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not list((tmp_path / "b/checkpoints").glob("step-??????")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "b/export").exists()
    # What a kill in the middle of a write leaves behind: a folder aside, and, where the disk failed too, a short file.
    (tmp_path / "b/checkpoints/step-000099.part").mkdir()
    (tmp_path / "b/checkpoints/step-000099").mkdir()
    (tmp_path / "b/checkpoints/step-000099/state.json").write_text('{"step": 99')
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert "step-000099 is not whole" in result.stdout and "going on from step" in result.stdout
    assert same(tmp_path / "a", tmp_path / "b") and metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert (tmp_path / "a/ledger.json").read_text() == (tmp_path / "b/ledger.json").read_text()


KEEP_GRADIENTS = """
import sys
import torch
from torch.distributed.tensor import DTensor
from safetensors.torch import save_file
from genlip.train import main

folder, steps, move = sys.argv.pop(1), [], torch.optim.AdamW.step

def step(self, *args, **kwargs):
    whole = [p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for group in self.param_groups for p in group["params"]]
    if int(__import__("os").environ.get("RANK", 0)) == 0:
        save_file({str(i): gradient.clone() for i, gradient in enumerate(whole)}, f"{folder}/gradients-{len(steps)}.safetensors")
    steps.append(1)
    return move(self, *args, **kwargs)

torch.optim.AdamW.step = step
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def ranks(recipe, tmp_path):
    """Runs of the same four rows a step: one process, DDP and FSDP on two. The gradients with which the optimizer moves are kept."""
    torch.manual_seed(0)
    model = recipe.model | {"drop_path_rate": 0.2}
    recipe = replace(recipe, rows=4, max_steps=4, save_every=2, look_ahead=2, row_tokens=90, model=model, gradient_checkpointing=True)
    script = tmp_path / "keep_gradients.py"
    script.write_text(KEEP_GRADIENTS)

    def run(name, processes, **changes):
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        command = flags(replace(recipe, out=str(out), **changes))
        torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(29400 + os.getpid() % 500)]
        launch = [sys.executable, *(torchrun if processes > 1 else []), str(script), str(out)]
        result = subprocess.run([*launch, *command], env=environment(), capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-3000:]
        gradients = [load_file(file) for file in sorted(out.glob("gradients-*.safetensors"))]
        return metrics(out), load_file(out / "export/model.safetensors"), gradients, result.stdout

    return run


@pytest.mark.slow
def test_one_process_ddp_and_fsdp_are_one_run(ranks):
    """4 rows on one process, 2 + 2 by DDP, 2 + 2 by FSDP: the same rows, losses, gradients (after the clip) and weights."""
    alone, weights, gradients, _ = ranks("alone", 1)
    assert all(line["samples"] >= 4 for line in alone) and len(gradients) == 4
    assert max(float(g.abs().max()) for g in gradients[0].values()) > 0.01  # so that 1e-5 says something
    for parallel in ("ddp", "fsdp"):
        lines, their_weights, theirs, _ = ranks(parallel, 2, parallel=parallel)
        for a, b in zip(alone, lines, strict=True):
            assert abs(a["loss"] - b["loss"]) < 1e-5 and abs(a["grad_norm"] - b["grad_norm"]) < 1e-5 * a["grad_norm"]
            assert all(a[k] == b[k] for k in ("supervised", "tokens", "samples"))
        for mine, other in zip(gradients, theirs, strict=True):
            assert mine.keys() == other.keys() and all((mine[key] - other[key]).abs().max() < 1e-5 for key in mine)
        assert all((weights[key] - their_weights[key]).abs().max() < 2e-5 for key in weights)


@pytest.mark.slow
def test_resumes_on_another_number_of_ranks(ranks, tmp_path):
    whole, weights, _, _ = ranks("whole", 1)
    ranks("part", 2, parallel="fsdp")
    shutil.rmtree(tmp_path / "part/export")
    shutil.rmtree(tmp_path / "part/checkpoints/step-000004")
    recipe = json.loads((tmp_path / "part/recipe.json").read_text())
    (tmp_path / "part/recipe.json").write_text(json.dumps(recipe | {"parallel": "ddp"}))
    lines, theirs, _, said = ranks("part", 1)
    assert "going on from step 2" in said
    assert [line["samples"] for line in lines] == [line["samples"] for line in whole]
    assert all((weights[key] - theirs[key]).abs().max() < 2e-5 for key in weights)


def test_packed_padded_and_one_by_one_are_one_loss(recipe):
    """Rows of any length, accumulated or not, give the same gradient: the loss is over the step's labels."""
    from genlip.data import load_tokenizer, normalised, packed_rows
    from genlip.shards import list_sources

    tokenizer = load_tokenizer(recipe.tokenizer)
    model = train_module.build_model(recipe, len(tokenizer))
    row = next(packed_rows(replace(recipe, row_tokens=400), tokenizer, list_sources(recipe.data)))
    supervised = int((row.labels != -100).sum())

    def gradient(calls):
        model.zero_grad()
        total = 0.0
        for inputs in calls:
            loss = model(**inputs, num_items_in_batch=supervised).loss
            loss.backward()
            total += float(loss.detach())
        return total, torch.cat([p.grad.flatten() for p in model.parameters()])

    patches = normalised(row.patches)
    packed = {"input_ids": row.input_ids, "pixel_values": patches, "grid_hw": row.grid_hw, "text_lens": row.text_lens, "labels": row.labels}
    starts, longest = (row.text_lens.cumsum(0) - row.text_lens).tolist(), int(row.text_lens.max())
    singles, texts = [], []
    for i, (start, words) in enumerate(zip(starts, row.text_lens.tolist())):
        ids, labels = (t[:, start : start + words] for t in (row.input_ids, row.labels))
        picture = {"pixel_values": patches[4 * i : 4 * i + 4], "grid_hw": row.grid_hw[i : i + 1]}
        singles.append({"input_ids": ids, "labels": labels, "text_lens": row.text_lens[i : i + 1]} | picture)
        texts.append([torch.nn.functional.pad(t, (0, longest - words), value=fill) for t, fill in ((ids, 0), (labels, -100))])
    pictures = patches.view(-1, 2, 2, 3, 16, 16).permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, 32, 32)
    padded = {"pixel_values": pictures} | {name: torch.cat(part) for name, part in zip(("input_ids", "labels"), zip(*texts))}
    assert row.text_lens.min() < longest  # something is padded
    loss, gradients = gradient([packed])
    for calls in (singles, [padded]):
        other, theirs = gradient(calls)
        assert abs(loss - other) < 1e-5 and (gradients - theirs).abs().max() < 1e-5


@pytest.mark.parametrize(("tokens", "held"), [(40, 2**28), (40, 7 * 320), (0, 2**28)])
def test_the_head_in_pieces_gives_the_plain_loss_and_gradient(monkeypatch, tokens, held):
    """Whatever the pieces, and where there is no label; without gradients the loss is the same."""
    monkeypatch.setattr(modeling_genlip, "MAX_LOGITS", held)
    torch.manual_seed(0)
    target = torch.randint(320, (tokens,))
    ours, plain = ([torch.randn(tokens, 24, requires_grad=True), torch.randn(320, 24, requires_grad=True)] for _ in range(2))
    for mine, theirs in zip(ours, plain):
        mine.data.copy_(theirs.data)
    loss = modeling_genlip.ChunkedLinearCrossEntropy.apply(*ours, target, True)
    expected = torch.nn.functional.cross_entropy(plain[0] @ plain[1].T, target, reduction="sum")
    (3 * loss).backward()
    (3 * expected).backward()
    assert abs(loss - expected) <= 1e-6 * abs(expected)
    assert all((mine.grad - theirs.grad).abs().max() < 1e-5 for mine, theirs in zip(ours, plain) if theirs.numel())
    with torch.no_grad():
        assert modeling_genlip.ChunkedLinearCrossEntropy.apply(*ours, target, False) == loss
    with torch.autocast("cpu", torch.bfloat16):
        assert abs(modeling_genlip.ChunkedLinearCrossEntropy.apply(*ours, target, True) - expected) <= 1e-2 * abs(expected)


def test_a_loss_that_is_not_finite_stops_before_the_weights_move_and_names_samples(recipe):
    with pytest.raises(FloatingPointError, match=r"weights were not moved.*\d\d in train-\d\.tar"):
        train(replace(recipe, lr=1e30, max_steps=50))


def test_stage_2_starts_from_stage_1_at_another_resolution(recipe, tmp_path, tar, draw, capsys):
    stage1 = train(replace(recipe, max_steps=4))
    turns = [{"from": "human", "value": "<image>\nwhat is in the picture"}, {"from": "gpt", "value": "a red circle"}]
    members = {}
    for i, size in enumerate(((100, 40), (30, 90), (64, 64))):
        members |= {f"{i}.png": draw("red", size), f"{i}.json": json.dumps({"conversations": turns}).encode()}
    tar(tmp_path / "talks.tar", members)
    changes = {"out": str(tmp_path / "s2"), "data": str(tmp_path / "talks.tar"), "init": str(stage1), "tokenizer": ""}
    stage2 = replace(recipe, **changes, native=True, text_key="conversations", max_steps=30, lr=3e-3, max_pixels=8192)
    with pytest.raises(ValueError, match="num_hidden_layers 2, not 3"):
        train(replace(stage2, model=stage2.model | {"num_hidden_layers": 3}))
    begun = train_module.build_model(stage2, 10)
    theirs = load_file(stage1 / "model.safetensors")
    assert all(value.equal(theirs[key]) for key, value in begun.state_dict().items())
    shutil.rmtree(tmp_path / "s2")
    export = train(stage2)
    assert json.loads((export / "provenance.json").read_text())["init"]["stage"] == "pretrain"
    assert speak.main([str(export), str(tmp_path / "talks.tar"), "--text-key", "conversations"]) == 0
    assert "3 of 3 captions word for word" in capsys.readouterr().out


def test_held_out_pictures_are_captioned_as_the_run_goes(recipe):
    plain = train(replace(recipe, out=recipe.out + "-plain"))
    export = train(replace(recipe, eval_data=recipe.data + "/train-0.tar", eval_every=3))
    lines = metrics(export.parent)
    assert [line["step"] for line in lines if "eval_loss" in line] == [2, 5, 7]
    said = [json.loads(line) for line in (export.parent / "captions.jsonl").read_text().splitlines()]
    assert [each["step"] for each in said] == [2] * 4 + [5] * 4 + [7] * 4  # the number of the line that has the loss
    assert {each["true"] for each in said} == {f"a {colour} picture" for colour in ("red", "green", "blue", "white")}
    assert same(plain.parent, export.parent)  # looking changes nothing


def test_a_run_that_is_done_is_left_alone(recipe, capsys):
    """An export that exists is neither written again nor trained on; another recipe for the folder is refused, with the difference."""
    export = train(replace(recipe, max_steps=2))
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in export.iterdir()}
    assert train(replace(recipe, max_steps=2)) == export and "this run is done" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"another recipe \(--max-steps 2 there, --max-steps 5 asked\)"):
        train(replace(recipe, max_steps=5))
    assert before == {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in export.iterdir()}
    assert len(metrics(export.parent)) == 2


@pytest.mark.slow
def test_compiled_layers_train_the_same_run(recipe):
    """Rows of changing shapes through compiled layers, forward and backward; a minute of compiling."""
    plain, compiled = (train(replace(recipe, out=f"{recipe.out}-{on}", compile=on)).parent for on in (False, True))
    for a, b in zip(metrics(plain), metrics(compiled), strict=True):
        assert abs(a["loss"] - b["loss"]) < 1e-4 and a["tokens"] == b["tokens"]


def test_learning_rate_warms_up_and_ends_at_its_minimum(recipe):
    recipe = replace(recipe, max_steps=100, warmup=0.1, lr=1.0, min_lr=0.01)
    rates = [learning_rate(step, recipe) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and max(rates) == 1.0 and rates[100] == pytest.approx(0.01)
    assert rates[55] == pytest.approx(0.505)


def test_what_the_user_can_mend_is_a_sentence(recipe, capsys, monkeypatch):
    with pytest.raises(ValueError, match="--rows 3 do not split over 2 ranks"):
        os.environ["WORLD_SIZE"] = "2"
        try:
            train_module.init_distributed(replace(recipe, rows=3))
        finally:
            del os.environ["WORLD_SIZE"]
    for size in ("0", "abc", "-1", "", "9" * 5000):
        monkeypatch.setenv("WORLD_SIZE", size)
        assert main(["tiny-s1", *(f"--{name}={getattr(recipe, name)}" for name in ("data", "tokenizer", "out"))]) == 2
        assert f"WORLD_SIZE is {size!r}, and takes" in capsys.readouterr().err
    monkeypatch.delenv("WORLD_SIZE")
    for changes, said in (
        ({"parallel": "zero"}, "--parallel is one of ddp, fsdp"),
        ({"max_steps": 0}, "--max-steps"),
        ({"vocab_size": 5}, "--vocab-size"),
    ):
        with pytest.raises(ValueError, match=said):
            train(replace(recipe, **changes))
    with pytest.raises(SystemExit) as stop:
        main(["tiny-s1", "--learning-rate", "1"])
    assert stop.value.code == 2 and "--learning-rate" in capsys.readouterr().err


class Killed(Exception):
    pass


@pytest.mark.parametrize("what", ["tokenizer", "init", "data"])
def test_what_was_overwritten_meanwhile_is_refused(recipe, tmp_path, monkeypatch, what, tar, draw):
    """Killed after a checkpoint; then another tokenizer, another export of the earlier stage, other shards of the same names."""
    init = train(replace(recipe, max_steps=2, out=str(tmp_path / "s1")))
    shutil.copytree(recipe.tokenizer, tmp_path / "words")
    recipe = replace(recipe, init=str(init), tokenizer=str(tmp_path / "words"))
    real, steps = torch.optim.AdamW.step, []

    def step(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 5:
            raise Killed
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(Killed):
            train(recipe)
    assert list((tmp_path / "run/checkpoints").glob("step-000003"))
    if what == "tokenizer":
        words = json.loads((tmp_path / "words/tokenizer.json").read_text())
        (tmp_path / "words/tokenizer.json").write_text(json.dumps(words | {"normalizer": {"type": "Lowercase"}}))
        said = rf"began with the tokenizer \w{{8}}, and {tmp_path}/words holds \w{{8}} now: bring back what it began with"
    elif what == "init":
        other = train(replace(recipe, init="", max_steps=2, seed=1, out=str(tmp_path / "other")))
        shutil.rmtree(init)
        shutil.copytree(other, init)
        said = rf"began with the export of the earlier stage \w{{8}}, and {init} holds \w{{8}} now"
    else:
        tar(tmp_path / "shards/train-0.tar", {"a.png": draw("red"), "a.json": b'{"caption": "another"}'})
        said = r"began with the data \w{8}, and .*shards holds \w{8} now"
    with pytest.raises(ValueError, match=said):
        train(recipe)
    assert not (tmp_path / "run/export").exists()
