"""Word pieces, and the weights of BERT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastvfx.data import DataError
from fastvfx.models.videobert import (
    CheckpointError,
    SpecialIds,
    VideoBert,
    VisualConfig,
    Vocabulary,
    load_bert,
    load_vocabulary,
    read_bert,
    train_vocabulary,
)

TEXTS = ("a person signs the word again", "a person signs the word bird", "Two ÓNIONS, fried.")


# --- word pieces ----------------------------------------------------------------------------------------------------


def test_learned_pieces_spell_what_they_learned_from() -> None:
    vocabulary = train_vocabulary(TEXTS)
    assert vocabulary.special == SpecialIds(0, 1, 2, 3, 4, 5)
    for text in TEXTS[:2]:
        assert vocabulary.decode(vocabulary.encode(text)) == text
        assert len(vocabulary.encode(text)) == 6  # whole words
    assert vocabulary.decode(vocabulary.encode(TEXTS[2])) == "two onions, fried."
    assert vocabulary.encode("brn")[0] != 1  # unknown words fall into letters
    assert vocabulary.encode("★") == [1]


def test_the_same_sentences_give_the_same_pieces() -> None:
    assert train_vocabulary(TEXTS).to_json() == train_vocabulary(TEXTS).to_json()
    assert len(train_vocabulary(TEXTS, 45)) == 45


def test_only_mask_means_something_in_a_sentence() -> None:
    vocabulary = train_vocabulary(TEXTS)
    pieces = vocabulary.encode("a person signs the [MASK] [SEP] bird [PAD]")
    assert pieces == [*vocabulary.encode("a person signs the"), 4, *vocabulary.encode("bird")]
    assert not set(vocabulary.ordinary.tolist()) & {0, 1, 2, 3, 4, 5}
    assert len(vocabulary.ordinary) == len(vocabulary) - 6


def test_padding() -> None:
    vocabulary = train_vocabulary(TEXTS)
    assert vocabulary.pad([[7, 8], [], [9]]).tolist() == [[7, 8], [0, 0], [9, 0]]
    assert vocabulary.pad([[]]).shape == (1, 1)


def write_vocab(folder: Path, *more: str) -> Path:
    pieces = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *more]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return folder / "vocab.txt"


def test_a_berts_vocabulary(tmp_path: Path) -> None:
    vocabulary = load_vocabulary(write_vocab(tmp_path, "bird", "##s"))
    assert vocabulary.special == SpecialIds(0, 3, 4, 5, 6, 2) and len(vocabulary) == 9  # [>] is [unused1]
    assert vocabulary.encode("Birds bird") == [7, 8, 7]
    again = Vocabulary.from_json(vocabulary.to_json())
    assert again.special == vocabulary.special and again.encode("birds") == [7, 8]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_vocabulary(tmp_path).encode("Bird bird") == [3, 7]


def test_a_tokenizer_json_gets_the_missing_piece(tmp_path: Path) -> None:
    content = json.loads(train_vocabulary(TEXTS).to_json())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "[>]"]
    content["model"]["vocab"]["other"] = content["model"]["vocab"].pop("[>]")
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    vocabulary = load_vocabulary(tmp_path)
    assert vocabulary.special.video == len(vocabulary) - 1 == len(train_vocabulary(TEXTS))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "vocab.txt",
            "[PAD]\n[UNK]\n[CLS]\n[SEP]\nbird\n",
            r"vocab.txt: expected a vocabulary with .* \[MASK\] missing",
        ),
        ("vocab.txt", "[UNK]\nbird\nbird\n", r"vocab.txt: expected a piece a line, each once"),
        ("tokenizer.json", "{", r"tokenizer.json: not a tokenizer"),
        ("other.txt", "", r"expected tokenizer.json or vocab.txt in this folder"),
    ],
)
def test_bad_vocabularies(tmp_path: Path, name: str, text: str, expected: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=expected):
        load_vocabulary(tmp_path)
    with pytest.raises(DataError, match="can't be read"):
        load_vocabulary(tmp_path / "lost.txt")


# --- BERT -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def bert(tmp_path: Path):
    """A small random BERT of Hugging Face in a folder, and the module."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=40,
    )  # fmt: skip
    module = transformers.BertForPreTraining(config).eval()
    with torch.no_grad():
        for p in module.parameters():  # beyond the small numbers of the beginning
            p.add_(0.1 * torch.randn_like(p))
    module.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert", module


IDS = SpecialIds(pad=0, unk=3, cls=4, sep=5, mask=6, video=2)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "old names"])
def test_same_outputs_as_transformers(bert, kind: str) -> None:
    folder, module = bert
    if kind != "safetensors":
        (folder / "model.safetensors").unlink()
        state = module.state_dict()
        if kind == "old names":
            new = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
            state = {k.replace(*new[0]).replace(*new[1]): x for k, x in state.items()}
        torch.save(state, folder / "pytorch_model.bin")
    weights = read_bert(folder)
    model = VideoBert(weights.config(VisualConfig(n_tokens=10), IDS, 50)).eval()
    assert load_bert(model, weights) == ()
    text = torch.randint(7, 50, (3, 11))
    text[1, 8:] = 0
    text[2, 3] = 6
    hidden = model(None, text)
    # Theirs has [SEP] behind the words and padding behind that; ours has it at the end.
    first, last = torch.full((3, 1), 4), torch.full((3, 1), 5)
    ids = torch.cat([first, text, last], 1)
    mask = torch.cat([first > 0, text > 0, last > 0], 1)
    places = (mask.cumsum(1) - 1).clamp_min(0)
    expected = module(ids, attention_mask=mask.long(), position_ids=places)
    there = text > 0
    assert torch.allclose(model.text_logits(hidden.text)[there], expected.prediction_logits[:, 1:-1][there], atol=1e-5)
    assert torch.allclose(model.alignment_logits(hidden.pooled), expected.seq_relationship_logits, atol=1e-5)


def test_a_bare_bert_and_a_larger_vocabulary(bert) -> None:
    folder, module = bert
    (folder / "model.safetensors").unlink()
    state = {k.removeprefix("bert."): x for k, x in module.state_dict().items() if k.startswith("bert.")}
    torch.save(state, folder / "pytorch_model.bin")
    weights = read_bert(folder)
    model = VideoBert(weights.config(VisualConfig(n_tokens=10), IDS, 52)).eval()
    words = model.text_embeddings.words.weight.detach().clone()
    missing = load_bert(model, weights)
    assert {name.partition(".")[0] for name in missing} == {"text_head", "alignment_head"}
    now = model.text_embeddings.words.weight
    assert torch.equal(now[50:], words[50:]) and torch.equal(now[:50], module.bert.embeddings.word_embeddings.weight)


def test_wrong_berts(bert, tmp_path: Path) -> None:
    folder, _ = bert
    weights = read_bert(folder)
    with pytest.raises(CheckpointError, match="its weights know 50 word pieces, the vocabulary has 40"):
        weights.config(VisualConfig(), IDS, 40)
    with pytest.raises(CheckpointError, match=r"expected a folder with config.json"):
        read_bert(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for change, expected in (
        ({"model_type": "roberta"}, "not of a BERT"),
        ({"hidden_act": "relu"}, "expected hidden_act gelu, got relu"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=expected):
            read_bert(folder)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    deeper = read_bert(folder)
    model = VideoBert(deeper.config(VisualConfig(n_tokens=4), IDS, 50))
    with pytest.raises(CheckpointError, match=r"bert.encoder.layer.3.attention.self.query.weight is missing"):
        load_bert(model, deeper)
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 65}))
    wider = read_bert(folder)
    with pytest.raises(
        CheckpointError, match=r"expected bert.*intermediate.dense.weight of shape \(65, 32\), got \(64, 32\)"
    ):
        load_bert(VideoBert(wider.config(VisualConfig(n_tokens=4), IDS, 50)), wider)
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=r"model.safetensors: damaged"):
        read_bert(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"expected model.safetensors or pytorch_model.bin in it"):
        read_bert(folder)
