"""Documents: their hash, and a split that depends on their content alone."""

import random

from dsv2.data.documents import Document, one_sided, split, take_survey


def documents(count: int, domain: str = "d") -> list[Document]:
    return [Document(f"{domain} text {number}", domain) for number in range(count)]


def test_hash_depends_on_text_domain_and_order() -> None:
    base = documents(5)
    changed = [base[0]._replace(text="d text 0 "), *base[1:]]
    moved = [base[0]._replace(domain="e"), *base[1:]]
    hashes = [take_survey(docs).content_hash for docs in (base, changed, moved, base[::-1])]
    assert len(set(hashes)) == 4
    assert take_survey(documents(5)).content_hash == hashes[0]


def test_bytes_are_utf8() -> None:
    assert take_survey([Document("aé学", "d")]).num_bytes == 6


def test_a_document_keeps_its_side_wherever_it_stands() -> None:
    base = documents(400)
    chosen = split(take_survey(base), 0.1)
    shuffled = random.Random(0).sample(base, len(base))
    assert split(take_survey(shuffled), 0.1) == chosen
    assert split(take_survey([*base, *documents(300, "other")]), 0.1) > chosen
    assert 0.05 < len(chosen) / 400 < 0.15


def test_a_larger_share_only_adds() -> None:
    surveyed = take_survey(documents(400))
    assert split(surveyed, 0.1) < split(surveyed, 0.3)


def test_small_domains_get_both_sides() -> None:
    for count in (2, 3, 5):
        for ratio in (0.01, 0.99):
            surveyed = take_survey([*documents(count, "a"), *documents(count, "b")])
            chosen = split(surveyed, ratio)
            for domain in "ab":
                sides = {
                    text in chosen
                    for text, name in zip(surveyed.digests, surveyed.domains, strict=True)
                    if name == domain
                }
                assert sides == {True, False}


def test_copies_stay_together_and_cannot_make_two_sides() -> None:
    surveyed = take_survey([Document("same", "d")] * 10)
    assert one_sided(surveyed, split(surveyed, 0.5))


def test_a_document_that_names_its_side_is_on_it() -> None:
    named = [Document(f"named {number}", "n", held_out=number % 2 == 0) for number in range(100)]
    surveyed = take_survey([*named, *documents(400)])
    chosen = split(surveyed, 0.1)
    assert [digest in chosen for digest in surveyed.digests[:100]] == [number % 2 == 0 for number in range(100)]
    assert chosen - set(surveyed.digests[:100]) == split(take_survey(documents(400)), 0.1)
    all_named = take_survey([document._replace(held_out=False) for document in named])
    assert split(all_named, 0.5) == set()  # moving one would put its content on both sides
