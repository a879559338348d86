"""Files of weights that lie: pickles that would run something, damage, and networks that are not what was asked for."""

from __future__ import annotations

import argparse
import functools
import io
import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from official_pickles import (  # noqa: F401  (official_modules is a fixture)
    CONFIG,
    CONFIG3,
    D_CONFIG,
    SMALL,
    Calls,
    Official,
    dumped,
    generator,
    images,
    official,
    official_modules,
)
from torch import nn

from fastvfx.models import _unpickle, stylegan2, stylegan3
from fastvfx.models.checkpoint import CheckpointError

# --- files that lie ---------------------------------------------------------------------------------------------------


def attacks(target: Path) -> dict[str, object]:
    """Objects whose unpickling would make the file ``target``."""
    touch = f"open({str(target)!r}, 'w').close()"
    inner = io.BytesIO()
    torch.save(Calls(eval, touch), inner, _use_new_zipfile_serialization=False)
    net = stylegan2.Generator(CONFIG)
    net.register_buffer("trap", None)
    net._buffers["trap"] = Calls(os.system, f"touch {target}")  # type: ignore[assignment]
    return {
        "os.system": Calls(os.system, f"touch {target}"),
        "posix.system, nested": {"G_ema": {"state": [Calls(os.system, f"touch {target}")]}},
        "eval": Calls(eval, touch),
        "exec": Calls(exec, touch),
        "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "partial": Calls(functools.partial, eval, touch),
        "open": Calls(open, str(target), "w"),
        "in a storage": {"G_ema": Calls(torch.storage._load_from_bytes, inner.getvalue())},
        "in a module": {"G_ema": official(net)},
        "torch.load": Calls(torch.load, str(target)),
        "numpy.load": Calls(np.load, str(target)),
        "an unknown class": {"G_ema": argparse.Namespace()},
    }


@pytest.mark.parametrize("attack", attacks(Path("unused")).keys())
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, attack: str) -> None:
    target = tmp_path / "it-ran"
    path = dumped(tmp_path / "network.pkl", attacks(target)[attack])
    with pytest.raises(CheckpointError, match=r"network\.pkl: not a file of networks that can be read"):
        stylegan2.load_generator(path)
    assert not target.exists()


def test_the_error_names_what_was_refused(tmp_path: Path) -> None:
    path = dumped(tmp_path / "network.pkl", Calls(os.system, "true"))
    with pytest.raises(CheckpointError, match=r"names (posix|nt)\.system, which no network file needs; nothing of it"):
        stylegan2.load_generator(path)


def test_a_malicious_file_of_torch_runs_nothing(tmp_path: Path) -> None:
    target = tmp_path / "it-ran"
    torch.save({"g_ema": Calls(os.system, f"touch {target}")}, tmp_path / "network.pt")
    with pytest.raises(CheckpointError, match="not a file of networks"):
        stylegan2.load_generator(tmp_path / "network.pt")
    assert not target.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        # sets an attribute of one of the classes that stand for others
        b"\x80\x02ccollections\nOrderedDict\nN}X\x06\x00\x00\x00updateK\x01s\x86b.",
        b"\x80\x02cdnnlib.util\nEasyDict\n}X\x0c\x00\x00\x00__setstate__K\x01sb.",
        # sets the state, or an attribute, of a function
        b"\x80\x02c_codecs\nencode\n}X\x01\x00\x00\x00xK\x01sb.",
        b"\x80\x02c_codecs\nencode\nN}X\x0c\x00\x00\x00__defaults__K\x01s\x86b.",
        # a persistent object without a state; a module built of nothing
        b"\x80\x02ctorch_utils.persistence\n_reconstruct_persistent_obj\n}\x85R.",
        b"\x80\x02ctorch.nn.modules.linear\nLinear\n)\x81K\x01b.",
        # a persistent id, a tensor of a number, an array of objects
        b"\x80\x02Pname\n.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))\x89}tR.",
        b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00O8\x89\x88\x87R.",
    ],
    ids=[
        "slots of a class",
        "method of a class",
        "function",
        "slots of a function",
        "no state",
        "no module",
        "persistent id",
        "no storage",
        "objects",
    ],
)
def test_odd_opcodes_are_errors(opcodes: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError):
        _unpickle.load(io.BytesIO(opcodes))


def test_a_tensor_cannot_reach_beyond_its_storage() -> None:
    """The size in the file is a claim, and memory for it is only had where the file brought it."""
    storage = torch.zeros(4).storage()
    for offset, size, stride in [(2, (3,), (1,)), (0, (1 << 40,), (0,)), (1 << 62, (1, 1), (1 << 62, 1))]:
        claim = Calls(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())
        with pytest.raises(pickle.UnpicklingError, match="larger than its storage"):
            _unpickle.load(io.BytesIO(pickle.dumps(claim)))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_arrays_and_numbers_come_out_as_they_went_in(protocol: int) -> None:
    base = torch.arange(24.0)
    content = {
        "view": base.reshape(4, 6).T[1:, ::2],
        "half": base.to(torch.bfloat16),
        "parameter": nn.Parameter(base.long().double()),
        "empty": torch.empty(0, 3),
        "scalar": np.float32(0.1),
        "count": np.int64(7),
        "array": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
        "set": {"a", "b"},
        "options": sys.modules["dnnlib.util"].EasyDict(path="x"),
    }
    got = _unpickle.load(io.BytesIO(pickle.dumps(content, protocol)))
    for name in ("view", "half", "parameter", "empty"):
        assert torch.equal(got[name], content[name]) and got[name].dtype == content[name].dtype
    assert got["scalar"] == np.float32(0.1).item() and got["count"] == 7 and type(got["count"]) is int
    np.testing.assert_array_equal(got["array"].array, content["array"])
    assert got["set"] == {"a", "b"} and got["options"] == {"path": "x"}


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    good = dumped(tmp_path / "good.pkl", {"G_ema": official(generator()), "D": official(generator())})
    files = {
        "cut.pkl": good.read_bytes()[:-1000],
        "empty.pkl": b"",
        "text.pkl": b"<html>404 Not Found</html>",
        "cut.safetensors": b"\x40\x00\x00\x00\x00\x00\x00\x00{",
        "nothing.pkl": pickle.dumps({"a": 1}),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            stylegan2.load_generator(tmp_path / name)
    torch.save(generator().state_dict(), tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"cut\.pt"):
        stylegan2.load_generator(tmp_path / "cut.pt")
    with pytest.raises(CheckpointError, match="no such file"):
        stylegan2.load_generator(tmp_path / "missing.pkl")


def test_the_wrong_network(tmp_path: Path) -> None:
    net3 = stylegan3.Generator(CONFIG3)
    path = dumped(tmp_path / "three.pkl", {"G_ema": official(net3)})
    with pytest.raises(CheckpointError, match=r"no StyleGAN2 generator: it has no synthesis\.b4"):
        stylegan2.load_generator(path)
    with pytest.raises(CheckpointError, match="expected a network called D in it, got G_ema"):
        stylegan2.load_discriminator(path)
    path = dumped(tmp_path / "two.pkl", {"G_ema": official(generator()), "D": official(generator())})
    with pytest.raises(CheckpointError, match=r"no StyleGAN3 generator: it has no synthesis\.L0"):
        stylegan3.load_generator(path)
    with pytest.raises(CheckpointError, match="no StyleGAN2 discriminator"):
        stylegan2.load_discriminator(path)


def test_a_network_with_a_tensor_too_few(tmp_path: Path) -> None:
    state = generator().state_dict()
    del state["synthesis.b8.conv0.bias"]
    torch.save(state, tmp_path / "network.pt")
    with pytest.raises(CheckpointError, match=r"do not fit the model: .*b8\.conv0\.bias"):
        stylegan2.load_generator(tmp_path / "network.pt")


def test_layers_that_follow_no_schedule(tmp_path: Path) -> None:
    state = stylegan3.Generator(CONFIG3).state_dict()
    odd = {name.replace("L2_52_", "L2_53_").replace("L2_36_", "L2_37_"): x for name, x in state.items()}
    assert odd.keys() != state.keys()
    torch.save(odd, tmp_path / "network.pt")
    with pytest.raises(CheckpointError, match="no schedule known here; pass a config"):
        stylegan3.load_generator(tmp_path / "network.pt")
    torch.save(state, tmp_path / "network.pt")
    assert stylegan3.load_generator(tmp_path / "network.pt", config=CONFIG3).config == CONFIG3
