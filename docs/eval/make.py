"""`python docs/eval/make.py`: cut the questions of `speeches_cloze.jsonl` from held-out speeches."""

import json
from pathlib import Path

import dsv2
from dsv2.data.packing import PackedText
from dsv2.evaluation.cloze import questions

TASK = Path(__file__).with_name("speeches_cloze.jsonl")


def lines() -> list[str]:
    """A JSON object per question: context, choices and which of them is true, never the same place twice in a row."""
    source = dsv2.load(["data=english"]).data.open(sequence_length=128, seed=0, validation_tokens=128)
    assert isinstance(source, PackedText)
    decode, made = source.store.tokenizer.decode, []
    for number, (context, choices, _) in enumerate(
        questions(source.store.val, source.domains, count=64, context=32, continuation=16)
    ):
        place = number % len(choices)  # the true one stands first so far
        texts = [decode(choice) for choice in [*choices[1 : place + 1], choices[0], *choices[place + 1 :]]]
        made.append(json.dumps({"context": decode(context), "choices": texts, "answer": place}, ensure_ascii=False))
    if not made:
        raise ValueError("the held-out speeches are too short for a single question")
    return made


if __name__ == "__main__":
    TASK.write_text("\n".join(lines()) + "\n", encoding="utf-8")
