"""Files of other tokenizers: read with the ids that Hugging Face's `tokenizers` gives, or refused in one clear line."""

from __future__ import annotations

import json
import math
import random
import unicodedata
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.conftest import assert_one_clear_line
from tests.working_with_text_data.test_bpe import ASSIGNED, NATURAL, TEXT
from working_with_text_data.bytepair_enc import GPT2_PATTERN, BytePairTokenizer, fast_encoding, streaming
from working_with_text_data.bytepair_enc.bpe import SpecialFlag
from working_with_text_data.bytepair_enc.merging import PairOrder, PairRanks
from working_with_text_data.bytepair_enc.patterns import FIRST_GPT4_PATTERN, compile_pattern, split_into_pieces
from working_with_text_data.bytepair_enc.tokenizer_json import (
    byte_alphabet,
    bytes_of_spelling,
    last_parts,
    merged_alone,
    require_read_alike,
    without_inner_classes,
)

ALPHABET = byte_alphabet()
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
CUTS: dict[str, list[Any]] = {
    "roberta": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama3": [pre_tokenizers.Split(Regex(FIRST_GPT4_PATTERN), "isolated"), BYTES],
    "gpt4": [pre_tokenizers.Split(Regex(FIRST_GPT4_PATTERN), "removed", invert=True), BYTES],
    "deepseek": [*(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in DEEPSEEK), BYTES],
    "starcoder": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ],
    "lines": [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Digits(individual_digits=False), BYTES],
    "bloom": [pre_tokenizers.Split(Regex(BLOOM), "isolated"), BYTES],
    "none": [BYTES],
}
ENDINGS = ("<s>", "</s>", "<pad>", "<mask>")


def trained(cuts: str) -> Tokenizer:
    """By Hugging Face's trainer."""
    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.Sequence(CUTS[cuts]) if len(CUTS[cuts]) > 1 else CUTS[cuts][0]
    theirs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=list(ENDINGS)
    )
    theirs.train_from_iterator([TEXT.replace("\n", " \n ") if cuts == "none" else TEXT], trainer)
    return theirs


def changed(theirs: Tokenizer, change) -> Tokenizer:
    content = json.loads(theirs.to_str())
    change(content)
    return Tokenizer.from_str(json.dumps(content))


def as_roberta(content) -> None:
    """Ids in an order of their own, tokens that no merge makes, and a template around each text."""
    model = content["model"]
    spelled = [*model["vocab"], "madeupword0000", "theĠdog"]
    ids = list(range(len(spelled)))
    random.Random(0).shuffle(ids)
    model["vocab"] = dict(zip(spelled, ids, strict=True))
    for token in content["added_tokens"]:
        token["id"] = model["vocab"][token["content"]]
    model.update(unk_token="<s>", continuing_subword_prefix="", end_of_word_suffix="", dropout=0.0)
    ends = [(text, model["vocab"][text]) for text in ("</s>", "<s>")]
    content["post_processor"] = {
        "type": "RobertaProcessing", "sep": ends[0], "cls": ends[1], "trim_offsets": True, "add_prefix_space": False
    }  # fmt: skip


def as_blenderbot(content) -> None:
    """A space before each text, and special tokens that look at what is beside them."""
    content["pre_tokenizer"]["add_prefix_space"] = True
    for token, *flags in (("<mask>", "lstrip"), ("<pad>", "rstrip", "lstrip"), ("<s>", "single_word"), ("</s>",)):
        (added,) = (added for added in content["added_tokens"] if added["content"] == token)
        added.update(dict.fromkeys(flags, True))
    assert not any("vv" in spelled for spelled in content["model"]["vocab"])
    words = {"content": "vv", "id": 901, "special": False, "single_word": True, "lstrip": True}
    content["added_tokens"].append(content["added_tokens"][0] | words)


def as_llama3(content) -> None:
    """Every pair that spells a token is listed, as files made from tiktoken's do, and pieces are looked up first."""
    model = content["model"]
    model["vocab"] |= {"Ġwhatever": len(model["vocab"])}  # which no merge makes
    ordinary = [t for t in sorted(model["vocab"], key=model["vocab"].__getitem__) if t not in ENDINGS]
    model["merges"] = [
        [token[:i], token[i:]]
        for token in ordinary
        for i in range(1, len(token))
        if token[:i] in model["vocab"] and token[i:] in model["vocab"]
    ]
    model["ignore_merges"] = True
    content["normalizer"] = {"type": "Sequence", "normalizers": []}
    content["added_tokens"].append(content["added_tokens"][0] | {"content": "<|new|>", "id": 900, "special": False})


def as_qwen(content) -> None:
    """Characters are composed first, and runs of tabs are tokens that are sought after that (GPT-NeoX)."""
    content["normalizer"] = {"type": "NFC"}
    added = content["added_tokens"]
    added.append(added[0] | {"content": "\t\t\t", "id": 900, "special": False, "normalized": True})


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "roberta": lambda: changed(trained("roberta"), as_roberta),
    "blenderbot": lambda: changed(trained("roberta"), as_blenderbot),
    "llama3": lambda: changed(trained("llama3"), as_llama3),
    "qwen": lambda: changed(trained("llama3"), as_qwen),
    **{name: partial(trained, name) for name in ("gpt4", "deepseek", "starcoder", "lines", "bloom", "none")},
}
SOME = "the quick'S12٣½\n\r\t .,é日本の語テ👩\u200d+=_whatevr\u0301\u0323\u212bᄒ\u1161가\u11a8が\u3099"
OTHERS = st.text(st.sampled_from(SOME), max_size=60)
AMID = st.lists(st.sampled_from([*ENDINGS, "vv", *" \n\t\x1c\x85\u3000\u200d_a1é語.", "the quick"]), max_size=16).map(
    "".join
)


@pytest.fixture(scope="module", params=sorted(MAKERS))
def three(request, tmp_path_factory):
    """(their tokenizer, ours read from its file, theirs read from the file that ours is saved to)."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs = MAKERS[request.param]()
    theirs.save(str(folder / "theirs.json"))
    ours = BytePairTokenizer.load(folder / "theirs.json")
    ours.save(folder / "ours.json")
    loaded = BytePairTokenizer.load(folder / "ours.json")
    assert loaded.fingerprint == ours.fingerprint
    loaded.save(folder / "again.json")
    assert (folder / "again.json").read_bytes() == (folder / "ours.json").read_bytes()
    return theirs, ours, Tokenizer.from_file(str(folder / "ours.json"))


@settings(max_examples=150)
@given(st.one_of(ASSIGNED, NATURAL, OTHERS))
def test_ids_are_theirs_from_their_file_and_from_ours(three, text):
    theirs, ours, again = three
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text, allowed_special="all") == ids
    assert again.encode(text).ids == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    if ours.nfc:
        assert ours.decode(ids) == unicodedata.normalize("NFC", text)
    elif ours.add_prefix_space and "vv" not in text:
        assert ours.decode(ids) == (text if text.startswith(" ") or not text else f" {text}")
    elif not ours.add_prefix_space:
        assert ours.encode_ordinary(text) == ids
        assert ours.decode(ids) == text


@settings(max_examples=150)
@given(AMID)
def test_special_tokens_take_of_what_is_beside_them_what_is_theirs(three, text):
    theirs, ours, again = three
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text, allowed_special="all") == again.encode(text).ids == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


FLAGS: list[dict[str, set[SpecialFlag]]] = [{}, {"<s>": {"lstrip"}}, {"<s>": {"rstrip"}}]


def test_flags_are_those_of_special_tokens():
    ranks = BytePairTokenizer.train(["x"], 257).ranks
    wrong: Any
    for token, wrong in (("<m>", "rstrip"), ("<s>", "strip")):
        with pytest.raises(ValueError, match=r"single_word, lstrip, rstrip, of a special token"):
            BytePairTokenizer(ranks, special_tokens={"<s>": 300}, special_flags={token: {wrong}})
    tokenizers = [
        BytePairTokenizer(ranks, special_tokens={"<s>": 300}, special_flags=flags, add_prefix_space=prefix)
        for flags in FLAGS
        for prefix in (False, True)
    ]
    assert len({tokenizer.fingerprint for tokenizer in tokenizers}) == 6
    assert [tokenizer.encode("a <s> a", allowed_special="all") for tokenizer in tokenizers] == [
        [ranks[b] if isinstance(b, bytes) else b for b in expected]
        for expected in (
            [b"a", b" ", 300, b" ", b"a"],
            [b" ", b"a", b" ", 300, b" ", b"a"],
            [b"a", 300, b" ", b"a"],
            [b" ", b"a", 300, b" ", b"a"],
            [b"a", b" ", 300, b"a"],
            [b" ", b"a", b" ", 300, b" ", b"a"],
        )
    ]


def test_a_space_before_a_text_is_before_its_first_part_only(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "_PART", 40)
    theirs = MAKERS["blenderbot"]()
    theirs.save(str(tmp_path / "t.json"))
    ours = BytePairTokenizer.load(tmp_path / "t.json")
    text = "the quick brown fox\njumps over\nthe lazy dog\n" * 30
    ids = theirs.encode(text, add_special_tokens=False).ids
    for parts in (text, ["", *text], [" " + text[:200], text[200:]], ["", ""]):
        whole = theirs.encode("".join(parts), add_special_tokens=False).ids
        assert [i for part in streaming.encode_stream(ours, parts) for i in part.tolist()] == whole
        assert whole in (ids, theirs.encode(" " + text).ids, [])
    assert ours.encode_batch([text, "\n" + text]) == [ids, theirs.encode("\n" + text).ids]


@pytest.mark.parametrize(
    ("nested", "flat"),
    [
        (BLOOM, r" ?[^(\s|.,!?…。，、।۔،)]+"),
        (r"[[a-z]b]+", "[a-zb]+"),
        (r"\[[a[bc]]|\\[d[e\]f]]", r"\[[abc]|\\[de\]f]"),
        (r"[[:alpha:][0-9]]x", "[[:alpha:]0-9]x"),
        (r"[^\r\n\p{L}]?[ab]+", r"[^\r\n\p{L}]?[ab]+"),
        (r"[a-[b]]", r"[a-[b]]"),
        (r"[a&&[b]]", r"[a&&[b]]"),
    ],
)
def test_classes_in_classes_are_written_as_one(nested, flat):
    assert without_inner_classes(nested) == flat


def test_ids_of_long_texts_and_of_special_tokens_are_theirs(three, data_folder):
    theirs, ours, again = three
    book = (data_folder / "README.md").read_text("utf-8") + TEXT * 20
    text = "<s>" + book[:20_000] + " <mask> madeupword0000 whatever 12345<pad></s>"
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text, allowed_special="all") == again.encode(text).ids == ids
    assert ours.decode(ids) == text or ours.special_flags
    assert ours.n_vocab == max(theirs.get_vocab().values()) + 1
    for token, i in theirs.get_vocab().items():  # also those that no text is encoded to
        assert ours.decode([i]) == theirs.decode([i], skip_special_tokens=False), token


def test_other_processes_and_single_tokens_know_the_ids_too(three):
    import pickle

    theirs, ours, _ = three
    copy = pickle.loads(pickle.dumps(ours))
    assert copy.fingerprint == ours.fingerprint
    assert copy.encode_ordinary(TEXT) == theirs.encode(TEXT, add_special_tokens=False).ids
    assert ours.encode_single_token("qu") == theirs.token_to_id("qu")
    assert ours.encode_single_token("<mask>") == theirs.token_to_id("<mask>")


def test_tiktoken_gets_what_it_can_hold(three):
    _, ours, _ = three
    if isinstance(ours.pattern, str) and ours.ids == ours.ranks and not (ours.nfc or ours.special_flags):
        text = "".join(regex.findall(ours.pattern, TEXT))  # tiktoken drops what a pattern leaves out, as Bloom's does
        assert ours.to_tiktoken().encode_ordinary(text) == ours.encode_ordinary(text)
    else:
        with pytest.raises(
            ValueError, match=r"tiktoken (cuts text with one pattern|takes ranks for ids|takes text as it is)"
        ):
            ours.to_tiktoken()


def test_the_fingerprint_sees_ids_and_patterns(three):
    _, ours, _ = three
    swapped = ours.ids | {b"a": ours.ids[b"b"], b"b": ours.ids[b"a"]}
    others = [
        BytePairTokenizer(ours.ranks, ours.pattern, ours.special_tokens, ids=swapped),
        BytePairTokenizer(ours.ranks, (r"\d", GPT2_PATTERN), ours.special_tokens, ids=ours.ids),
        BytePairTokenizer(ours.ranks, (r"\d+", GPT2_PATTERN), ours.special_tokens, ids=ours.ids),
    ]
    assert len({tokenizer.fingerprint for tokenizer in [ours, *others]}) == 4


@settings(max_examples=300)
@given(st.randoms(use_true_random=False), st.booleans())
def test_any_table_of_merges_means_what_it_means_to_them(tmp_path_factory, draw, ignore_merges):
    """Merges in any order, of tokens that come later; several for one token; tokens that no merge makes; any ids."""
    content = json.loads(trained_nothing().to_str())
    letters = "abc"[: draw.randint(1, 3)]
    tokens, pairs = list(letters), []
    for _ in range(draw.randint(0, 25)):
        pair = [draw.choice(tokens), draw.choice(tokens)]
        if len("".join(pair)) <= 8 and pair not in pairs:
            pairs.append(pair)
            tokens.append("".join(pair))
    draw.shuffle(pairs)
    tokens += ["".join(draw.choices(letters, k=draw.randint(2, 7))) for _ in range(draw.randint(0, 3))]
    spelled = list(dict.fromkeys([*ALPHABET.values(), *tokens]))
    ids = draw.sample(range(400), len(spelled))
    content["model"].update(vocab=dict(zip(spelled, ids, strict=True)), merges=pairs, ignore_merges=ignore_merges)
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(content), "utf-8")
    try:
        ours = BytePairTokenizer.load(path)
    except ValueError as error:
        assert ignore_merges and "is for whole pieces only, although two tokens make it" in str(error)
        return
    theirs = Tokenizer.from_str(json.dumps(content))
    ours.save(path)
    again = Tokenizer.from_file(str(path))
    texts = [" ".join("".join(draw.choices(letters, k=draw.randint(1, 14))) for _ in range(6)) for _ in range(10)]
    for text in texts:
        assert ours.encode(text) == theirs.encode(text).ids == again.encode(text).ids
    with pytest.MonkeyPatch.context() as patch:  # merged together, not one by one
        patch.setattr(fast_encoding, "_MANY", 1)
        anew = BytePairTokenizer.load(path)
        assert [anew.encode(text) for text in texts] == [theirs.encode(text).ids for text in texts]


def trained_nothing() -> Tokenizer:
    theirs = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(ALPHABET.values())}, merges=[]))
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return theirs


def test_a_published_vocabulary_with_all_pairs_listed_is_the_same_tokenizer(data_folder, tmp_path):
    ours = BytePairTokenizer.from_vocabulary("cl100k_base", data_folder / "vocab")
    ours.save(tmp_path / "ours.json")
    content = json.loads((tmp_path / "ours.json").read_text("utf-8"))
    pairs = [
        [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ours.ranks and token[i:] in ours.ranks]
        for token in ours.tokens_by_rank()
    ]
    content["model"]["merges"] = [
        ["".join(ALPHABET[b] for b in part) for part in pair] for pair in chain.from_iterable(pairs)
    ]
    assert len(content["model"]["merges"]) > 2 * len(ours.ranks)
    content["model"]["ignore_merges"] = True
    (tmp_path / "theirs.json").write_text(json.dumps(content), "utf-8")
    loaded = BytePairTokenizer.load(tmp_path / "theirs.json")
    assert loaded.fingerprint == ours.fingerprint
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "ours.json").read_bytes()


# --- refused ----------------------------------------------------------------------------------------------------------


def with_(**parts):
    def change(theirs: Tokenizer) -> None:
        for name, part in parts.items():
            setattr(theirs, name, part)

    return change


def with_token_after_nfc(theirs: Tokenizer) -> None:
    theirs.normalizer = normalizers.NFC()
    theirs.add_tokens([AddedToken("<m>", normalized=True)])


def adding(**normalized: bool):
    return lambda theirs: theirs.add_tokens([AddedToken(token, normalized=n) for token, n in normalized.items()])


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, behavior, invert=invert), BYTES])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_(normalizer=normalizers.NFKC()), r"normalizer \(NFKC\) changes the text"),
        (
            with_token_after_nfc,
            "token '<m>' is sought in text that is normalized already",
        ),
        (
            with_(normalizer=normalizers.Sequence([normalizers.Sequence([]), normalizers.Lowercase()])),
            r"normalizer \(Lowercase\) changes the text",
        ),
        (
            with_(pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()])),
            r"\(Digits, ByteLevel\) puts a space before each piece",
        ),
        (with_(pre_tokenizer=pre_tokenizers.Whitespace()), r"\(Whitespace\) does not end in ByteLevel"),
        (
            with_(pre_tokenizer=pre_tokenizers.Sequence([BYTES, pre_tokenizers.Digits()])),
            r"\(ByteLevel, Digits\) does not end in ByteLevel",
        ),
        (
            with_(pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), BYTES])),
            "a step that is not understood: Punctuation",
        ),
        (with_(pre_tokenizer=split(Regex(r"\s"), "removed")), r"Split \(Removed\) is not understood"),
        (with_(pre_tokenizer=split(Regex(r"\S+"), "removed", True)), r"Split \(Removed\) is not understood"),
        (with_(pre_tokenizer=split(Regex(r"\s"), "merged_with_next")), r"Split \(MergedWithNext\) is not understood"),
        *(
            (with_(pre_tokenizer=split(Regex(pattern))), "which Hugging Face's engine reads otherwise than ours")
            for pattern in (
                r"\p{N}{1,3}+|\s",
                r"\w+$",
                r"^ +",
                r"\h+",
                r"[a-z&&[^b]]+",
                r"[[^a-z]b]+",
                r"[[a-]b]+",
                r"[[a]-z]",
                r"(?m).+",
                r"\N",
                r"\w+|\W",
                r"\bx",
                r"[\w']+",
                r"[[:digit:]]+",
                r"\pL+",
                r"\p{Co}",
                r"(?i:ss)",
                r"the(?i)|IN",
                r"a\Z",
                r"\p{N}{3}?",
                r"(?:in){e<=1}",
                r"a(*SKIP)(*FAIL)|b",
            )
        ),
        (lambda t: t.add_tokens(["the"]), "its added token 'the' is an ordinary one too"),
        (adding(York=False, New_York_City=True), "'York' and 'New_York_City' can overlap"),
        (adding(xab=False, bc=True), "'xab' and 'bc' can overlap"),
        (
            lambda t: t.add_tokens([" ", AddedToken("<m>", lstrip=True)]),
            "' ' has white space at an end, and '<m>' takes",
        ),
    ],
)
def test_what_would_change_ids_or_text_is_refused_in_one_line(tmp_path, change, message):
    theirs = trained("roberta")
    change(theirs)
    theirs.save(str(tmp_path / "theirs.json"))
    with pytest.raises(ValueError, match=message) as caught:
        BytePairTokenizer.load(tmp_path / "theirs.json")
    assert "theirs.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"].update(dropout=0.1), r"dropout \(0.1\) is not understood"),
        (lambda c: c["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (lambda c: c["model"].update(byte_fallback=True), "only byte-level BPE"),
        (lambda c: c.update(pre_tokenizer=None), r"\(none\) does not end in ByteLevel"),
        (lambda c: c["model"]["vocab"].update({"▁the": 5000}), "'▁', which stands for no byte"),
        (
            lambda c: c["model"]["merges"].append(["the", "zz"]),
            "merge of b'the' and b'zz' is not one of ordinary",
        ),
        (lambda c: c["model"]["vocab"].update({"Ġthezz": c["model"]["vocab"]["a"]}), "two tokens share one id"),
    ],
)
def test_files_that_do_not_hold_together_are_refused_in_one_line(tmp_path, change, message):
    content = json.loads(trained("roberta").to_str())
    change(content)
    (tmp_path / "theirs.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        BytePairTokenizer.load(tmp_path / "theirs.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", [r"\p{N}", r"\P{L}", r"\p{Lu}", r"\p{P}", r"\p{S}", r"\p{Z}", r"\p{Cf}", r"\p{Han}",
                                  r"\p{^Latin}", r"\p{Alphabetic}", r"\s", r"\D", "[[:alpha:]]", "[^[:xdigit:]]",
                                  r"[\s\p{M}a-f&-]", r"[\x41\u00df.]", "(?i:[sdmt]|ll|ve|re)", "."])  # fmt: skip
def test_what_is_taken_as_read_alike_is_read_alike(part):
    """On all characters of Unicode 15 or before: what came since, one of the two may not know."""
    characters = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    text = "\n".join(c for c in characters if unicodedata.category(c) not in ("Cn", "Co") and c != "\n")
    theirs = pre_tokenizers.Split(Regex(require_read_alike(part)), "removed", invert=True).pre_tokenize_str(text)
    ours = {piece for piece in split_into_pieces(compile_pattern(part), text) if regex.fullmatch(part, piece)}
    assert {piece for piece, _ in theirs} - {"\n"} == ours - {"\n"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["added_tokens"][-1].update(id=900), r"has the id 900, and tokenizers gives it \d+, the next"),
        (lambda c: c["added_tokens"].append(c["added_tokens"][-1]), "is added twice"),
        (lambda c: c["model"].update(byte_fallback=True), "a BPE with byte_fallback tokenizer"),
        (lambda c: c["model"]["merges"].append(["a", "b", "c"]), r"merge \['a', 'b', 'c'\] is not one of two tokens"),
    ],
)
def test_what_the_library_would_read_otherwise_is_refused_in_one_line(tmp_path, change, message):
    theirs = trained("roberta")
    theirs.add_tokens(["<new>"])
    content = json.loads(theirs.to_str())
    change(content)
    (tmp_path / "t.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        BytePairTokenizer.load(tmp_path / "t.json")


def test_the_order_of_a_vocabulary_in_its_file_makes_no_difference(tmp_path):
    """Shards are known by the fingerprint of their tokenizer: after saving and loading it has to be the same."""
    content = json.loads(changed(trained("roberta"), as_roberta).to_str())
    entries = list(content["model"]["vocab"].items())
    fingerprints = set()
    for number in range(3):
        random.Random(number).shuffle(entries)
        content["model"]["vocab"] = dict(entries)
        (tmp_path / "t.json").write_text(json.dumps(content), encoding="utf-8")
        tokenizer = BytePairTokenizer.load(tmp_path / "t.json")
        tokenizer.save(tmp_path / "saved.json")
        fingerprints |= {tokenizer.fingerprint, BytePairTokenizer.load(tmp_path / "saved.json").fingerprint}
    assert len(fingerprints) == 1


def test_a_pattern_that_they_read_otherwise_is_not_saved_and_not_trained(run, tmp_path):
    tokenizer = BytePairTokenizer.train([TEXT], 300, r"\p{N}{1,3}+|\D+")
    with pytest.raises(ValueError, match=r"has '\{1,3\}\+', which Hugging Face's engine reads otherwise"):
        tokenizer.save(tmp_path / "t.json")
    flags = ["--pattern", r"\S+$|\s", "--out", tmp_path / "t.json"]
    done = run("working_with_text_data/bytepair_enc/train_tokenizer.py", *flags)
    assert_one_clear_line(done, "has '$', which Hugging Face's engine reads otherwise")
    assert not list(tmp_path.iterdir())


def test_what_the_format_cannot_say_is_not_saved(tmp_path):
    base = BytePairTokenizer.train(["x"], 257)
    ranks = base.ranks | {b"abc": 300}  # only as a whole piece
    tokenizer = BytePairTokenizer(ranks, ids=ranks | {b"xyz": 301})
    with pytest.raises(ValueError, match="some are used and some not"):
        tokenizer.save(tmp_path / "t.json")


def test_ranks_and_ids_have_to_belong_together():
    ranks = BytePairTokenizer.train(["x"], 257, special_tokens=()).ranks
    with pytest.raises(ValueError, match="two tokens share one rank"):
        BytePairTokenizer(ranks | {b"ab": 7}, ids=ranks | {b"ab": 300})
    with pytest.raises(ValueError, match="one with a rank has no id"):
        BytePairTokenizer(ranks | {b"ab": 300}, ids={token: i + 1 for token, i in ranks.items()})


def test_composed_characters_are_composed_in_parts_too(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "_PART", 40)
    theirs = changed(trained("gpt4"), lambda content: content.update(normalizer={"type": "NFC"}))
    theirs.save(str(tmp_path / "t.json"))
    ours = BytePairTokenizer.load(tmp_path / "t.json")
    text = unicodedata.normalize("NFD", "déjà vu, 한국어 ắ\nÅngström ") * 50
    assert text != unicodedata.normalize("NFC", text)
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert [i for part in streaming.encode_stream(ours, text) for i in part.tolist()] == ids
    assert ours.fingerprint != BytePairTokenizer(ours.ranks, ours.pattern, ours.special_tokens).fingerprint
    plain = BytePairTokenizer(ours.ranks, ours.pattern, ours.special_tokens)
    assert plain.encode_ordinary(text) != ids
    assert plain.decode(plain.encode_ordinary(text)) == text


def test_templates_and_truncation_come_after_the_ids_and_are_not_applied(tmp_path):
    theirs = trained("llama3")
    theirs.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    theirs.enable_truncation(5)
    theirs.save(str(tmp_path / "t.json"))
    ids = BytePairTokenizer.load(tmp_path / "t.json").encode(TEXT)
    assert [0, *ids][:5] == theirs.encode(TEXT).ids
    theirs.no_truncation()
    assert ids == theirs.encode(TEXT, add_special_tokens=False).ids


def test_an_inverted_isolated_split_cuts_alike(tmp_path):
    theirs = trained("roberta")
    theirs.pre_tokenizer = split(Regex("[aeiou]+"), "isolated", True)
    theirs.save(str(tmp_path / "t.json"))
    assert BytePairTokenizer.load(tmp_path / "t.json").encode(TEXT) == theirs.encode(TEXT).ids


@settings(max_examples=60)
@given(st.lists(st.binary(min_size=2, max_size=12), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_the_last_parts_of_many_tokens_are_those_of_each_alone(tokens, draw):
    """With merges in whatever order, also such as no trainer makes."""
    pairs = list({(t[:i], t[i:]) for t in tokens for i in range(1, len(t))} | {(t[:1], t[1:2]) for t in tokens})
    draw.shuffle(pairs)
    order = {pair: m for m, pair in enumerate(pairs)}
    expected = [merged_alone(t, lambda left, right: order.get((left, right), math.inf)) for t in tokens]
    assert last_parts(tokens, PairOrder(pairs)) == expected

    made = list(dict.fromkeys([bytes([b]) for b in range(256)] + [left + right for left, right in pairs]))
    ranks = {token: rank for rank, token in enumerate(made)}
    expected = [merged_alone(t, lambda left, right: ranks.get(left + right, math.inf)) for t in tokens]
    assert last_parts(tokens, PairRanks(ranks, dict(enumerate(made)))) == expected


def test_spellings_stand_for_bytes():
    for byte, character in ALPHABET.items():
        assert bytes_of_spelling(character) == bytes([byte])
    for wrong in (" ", "\n", "\x7f", "\xad", "語", "\U0001f415", "\uffff"):
        with pytest.raises(ValueError, match="which stands for no byte"):
            bytes_of_spelling("a" + wrong)
