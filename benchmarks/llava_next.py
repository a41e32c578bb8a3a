"""Our trainer beside LLaVA-NeXT's own, on the same conversations: `python -m benchmarks.llava_next CHECKOUT`.

Both are whole commands, started in turn, each a process of its own: `python -m train_mllm.train` and, through the adapter,
`python -m llava_plugin.llava_next train`. Same: conversations (the declared mix of lengths, each with a picture of its own), prompt, a
randomly initialised Qwen2, genlip-tiny frozen, conversations per step, learning rate, clipping, no gradient checkpointing, one loading
process, fp32 on the CPU (whose bf16 and fp16 are slow: theirs is not run in them, nor its tower).

Counted: two epochs are trained, and the time from the last logged step of the first to the last of the second, as the lines arrive. So
start-up, the first steps and the saving at the end are not in it; loading, logging and the start of an epoch are. Tokens are those of
the prepared conversations, pictures' included, padding not: once each, for both the same number. Theirs says how many positions it
computed, padding included: `allowed` is what the padding alone would cost it.

Not counted for them is the newline that their prompt learns behind the last answer. Kinder to them than life: the tokenizer, which they
copy for every conversation, is small. Kinder to ours: the second epoch finds its questions tokenised. What else makes the difference:
their logits of tokens that are not learned, and the two programs.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from benchmarks.packing import CUT, LEARNED, VOCABULARY, add_flags, asked, mix
from genlip.common.command import Failed, command, new_parser
from genlip.common.files import read_json, write_json
from llava_plugin import encoders
from llava_plugin.fetch import chat_tokenizer
from llava_plugin.llava_next import CLONE, QWEN_1_5
from train_mllm import estimate, llava_next
from train_mllm.prepare_data import prepare
from train_mllm.recipes import PRESETS, Recipe
from train_mllm.setup import resolve

ROOT = Path(__file__).parents[1]
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>")
WORDS = ("system", "user", "assistant", "You are a helpful assistant.")  # a token each, so that the prompt is as long as Qwen's
LOGGED = re.compile(r"'loss': '?([\d.]+)")
SEEN = re.compile(r"'num_input_tokens_seen': '?(\d+)")


def tiny_qwen(folder: Path, hidden: int, layers: int, seed: int):
    """A Qwen2 with random weights in `folder`; returns its tokenizer, to which each other character is a token."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import Qwen2Config, Qwen2ForCausalLM

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = chat_tokenizer(bpe, SPECIAL, QWEN_1_5, CUT)
    tokenizer.add_tokens(list(WORDS))
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=CUT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_conversations(folder: Path, lengths, tokenizer, encoder: str, seed: int) -> Path:
    """Conversations of one question and one answer in LLaVA's form, each with a picture. Those shorter than a picture, the prompt and a
    letter each are that long."""
    import numpy as np
    from PIL import Image

    from train_mllm.data import encode

    spec = encoders.resolve(encoder)
    around = [{"role": "user", "content": "<image>\n"}, {"role": "assistant", "content": ""}]
    frame = len(encode(around, tokenizer, tokenizer.convert_tokens_to_ids(SPECIAL[3]), spec.tokens, "dialogue", CUT).ids)
    random, records = np.random.default_rng(seed), []
    (folder / "images").mkdir()
    for number, n in enumerate(lengths.tolist()):
        Image.fromarray(random.integers(0, 256, (spec.resolution, spec.resolution, 3), dtype=np.uint8)).save(
            folder / "images" / f"{number}.png"
        )
        said = "".join(random.choice(list("ABCDEFGHIJ"), max(2, n - frame)))
        asked = len(said) - max(1, int(len(said) * LEARNED))
        turns = [{"from": "human", "value": f"<image>\n{said[:asked]}"}, {"from": "gpt", "value": said[asked:]}]
        records.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    write_json(folder / "conversations.json", records)
    return folder / "conversations.json"


def timed(command: list[str], environment: dict, steps: int) -> tuple[float, list[str]]:
    """(seconds from the line of the step in the middle to the line of the last, the logged lines). Failed where it fails."""
    lines, stamps = [], []
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        said = []
        for line in process.stdout:
            if LOGGED.search(line):
                stamps.append(time.perf_counter())
                lines.append(line)
            said.append(line)
        if process.wait() or len(lines) != steps:
            errors.seek(0)
            end = "".join(said)[-1000:] + errors.read()[-2000:]
            raise Failed(f"{' '.join(command[:4])} ended with {process.returncode} after {len(lines)} of {steps} steps:\n{end}")
    return stamps[-1] - stamps[steps // 2 - 1], lines


def recipe_for(llm: Path, data: Path, batch: int, steps: int) -> Recipe:
    return replace(
        PRESETS["sft-qwen1.5b-frozen"](),
        encoder="genlip-tiny",
        llm=str(llm),
        data=str(data),
        batch=batch,
        global_batch=0,
        max_steps=steps,
        max_length=CUT,
        workers=1,
        gradient_checkpointing=False,
    )


def count_steps(checkout: str, n: int, batch: int) -> int:
    """Steps of two epochs. Raises ValueError for a folder that is no checkout, or more steps than are logged one by one."""
    if not (Path(checkout) / "llava" / "train" / "train.py").is_file():
        raise ValueError(f"{checkout} is no LLaVA-NeXT checkout: {CLONE}, then name that folder")
    steps = 2 * -(-n // batch)
    if steps > estimate.SHORT:
        raise ValueError(f"two epochs of {n} conversations are {steps} steps; beside LLaVA-NeXT at most {estimate.SHORT}: raise --batch")
    return steps


def time_trainers(checkout: str, n: int, scale: float, batch: int, hidden: int, layers: int, rounds: int, seed: int) -> list[dict]:
    """One record for each trainer: tokens per second (real ones, median of the rounds), positions computed for each of them, the speed that
    theirs would gain without padding, and the speed gained against theirs, round by round."""
    steps = count_steps(checkout, n, batch)
    environment = os.environ | {
        "LLAVA_NEXT_ROOT": str(Path(checkout).absolute()),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "1",
        "HF_HUB_OFFLINE": "1",
    }
    seconds, tokens = {"llava_next": [], "ours": []}, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = tiny_qwen(folder / "qwen-tiny", hidden, layers, seed)  # theirs takes a model for Qwen by its path
        recipe = recipe_for(folder / "qwen-tiny", folder / "data", batch, steps)
        prepare(str(write_conversations(folder, mix(n, scale, seed), tokenizer, recipe.encoder, seed)), str(folder / "images"), recipe.data)
        llava_next.write_inputs(recipe, folder, Path(recipe.data))
        for r in range(rounds):
            for way in list(seconds)[:: 1 if r % 2 else -1]:  # nobody is always first
                with tempfile.TemporaryDirectory(dir=folder) as run:
                    command = (our_command if way == "ours" else their_command)(recipe, folder, Path(run))
                    took, lines = timed(command, environment, steps)
                    seconds[way].append(took)
                    if way == "ours":
                        tokens = read_json(Path(run) / "ledger.json")["tokens"]["tokens"]
                    else:
                        seen = int(SEEN.search(lines[-1])[1]) - int(SEEN.search(lines[steps // 2 - 1])[1])
    computed = seen + n * (encoders.resolve(recipe.encoder).tokens - 1)  # of a picture theirs counts one token
    if computed < tokens + n:  # the newline at the end of each
        raise Failed(f"LLaVA-NeXT computed {computed} positions an epoch of conversations of {tokens} tokens: some were left out")
    positions = {"llava_next": computed / tokens, "ours": 1.0}
    return [
        {
            "way": way,
            "steps": steps // 2,
            "tokens": tokens,
            "tokens_per_second": median(tokens / s for s in took),
            "positions": positions[way],
            "allowed": positions["llava_next"] / positions[way],
            "gained": [b / a for a, b in zip(took, seconds["llava_next"])],
        }
        for way, took in seconds.items()
    ]


def our_command(recipe: Recipe, folder: Path, run: Path) -> list[str]:
    flags = ["encoder", "llm", "data", "batch", "global_batch", "max_steps", "max_length", "workers"]
    given = [text for flag in flags for text in (f"--{flag.replace('_', '-')}", str(getattr(recipe, flag)))]
    return [sys.executable, "-m", "train_mllm.train", recipe.preset, *given, "--no-gradient-checkpointing", "--out", str(run)]


def their_command(recipe: Recipe, folder: Path, run: Path) -> list[str]:
    given = llava_next.arguments(recipe, recipe.llm, folder / "llava_next", resolve(recipe, 1).accumulation, False, 0)
    flags = dict(zip(given[::2], given[1::2])) | {"--output_dir": str(run), "--bf16": "False", "--disable_tqdm": "True"}
    flags |= {"--include_num_input_tokens_seen": "True"}  # padding too: by its command line it counts all or nothing
    return [sys.executable, "-m", "llava_plugin.llava_next", "train", *(text for pair in flags.items() for text in pair)]


def table(found: list[dict]) -> str:
    """A row for each trainer, the gain with its least and most of the rounds."""
    rows = [f"{'':12}{'steps':>6}{'tokens/s':>10}{'positions a token':>19}{'allowed':>9}{'gained':>8}  rounds"]
    for row in found:
        gained = row["gained"]
        rows.append(
            f"{row['way']:12}{row['steps']:6}{row['tokens_per_second']:10,.0f}{row['positions']:19.2f}{row['allowed']:8.2f}x"
            f"{median(gained):7.2f}x  {min(gained):.2f} to {max(gained):.2f}"
        )
    return "\n".join(rows)


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m benchmarks.llava_next",
        description="Time our whole trainer and LLaVA-NeXT's own on the same conversations, in turn.",
        epilog="example: OMP_NUM_THREADS=1 python -m benchmarks.llava_next LLaVA-NeXT",
    )
    parser.add_argument("checkout", metavar="CHECKOUT", help="a clone of LLaVA-NeXT")
    add_flags(parser)
    args = parser.parse_args(argv)
    count_steps(args.checkout, args.conversations, args.batch)
    print(f"{args.conversations} conversations with a picture each, {args.batch} per step, {args.rounds} rounds", flush=True)
    print(table(time_trainers(args.checkout, *asked(args))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
