"""Pictures of every kind and shape, at a fixed size and at their own: the released rounding rule, and what is refused."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from genlip.image_processing_genlip import GenLIPImageProcessor, native_size


def noise(height, width, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [
        (640, 480, 36, 27),
        (1080, 1920, 24, 42),
        (32, 32, 4, 4),
        (224, 224, 14, 14),
        (512, 512, 32, 32),
        (1, 1, 4, 4),
        (8, 1000, 1, 45),  # 0 x 62 by rounding, so it grows
        (72, 88, 4, 6),  # 4.5 and 5.5 round to even
        (20_000, 100, 452, 2),
        (1000, 5, 57, 1),  # 200 times, still allowed
    ],
)
def test_native_size_is_the_released_rule(height, width, rows, columns):
    assert native_size(height, width) == (16 * rows, 16 * columns)
    assert native_size(width, height) == (16 * columns, 16 * rows)


def test_native_size_stays_within_its_bounds():
    sides = [1, 5, 16, 63, 64, 65, 100, 511, 513, 1000, 4000]
    for height in sides:
        for width in sides:
            if max(height, width) <= 200 * min(height, width):
                a, b = native_size(height, width)
                assert a % 16 == b % 16 == 0 and min(a, b) >= 16
                assert 4096 <= a * b <= 262_144, (height, width)


def test_native_aspect_makes_packed_patches_in_row_major_order():
    processor = GenLIPImageProcessor(size="native")
    picture, other = noise(64, 96), noise(80, 64)
    out = processor([picture, other])
    assert out["grid_hw"].tolist() == [[4, 6], [5, 4]] and out["pixel_values"].shape == (44, 3, 16, 16)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
    torch.testing.assert_close(out["pixel_values"][7], pixels[:, 16:32, 16:32])  # second row, second column
    for one, patches in zip((picture, other), out["pixel_values"].split([24, 20])):
        assert processor(one)["pixel_values"].equal(patches)  # batching changes nothing


def test_fixed_size_is_plain_bilinear_with_the_training_values():
    picture = noise(50, 70)
    out = GenLIPImageProcessor()([picture, noise(20, 20)])
    assert out["pixel_values"].shape == (2, 3, 224, 224) and "grid_hw" not in out
    by_hand = torch.from_numpy(np.array(picture.resize((224, 224), Image.Resampling.BILINEAR))).permute(2, 0, 1).float() / 127.5 - 1
    torch.testing.assert_close(out["pixel_values"][0], by_hand)
    assert GenLIPImageProcessor()(picture, size=384)["pixel_values"].shape == (1, 3, 384, 384)
    assert GenLIPImageProcessor()(picture, size="native")["grid_hw"].tolist() == [[4, 5]]  # grown from 50 x 70
    per_channel = GenLIPImageProcessor(image_mean=[0.0, 0.5, 0.5], image_std=[1.0, 0.5, 0.5])(picture)["pixel_values"]
    torch.testing.assert_close(per_channel[0, 0], by_hand[0] / 2 + 0.5)
    torch.testing.assert_close(per_channel[0, 1:], by_hand[1:])


def test_saved_and_loaded_it_is_the_same(tmp_path):
    GenLIPImageProcessor(size="native", max_pixels=65_536).save_pretrained(tmp_path)
    loaded = GenLIPImageProcessor.from_pretrained(tmp_path)
    assert (loaded.size, loaded.min_pixels, loaded.max_pixels) == ("native", 4096, 65_536)
    assert loaded(noise(512, 512))["grid_hw"].tolist() == [[16, 16]]


def one_colour(picture, size=32):
    """Its colour as RGB bytes, where it has only one."""
    pixels = GenLIPImageProcessor()(picture, size=size)["pixel_values"][0].flatten(1)
    assert (pixels.max(1).values - pixels.min(1).values).max() < 1e-6
    return ((pixels[:, 0] + 1) * 127.5).round().int().tolist()


def file_of(picture, suffix, folder, **options):
    file = folder / f"picture.{suffix}"
    picture.save(file, **options)
    return file


def test_colour_modes(tmp_path):
    red = Image.new("RGB", (40, 40), (200, 10, 20))
    assert one_colour(red) == [200, 10, 20]
    assert one_colour(red.quantize(4)) == [200, 10, 20]  # palette
    assert one_colour(Image.new("L", (40, 40), 77)) == [77, 77, 77]
    assert one_colour(Image.new("LA", (40, 40), (77, 128))) == [77, 77, 77]
    assert one_colour(Image.new("RGBA", (40, 40), (1, 2, 3, 0))) == [1, 2, 3]  # alpha is dropped
    assert one_colour(Image.new("1", (40, 40), 1)) == [255, 255, 255]
    assert one_colour(Image.new("CMYK", (40, 40), (255, 0, 0, 0))) == [0, 255, 255]
    sixteen = Image.fromarray(np.full((40, 40), 51_200, dtype=np.uint16))
    assert one_colour(sixteen) == [200, 200, 200]  # not clipped to white
    assert one_colour(file_of(sixteen, "png", tmp_path)) == [200, 200, 200]
    assert one_colour(file_of(sixteen, "tiff", tmp_path)) == [200, 200, 200]
    assert one_colour(np.full((40, 40, 3), 9, dtype=np.uint8)) == [9, 9, 9]
    assert one_colour(np.full((40, 40), 9, dtype=np.uint8)) == [9, 9, 9]
    assert one_colour(str(file_of(red, "png", tmp_path))) == [200, 10, 20]


def test_an_animation_is_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ((200, 10, 20), (0, 0, 255))]
    file = tmp_path / "two.gif"
    frames[0].save(file, save_all=True, append_images=frames[1:])
    assert Image.open(file).n_frames == 2
    assert one_colour(file) == [200, 10, 20]


def test_exif_turns_before_the_shape_is_measured():
    picture = noise(64, 128)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    stream = io.BytesIO()
    picture.save(stream, "png", exif=exif)
    turned = GenLIPImageProcessor(size="native")(Image.open(stream))
    assert turned["grid_hw"].tolist() == [[8, 4]]
    assert turned["pixel_values"].equal(GenLIPImageProcessor(size="native")(picture.rotate(-90, expand=True))["pixel_values"])


def test_one_pixel():
    picture = Image.new("RGB", (1, 1), (200, 10, 20))
    assert one_colour(picture) == [200, 10, 20]
    assert one_colour(picture, 16) == [200, 10, 20]
    assert GenLIPImageProcessor(size="native")(picture)["grid_hw"].tolist() == [[4, 4]]


@pytest.mark.parametrize("size", [224, "native"])
def test_what_is_no_picture_is_named(size, tmp_path, shared):
    processor = GenLIPImageProcessor(size=size)
    text = tmp_path / "notes.jpg"
    text.write_text("not a picture")
    truncated = shared / "ocr" / "broken.jpg"
    for file in (text, truncated, tmp_path / "absent.png"):
        with pytest.raises(ValueError, match=rf"{file.name} is not a picture"):
            processor([noise(20, 20), file])
    half = file_of(noise(200, 200), "jpg", tmp_path)
    half.write_bytes(half.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"picture\.jpg is not a picture .*truncated"):
        processor(Image.open(half))  # which reads no more than the header
    for wrong, sentence in (
        (None, "NoneType"),
        (np.zeros((20, 20, 3)), "float64"),
        (np.zeros((20, 20, 5), dtype=np.uint8), "not a picture"),
        (Image.new("F", (20, 20)), "float pixels of unknown range"),
    ):
        with pytest.raises(ValueError, match=sentence) as e:
            processor([noise(20, 20), wrong])
        assert "picture 1 is not a picture" in str(e.value)


def test_shapes_and_sizes_that_cannot_be():
    processor = GenLIPImageProcessor(size="native")
    with pytest.raises(ValueError, match=r"picture 0 .*10 x 20000 pixels: one side is more than 200 times"):
        processor(Image.new("RGB", (20_000, 10)))
    assert processor(Image.new("RGB", (20_000, 10)), size=32)["pixel_values"].shape == (1, 3, 32, 32)  # a square takes any shape
    for size in (100, 0, -16, "big"):
        with pytest.raises(ValueError, match="neither a multiple of the patch size 16 nor 'native'"):
            GenLIPImageProcessor(size=size)
    for field, value in (
        ("image_std", 0),
        ("image_std", [0.5, 0.0, 0.5]),
        ("image_mean", float("nan")),
        ("image_mean", [0.5, 0.5, float("inf")]),
    ):
        with pytest.raises(ValueError, match=rf"{field} .*preprocessor_config\.json.*it takes finite numbers"):
            GenLIPImageProcessor(**{field: value})
    with pytest.raises(ValueError, match="no pictures"):
        processor([])
