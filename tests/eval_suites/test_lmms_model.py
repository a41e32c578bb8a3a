"""Our MLLM as lmms-eval sees it: every answer at its question, whatever the batch."""

from types import SimpleNamespace

import pytest
from PIL import Image

from tests.eval_suites.small import FakeMllm, provenance

pytest.importorskip("lmms_eval")
from eval_suites import lmms_model
from eval_suites.journal import Journal


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
        assert [picture[0].pixel[0] for picture in images] == [int(prompt.split()[-1]) for prompt in prompts]


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
    pairs = [pair for prompts, pictures, *_ in mllm.batches for pair in zip(prompts, pictures)]
    shown = {prompt: [picture.pixel for picture in images] for prompt, images in pairs}
    assert shown == {"none": [], "two": [(255, 0, 0), (0, 0, 255)], "one": [(255, 0, 0)]}
    asked = [lm.answers["task", i] for i in range(3)]
    assert asked[0].prompt == "none" and asked[0].image == "" and asked[1].image != asked[2].image != ""
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


# --- what goes wrong --------------------------------------------------------------------------------------------------------


class Picky:
    """A data set that decodes when asked, as the hub's do; `broken` documents hold no whole picture."""

    def __init__(self, n: int, broken: dict[int, Exception]):
        self.n, self.broken = n, broken

    def __getitem__(self, i: int) -> dict:
        if i in self.broken:
            raise self.broken[i]
        return {"pictures": [Image.new("RGB", (4, 4), (i, 0, 0))]}


def test_out_of_memory_halves_the_batch_and_says_so(capsys):
    torch = pytest.importorskip("torch")
    requests = [request(i, f"{i}") for i in range(8)]
    lm, mllm = model(requests, batch_size=8)
    answer, tried = mllm.answer, []

    def small(conversations, *args, **kwargs):
        tried.append(len(conversations))
        if len(conversations) > 2:
            raise torch.OutOfMemoryError("no more")
        return answer(conversations, *args, **kwargs)

    mllm.answer = small
    assert [result.text for result in lm.generate_until(requests)] == [f"re: {i}" for i in range(8)]
    assert tried == [8, 4, 2, 2, 2, 2] and lm.batch_size == 2
    assert "out of memory with 8 questions at a time: 4 from here on" in capsys.readouterr().out
    mllm.answer = lambda *args, **kwargs: small([None] * 3)
    with pytest.raises(RuntimeError, match="a single question"):
        lm.generate_until(requests)


def test_a_picture_that_cannot_be_read_is_named_and_left_out():
    from PIL import UnidentifiedImageError

    requests = [request(i, f"{i}") for i in range(6)]
    lm, _ = model(requests)
    lm.task_dict["task"] = {"test": Picky(6, {1: UnidentifiedImageError("no picture"), 4: OSError("image file is truncated")})}
    with pytest.raises(ValueError, match=r"2 pictures cannot be read: doc 1 \(no picture\), doc 4 \(image file is truncated\)"):
        lm.generate_until(requests)
    left_out = {}
    lm.leave_out = lambda task, why: left_out.update(why)
    assert [result.text for result in lm.generate_until(requests)] == ["re: 0", "", "re: 2", "re: 3", "", "re: 5"]
    assert left_out == {1: "no picture", 4: "image file is truncated"}
    lm.task_dict["task"] = {"test": Picky(6, {1: OSError(5, "Input/output error")})}  # a disk that fails is no bad picture
    with pytest.raises(OSError, match="Input/output"):
        lm.generate_until(requests)


def test_answers_of_the_journal_are_not_generated_again(tmp_path):
    requests = [request(i, f"{i}", max_new_tokens=16) for i in range(6)]
    lm, _ = model(requests)
    lm.journal = Journal(tmp_path, {"weights": "a"})
    first = [result.text for result in lm.generate_until(requests[:4])]
    again, second = model(requests, reply=lambda prompt: "other")
    again.journal = Journal(tmp_path, {"weights": "a"})
    assert [result.text for result in again.generate_until(requests)] == [*first, "other", "other"]
    assert [prompt for prompts, *_ in second.batches for prompt in prompts] == ["4", "5"]
    assert again.answers["task", 0] == lm.answers["task", 0]
    longer = [request(i, f"{i}", max_new_tokens=17) for i in range(6)]  # other generation settings, other answers
    assert [result.text for result in again.generate_until(longer)] == ["other"] * 6
