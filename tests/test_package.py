"""The package as it is installed: what it imports, what it loads, what it says when something is missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastvfx
from fastvfx import _ext


def run(code: str, **env: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env}, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_import_takes_only_torch_and_numpy():
    """Extras must not be needed by `import fastvfx`."""
    code = (
        "import sys, importlib.abc\n"
        "class Block(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.split('.')[0] in {'triton','tyro','rich','imageio','PIL','av','safetensors','matplotlib'}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import fastvfx, fastvfx.functional, fastvfx.data\n"
        "print(fastvfx.__version__)"
    )
    assert run(code) == fastvfx.__version__


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_openmp_runtime_in_the_process():
    code = (
        "import fastvfx, torch\n"
        "t = torch.rand(99, 64)\n"
        "fastvfx.composite(t, t[..., None], t, t + 1)\n"
        "print(len({l.split()[-1] for l in open('/proc/self/maps') if 'libgomp' in l or 'libomp' in l}))"
    )
    assert run(code) == "1"


def test_without_the_extension_everything_runs_on_the_reference():
    code = (
        "import sys; sys.modules['fastvfx._C'] = None\n"
        "import torch, fastvfx\n"
        "t = torch.linspace(0, 1, 5).expand(2, 5)\n"
        "out = fastvfx.composite(torch.ones(2, 4), torch.ones(2, 4, 3), t[:, :-1], t[:, 1:])\n"
        "print(round(out.opacity[0].item(), 4))\n"
        "fastvfx.backend('native')\n"
        "try: fastvfx.composite(torch.ones(2, 4), torch.ones(2, 4, 3), t[:, :-1], t[:, 1:])\n"
        "except RuntimeError as error: print(error)"
    )
    value, message = run(code).split("\n", 1)
    assert value == "0.6321"
    assert "no native kernel for device cpu" in message and "pip install" in message


def test_the_native_module_loads_where_it_was_built():
    """Else every test of a kernel would skip, and nothing fail. `make test` says that it was built."""
    built = list(Path(fastvfx.__file__).parent.glob("_C.*"))
    assert _ext._C is not None or not (built or os.environ.get("FASTVFX_BUILT")), _ext.why_missing


@pytest.mark.skipif(_ext._C is None or _ext._C.detected_isa() == "generic", reason="one instruction set was built")
def test_instruction_set_can_be_forced():
    assert run("import fastvfx; print(fastvfx._ext._C.active_isa())", FASTVFX_CPU_ISA="v2") == "x86-64-v2"
    with pytest.raises(ValueError, match="expected generic"):
        _ext._C.set_isa("avx9")


@pytest.mark.skipif(_ext._C is None, reason="the native module is missing")
def test_matrix_tiles_can_be_switched_off():
    code = "import fastvfx; print(fastvfx._ext._C.active_amx())"
    assert run(code) == str(_ext._C.detected_amx())
    assert run(code, FASTVFX_CPU_AMX="off") == "False"
    if not _ext._C.detected_amx():
        with pytest.raises(ValueError, match="no AMX"):
            _ext._C.set_amx(True)


def test_unknown_backend_in_the_environment_is_named():
    code = "try:\n    import fastvfx\nexcept ValueError as e: print(e)"
    assert run(code, FASTVFX_BACKEND="turbo") == (
        "FASTVFX_BACKEND: expected one of auto, native, reference, got 'turbo'"
    )


def test_the_readme_runs():
    text = (Path(__file__).parents[1] / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    assert run(code[1] + "\nprint(tuple(image.rgb.shape))") == "(4096, 3)"
