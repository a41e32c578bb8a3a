"""Released GenLIP checkpoints to our own layout and back, loaded strictly and compared tensor by tensor before the result is kept.

    python -m genlip.convert weights/genlip-so16 runs/so16-ours --size native
    python -m genlip.convert runs/so16-s1/export released/ --layout official --check

Both layouts have the same weights under the same keys; they differ in config.json. `--code` puts the files of Python beside
them, so that `AutoModel.from_pretrained(folder, trust_remote_code=True)` works where this package is not installed. Takes about as
long as reading the weights twice and writing them once.
"""

import json
import os
import shutil
from pathlib import Path

from .common.command import command, new_parser
from .common.files import read_json, written_aside
from .common.locks import locked
from .common.model_folder import MEND
from .pretrained import check_finite, load_model

CODE = {
    "config.json": {
        "AutoConfig": "configuration_genlip.GenLIPConfig",
        "AutoModel": "modeling_genlip.GenLIPVisionModel",
        "AutoModelForImageTextToText": "modeling_genlip.GenLIPForPretraining",
    },
    "preprocessor_config.json": {
        "AutoImageProcessor": "image_processing_genlip.GenLIPImageProcessor",
        "AutoProcessor": "image_processing_genlip.GenLIPProcessor",
    },
}
# What stands beside the weights and is carried over as it is.
BESIDE = ("*token*.json", "vocab.json", "merges.txt", "chat_template*", "*processor_config.json", "provenance.json")


def convert(source: Path, target: Path, layout: str = "ours", size=None, check: bool = False, code: bool = False, overwrite: bool = False):
    """Write the model in `source` to `target` in a layout ("ours" or "official"); returns its number of parameters.

    `size` (pixels a side, or "native"): also write the image processor's file. The target is written aside, loaded, compared, and
    only then renamed. Raises ValueError for what cannot be read, for weights that are not finite (`check`), and for a target that
    is there already.
    """
    import torch

    from .image_processing_genlip import GenLIPImageProcessor

    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists: give another folder, or --overwrite to replace it")
    there, here = (Path(os.path.realpath(folder)) for folder in (target, source))  # Path.resolve() stumbles over links that go round
    if there == here or there in here.parents:
        raise ValueError(f"{target} holds the source: give another folder")
    model = load_model(source, dtype="auto")
    if check:
        check_finite(model)
    with locked(target.parent, target.name), written_aside(target) as part:
        model.save_pretrained(part, layout=layout)
        for file in sorted({file for pattern in BESIDE for file in source.glob(pattern)}):
            shutil.copy2(file, part)
        if size is not None:
            GenLIPImageProcessor(size=size).save_pretrained(part)
        if code:
            carry_code(part)
        written = load_model(part, dtype="auto").state_dict()
        for key, tensor in model.state_dict().items():
            if written[key].dtype != tensor.dtype or not torch.equal(written[key].view(torch.uint8), tensor.view(torch.uint8)):
                raise ValueError(f"{key} read back from {part} is not what was written: is the disk full or failing?")
    return model.num_parameters()


def carry_code(folder: Path) -> None:
    """Put configuration, model and image processor beside the weights and say in the folder's files where their classes are."""
    for name, classes in CODE.items():
        file = folder / name
        if not file.is_file():
            raise ValueError(f"--code needs a {name}: say --size 224 or --size native, as the model was trained")
        file.write_text(json.dumps(read_json(file, MEND, {}) | {"auto_map": classes}, indent=1) + "\n")
    for module in ("configuration_genlip", "packed_row", "modeling_genlip", "image_decoding", "image_processing_genlip"):
        shutil.copyfile(Path(__file__).with_name(f"{module}.py"), folder / f"{module}.py")


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m genlip.convert",
        description="Rewrite a GenLIP checkpoint in the released layout or in ours, and check the result by loading it.",
        epilog="examples:\n  python -m genlip.convert weights/genlip-so16 so16-ours --size native --code\n"
        "  python -m genlip.convert runs/tiny-s1/export released --layout official --check",
    )
    parser.add_argument("source", type=Path, help="a released folder, or runs/NAME/export")
    parser.add_argument("target", type=Path, help="the folder to write; it must not exist, unless --overwrite is given")
    parser.add_argument("--layout", choices=("ours", "official"), default="ours", help="of the target's config.json (default: %(default)s)")
    parser.add_argument("--size", type=lambda s: s if s == "native" else int(s), metavar="PIXELS|native", help="write an image processor")
    parser.add_argument("--check", action="store_true", help="refuse weights that hold NaN or infinity")
    parser.add_argument("--code", action="store_true", help="carry the Python files, for trust_remote_code=True")
    parser.add_argument("--overwrite", action="store_true", help="replace the target if it exists")
    args = parser.parse_args(argv)
    number = convert(args.source, args.target, args.layout, args.size, args.check, args.code, args.overwrite)
    print(f"wrote {args.target}: {number:,} parameters, {args.layout} layout, read back and equal")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
