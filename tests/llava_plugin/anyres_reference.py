"""What LLaVA-NeXT's own functions say, as JSON: `python tests/llava_plugin/anyres_reference.py N` in a process of its own, with
$LLAVA_NEXT_ROOT. Of N random sizes the grid, the map's rows and columns and the tokens; of some pictures the tiles' digests; of a tiny
model the loss and the places of newlines. tests/llava_plugin/data/anyres.json is what it says for 400."""

import hashlib
import json
import math
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from llava_plugin import llava_next, mllm
from llava_plugin.tower import VisionTower

TILES = ((336, 24), (384, 24), (384, 27), (432, 27), (448, 32), (64, 4))  # pixels and tokens a side
PICTURES = ((100, 70), (64, 64), (31, 200), (300, 150), (500, 20))  # width, height
VIEWS = ("anyres", "anyres_max_2 (1x1),...,(3x3)")  # of the tiny model


def drawn(n: int) -> list[dict]:
    """Random sizes, tiles and pinpoints in all their forms."""
    draw, cases = random.Random(0), []
    for _ in range(n):
        tile, side = draw.choice(TILES)
        sides = [[draw.randint(1, 6) * tile, draw.randint(1, 6) * tile] for _ in range(draw.randint(1, 9))]
        five = [[tile, 2 * tile], [2 * tile, tile], [2 * tile, 2 * tile], [3 * tile, tile], [tile, 3 * tile]]
        ranged = f"(1x1),...,({draw.randint(1, 6)}x{draw.randint(1, 6)})"
        pinpoints = draw.choice([sides, five, ranged if tile in (336, 384, 448) else five])
        size = (
            (draw.randint(1, 3000), draw.randint(1, 3000)) if draw.random() < 0.9 else (draw.choice((1, 336, 3000)), draw.choice((5, 672)))
        )
        cases.append({"size": size, "tile": tile, "side": side, "pinpoints": pinpoints, "max": draw.choice((0, 0, 1, 2, 4, 9))})
    return cases


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8))


def digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16]


def tiny(folder: Path, view: str) -> Path:
    """The export of an MLLM of clip-tiny and a random Qwen2 of a hundred words, equal on every machine."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    words = ["<|im_end|>", "<|image_pad|>", *(f"w{i}" for i in range(98))]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|im_end|>", additional_special_tokens=["<|image_pad|>"])
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    llm = folder / "qwen"
    Qwen2ForCausalLM(Qwen2Config(vocab_size=len(words), **sizes, tie_word_embeddings=False)).save_pretrained(llm)
    tokenizer.save_pretrained(llm)
    model, tokenizer = mllm.build(VisionTower.from_encoder("clip-tiny", view=view), str(llm))
    mllm.save(model, tokenizer, folder / "export", {"stage": "sft", "llm": "qwen"})
    return folder / "export"


WORDS = [5, 6, 7, 8, 9, 10]  # behind the picture


def geometry(cases: list[dict]) -> list[list[int]]:
    from llava.mm_utils import get_anyres_image_grid_shape
    from llava.model.llava_arch import unpad_image

    found = []
    for case in cases:
        across, down = get_anyres_image_grid_shape(case["size"], case["pinpoints"], case["tile"])
        rows, columns = unpad_image(torch.zeros(1, down * case["side"], across * case["side"]), case["size"]).shape[1:]
        if case["max"] and (times := math.sqrt(rows * columns / (case["max"] * case["side"] ** 2))) > 1.1:  # as in their model
            rows, columns = int(rows // times), int(columns // times)
        found.append([across, down, rows, columns])
    return found


def losses(view: str) -> list[dict]:
    """Of each picture before WORDS, in their model with an export's weights: the loss of the words, and where newlines stand."""
    from llava.mm_utils import process_images

    found = []
    with tempfile.TemporaryDirectory() as folder:
        export, checkpoint = tiny(Path(folder), view), Path(folder) / "checkpoint"
        llava_next.to_llava_next(export, checkpoint)
        model = llava_next.load(checkpoint)
        newline = model.get_model().image_newline
        for size in PICTURES:
            pixels = process_images([picture(*size)], model.get_vision_tower().image_processor, model.config)
            ids = torch.tensor([[-200, *WORDS]])
            with torch.no_grad():
                prepared = model.prepare_inputs_labels_for_multimodal(ids, None, None, None, ids.clone(), list(pixels), ["image"], [size])
                logits = model(inputs_embeds=prepared[4]).logits[0]
            before = logits[-len(WORDS) - 1 : -1]
            loss = torch.nn.functional.cross_entropy(before, torch.tensor(WORDS)).item()
            found.append({"loss": loss, "newlines": (prepared[4][0] == newline).all(dim=1).nonzero()[:, 0].tolist()})
    return found


def main() -> None:
    llava_next.install()
    from llava.mm_utils import process_anyres_image

    class Whole:
        """An image processor that leaves a tile's bytes as they are."""

        size, crop_size = {"shortest_edge": 64}, {"height": 64}

        def preprocess(self, image, return_tensors):
            return {"pixel_values": [torch.from_numpy(np.array(image))]}

    five = [[64, 128], [128, 64], [128, 128], [192, 64], [64, 192]]
    tiles = [[digest(tile.numpy()) for tile in process_anyres_image(picture(*size), Whole(), five)] for size in PICTURES]
    cases = drawn(int(sys.argv[1]))
    print(json.dumps({"geometry": geometry(cases), "tiles": tiles, "losses": {view: losses(view) for view in VIEWS}}))


if __name__ == "__main__":
    main()
