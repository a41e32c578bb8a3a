"""Our MLLM as lmms-eval sees it: every answer at its question, whatever the batch."""

from types import SimpleNamespace

import pytest
from PIL import Image

from tests.eval_suites.small import FakeMllm, provenance

pytest.importorskip("lmms_eval")
from eval_suites import lmms_model


def request(doc_id: int, text: str, **generation):
    def messages(doc):
        return [
            {
                "role": "user",
                "content": [*({"type": "image", "url": picture} for picture in doc["pictures"]), {"type": "text", "text": text}],
            }
        ]

    return SimpleNamespace(args=(text, messages, generation, doc_id, "task", "test"))


def model(requests, pictures=None, batch_size=4, reply=lambda prompt: f"re: {prompt}"):
    mllm = FakeMllm(reply, provenance("genlip-tiny"))
    lm = lmms_model.EvaluatedMllm(mllm=mllm, batch_size=batch_size)
    shown = pictures or [[Image.new("RGB", (4, 4), (i, 0, 0))] for i in range(len(requests))]
    lm.task_dict["task"] = {"test": [{"pictures": some} for some in shown]}
    return lm, mllm


def test_answers_come_back_in_the_order_asked_and_batches_are_alike_in_length():
    texts = [f"{'word ' * (7 * i % 50)}{i}" for i in range(50)]
    requests = [request(i, text, max_new_tokens=16) for i, text in enumerate(texts)]
    lm, mllm = model(requests)
    assert [result.text for result in lm.generate_until(requests)] == [f"re: {text}" for text in texts]
    spread = [max(map(len, prompts)) - min(map(len, prompts)) for prompts, *_ in mllm.batches]
    assert len(mllm.batches) == 13 and max(spread) <= 30
    # Each question went with its own picture.
    for prompts, images, *_ in mllm.batches:
        assert [picture[0].getpixel((0, 0))[0] for picture in images] == [int(prompt.split()[-1]) for prompt in prompts]


def test_generation_settings_are_honoured_and_never_mixed():
    requests = [request(i, f"{i}", max_new_tokens=16 + i % 2, until=["\n\n", "."]) for i in range(6)]
    lm, mllm = model(requests, reply=lambda prompt: f"one {prompt}. two\n\nthree")
    assert [result.text for result in lm.generate_until(requests)] == [f"one {i}" for i in range(6)]
    for prompts, _, new_tokens, stop in mllm.batches:
        assert stop == ("\n\n", ".") and {16 + int(prompt) % 2 for prompt in prompts} == {new_tokens}


def test_text_alone_and_several_pictures():
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    requests = [request(0, "none"), request(1, "two"), request(2, "one")]
    lm, mllm = model(requests, pictures=[[], [red, blue], [red]])
    lm.generate_until(requests)
    shown = {prompt: images for prompts, pictures, *_ in mllm.batches for prompt, images in zip(prompts, pictures)}
    assert shown == {"none": [], "two": [red, blue], "one": [red]}
    assert lm.asked["task", 0] == ("none", "") and lm.asked["task", 1][1] != lm.asked["task", 2][1] != ""
    assert mllm.batches[0][2] == lmms_model.DEFAULT_NEW_TOKENS


def test_what_is_not_greedy_is_refused():
    for generation in ({"do_sample": True}, {"temperature": 0.7}, {"num_beams": 4}):
        requests = [request(0, "x", **generation)]
        with pytest.raises(ValueError, match="greedily"):
            model(requests)[0].generate_until(requests)


def test_cleaning_up_keeps_the_model():
    torch = pytest.importorskip("torch")
    lm = lmms_model.EvaluatedMllm(mllm=torch.nn.Linear(1, 1))  # lmms-eval drops every module it finds after a task
    lm.clean()
    assert lm.mllm.in_features == 1 and lm.generate_until([]) == []


def test_lmms_eval_finds_the_model_by_entry_point():
    from lmms_eval import models

    assert "genlip_eval" in models.AVAILABLE_MODELS
    assert models.get_model("genlip_eval") is lmms_model.EvaluatedMllm
    with pytest.raises(ValueError, match="export=runs/NAME/export"):
        models.get_model("genlip_eval").create_from_arg_string("", {"batch_size": 1})
