"""A run of an earlier version: what it may still say, what is refused, and with which commit."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from genlip.common.run_folder import BEFORE_RECORDED, BEFORE_RENAMED, RENAMED, claim_run_folder
from genlip.recipes import PRESETS as PRETRAINING
from train_mllm.recipes import PRESETS as FINE_TUNING

RECIPES = [PRETRAINING["tiny-s1"](), FINE_TUNING["tiny-sft"]()]


def begun(folder: Path, recipe, names: dict[str, str], *made: str) -> None:
    """A run folder as an earlier version left it: its recipe under old names, and the folders `made`."""
    old = {new: before for before, new in names.items()}
    held = {old.get(name, name): value for name, value in json.loads(json.dumps(asdict(recipe))).items()}
    if held.get("tracker") == "none":
        held["tracker"] = ""
    folder.mkdir()
    (folder / "recipe.json").write_text(json.dumps(held))
    for name in made:
        (folder / name).mkdir(parents=True)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.preset)
def test_a_run_in_progress_is_refused_with_the_commit_that_finishes_it(recipe, tmp_path):
    names = RENAMED if recipe in RECIPES[:1] else {"clip": "max_grad_norm"}
    for name, old in (("old", names), ("new", {})):
        recipe = replace(recipe, out=str(tmp_path / name))
        begun(tmp_path / name, recipe, old, "checkpoints/step-000500")
        commit, why = (BEFORE_RENAMED, r"its recipe has --\w+") if old else (BEFORE_RECORDED, "it has no run.json")
        said = rf"{name} holds a run that an earlier version began \({why}.*\).*: finish it with that \(git checkout {commit}\), or "
        with pytest.raises(ValueError, match=said):
            claim_run_folder(recipe)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.preset)
def test_a_finished_run_is_done_where_its_recipe_means_the_same(recipe, tmp_path):
    names = RENAMED if recipe in RECIPES[:1] else {"clip": "max_grad_norm"}
    for name, old in (("old", names), ("new", {})):
        recipe = replace(recipe, out=str(tmp_path / name))
        begun(tmp_path / name, recipe, old, "export")
        before = (tmp_path / name / "recipe.json").read_text()
        assert claim_run_folder(recipe) == tmp_path / name and (tmp_path / name / "recipe.json").read_text() == before
        with pytest.raises(ValueError, match=r"an earlier version began .*git checkout"):
            claim_run_folder(replace(recipe, lr=0.5))


def test_a_run_that_trained_nothing_yet_is_begun_anew(tmp_path):
    recipe = replace(RECIPES[1], out=str(tmp_path / "run"))
    begun(tmp_path / "run", recipe, {})
    assert claim_run_folder(recipe) == tmp_path / "run"
