"""The compare command, rows of several training seeds, the noise file, and what may not be compared."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval_suites import suites
from eval_suites.compare import main
from eval_suites.report import samples, tables
from eval_suites.report.page import write_page
from eval_suites.score import averages, comparison, results, seeds, stats
from tests.eval_suites.helpers.handmade_results import SUITE, make, right_share, write_results
from tests.eval_suites.helpers.small_data import provenance

FULL = {column.name: column for column in suites.get("genlip14").columns}
MINI = {column.name: column for column in suites.get("mini14").columns}


@pytest.fixture
def world(tmp_path, monkeypatch):
    """results/ with good and poor, which differ in the encoder alone."""
    monkeypatch.chdir(tmp_path)
    return make(tmp_path, monkeypatch)


def seeded(world, encoder: str, shares: list[float], first: int = 0, **recipe) -> None:
    """Rows of one encoder and recipe, a seed each."""
    for i, share in enumerate(shares):
        said = {"lr": 0.001, "encoder": encoder, "seed": first + i, **recipe}
        write_results(world[0], world[1], encoder, right_share(10 * first + i + len(encoder), share), recipe=said)


def read(world) -> list[results.EncoderResult]:
    return seeds.read_joined(world[0], SUITE)


# --- the command ------------------------------------------------------------------------------------------------------------


def test_it_says_that_nothing_else_differs_and_prints_the_paired_table(world, capsys):
    assert main(["good", "poor"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("The two differ in the encoder alone") and "not training seeds (not recorded against not recorded)" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| ALL AVG")]
    assert line.split("|")[-2].strip() == "better" and "<0.0001" in line
    (line,) = [line for line in text.splitlines() if line.startswith("| overall")]
    assert line.split("|")[-2].strip() == "exploratory"


def test_what_differs_is_named_and_is_code_3(world, capsys):
    write_results(world[0], world[1], "other", right_share(3, 0.5), recipe={"lr": 0.1, "encoder": "other"})
    assert main(["good", "other", "--results", "results", "--suite", "easyvqa"]) == 3
    assert "these differ:\n- recipe.lr: 0.001 against 0.1\n" in capsys.readouterr().out
    folder = write_results(world[0], world[1], "elsewhere", right_share(4, 0.5)) / "easyvqa_shape" / "result.json"
    result = json.loads(folder.read_text())
    result["key"]["data"] = "other"
    folder.write_text(json.dumps(result))
    assert main(["good", "elsewhere"]) == 3
    assert "- other data in easyvqa_shape\n" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused(world, capsys):
    for arguments, said in (
        (["good"], "give two encoders"),
        (["good", "good"], "are one row"),
        (["good", "nobody"], "no results of nobody"),
        (["good", "poor", "--suite", "mini14"], "no results of suite mini14 under results: evaluate with --suite mini14"),
        (["good", "poor", "--results", "nowhere"], "results of no suite under nowhere"),
        (["--seed-noise", "good"], "takes one encoder and a file"),
        (["--seed-noise", "good", "--out", "noise.json"], "3 or more"),
        (["good", "poor", "--noise", "results/easyvqa/noise.json"], "No such file"),
    ):
        assert main(arguments) == 2
        assert said in capsys.readouterr().err
    for file in Path("results/easyvqa").glob("poor/*/*/result.json"):
        result = json.loads(file.read_text())
        result["key"]["task"] = "other"
        file.write_text(json.dumps(result))
    assert main(["good", "poor"]) == 2
    assert "no column of the two can be compared: shape: other prompts or metrics" in capsys.readouterr().err


# --- what may not be compared -----------------------------------------------------------------------------------------------


def test_a_column_that_is_not_paired_has_a_reason_and_does_not_count_for_holm(world):
    good, poor = read(world)
    whole = {line.title: line.verdict for line in comparison.compare(SUITE, good, poor)}
    shape = poor.scores["shape"]
    other = replace(poor, scores={**poor.scores, "shape": replace(shape, ids=np.char.add("x", shape.ids))})
    lines = {line.title: line for line in comparison.compare(SUITE, good, other)}
    assert lines["shape"].verdict is None and "not asked the same questions" in lines["shape"].reason
    assert lines["ALL AVG"].verdict is None and "not every column" in lines["ALL AVG"].reason
    smallest = min(whole[title].p for title in ("colour", "yes/no"))
    assert min(lines[title].verdict.p_adjusted for title in ("colour", "yes/no")) == pytest.approx(2 * smallest)


def test_rows_whose_data_state_different_maxima_are_not_compared_nor_ranked():
    from tests.eval_suites.test_tables import measured

    suite = replace(suites.get("mini14"), columns=tuple(replace(c, n=100) for c in suites.get("mini14").columns))
    a, b = measured("a", suite), measured("b", suite)
    other = replace(b, cells={**b.cells, "coco": replace(b.cells["coco"], full_mark=500.0)})
    lines = {line.title: line for line in comparison.compare(suite, a, other, draws=0)}
    assert lines["COCO"].verdict is None and "different maxima, 100 and 500" in lines["COCO"].reason
    assert lines["ALL AVG"].verdict is None and lines["Caption"].verdict is None and lines["Doc & OCR"].verdict
    assert comparison.ranks(suite, [a, b], suite.columns) and not comparison.ranks(suite, [a, other], suite.columns)


def test_unreadable_pictures_of_ocrbench_are_left_out_as_everywhere(tmp_path):
    """998 of 1,000 answered, half of them rightly: 50.0, not 49.9, and only where --allow-partial lets the column in."""
    folder = tmp_path / "genlip14" / "a" / "l@w" / "ocrbench"
    folder.mkdir(parents=True)
    lines = [{"doc_id": i, "image": f"{i}", "scores": {"ocrbench_accuracy": {"score": float(i % 2)}}} for i in range(998)]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {"suite": "genlip14", "task": "ocrbench", "encoder": "a", "llm": "l", "n": 998, "n_expected": 1000,
              "left_out": {"998": "no picture", "999": "no picture"}, "results": {"ocrbench_accuracy,none": 0.499},
              "key": {"weights": "w", "task": "t", "data": "d", "limit": None}, "provenance": provenance("a")}  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    row = results.read_row(folder.parent, suites.get("genlip14"))
    cell = row.cells["ocrbench"]
    assert cell.value == pytest.approx(50.0) and cell.low < 50 < cell.high and cell.refused.startswith("998 of 1000, 2 left out")
    assert averages.accept_unreadable(row).cells["ocrbench"].complete
    assert row.scores["ocrbench"].value == pytest.approx(0.5)  # so differences are on the same scale
    result |= {"left_out": {}, "key": {**result["key"], "limit": 998}}
    (folder / "result.json").write_text(json.dumps(result))
    assert results.read_row(folder.parent, suites.get("genlip14")).cells["ocrbench"].value == pytest.approx(49.9)  # a limit: as lmms-eval


# --- training seeds ---------------------------------------------------------------------------------------------------------


def test_seeds_of_one_recipe_are_one_row_and_others_are_not(world, tmp_path):
    seeded(world, "mine", [0.5, 0.6, 0.7])
    seeded(world, "mine", [0.9], first=7, lr=0.1)
    rows = [row for row in read(world) if row.encoder == "mine"]
    joined = next(row for row in rows if row.members)
    assert sorted(row.label for row in rows) == ["mine", "mine (3 seeds)"] and len(joined.members) == 3
    for name, cell in joined.cells.items():
        assert cell.value == pytest.approx(np.mean([member.cells[name].value for member in joined.members])) and cell.low < cell.value
    text = tables.write_tables(SUITE, rows, tmp_path / "tables")
    assert text.count("| mine (3 seeds)") == 1 and text.count("| mine  ") == 1
    lines = list(csv.DictReader((tmp_path / "tables" / "easyvqa.csv").open()))
    assert sorted(line["encoder"] for line in lines) == ["mine"] * 4 + ["mine (3 seeds)"]
    assert results.find_row(rows[:1], "mine", SUITE) is rows[0]
    member = joined.members[1]
    assert results.find_row(rows, f"mine@{member.digest[:12]}", SUITE) is member


def test_rows_with_one_seed_twice_or_other_questions_stay_apart(world):
    seeded(world, "mine", [0.5, 0.6])
    said = {"lr": 0.001, "encoder": "mine", "seed": 0}
    write_results(world[0], world[1], "mine", right_share(5, 0.6), recipe=said, git_commit="1" * 40)
    assert not any(row.members for row in read(world))
    (why,) = seeds.unjoined(read(world))
    assert why.startswith("mine: ") and why.count("(seed 0)") == 2 and why.endswith("of one recipe, and not joined: a seed is there twice")
    seeded(world, "yours", [0.5, 0.6])
    assert len(seeds.unjoined(read(world))) == 1  # which are one row
    file = next(world[0].glob("easyvqa/yours/*/easyvqa_shape/result.json"))
    result = json.loads(file.read_text())
    result["key"]["data"] = "other"
    file.write_text(json.dumps(result))
    assert not any(row.members for row in read(world))
    _, why = seeds.unjoined(read(world))
    assert why.endswith("not joined: not asked the same in easyvqa_shape")
    (file.parents[1] / "easyvqa_colour" / "result.json").unlink()
    *_, why = seeds.unjoined(read(world))
    assert why.endswith("not asked the same in easyvqa_shape, easyvqa_colour; not the same is there of colour")
    assert tables.markdown(SUITE, read(world), [], []).count(why) == 1


def test_seeds_that_began_with_other_weights_of_the_encoder_say_so(world):
    for seed in (0, 1):
        said = {"lr": 0.001, "encoder": "mine", "seed": seed}
        write_results(world[0], world[1], "mine", right_share(seed, 0.5), recipe=said, encoder_digest_before=f"{seed}" * 64)
    (why,) = seeds.unjoined(read(world))
    assert why.endswith("of one recipe, and not joined: they did not begin with the same encoder")


def test_what_is_recorded_of_a_joined_row_is_that_of_all_its_seeds(world):
    from tests.eval_suites.test_report import made

    for seed, version in ((0, "2.13.0"), (1, "2.14.0"), (2, "2.13.0")):
        said = {"lr": 0.001, "encoder": "mine", "seed": seed}
        write_results(world[0], world[1], "mine", right_share(seed, 0.5), recipe=said, versions={"torch": version, "numpy": "2"})
    mine = next(row for row in read(world) if row.members)
    good = next(row for row in read(world) if row.encoder == "good")
    assert "training's torch: 2.13.0 against 2.13.0, 2.14.0" in comparison.recorded(good, mine)
    told = next(row["provenance"] for row in made("results").data["data"]["rows"] if row["name"] == "mine (3 seeds)")
    assert told["versions"] == {"torch": "2.13.0, 2.14.0", "numpy": "2"} and told["recipe"]["seed"] == "0, 1, 2" and told["stage"] == "sft"
    assert told["weights_digest"] == ", ".join(member.weights_digest for member in mine.members)


def test_the_variance_of_joined_rows_is_pictures_and_seeds(world):
    seeded(world, "mine", [0.5, 0.7, 0.6])
    seeded(world, "theirs", [0.5, 0.4, 0.45])
    rows = {row.encoder: row for row in read(world)}
    a, b = rows["mine"], rows["theirs"]
    verdict = {line.title: line.verdict for line in comparison.compare(SUITE, a, b)}["ALL AVG"]
    gaps = [averages.average(SUITE.columns, x.cells) - averages.average(SUITE.columns, y.cells) for x, y in zip(a.members, b.members)]
    parts = [stats.difference(a.scores[c.name], b.scores[c.name]) for c in SUITE.columns]
    error = np.sqrt(stats.stderr(parts, [100 / 3] * 3) ** 2 + np.var(gaps, ddof=1) / 3)
    assert verdict.noise == "test pictures and training seeds, k = 3" and verdict.difference == pytest.approx(np.mean(gaps))
    assert verdict.p == pytest.approx(stats.t_tails(verdict.difference / error, 2))
    assert verdict.high - verdict.difference == pytest.approx(4.30265 * error, rel=1e-5)
    one = comparison.compare(SUITE, a.members[0], b)
    assert {line.verdict.noise for line in one} == {"test pictures"}
    two = seeds.join(SUITE, list(b.members[:2]))[0]
    uneven = seeds.seed_noise(SUITE, a, two)
    assert uneven.degrees == 1 and uneven.words.endswith("k = 3 and 2")


def test_a_noise_file_gives_single_seeds_a_smallest_believable_difference(world, capsys):
    seeded(world, "mine", [0.5, 0.7, 0.6])
    assert main(["--seed-noise", "mine", "--out", "noise.json"]) == 0
    said = json.loads(Path("noise.json").read_text())
    mine = next(row for row in read(world) if row.members)
    spread = np.std([averages.average(SUITE.columns, member.cells) for member in mine.members], ddof=1)
    assert said["seeds"] == 3 and said["spread"]["ALL AVG"] == pytest.approx(spread) and set(said["spread"]) >= {"shape", "overall"}
    capsys.readouterr()
    assert main(["good", "poor", "--noise", "noise.json"]) == 0
    text = capsys.readouterr().out
    assert "believable from" in text and "by the spread of 3 seeds of mine" in text
    good, poor = (row for row in read(world) if not row.members)
    noise = seeds.read_noise(Path("noise.json"), SUITE, (good, poor))
    verdict = {line.title: line.verdict for line in comparison.compare(SUITE, good, poor, noise)}["ALL AVG"]
    parts = [stats.difference(good.scores[c.name], poor.scores[c.name]) for c in SUITE.columns]
    assert verdict.believable == pytest.approx(4.30265 * np.sqrt(stats.stderr(parts, [100 / 3] * 3) ** 2 + 2 * spread**2), rel=1e-5)
    write_results(world[0], world[1], "other", right_share(3, 0.5), recipe={"lr": 0.1, "encoder": "other"})
    assert main(["good", "other", "--noise", "noise.json"]) == 2 and "another recipe than other" in capsys.readouterr().err
    Path("noise.json").write_text("{}")
    assert main(["good", "poor", "--noise", "noise.json"]) == 2
    refused = capsys.readouterr().err
    assert "noise.json does not say suite" in refused and "--out noise.json" in refused
    Path("noise.json").write_text(json.dumps(said | {"spread": {"shape": "x"}}))
    assert main(["good", "poor", "--noise", "noise.json"]) == 2 and "noise.json, spread: shape is" in capsys.readouterr().err


def test_two_names_of_one_mllm_and_two_seeds_of_one_encoder_are_told_from_two_encoders(world, capsys):
    for name in ("mine", "yours"):
        write_results(world[0], world[1], name, right_share(5, 0.5), weights_digest="5" * 64)
    assert main(["mine", "yours"]) == 0
    assert capsys.readouterr().out.startswith("The two are one MLLM under two names (55555555).\n")

    def trained(row, encoder, seed):
        def of(result):
            said = replace(result.provenance, encoder_digest_before=encoder, encoder_digest=encoder, recipe={"seed": seed})
            return replace(result, provenance=said, fingerprint={"config": "c", "config.encoder": "e", "preprocessing": "p"})

        return replace(row, results={task: of(result) for task, result in row.results.items()})

    good, poor = (next(row for row in read(world) if row.encoder == name) for name in ("good", "poor"))
    one = trained(good, "e", 0)
    assert comparison.nothing_else(one, trained(poor, "e", 1)) == (
        "The two differ in the training seed alone (0 against 1): their encoder is the same."
    )
    assert comparison.nothing_else(one, trained(poor, "e", 0)).startswith("The two have the same encoder and seed")
    for other in ("f", None):
        assert comparison.nothing_else(one, trained(poor, other, 1)).startswith("The two differ in the encoder alone")


def test_rows_of_one_name_are_told_apart_and_the_joined_one_has_the_spread(world, capsys):
    seeded(world, "mine", [0.5, 0.6, 0.7])
    seeded(world, "mine", [0.9], first=7, lr=0.1)
    assert main(["mine", "good"]) == 2
    said = capsys.readouterr().err
    assert "(llm-tiny, 3 seeds, lr 0.001)" in said and "(llm-tiny, lr 0.1, seed 7)" in said
    assert main(["--seed-noise", "mine", "--out", "noise.json"]) == 0 and json.loads(Path("noise.json").read_text())["seeds"] == 3
    seeded(world, "yours", [0.5, 0.6])
    capsys.readouterr()
    joined = next(row for row in read(world) if row.encoder == "mine" and row.members)
    assert main([f"mine@{joined.digest[:8]}", "yours", "--noise", "noise.json"]) == 0
    assert "Seeds are in the two rows already: --noise is not used." in capsys.readouterr().out


def test_columns_that_were_not_evaluated_are_one_sentence(world, capsys):
    for file in Path("results/easyvqa").glob("poor/*/*/result.json"):
        if file.parent.name != "easyvqa_shape":
            file.unlink()
    assert main(["good", "poor"]) == 0
    text = capsys.readouterr().out
    assert "Not evaluated of poor (" in text and "): colour, yes/no." in text
    assert "| shape" in text and "| colour" not in text


def test_the_page_shows_joined_rows_and_how_they_were_judged(world, tmp_path, monkeypatch):
    from tests.eval_suites.test_report import Page, made

    seeded(world, "mine", [0.5, 0.6, 0.7])
    page = made("results")
    rows = page.data["data"]["rows"]
    place = [row["name"] for row in rows].index("mine (3 seeds)")
    assert len(rows) == 3 and rows[place]["cells"]["all_avg"]["value"] is not None
    (pair,) = [pair for pair in page.data["data"]["compared"] if place not in (pair["a"], pair["b"])]
    line = {line["title"]: line for line in pair["lines"]}["overall"]
    assert (line["word"], line["role"], line["noise"]) == ("exploratory", "exploratory", "test pictures")
    assert any("Noise covered: test pictures" in sentence for sentence in pair["how"])
    assert any("answers of its first seed" in said for said in page.samples("easyvqa_shape")["said"])
    rows = read(world)
    few = [replace(row, scores={n: _first(s) for n, s in row.scores.items()}, members=()) for row in rows]
    monkeypatch.setattr(samples, "benchmark", lambda *_: None)
    written = write_page(SUITE, few, [tmp_path] * 3, tmp_path / "few.html", figure_folder=tmp_path)
    assert Page(written[0]).data["data"]["compared"][0]["lines"][0]["low"] is None  # 20 pictures have no interval


def _first(scores: stats.Scores) -> stats.Scores:
    return stats.Scores(*(part[:20] for part in (scores.ids, scores.pictures, scores.values, scores.strata)))


def test_a_row_is_not_compared_with_itself_and_a_result_without_a_key_refuses_its_cells(world):
    good, _ = results.read_rows(world[0], SUITE)
    with pytest.raises(ValueError, match="the first is compared with itself"):
        results.find_rows([good], f"{good.encoder},{good.encoder}", SUITE)
    file = next(world[0].rglob("result.json"))
    file.write_text(json.dumps({**json.loads(file.read_text()), "key": {"task": "t"}}))
    refused = [cell.refused for row in results.read_rows(world[0], SUITE) for cell in row.cells.values() if cell.refused]
    assert refused and all("key does not say model" in why for why in refused)
