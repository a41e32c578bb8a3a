"""What each patch would say, and where the words look: pictures and JSON (arXiv 2605.00809, section 4.1.2 and the attention sink).

    python -m genlip.readout runs/tiny-s1/export photo.jpg --out looks/

writes, for every picture, NAME-words.png (each patch's likeliest word over it), NAME-attention.png (the mean attention of the
caption on the patches, then that of its first words), NAME.json with all numbers, and for all together sinks.json: the share of the
text's attention that falls on the first picture token, and on the picture as a whole. The paper reports 17.1 % and 8.9 % without
the gate, 0.1 % and 13.4 % with it.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from .common.command import command, new_parser
from .common.locks import locked

TOP = 5  # words per patch
SHOWN = 7  # words of the caption whose attention is drawn
CELL = 56  # pixels per patch in the drawings, at least


@dataclass(frozen=True)
class Sinks:
    """Means over layers, heads and text tokens of the share of attention that falls there; `by_layer` the same for each layer."""

    first_token: float
    vision: float
    registers: float
    by_layer: list[dict]


def patch_words(model, tokenizer, patches, grid, top: int = TOP) -> list[list[tuple[str, float]]]:
    """patches (N, 3, p, p), grid (1, 2) -> for each patch its `top` likeliest words: lm_head(proj(ln_post(patch)))."""
    import torch

    ids = torch.tensor([tokenizer("\n", add_special_tokens=False).input_ids])  # patches do not see it
    with torch.no_grad():
        logits = model(ids, pixel_values=patches, grid_hw=grid, output_image_logits=True).image_logits
    found = logits.float().softmax(dim=-1).topk(top, dim=-1)
    rows = zip(found.indices.tolist(), found.values.tolist())
    return [[(tokenizer.decode([word]), share) for word, share in zip(*row)] for row in rows]


def text_attention(model, patches, grid, ids):
    """Attention of the words `ids` (1, T) -> (layers, T, R + N + T), the mean over heads. The model must attend eagerly."""
    import torch

    with torch.no_grad():
        weights = model(ids, pixel_values=patches, grid_hw=grid, output_attentions=True).attentions
    return torch.stack([layer[0].float().mean(dim=0)[-ids.shape[1] :] for layer in weights])


def sinks(attention, patches: int, registers: int = 0) -> Sinks:
    """attention (layers, T, R + N + T) -> the shares."""
    rows = attention.mean(dim=1)
    shares = {
        "first_token": rows[:, registers],
        "vision": rows[:, registers : registers + patches].sum(dim=1),
        "registers": rows[:, :registers].sum(dim=1),
    }
    by_layer = [{name: float(share[i]) for name, share in shares.items()} for i in range(len(rows))]
    return Sinks(**{name: float(share.mean()) for name, share in shares.items()}, by_layer=by_layer)


def draw_words(pixels, grid: tuple[int, int], words: list[list[tuple[str, float]]]):
    """The picture with each patch's likeliest word on it, the surer the brighter."""
    from PIL import Image, ImageDraw, ImageFont

    rows, columns = grid
    image = Image.fromarray(pixels).resize((columns * CELL, rows * CELL), Image.Resampling.BICUBIC).point(lambda v: v * 0.55)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=11)
    for i, ((word, share), *_) in enumerate(words):
        x, y = i % columns * CELL, i // columns * CELL
        bright = round(110 + 145 * min(1.0, share))
        pen.rectangle((x, y, x + CELL, y + CELL), outline=(90, 90, 90))
        pen.text((x + 3, y + CELL // 2), word.strip()[:9], fill=(bright, bright, bright), font=font, anchor="lm")
    return image


def draw_attention(pixels, grid: tuple[int, int], maps: list[tuple[str, object]]):
    """The picture, then it again for each (title, (N,) attention), red where it is looked at; each map by its own largest value."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    rows, columns = grid
    scale = max(1, 224 // max(rows, columns))
    width, height, bar = columns * scale, rows * scale, 16
    picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    sheet = Image.new("RGB", ((width + 4) * (len(maps) + 1), height + bar), "white")
    sheet.paste(picture, (0, bar))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for i, (title, values) in enumerate(maps, start=1):
        values = np.asarray(values, dtype=np.float32).reshape(rows, columns)
        heat = (values / max(float(values.max()), 1e-12)).repeat(scale, axis=0).repeat(scale, axis=1)[..., None]
        mixed = np.asarray(picture, dtype=np.float32) * (1 - 0.7 * heat) + np.array([230, 30, 20], dtype=np.float32) * 0.7 * heat
        sheet.paste(Image.fromarray(mixed.astype(np.uint8)), (i * (width + 4), bar))
        pen.text((i * (width + 4), 2), title.strip()[:30], fill="black", font=font)
    return sheet


def readout(args) -> Path:
    """Write the files of every picture; returns the folder. Raises ValueError for what is no export or no picture."""
    import re
    from dataclasses import asdict

    import numpy as np
    import torch

    from .generation import generate_text, load, pictures
    from .modeling_genlip import to_patches

    model, tokenizer, processor, size = load(args.export)
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    registers = model.config.num_register_tokens
    found = []
    for picture in pictures(args.pictures, size, args.prompt, args.text_key):
        p = processor.patch_size
        grid = (picture.pixels.shape[0] // p, picture.pixels.shape[1] // p)
        patches, grid_hw = to_patches(processor.normalise(np.stack([picture.pixels])), p), torch.tensor([grid])
        words = patch_words(model, tokenizer, patches, grid_hw)
        prompt = torch.tensor([tokenizer(picture.prompt, add_special_tokens=False).input_ids])
        (said,) = generate_text(model, tokenizer, prompt, args.max_new_tokens, pixel_values=patches, grid_hw=grid_hw)
        caption = tokenizer(said, add_special_tokens=False).input_ids
        ids = torch.tensor([prompt[0].tolist() + caption])
        model.set_attn_implementation("eager")  # the weights exist there alone
        attention = text_attention(model, patches, grid_hw, ids)
        model.set_attn_implementation("sdpa")

        seen = attention.mean(dim=0)[:, registers : registers + len(patches)]  # (T, N)
        spoken = seen[prompt.shape[1] :] if caption else seen
        maps = [("mean of the caption", spoken.mean(dim=0))]
        maps += [(tokenizer.decode([word]), spoken[i]) for i, word in enumerate(caption[:SHOWN])]
        name = re.sub(r"[^\w.-]+", "_", Path(picture.name.split(" in ")[0]).stem) or "picture"
        if (folder / f"{name}.json").exists() and any(name == other["file"] for other in found):
            name = f"{name}-{len(found)}"
        draw_words(picture.pixels, grid, words).save(folder / f"{name}-words.png")
        draw_attention(picture.pixels, grid, maps).save(folder / f"{name}-attention.png")
        shares = sinks(attention, len(patches), registers)
        record = {"name": picture.name, "said": said, "grid": grid, "words": words, "attention": spoken.mean(dim=0).tolist()}
        (folder / f"{name}.json").write_text(json.dumps(record | {"sinks": asdict(shares)}, ensure_ascii=False) + "\n")
        found.append({"file": name, "first_token": shares.first_token, "vision": shares.vision, "registers": shares.registers})
    means = {key: sum(each[key] for each in found) / len(found) for key in ("first_token", "vision", "registers")}
    (folder / "sinks.json").write_text(json.dumps({"pictures": len(found)} | means | {"each": found}, indent=1) + "\n")
    print(
        f"{len(found)} pictures in {folder}: of the text's attention {means['first_token']:.1%} falls on the first picture token, "
        f"{means['vision']:.1%} on the picture" + (f", {means['registers']:.1%} on registers" if registers else "")
    )
    return folder


@command
def main(argv: list[str] | None = None) -> int:
    from .speak import flags

    parser = new_parser(
        prog="python -m genlip.readout",
        description="Draw what patches would say and where the words of a caption look.",
        epilog="example:\n  python -m genlip.readout runs/tiny-s1/export photo.jpg folder/ --out looks/",
    )
    flags(parser)
    parser.add_argument("--out", required=True, help="the folder for PNG and JSON files")
    args = parser.parse_args(argv)
    with locked(Path(args.out)):
        readout(args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
