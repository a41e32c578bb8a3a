"""The table of encoders, printed; `--verify` loads weights and holds them against it."""

from pathlib import Path

from genlip.common.command import command, new_parser

from . import KEYS, EncoderSpec, lacks_packages, resolve, weights_dir


def verify(name: str) -> str:
    """Load an encoder and hold it against its spec: what it is, how big pictures are; ValueError where weights are absent or do not fit."""
    import torch

    from llava_plugin.tower import VisionTower, digest, never_trained

    tower = VisionTower.from_encoder(name)
    spec = tower.spec
    with torch.inference_mode():
        features = tower(torch.zeros(1, 3, spec.resolution, spec.resolution)).last_hidden_state
    if not torch.isfinite(features).all():
        raise ValueError(f"{spec.key}: features are not finite; fetch its weights again: python -m llava_plugin.fetch {spec.key} --force")
    fresh = "random weights: no norm of it has learned anything" if never_trained(tower.encoder) else "trained weights"
    state = "untrained, from its seed" if tower.config.untrained else fresh
    counts = f"{spec.parameters:,} parameters, width {features.shape[2]}, digest {digest(tower)[:8]}"
    note = f"; {tower.interpolation}" if tower.interpolation else ""
    return f"{spec.key}: {state}, {counts}\n{spec.size_in_words}{note}"


def _here(spec: EncoderSpec) -> str:
    if missing := lacks_packages(spec.family):
        return missing.partition(" (")[0]
    if (Path(spec.path or weights_dir() / spec.key) / "config.json").is_file() and spec.key != "random-tiny":
        return "here"
    return "from its seed" if spec.seed is not None else "no"


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser(
        prog="python -m llava_plugin.encoders",
        description="Print the table of encoders, or verify weights against it.",
        epilog="examples:\n"
        "  python -m llava_plugin.encoders\n"
        "  python -m llava_plugin.encoders dinov2-s14 runs/tiny-s1/export\n"
        "  python -m llava_plugin.encoders --verify dinov2-s14",
    )
    parser.add_argument("names", nargs="*", metavar="ENCODER", help="only these: keys, folders or hub ids")
    parser.add_argument("--verify", action="store_true", help="load the named encoders and check them")
    args = parser.parse_args(argv)
    if args.verify:
        if not args.names:
            raise ValueError("--verify wants an encoder, for example: python -m llava_plugin.encoders --verify genlip-tiny")
        for name in args.names:
            print(verify(name))
        return 0
    specs = [resolve(name) for name in args.names] or KEYS.values()
    rows = [
        ("key", "family", "parameters", "patch", "resolution", "grid", "tokens", "width", "feature", "drops", "weights here", "licence")
    ]
    for s in specs:
        count = f"{s.parameters / 1e6:.1f} M" if s.parameters else "-"
        cells = (s.key, s.family, count, s.patch_size, s.resolution, f"{s.grid} x {s.grid}", s.tokens, s.width, s.feature, s.prefix_tokens)
        rows.append((*map(str, cells), _here(s), s.licence))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    for spec in specs if args.names else ():
        print(f"{spec.key}: {spec.size_in_words}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
