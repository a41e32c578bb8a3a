"""The tiny recipe and its data, as the tests of pretraining have them."""

from tests.genlip.conftest import draw, recipe, shards, tar  # noqa: F401
