"""Texts in, answers by name out: `Runtime.run_text` and `sortednet run --text`, by the bundle's own tokenizer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exporter import export
from exporter.bundle import Bundle, BundleError
from exporter.bundle.manifest import sealed
from exporter.bundle.preprocessing import TextPreprocessing
from selector import Budget
from selector.run.inputs import InputError
from selector.run.text import MOST_TOKENS, PADDED, TextReader, of_like_length
from tests.helpers import text_bundles
from tests.helpers.commands import call, document, refused
from tests.helpers.figures import written_down
from tests.helpers.runtimes import quiet_runtime, runtime_of
from tests.helpers.text_bundles import LABELS, MAX_TOKENS, PIECES, TAGS
from tests.helpers.texts import write_texts
from tests.helpers.user_families import TextEncoder
from trainer import NestedModel
from trainer.data import load_data

LONG = "the rivers and stars of the wider bread . " * 5
MIXED = ["Bread.", LONG, "the rivers", "stars and stars and stars", "", "zzz"]


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sizes, with a profile and accuracies that are written down."""
    return written_down(text_bundles.sentences(tmp_path_factory.mktemp("bundles") / "sentences").path)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_bundles.pairs(tmp_path_factory.mktemp("bundles") / "pairs").path


@pytest.fixture(scope="module")
def tags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_bundles.tags(tmp_path_factory.mktemp("bundles") / "tags").path


def changed(bundle: Path, path: Path, **fields: Any) -> Path:
    """A copy whose preprocessing says otherwise."""
    shutil.copytree(bundle, path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["preprocessing"]["input_ids"] |= fields
    (path / "manifest.json").write_text(json.dumps(sealed(manifest)))
    return path


def ids(*pieces: str) -> list[int]:
    return [PIECES.index(piece) for piece in pieces]


def test_token_ids_mask_and_padding(sentences: Path) -> None:
    encoded = TextReader(Bundle(sentences)).encode(["The rivers", "wider stars, bread."])
    feed = encoded.feed
    assert feed["input_ids"].tolist() == [
        ids("[CLS]", "the", "river", "##s", "[SEP]", *["[PAD]"] * 4),
        ids("[CLS]", "wide", "##r", "star", "##s", "[UNK]", "bread", ".", "[SEP]"),
    ]
    assert feed["attention_mask"].tolist() == [[1] * 5 + [0] * 4, [1] * 9]
    assert {array.dtype.name for array in feed.values()} == {"int64"}
    assert (encoded.lengths, encoded.truncated) == ((5, 9), 0)


def test_what_the_tokenizers_file_says_of_length_does_not_count(tmp_path: Path) -> None:
    file = text_bundles.tokenizer_file(length=5)
    spec = text_bundles.preprocessing()
    bundle = text_bundles.write(tmp_path / "bundle", text_bundles.Small(layers=(1,)), spec, LABELS, file)
    encoded = TextReader(bundle).encode(["the bread of the stars", "the"])
    assert (encoded.lengths, encoded.truncated, encoded.feed["input_ids"].shape) == ((8, 3), 0, (2, 8))


def test_a_pair_is_one_example_with_types(pairs: Path) -> None:
    reader = TextReader(Bundle(pairs))
    feed = reader.encode([("the rivers", "stars"), ("bread", "")]).feed
    assert feed["input_ids"][0].tolist() == ids("[CLS]", "the", "river", "##s", "[SEP]", "star", "##s", "[SEP]")
    assert feed["token_type_ids"].tolist() == [[0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 0, 0, 0, 0]]
    assert feed["attention_mask"][1].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    cut = reader.encode([(LONG, "bread")])
    assert (cut.lengths, cut.truncated) == ((MAX_TOKENS,), 1)
    assert cut.ids[0][-2:] == ids("bread", "[SEP]")  # of the longer one
    exact = reader.encode([("the " * (MAX_TOKENS - 4), "bread")])
    assert (exact.lengths, exact.truncated) == ((MAX_TOKENS,), 0)
    assert quiet_runtime(pairs).run_text([("the rivers", "stars")]).labels[0] in LABELS


def test_bundles_from_before_padding_could_vary_read_as_they_did() -> None:
    old = TextPreprocessing.model_validate({"kind": "text", "tokenizer": "tokenizer.json", "max_tokens": 16})
    assert (old.mask, old.types, old.padding, old.pad_id, old.pair) == (None, None, "max", 0, False)


@pytest.mark.parametrize("padding", ["longest", "max"])
def test_every_answer_is_that_of_the_text_alone_and_in_the_asked_order(padding: str, sentences: Path, tmp_path: Path) -> None:
    runtime = quiet_runtime(changed(sentences, tmp_path / "changed", padding=padding))
    together = runtime.run_text(MIXED)
    alone = [runtime.run_text(text) for text in MIXED]
    wanted = np.concatenate([one.outputs["logits"] for one in alone])
    np.testing.assert_allclose(together.outputs["logits"], wanted, rtol=1e-4, atol=1e-5)
    assert len({tuple(row) for row in wanted.round(4).tolist()}) == len(MIXED)
    assert together.labels == [one.labels[0] for one in alone]
    assert together.texts is not None
    assert (len(together.texts), together.texts.truncated) == (len(MIXED), 1)
    batches = len(together.texts.batches())
    assert (batches == 1) == (padding == "max")
    assert len(runtime.history) == batches + len(MIXED)
    assert {record.submodel for record in list(runtime.history)[:batches]} == {together.selection.submodel}
    runtime.close()


def test_a_budget_chooses_once_for_all_texts(sentences: Path) -> None:
    runtime = runtime_of(sentences)
    chosen = {runtime.run_text(MIXED, Budget(latency_ms=ms)).selection.submodel for ms in (1.5, 100)}
    assert len(chosen) == 2
    with pytest.raises(ValueError, match="budget"):
        runtime.run_text(MIXED, 5)  # type: ignore[arg-type]
    runtime.close()


@given(st.lists(st.integers(1, 512), min_size=1, max_size=80))
def test_batches_are_of_like_length(lengths: list[int]) -> None:
    batches = of_like_length(lengths)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        own = [lengths[i] for i in batch]
        assert len(own) * max(own) <= min(PADDED * sum(own), MOST_TOKENS)
    for before, after in pairwise(batches):
        both = [lengths[i] for i in (*before, after[0])]
        assert max(both) == both[-1]
        assert len(both) * both[-1] > min(PADDED * sum(both), MOST_TOKENS)  # no cut that was not needed


def test_words_have_the_tags_of_their_first_pieces(tags: Path) -> None:
    runtime = quiet_runtime(tags)
    texts = ["The rivers,  wider stars", "bread", LONG]
    found = runtime.run_text(texts)
    first, second, cut = found.words()
    assert [(word.word, word.start, word.end) for word in first] == [
        ("The", 0, 3),
        ("rivers", 4, 10),
        (",", 10, 11),
        ("wider", 13, 18),
        ("stars", 19, 24),
    ]
    logits = found.outputs["logits"]
    assert logits.shape == (3, MAX_TOKENS, len(TAGS))
    assert [word.label for word in first] == [TAGS[logits[0, token].argmax()] for token in (1, 2, 4, 5, 7)]
    assert not logits[1, 3:].any()  # behind [CLS] bread [SEP]
    assert logits[1, :3].all()
    assert [word.word for word in second] == ["bread"]
    assert cut[-1].end < len(LONG)
    (alone,) = runtime.run_text(texts[0]).words()
    assert [(word.word, word.label) for word in alone] == [(word.word, word.label) for word in first]
    assert found.answers() == []
    runtime.close()


def test_a_question_is_answered_by_a_part_of_the_second_text(tmp_path: Path) -> None:
    path = text_bundles.questions(tmp_path / "questions").path
    context = "The river of bread.  The stars"
    asked = [("the river of", context), ("bread", LONG), ("wider and wider and wider rivers", ""), ("the bread", context)]
    with quiet_runtime(path) as runtime:
        found = runtime.run_text(asked)
        (first,), (second,), none, _ = found.spans()
        starts, ends = (found.outputs[name][0] for name in ("start_logits", "end_logits"))
        offset = 1 + 3 + 1  # [CLS] the river of [SEP]
        sums = {(i, j): starts[i] + ends[j] for i in range(offset, offset + 8) for j in range(i, offset + 8)}
        begin, last = (place - offset for place in max(sums, key=sums.__getitem__))
        pieces = [(0, 3), (4, 9), (10, 12), (13, 18), (18, 19), (21, 24), (25, 29), (29, 30)]
        assert (first.start, first.end) == (pieces[begin][0], pieces[last][1])
        assert first.text == context[first.start : first.end]
        assert second.text in LONG
        assert 0 < first.probability <= 1
        assert none == []
        assert found.answers() == found.words() == []
    printed = document("run", path, "--text", asked[0][0], "--text-pair", context)
    assert printed["spans"] == [[pytest.approx(first._asdict())]]
    lines = call("run", path, "--text", asked[0][0], "--text-pair", context).stdout.splitlines()
    assert lines[1:] == [f"  {first.text} {first.probability:.1%}"]


def test_a_bundle_of_a_text_folder_reads_texts_as_they_were_in_training(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    data = load_data(f"text-folder:{tmp_path / 'texts'}", {"max_tokens": 32})
    nested = NestedModel(TextEncoder.for_data(data.spec)).eval()
    more = {"labels": data.labels, "preprocessing": data.preprocessing, "files": data.files}
    path = export(nested, tmp_path / "bundle", test_data=data.test, show_progress=False, **more).path
    inputs, _ = data.test.batch(torch.arange(len(data.test)))
    folder = sorted((tmp_path / "texts").glob("*/*.txt"))
    with quiet_runtime(path) as runtime:
        read = runtime.texts.encode([file.read_text() for file in folder]).feed["tokens"]
        assert {tuple(row) for row in inputs["input"].tolist()} <= {tuple(row) for row in read.tolist()}
        found = runtime.run_text([file.read_text() for file in folder])
        assert found.texts is not None
        assert (found.outputs["logits"].shape, found.texts.truncated) == ((len(folder), 3), 0)
        with pytest.raises(InputError, match=r"text\[0\]: gives no tokens"):
            runtime.run_text("")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "text: none given; allowed is one or more"),
        (["bread", "ab\ud800c"], r"text\[1\]: character 2 is '\\ud800', half of a surrogate pair"),
        (["bread", b"bread"], r"text\[1\]: is bytes; allowed is a text \(str\)"),
        ([None], r"text\[0\]: is NoneType"),
        ([("bread", "stars")], r"text\[0\]: a pair; this bundle takes single texts, and no pairs"),
    ],
)
def test_what_is_no_text_is_refused(texts: list[Any], message: str, sentences: Path) -> None:
    with pytest.raises(InputError, match=message):
        TextReader(Bundle(sentences)).encode(texts)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["bread"], r"text\[0\]: one text; this bundle takes pairs of texts, each a tuple of two"),
        ([("a", "b", "c")], r"text\[0\]: 3 texts; allowed are two, a pair"),
        ([("a", "b"), ("a", "\udcff")], r"text_pair\[1\]: character 0 is '\\udcff'"),
    ],
)
def test_what_is_no_pair_is_refused(texts: list[Any], message: str, pairs: Path) -> None:
    with pytest.raises(InputError, match=message):
        TextReader(Bundle(pairs)).encode(texts)


def test_an_empty_text_is_refused_where_it_gives_no_tokens(sentences: Path, tmp_path: Path) -> None:
    assert TextReader(Bundle(sentences)).encode(["", "  "]).lengths == (2, 2)
    plain = text_bundles.tokenizer_file(special=False)
    spec = text_bundles.preprocessing()
    bundle = text_bundles.write(tmp_path / "bundle", text_bundles.Small(layers=(1,)), spec, LABELS, plain)
    with pytest.raises(InputError, match=r"text\[1\]: gives no tokens; allowed is a text that is not empty"):
        TextReader(bundle).encode(["bread", " "])


def test_a_bundle_that_does_not_say_how_to_read_texts_refuses_them(bundle_path: Path, sentences: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this bundle does not say how one becomes its input 'input'"):
        quiet_runtime(bundle_path).run_text("bread")
    with pytest.raises(InputError, match=r"becomes 'input_ids', each \(N, T\); this bundle takes .*'attention_mask'"):
        TextReader(Bundle(changed(sentences, tmp_path / "mask", mask=None)))
    with pytest.raises(InputError, match="the bundle's preprocessing is not known here: stride"):
        TextReader(Bundle(changed(sentences, tmp_path / "stride", stride=4)))
    with pytest.raises(BundleError, match=r"has no file 'other\.json', which its preprocessing names"):
        TextReader(Bundle(changed(sentences, tmp_path / "other", tokenizer="other.json")))
    with pytest.raises(BundleError, match="adds 2 tokens to a text; allowed are less than max_tokens = 2"):
        TextReader(Bundle(changed(sentences, tmp_path / "short", max_tokens=2)))


def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    spec = text_bundles.preprocessing()
    bundle = text_bundles.write(tmp_path / "bundle", text_bundles.Small(layers=(1,)), spec, LABELS, b"{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
        TextReader(bundle)
    assert "cannot be read as a tokenizer" in refused("run", bundle.path, "--text", "bread")


def test_the_command_prints_names_and_probabilities(sentences: Path) -> None:
    lines = call("run", sentences, "--text", "the rivers").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == quiet_labels(sentences, "the rivers")
    found = document("run", sentences, "--text", "the rivers", "--text", "stars")
    assert [len(best) for best in found["answers"]] == [3, 3]
    assert (found["tokens"], found["truncated"]) == ([5, 4], 0)
    assert sum(answer["probability"] for answer in found["answers"][1]) == pytest.approx(1)
    lines = call("run", sentences, "--text", "the rivers", "--text", "stars").stdout.splitlines()
    best = [one[0]["label"] for one in found["answers"]]
    assert [line.split()[:3] for line in lines[1:]] == [["text", "1:", best[0]], ["text", "2:", best[1]]]


def quiet_labels(path: Path, text: str) -> list[str]:
    with quiet_runtime(path) as runtime:
        return [answer.label for answer in runtime.run_text(text).answers()[0]]


def test_the_command_says_what_was_cut(sentences: Path) -> None:
    result = call("run", sentences, "--text", LONG, "--json")
    assert result.stderr.strip() == "note: the text was cut off after 16 tokens"
    assert (json.loads(result.stdout)["tokens"], json.loads(result.stdout)["truncated"]) == ([16], 1)
    said = call("run", sentences, "--text", LONG, "--text", " ").stderr
    assert "1 of 2 texts are empty: the network sees what the tokenizer adds\nnote: 1 of 2 texts were cut off after 16" in said


def test_the_command_prints_words_with_tags(tags: Path) -> None:
    found = document("run", tags, "--text", "the rivers")
    (words,) = found["words"]
    assert [(word["word"], word["start"]) for word in words] == [("the", 0), ("rivers", 4)]
    lines = call("run", tags, "--text", "the rivers").stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [[word["word"], word["label"]] for word in words]
    assert "answers" not in found


def test_the_command_takes_pairs_writes_outputs_and_watches(pairs: Path, sentences: Path, tmp_path: Path) -> None:
    found = document("run", pairs, "--text", "the rivers", "--text-pair", "stars")
    assert found["tokens"] == [8]
    assert "takes pairs of texts" in refused("run", pairs, "--text", "the rivers")
    assert call("run", sentences, "--text", "bread", "--output", tmp_path / "out.npz").exit_code == 0
    with np.load(tmp_path / "out.npz") as outputs:
        assert outputs["logits"].shape == (1, 3)
    watched = document("run", sentences, "--text", "bread", "--watch", "--seconds", "0.2")
    assert watched["runs"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "input: none given; allowed is --input FILE or --text TEXT"),
        (["--input", "a.npy", "--text", "bread"], "input = 'a.npy': allowed without --text and --text-pair"),
        (["--text-pair", "bread"], "input: none given"),
        (["--text", "a", "--text-pair", "b", "--text-pair", "c"], "text-pair: given 2 times; allowed is once for each of 1"),
        (["--input", __file__], "it does not begin as one does; texts are given as --text TEXT"),
        (["--text", "a\udcff"], "text[0]: character 1 is '\\udcff', half of a surrogate pair or a byte that is no UTF-8"),
    ],
)
def test_the_command_refuses_what_is_not_clear(arguments: list[str], message: str, sentences: Path) -> None:
    assert message in refused("run", sentences, *arguments)


def test_without_the_library_the_extra_is_named(sentences: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert "run needs tokenizers: pip install '.[text]'" in refused("run", sentences, "--text", "bread")


def test_texts_are_read_by_the_library_alone(sentences: Path) -> None:
    """Not by what it depends on to fetch others' tokenizers, which a device may leave away."""
    code = """if True:
        import sys
        sys.modules |= dict.fromkeys(("huggingface_hub", "hf_xet", "fsspec", "yaml", "filelock", "tqdm"))
        from sortednet import Runtime
        with Runtime(sys.argv[1], threads=1) as runtime:
            print(len(runtime.run_text("the rivers").answers()[0]))
    """
    ran = subprocess.run([sys.executable, "-c", code, sentences], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, "3"), ran.stderr
