"""How fast the encoder is beside HF's SigLIP 2 and open_clip's NaFlex GenLIP of the same width and depth, on the same pictures.

    git clone https://github.com/mlfoundations/open_clip && git -C open_clip checkout 89fb801
    python -m benchmarks.encoder --open-clip open_clip

Random weights, no weights needed; about two minutes on two cores. All take turns in one run, so that a busy machine is busy for
all: medians of the rounds, ratios of the medians. FLOP are those of the real patches (a padded model does more, and pays for it
in time): 2 a weight of every linear map and patch, 4 n^2 D a layer for the attention of n patches. Where open_clip takes part, its
model holds our weights, and its features are compared with ours before anything is timed.
"""

import argparse
import platform
import statistics
import sys
import time
import types
from pathlib import Path

from genlip.common.command import command, new_parser
from genlip.common.hardware import peak_bf16

LARGEST = 32  # patches a side of the mixed grids, at most 1,024 in all: the range of stage 2


def flops(model, lens: list[int], width: int, depth: int) -> float:
    """FLOP of one forward over pictures of `lens` patches."""
    from torch import nn

    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d)))
    return 2 * weights * sum(lens) + 4 * depth * width * sum(n * n for n in lens)


def genlip_sizes(width: int, depth: int, heads: int) -> dict:
    """Of GenLIPConfig: a SwiGLU whose three maps are as large as two of 4 x width."""
    sixth = width // heads // 6  # of a head's channels, half of which turn: a third each for time, row and column
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": width * 8 // 3 // 16 * 16,
        "mrope_section": [width // heads // 2 - 2 * sixth, sixth, sixth],
    }


def ours(shape, device, dtype):
    """genlip.GenLIPVisionModel with SDPA, and a function (pictures or None, patches, grids) -> a call of it."""
    import torch

    from genlip.configuration_genlip import GenLIPConfig
    from genlip.modeling_genlip import GenLIPVisionModel

    config = GenLIPConfig(**genlip_sizes(*shape))
    torch.manual_seed(0)
    model = GenLIPVisionModel(config).to(device, dtype).eval()

    def prepare(pictures, patches, grids):
        return (lambda: model(pictures)) if pictures is not None else (lambda: model(patches, grid_hw=grids))

    return model, prepare


def _siglip(model_class, config_class, shape, **own):
    width, depth, heads = shape
    own |= {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, "intermediate_size": 4 * width}
    config = config_class(**own)
    config.vision_use_head = False
    config._attn_implementation = "sdpa"
    return model_class(config)


def siglip2(shape, device, dtype):
    """HF's SigLIP 2 encoder with SDPA: the NaFlex class, which takes padded patches of any shape."""
    import torch
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    model = _siglip(Siglip2VisionModel, Siglip2VisionConfig, shape, num_patches=256).to(device, dtype).eval()

    def prepare(pictures, patches, grids):
        padded, valid = pad(patches, grids)
        inputs = {"pixel_values": padded, "pixel_attention_mask": None if valid.all() else valid.to(torch.int32), "spatial_shapes": grids}
        return lambda: model(**inputs)

    return model, prepare


def siglip2_fixed(shape, device, dtype):
    """HF's SigLIP class with SDPA, which SigLIP 2's fixed-size weights use: pictures of one size only."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    model = _siglip(SiglipVisionModel, SiglipVisionConfig, shape, patch_size=16, image_size=224).to(device, dtype).eval()

    def prepare(pictures, patches, grids):
        return None if pictures is None else lambda: model(pictures, interpolate_pos_encoding=pictures.shape[-1] != 224)

    return model, prepare


def import_open_clip(repository: Path) -> None:
    """Make open_clip's single files importable without its package, which needs torchvision."""
    folder = next((f for f in (repository / "src" / "open_clip", repository) if (f / "naflex_genlip_model.py").is_file()), None)
    if folder is None:
        raise ValueError(f"no naflex_genlip_model.py under {repository}: give a clone of open_clip at 89fb801 (release 3.3.0 has none)")
    package = types.ModuleType("open_clip")
    package.__path__ = [str(folder)]
    sys.modules["open_clip"] = package


def open_clip_twin(model, vocab_size: int, **trunk):
    """open_clip's GenLIP with the shape and the weights of our encoder, or of our whole model (whose words are `vocab_size` in all)."""
    from open_clip.naflex_genlip_model import NaFlexGenLip

    config = model.config
    trunk |= {"width": config.hidden_size, "depth": config.num_hidden_layers, "num_heads": config.num_attention_heads}
    trunk |= {"intermediate_size": config.intermediate_size, "text_embed_dim": config.hidden_size}
    trunk |= {"mrope_section": tuple(config.mrope_section), "attention_bias": True, "mlp_bias": True}
    text = {"vocab_size": vocab_size, "pad_id": 1, "bos_id": 2, "eos_id": 3}
    theirs = NaFlexGenLip(embed_dim=config.hidden_size, vision_cfg={"image_size": 224}, text_cfg=text, genlip_cfg=trunk)
    state = model.state_dict()
    renamed = {key.replace("visual.", "trunk."): value for key, value in state.items() if key.startswith("visual.")}
    renamed |= {f"trunk.ln_post.{part}": state[f"ln_post.{part}"] for part in ("weight", "bias")}
    renamed |= {"patch_embed.proj.weight": state["vision_embeddings.patch_embedding.weight"].flatten(1)}
    renamed |= {"patch_embed.proj.bias": state["vision_embeddings.patch_embedding.bias"]}
    if "lm_head.weight" in state:
        renamed |= {"text_embed.weight": state["embeddings.weight"], "lm_head.weight": state["lm_head.weight"]}
    missing, unexpected = theirs.load_state_dict(renamed, strict=False)
    words = () if "lm_head.weight" in state else ("text_embed.weight", "lm_head.weight")
    lacking = [key for key in missing if not key.startswith("visual.") and key not in words]  # `visual` shares the modules named above
    if lacking or unexpected:
        raise ValueError(f"open_clip's GenLIP does not take our weights ({[*lacking, *unexpected]} differ): is its clone at 89fb801?")
    return theirs


def padded_picture(patches, grids) -> dict:
    """open_clip's input: patches (N, 3, 16, 16) of grids (B, 2) padded to the longest, with their places."""
    import torch

    padded, valid = pad(patches, grids)
    coordinates = torch.zeros(*valid.shape, 2, dtype=torch.long, device=patches.device)
    for i, (rows, columns) in enumerate(grids.tolist()):
        coordinates[i, : rows * columns] = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).to(patches.device)
    return {"patches": padded, "patch_coord": coordinates, "patch_valid": valid}


def open_clip_genlip(repository: Path, model, device, dtype):
    """open_clip's GenLIP encoder holding the weights of `model`."""
    import_open_clip(repository)
    theirs = open_clip_twin(model, vocab_size=4).visual.to(device, dtype).eval()

    def prepare(pictures, patches, grids):
        image = padded_picture(patches, grids)
        return lambda: theirs(image)

    return theirs, prepare


def pad(patches, grids):
    """Packed patches (N, 3, 16, 16) -> (B, L, 768) and which are real (B, L)."""
    import torch

    lens = grids.prod(dim=1)
    valid = torch.arange(int(lens.max()), device=patches.device) < lens[:, None]
    padded = patches.new_zeros(*valid.shape, patches[0].numel())
    padded[valid] = patches.flatten(1)
    return padded, valid


def sets(resolution: int, batch: int, device, dtype):
    """(name, pictures or None, patches, grids) of equal pictures and of mixed shapes, of seeded noise."""
    import torch

    from genlip.modeling_genlip import to_patches

    torch.manual_seed(0)
    side = resolution // 16
    pictures = torch.randn(batch, 3, resolution, resolution).to(device, dtype)
    yield f"{batch} of {resolution} x {resolution}", pictures, to_patches(pictures, 16), torch.full((batch, 2), side, device=device)
    grids = torch.randint(4, LARGEST + 1, (batch, 2))
    lens = grids.prod(dim=1)
    patches = torch.randn(int(lens.sum()), 3, 16, 16).to(device, dtype)
    yield f"{batch} mixed, {int(lens.min())} to {int(lens.max())} patches", None, patches, grids.to(device)


def compare(args) -> list[str]:
    """Time all contenders on all sets; returns the lines of a Markdown table."""
    import torch

    device = "cuda" if torch.cuda.is_available() and not args.cpu else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if args.width % args.heads or (args.width // args.heads) % 2:
        raise ValueError(f"--width {args.width} does not split into {args.heads} heads of an even size")
    if args.resolution % 16:
        raise ValueError(f"--resolution {args.resolution} is not a multiple of 16")
    shape = (args.width, args.depth, args.heads)
    contenders = {"genlip (ours)": ours(shape, device, dtype)}
    contenders |= {"HF SigLIP 2 NaFlex": siglip2(shape, device, dtype), "HF SigLIP 2 fixed": siglip2_fixed(shape, device, dtype)}
    if args.open_clip:
        contenders["open_clip GenLIP"] = open_clip_genlip(args.open_clip, contenders["genlip (ours)"][0], device, dtype)

    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads of {platform.machine()}"
    peak = peak_bf16(where)
    lines = [
        f"Width {args.width}, {args.depth} layers, {args.heads} heads; {where}, {str(dtype).removeprefix('torch.')}, torch "
        f"{torch.__version__}; median of {args.rounds} rounds in turn.",
        "",
        f"| pictures | encoder | ms per picture | GFLOP per picture | GFLOP/s |{' MFU |' if peak else ''} time / ours "
        "| time per FLOP / ours |",
        f"|---|---|---:|---:|---:|{'---:|' if peak else ''}---:|---:|",
    ]
    with torch.inference_mode():
        for name, pictures, patches, grids in sets(args.resolution, args.batch, device, dtype):
            lens = grids.prod(dim=1).tolist()
            calls = {who: prepare(pictures, patches, grids) for who, (_, prepare) in contenders.items()}
            calls = {who: call for who, call in calls.items() if call is not None}
            if args.open_clip:
                agree(calls["genlip (ours)"](), calls["open_clip GenLIP"](), lens, 1e-4 if dtype == torch.float32 else 0.1)
            seconds = interleaved_timing(calls, args.rounds, device)
            work = {who: flops(contenders[who][0], lens, args.width, args.depth) for who in calls}
            base = seconds["genlip (ours)"], seconds["genlip (ours)"] / work["genlip (ours)"]
            for who, taken in seconds.items():
                rate = work[who] / taken
                cells = [name, who, f"{1e3 * taken / len(lens):.1f}", f"{work[who] / len(lens) / 1e9:.2f}", f"{rate / 1e9:.1f}"]
                cells += [f"{100 * rate / peak:.1f} %"] if peak else []
                cells += [f"{taken / base[0]:.2f}", f"{taken / work[who] / base[1]:.2f}"]
                lines.append(f"| {' | '.join(cells)} |")
    return lines


def agree(mine, pooled, lens: list[int], tolerance: float) -> None:
    """Raises ValueError where the mean of our features over a picture is not what open_clip pools."""
    import torch

    features = mine.last_hidden_state.flatten(0, -2).float()
    means = torch.stack([part.mean(dim=0) for part in features.split(lens)])
    difference = (means - pooled.float()).abs().max().item()
    if not difference < tolerance:
        raise ValueError(f"open_clip's features differ from ours by {difference:.2g}: is its clone at 89fb801?")


def interleaved_timing(calls: dict, rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each call over rounds in which every one has its turn, after one that is not counted."""
    import torch

    taken = {who: [] for who in calls}
    for _ in range(rounds + 1):
        for who, call in calls.items():
            started = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            taken[who].append(time.perf_counter() - started)
    return {who: statistics.median(times[1:]) for who, times in taken.items()}


def number_flags(parser: argparse.ArgumentParser, *flags: tuple[str, int, str]) -> None:
    """A flag per (name, default, what it counts)."""
    for flag, default, text in flags:
        parser.add_argument(f"--{flag}", type=int, default=default, metavar="N", help=f"{text} (default: {default})")


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m benchmarks.encoder",
        description="Time the encoder beside HF's SigLIP 2 and open_clip's GenLIP, in one run; prints a Markdown table.",
        epilog="example:\n  python -m benchmarks.encoder --open-clip ../open_clip --rounds 9",
    )
    number_flags(
        parser,
        ("width", 384, "of all encoders"),
        ("depth", 12, "layers of all encoders"),
        ("heads", 6, "of all encoders"),
        ("resolution", 224, "pixels a side of the equal pictures"),
        ("batch", 8, "pictures in a set"),
        ("rounds", 7, "turns of each encoder on each set"),
    )
    parser.add_argument("--open-clip", type=Path, metavar="CLONE", help="a clone of open_clip at 89fb801, to compare with its GenLIP")
    parser.add_argument("--cpu", action="store_true", help="fp32 on the CPU even where there is a GPU")
    args = parser.parse_args(argv)
    print("\n".join(compare(args)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
