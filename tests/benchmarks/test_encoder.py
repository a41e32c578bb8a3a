"""The benchmark's arithmetic, and that every contender really runs; not how fast anything is."""

import pytest
import torch

from benchmarks import encoder
from genlip.configuration_genlip import GenLIPConfig
from genlip.modeling_genlip import GenLIPVisionModel

SMALL = ["--cpu", "--width", "48", "--depth", "1", "--heads", "2", "--resolution", "32", "--batch", "2", "--rounds", "1"]


def test_flops_by_hand():
    config = GenLIPConfig(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, mrope_section=[4, 4, 4])
    weights = 48 * 768 + 2 * (96 * 48 + 3 * 48 * 48 + 3 * 64 * 48)  # patches; q and gate, k, v, out; the MLP
    by_hand = 2 * weights * 10 + 4 * 2 * 48 * (6 * 6 + 4 * 4)
    assert encoder.flops(GenLIPVisionModel(config), [6, 4], 48, 2) == by_hand


def test_padding_keeps_the_patches_of_each_picture():
    patches = torch.arange(5 * 768).float().view(5, 3, 16, 16)
    padded, valid = encoder.pad(patches, torch.tensor([[1, 2], [3, 1]]))
    assert valid.tolist() == [[True, True, False], [True, True, True]]
    assert padded[valid].equal(patches.flatten(1)) and (padded[~valid] == 0).all()


def test_the_table_has_every_contender_and_set(capsys):
    assert encoder.main(SMALL) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Width 48, 1 layers, 2 heads" in lines[0] and "float32" in lines[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:]]
    equal, mixed = rows[:3], rows[3:]
    assert [row[1] for row in equal] == ["genlip (ours)", "HF SigLIP 2 NaFlex", "HF SigLIP 2 fixed"]
    assert [row[1] for row in mixed] == ["genlip (ours)", "HF SigLIP 2 NaFlex"]  # the fixed class takes one size only
    assert equal[0][0] == "2 of 32 x 32" and mixed[0][0].startswith("2 mixed, ")
    assert equal[0][-2:] == mixed[0][-2:] == ["1.00", "1.00"]


def test_other_weights_are_not_compared():
    class Output:
        last_hidden_state = torch.tensor([[0.0], [2.0], [5.0]])

    encoder.agree(Output, torch.tensor([[1.0], [5.0]]), [2, 1], 1e-4)
    for other in (1.1, float("nan")):
        with pytest.raises(ValueError, match="differ from ours"):
            encoder.agree(Output, torch.tensor([[other], [5.0]]), [2, 1], 1e-4)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [(["--width", "50", "--heads", "4"], "heads"), (["--resolution", "30"], "multiple of 16"), (["--open-clip", "nowhere"], "89fb801")],
)
def test_wrong_requests_are_said(flags, sentence, capsys):
    assert encoder.main([*SMALL, *flags]) == 2
    assert sentence in capsys.readouterr().err
