"""What people write is text, also where it spells one of a tokenizer's control tokens: `<|im_end|>` in a caption ends nothing.

A control token's spelling is broken behind its first character and the parts are tokenised apart, so that any tokenizer takes it for text.
Training and evaluation both go through here: their prompts are equal token by token.
"""

import functools
import re
from typing import Any

BREAK = "\ufdd0"  # no character of any text: Unicode keeps it for a program's own use
MARKER = "<image>"  # stands for a picture where it is a token, and is replaced by then


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of what somebody wrote."""
    return broken_ids(tokenizer, broken(tokenizer, text))


def broken(tokenizer: Any, text: str) -> str:
    """`text` with a BREAK in every control token that it spells, to be put into a chat template."""
    return _spelled(tokenizer).sub(lambda found: found[0][0] + BREAK + found[0][1:], text)


def broken_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text with BREAKs, whose control tokens are those of the template around what people wrote."""
    return [i for part in text.split(BREAK) for i in tokenizer(part, add_special_tokens=False).input_ids]


@functools.lru_cache(maxsize=4)  # a property of the tokenizer: found once, not for every text
def _spelled(tokenizer: Any) -> re.Pattern[str]:
    known = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    tokens = sorted((token for token in known if len(token) > 1 and token != MARKER), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")
