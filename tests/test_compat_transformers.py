"""transformers' models on our attention: the same outputs and gradients as its own eager attention."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5")

from transformers import (  # noqa: E402
    BertConfig,
    BertForPreTraining,
    BertLMHeadModel,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    TimesformerConfig,
    TimesformerModel,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEModel,
    VivitConfig,
    VivitModel,
)

from fastvfx.compat import transformers as ours  # noqa: E402

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
VIDEO = {"image_size": 16, "num_frames": 4}
TEXT = {"vocab_size": 50, "max_position_embeddings": 32}


@pytest.fixture(autouse=True)
def registered():
    ours.register()


def made(model, config, implementation):
    torch.manual_seed(0)
    return model._from_config(copy.deepcopy(config), attn_implementation=implementation).eval()


def pair(model, config):
    """The same weights twice: eager, and by our name."""
    return made(model, config, "eager"), made(model, config, "fastvfx")


def assert_same(theirs, mine, **inputs):
    results = []
    for model in (theirs, mine):
        output = model(**inputs)[0]
        torch.manual_seed(5)
        (output * torch.randn_like(output)).sum().backward()
        results.append([output, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) > 10
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5 * max(1.0, a.abs().max().item()))


def frames(batch=2):
    return torch.randn(batch, 4, 3, 16, 16)


def padded():
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    return {"input_ids": torch.randint(50, (2, 9)), "attention_mask": mask}


@pytest.mark.parametrize("attention_type", ["divided_space_time", "joint_space_time"])
def test_timesformer(attention_type):
    config = TimesformerConfig(patch_size=4, attention_type=attention_type, **VIDEO, **SIZE)
    mine = made(TimesformerModel, config, "eager")
    names = list(mine.state_dict())
    assert ours.install(mine) is mine and list(mine.state_dict()) == names
    assert_same(made(TimesformerModel, config, "eager"), mine, pixel_values=frames())
    again = pickle.loads(pickle.dumps(copy.deepcopy(mine)))
    x = frames()
    with torch.no_grad():
        assert torch.equal(again(x)[0], mine(x)[0])


def test_timesformer_ignores_names():
    """Why there is ``install``. When this fails, transformers has taught it to dispatch."""
    config = TimesformerConfig(patch_size=4, **VIDEO, **SIZE)
    assert not TimesformerModel._supports_attention_backend
    theirs, named = pair(TimesformerModel, config)
    x = frames()
    with torch.no_grad():
        assert torch.equal(theirs(x)[0], named(x)[0])


def test_vivit():
    assert_same(*pair(VivitModel, VivitConfig(tubelet_size=[2, 4, 4], **VIDEO, **SIZE)), pixel_values=frames())


def test_videomae():
    config = VideoMAEConfig(patch_size=4, tubelet_size=2, **VIDEO, **SIZE)
    assert_same(*pair(VideoMAEModel, config), pixel_values=frames())


def test_videomae_pretraining():
    """Encoder and decoder see different numbers of tokens."""
    config = VideoMAEConfig(
        patch_size=4, tubelet_size=2, decoder_hidden_size=16, decoder_num_attention_heads=2,
        decoder_num_hidden_layers=1, decoder_intermediate_size=24, **VIDEO, **SIZE,
    )  # fmt: skip
    hidden = torch.zeros(2, 32, dtype=torch.bool)
    hidden[:, ::2] = True
    assert_same(*pair(VideoMAEForPreTraining, config), pixel_values=frames(), bool_masked_pos=hidden)


@pytest.mark.parametrize("inputs", ["padded", "whole"])
def test_bert(inputs):
    inputs = padded() if inputs == "padded" else {"input_ids": torch.randint(50, (2, 9))}
    assert_same(*pair(BertForPreTraining, BertConfig(**TEXT, **SIZE)), **inputs)


def test_padding_stays_a_row(monkeypatch):
    """No matrix of queries and keys is made of it."""
    shapes = []
    forward = ours.attention_forward

    def spy(module, q, k, v, mask, **kwargs):
        shapes.append(None if mask is None else tuple(mask.shape))
        return forward(module, q, k, v, mask, **kwargs)

    transformers.AttentionInterface.register("fastvfx", spy)
    made(BertModel, BertConfig(**TEXT, **SIZE), "fastvfx")(**padded())
    assert shapes == [(2, 1, 1, 9)] * 2


def test_bert_attends_another_sequence():
    config = BertConfig(is_decoder=True, add_cross_attention=True, **TEXT, **SIZE)
    mask = torch.ones(2, 5)
    mask[0, 3:] = 0
    inputs = {"encoder_hidden_states": torch.randn(2, 5, 32), "encoder_attention_mask": mask, "use_cache": False}
    assert_same(*pair(BertLMHeadModel, config), **padded(), **inputs)


def test_decoding_with_a_cache():
    """Grouped heads, causal, one token after the other."""
    config = LlamaConfig(num_key_value_heads=2, **TEXT, **SIZE)
    theirs, mine = pair(LlamaForCausalLM, config)
    assert_same(theirs, mine, input_ids=torch.randint(50, (2, 7)))
    prompt = torch.randint(3, 50, (1, 4))
    texts = [m.generate(prompt, max_new_tokens=6, do_sample=False, eos_token_id=None) for m in (theirs, mine)]
    assert torch.equal(*texts) and texts[0].shape == (1, 10)


def test_install_on_a_model_that_dispatches():
    theirs, mine = made(VivitModel, VivitConfig(tubelet_size=[2, 4, 4], **VIDEO, **SIZE), "eager"), None
    mine = ours.install(copy.deepcopy(theirs))
    assert mine.config._attn_implementation == "fastvfx"
    assert_same(theirs, mine, pixel_values=frames())


def test_dropout_in_training():
    model = made(
        BertModel, BertConfig(attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0, **TEXT, **SIZE), "fastvfx"
    )
    x = padded()
    assert torch.equal(model(**x)[0], model(**x)[0])
    model.train()
    assert not torch.equal(model(**x)[0], model(**x)[0])


def test_options_of_the_call():
    """Of models that have them: a bias of positions beside a mask, a softcap."""
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    mask, bias = torch.rand(2, 1, 5, 7) > 0.3, torch.randn(1, 4, 5, 7)
    out, weights = ours.attention_forward(
        torch.nn.Module(), q, k, v, mask, position_bias=bias, softcap=2.0, scaling=0.5, is_causal=False
    )
    scores = 2 * torch.tanh(q @ k.repeat_interleave(2, 1).mT * 0.5 / 2) + bias
    expected = scores.masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num() @ v.repeat_interleave(2, 1)
    torch.testing.assert_close(out, expected.transpose(1, 2))
    assert weights is None


def test_refusals():
    timesformer = ours.install(made(TimesformerModel, TimesformerConfig(patch_size=4, **VIDEO, **SIZE), "eager"))
    with pytest.raises(ValueError, match="'eager' with output_attentions"):
        timesformer(frames(), output_attentions=True)
    bert = made(BertModel, BertConfig(**TEXT, **SIZE), "eager")
    bert._supports_attention_backend = False
    with pytest.raises(ValueError, match="a TimeSformer or a model that looks its attention up by name, got BertModel"):
        ours.install(bert)
